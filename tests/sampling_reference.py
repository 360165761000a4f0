"""What each sampling stage should do, said as slowly and plainly as it can be.

Candidates are a dict of token -> logit, in Python's own floats.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from naiad.engine.sampling import uniform
from naiad.types import SamplingParams

Left = dict[int, float]

N_CTX = 1024


@dataclass
class Case:
    """What a stage may look at besides the candidates."""

    params: SamplingParams
    seen: list[int]
    position: int = 0
    pieces: Callable[[int], bytes] = lambda token: b"%d," % token


Stage = Callable[[Left, Case], Left]


def softmax(left: Left) -> dict[int, float]:
    top = max(left.values())
    weights = {t: math.exp(x - top) for t, x in left.items()}
    total = sum(weights.values())
    return {t: w / total for t, w in weights.items()}


def by_logit(left: Left) -> list[int]:
    return sorted(left, key=lambda t: (-left[t], t))


def until(left: Left, order: Sequence[int], shares: dict[int, float], mass: float) -> Left:
    out, total = {}, 0.0
    for token in order:
        out[token] = left[token]
        total += shares[token]
        if total >= mass:
            break
    return out


def logit_bias(left: Left, case: Case) -> Left:
    out = dict(left)
    for token, bias in case.params.logit_bias:
        if token in out:
            out[token] += bias
    return out


def penalties(left: Left, case: Case) -> Left:
    p = case.params
    size = N_CTX if p.penalty_last_n < 0 else p.penalty_last_n
    window = case.seen[max(0, len(case.seen) - size) :]
    near = window[len(window) // 2 :]
    out = dict(left)
    for token, n in Counter(window).items():
        if token not in out:
            continue
        r = p.repetition_penalty
        if token not in near and r > 1:
            r = 1 + (r - 1) * p.penalty_slope
        x = out[token]
        x = x * r if x <= 0 else x / r
        out[token] = x - n * p.frequency_penalty - p.presence_penalty
    return out


def since_breaker(case: Case, tokens: list[int]) -> int:
    """Tokens after the one in which the last breaker ends."""
    text = b""
    n_since = len(tokens)
    for n, token in enumerate(tokens):
        before, text = len(text), text + case.pieces(token)
        ends = range(before + 1, len(text) + 1)
        for breaker in case.params.dry_breakers:
            raw = breaker.encode()
            if any(text[:end].endswith(raw) for end in ends):
                n_since = len(tokens) - n - 1
    return n_since


def dry(left: Left, case: Case) -> Left:
    p = case.params
    size = N_CTX if p.dry_last_n <= 0 else p.dry_last_n
    window = case.seen[max(0, len(case.seen) - size) :]
    most = since_breaker(case, case.seen)
    longest: dict[int, int] = {}
    for end in range(len(window) - 1):
        n = 0
        while n <= end and n < most and window[end - n] == window[len(window) - 1 - n]:
            n += 1
        following = window[end + 1]
        if n >= max(1, p.dry_allowed_length):
            longest[following] = max(n, longest.get(following, 0))
    out = dict(left)
    for token, n in longest.items():
        breaks = any(b.encode() in case.pieces(token) for b in p.dry_breakers)
        if token in out and not breaks:
            over = min(n - p.dry_allowed_length, int(88.7228391 / math.log(p.dry_base)))
            out[token] -= p.dry_multiplier * p.dry_base**over
    return out


def top_k(left: Left, case: Case) -> Left:
    kept = by_logit(left)[: case.params.top_k] if case.params.top_k else left
    return {t: left[t] for t in kept}


def top_p(left: Left, case: Case) -> Left:
    if case.params.top_p >= 1:
        return left
    return until(left, by_logit(left), softmax(left), case.params.top_p)


def min_p(left: Left, case: Case) -> Left:
    if case.params.min_p <= 0:
        return left
    shares = softmax(left)
    least = case.params.min_p * max(shares.values())
    return {t: x for t, x in left.items() if shares[t] >= least * (1 - 1e-9)}


def top_a(left: Left, case: Case) -> Left:
    shares = softmax(left)
    top = max(shares.values())
    least = min(case.params.top_a * top * top, top)
    return {t: x for t, x in left.items() if shares[t] >= least}


def typical_p(left: Left, case: Case) -> Left:
    """Those whose surprise is nearest to the expected one, until they hold typical_p."""
    if case.params.typical_p >= 1:
        return left
    shares = softmax(left)
    entropy = -sum(q * math.log(q) for q in shares.values() if q > 0)
    order = sorted(left, key=lambda t: abs(-math.log(max(shares[t], 1e-300)) - entropy))
    return until(left, order, shares, case.params.typical_p)


def epsilon_cutoff(left: Left, case: Case) -> Left:
    return at_least(left, case.params.epsilon_cutoff)


def eta_cutoff(left: Left, case: Case) -> Left:
    entropy = -sum(q * math.log(q) for q in softmax(left).values() if q > 0)
    epsilon = case.params.eta_cutoff
    return at_least(left, min(epsilon, math.sqrt(epsilon) * math.exp(-entropy)))


def at_least(left: Left, least: float) -> Left:
    shares = softmax(left)
    top = max(shares.values())
    return {t: x for t, x in left.items() if shares[t] >= min(least, top)}


def tfs(left: Left, case: Case) -> Left:
    if case.params.tfs >= 1 or len(left) <= 2:
        return left
    order = by_logit(left)
    shares = softmax(left)
    q = [shares[t] for t in order]
    slopes = [a - b for a, b in pairwise(q)]
    bends = [abs(a - b) for a, b in pairwise(slopes)]
    total = sum(bends)
    bends = [b / total if total > 1e-6 else 1 / len(bends) for b in bends]
    spent, n = 0.0, len(order)
    for i, bend in enumerate(bends):
        spent += bend
        if spent > case.params.tfs and i >= 1:
            n = i
            break
    return {t: left[t] for t in order[:n]}


def top_n_sigma(left: Left, case: Case) -> Left:
    if case.params.top_n_sigma <= 0 or len(left) <= 1:
        return left
    finite = [x for x in left.values() if x > -math.inf]
    mean = sum(finite) / len(finite)
    sigma = math.sqrt(sum((x - mean) ** 2 for x in finite) / len(finite))
    least = max(finite) - case.params.top_n_sigma * sigma
    return {t: x for t, x in left.items() if x >= least}


def xtc(left: Left, case: Case) -> Left:
    p = case.params
    if p.xtc_threshold > 0.5 or uniform(p.seed, 0, case.position, b"xtc") >= p.xtc_probability:
        return left
    shares = softmax(left)
    order = by_logit(left)
    n_top = sum(1 for t in order if shares[t] >= p.xtc_threshold)
    return {t: left[t] for t in order[max(0, n_top - 1) :]}


def temperature(left: Left, case: Case) -> Left:
    p = case.params
    by = p.temperature
    if p.dynatemp_range > 0:
        if len(left) <= 1:
            return left
        low, high = max(0.0, by - p.dynatemp_range), by + p.dynatemp_range
        entropy = -sum(q * math.log(q) for q in softmax(left).values() if q > 0)
        by = low + (high - low) * (entropy / math.log(len(left))) ** p.dynatemp_exponent
    return {t: x / by for t, x in left.items()}


def smoothing(left: Left, case: Case) -> Left:
    f, c = case.params.smoothing_factor, case.params.smoothing_curve
    if f <= 0:
        return left
    top = max(left.values())
    k, s = (3 - c) / 2, (c - 1) / 2
    return {t: -(k * f * (x - top) ** 2) + s * f * (x - top) ** 3 + top for t, x in left.items()}


STAGES: dict[str, Stage] = {
    "penalties": penalties,
    "dry": dry,
    "top_n_sigma": top_n_sigma,
    "top_k": top_k,
    "top_a": top_a,
    "tfs": tfs,
    "typical_p": typical_p,
    "epsilon_cutoff": epsilon_cutoff,
    "eta_cutoff": eta_cutoff,
    "top_p": top_p,
    "min_p": min_p,
    "xtc": xtc,
    "temperature": temperature,
    "smoothing": smoothing,
}


def run(left: Left, case: Case, order: Sequence[str]) -> Left:
    """Biases, then the order's stages."""
    left = logit_bias(left, case)
    for name in order:
        if len(left) > 1:
            left = STAGES[name](left, case)
    return left


def random_params(rng: random.Random) -> SamplingParams:
    """Every stage on or off, in a random order."""

    def on(value: float, neutral: float) -> float:
        return value if rng.random() < 0.4 else neutral

    order = list(STAGES)
    rng.shuffle(order)
    return SamplingParams(
        temperature=on(rng.choice([0.3, 0.8, 1.5]), 1.0),
        dynatemp_range=on(0.25, 0.0),
        dynatemp_exponent=rng.choice([1.0, 0.6]),
        smoothing_factor=on(0.3, 0.0),
        smoothing_curve=rng.choice([1.0, 1.7]),
        top_k=int(on(rng.choice([5, 40, 200]), 0)),
        top_p=on(rng.choice([0.95, 0.5]), 1.0),
        min_p=on(rng.choice([0.02, 0.3]), 0.0),
        top_a=on(0.2, 0.0),
        typical_p=on(rng.choice([0.9, 0.4]), 1.0),
        tfs=on(0.9, 1.0),
        epsilon_cutoff=on(0.003, 0.0),
        eta_cutoff=on(0.02, 0.0),
        top_n_sigma=on(1.5, 0.0),
        repetition_penalty=on(1.2, 1.0),
        penalty_last_n=rng.choice([-1, 0, 20]),
        penalty_slope=rng.choice([1.0, 0.5]),
        frequency_penalty=on(0.4, 0.0),
        presence_penalty=on(-0.6, 0.0),
        dry_multiplier=on(0.8, 0.0),
        dry_last_n=rng.choice([-1, 0, 30]),
        dry_breakers=rng.choice([(), ("1,", "3,2")]),
        xtc_probability=on(0.6, 0.0),
        xtc_threshold=rng.choice([0.05, 0.2]),
        logit_bias=rng.choice([(), ((2, 4.0), (9, -3.0))]),
        order=tuple(order),
        seed=rng.randrange(2**64),
    )

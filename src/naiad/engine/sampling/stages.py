"""The one table of stages that an order selects from.

llama.cpp's own stages where they exist and hold no state; ours where there is none, or where
llama.cpp's keeps a generator or a state of its own. A stage may also know how to make the first cut
from a whole row of logits (its opening), so that the vocabulary is gone through once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from naiad.engine.sampling.draws import Floats, down_from_top, shares_of, uniform
from naiad.engine.sampling.rows import (
    Left,
    Row,
    above,
    descending,
    everything,
    largest,
    log_total,
    near_top,
    nucleus,
    total_and_entropy,
)
from naiad.native.sampler import Candidates, SamplerChain
from naiad.types import SamplingParams


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a draw is made."""

    seed: int
    choice: int
    position: int
    scratch: Candidates

    def uniform(self, purpose: bytes = b"") -> float:
        return uniform(self.seed, self.choice, self.position, purpose)


Step = Callable[[Left, Moment], Left]
Opening = Callable[[Row], Left]
Own = Callable[[SamplingParams, Left, Moment], Left]


@dataclass(frozen=True, slots=True)
class Stage:
    """One row of the table; what is None a stage does not have.

    is_on: whether the parameters ask for it. native: adds llama.cpp's stage to a chain. own: our
    stage. opening: makes the first cut. is_opened_whole: the opening does all the stage does.
    """

    is_on: Callable[[SamplingParams], bool]
    native: Callable[[SamplingParams, SamplerChain], None] | None = None
    own: Own | None = None
    opening: Callable[[SamplingParams], Opening] | None = None
    is_opened_whole: bool = True


# -- our own stages -----------------------------------------------------------------------------


def top_n_sigma(p: SamplingParams, left: Left, _moment: Moment) -> Left:
    """Keeps logits within n standard deviations below the greatest (arXiv 2411.07641).

    llama.cpp's stage only sets the others to minus infinity; they would still count as candidates
    in the stages after it.
    """
    logits = left.logits.astype(np.float64)
    spread = float(logits[np.isfinite(logits)].std())
    keep = logits >= logits.max() - p.top_n_sigma * spread
    return Left(left.ids[keep], left.logits[keep])


def top_a(p: SamplingParams, left: Left, _moment: Moment) -> Left:
    """Keeps tokens with at least a * (the greatest share) squared. Source: KoboldAI."""
    shares = shares_of(left.logits)
    top = float(np.maximum.reduce(shares))
    keep = shares >= min(p.top_a * top * top, top)
    return Left(left.ids[keep], left.logits[keep])


def _open_top_a(p: SamplingParams) -> Opening:
    def opening(row: Row) -> Left:
        return above(row, row.top + (math.log(p.top_a) - log_total(row)) / row.scale)

    return opening


def epsilon_cutoff(p: SamplingParams, left: Left, _moment: Moment) -> Left:
    """Keeps tokens with at least this share, and the best (Hewitt et al., arXiv 2210.15191)."""
    return _at_least(left, shares_of(left.logits), p.epsilon_cutoff)


def eta_cutoff(p: SamplingParams, left: Left, _moment: Moment) -> Left:
    """As epsilon, with min(epsilon, sqrt(epsilon) * exp(-entropy)). Source: the same paper."""
    shares = shares_of(left.logits)
    some = shares[shares > 0]
    return _at_least(left, shares, _eta(p.eta_cutoff, -float(some @ np.log(some))))


def _eta(epsilon: float, entropy: float) -> float:
    return min(epsilon, math.sqrt(epsilon) * math.exp(-entropy))


def _at_least(left: Left, shares: Floats, least: float) -> Left:
    keep = shares >= min(least, float(shares.max()))
    return Left(left.ids[keep], left.logits[keep])


def _open_epsilon(p: SamplingParams) -> Opening:
    def opening(row: Row) -> Left:
        return above(row, row.top + (math.log(p.epsilon_cutoff) + log_total(row)) / row.scale)

    return opening


def _open_eta(p: SamplingParams) -> Opening:
    def opening(row: Row) -> Left:
        total, entropy = total_and_entropy(row)
        least = _eta(p.eta_cutoff, entropy)
        if least <= 0:  # underflow: nothing is too unlikely
            return everything(row)
        return above(row, row.top + (math.log(least) + total) / row.scale)

    return opening


def tail_free(p: SamplingParams, left: Left, _moment: Moment) -> Left:
    """Cuts where the sorted shares' curve has spent z of its bend.

    Source: Trenton Bricken, "Tail Free Sampling" (2020), as llama.cpp had it: the second
    differences of the shares, best first, absolute and divided by their sum, are added up; the
    tokens before the first place (from the second on) where the sum passes z are kept.
    """
    if len(left.ids) <= 2:
        return left
    ids, logits = descending(left)
    shares = shares_of(logits)
    slope = shares[1:] - shares[:-1]
    bend = np.abs(slope[1:] - slope[:-1])
    total = float(bend.sum())
    bend = bend / total if total > 1e-6 else np.full(len(bend), 1 / len(bend))
    passed = bend.cumsum() > p.tfs
    passed[0] = False
    n = int(passed.argmax()) if passed.any() else len(ids)
    return Left(ids[:n], logits[:n])


def typical(p: SamplingParams, left: Left, _moment: Moment) -> Left:
    """Keeps the tokens whose surprise is nearest to the expected one, until they hold p.

    Source: Meister et al., arXiv 2202.00666. llama.cpp's stage computes NaN, and keeps what it
    should not, as soon as a share is too small for a float32 (a banned token's, say).
    """
    away = down_from_top(left.logits)
    weights = np.exp(away)
    total = float(np.add.reduce(weights))
    surprise = math.log(total) - away
    known = slice(None) if math.isfinite(np.minimum.reduce(away)) else weights > 0
    expected = float(weights[known] @ surprise[known]) / total
    order = np.argsort(np.abs(surprise - expected), kind="stable")
    n = int(weights[order].cumsum().searchsorted(p.typical_p * total, side="right")) + 1
    keep = np.sort(order[:n])
    return Left(left.ids[keep], left.logits[keep])


def smoothing(p: SamplingParams, left: Left, _moment: Moment) -> Left:
    """Quadratic and cubic smoothing. Source: kalomaze, text-generation-webui.

    With d = logit - (the greatest logit), f the factor and c the curve, the logit becomes
    max - f * (3 - c) / 2 * d**2 + f * (c - 1) / 2 * d**3; c = 1 is purely quadratic.
    """
    top = float(np.maximum.reduce(left.logits))
    down = np.maximum(down_from_top(left.logits), -1e30)  # of minus infinity too: no NaN
    factor, curve = p.smoothing_factor, p.smoothing_curve
    square = down * down
    bent = square * (-(3 - curve) / 2 * factor)
    if curve != 1:
        bent += square * down * ((curve - 1) / 2 * factor)
    with np.errstate(over="ignore"):
        logits = (top + bent).astype(np.float32)
    logits[left.logits == -np.inf] = -np.inf
    return Left(left.ids, logits)


def xtc(p: SamplingParams, left: Left, moment: Moment) -> Left:
    """With the given probability, excludes all top choices but the least of them.

    Source: p-e-w, text-generation-webui pull request 6335. Top choices are the tokens with at
    least the threshold's share; one alone is kept. Thresholds above 0.5 leave at most one.
    """
    if moment.uniform(b"xtc") >= p.xtc_probability:
        return left
    ids, logits = descending(left)
    n_top = int(np.count_nonzero(shares_of(logits) >= p.xtc_threshold))
    return Left(ids[max(0, n_top - 1) :], logits[max(0, n_top - 1) :])


# -- llama.cpp's ----------------------------------------------------------------------------------


def _open_min_p(p: SamplingParams) -> Opening:
    def opening(row: Row) -> Left:
        width = -math.log(p.min_p) / row.scale
        return above(row, row.top - width - 1e-5 * (width + abs(row.top)) - 1e-5)

    return opening


def _has_temperature(p: SamplingParams) -> bool:
    return p.temperature != 1 or p.dynatemp_range > 0


def _temperature(p: SamplingParams, chain: SamplerChain) -> None:
    """Dynamic: t - range + 2 * range * (entropy / ln n) ** exponent (arXiv 2309.02772)."""
    chain.add_temperature(p.temperature, p.dynatemp_range, p.dynatemp_exponent)


STAGES: dict[str, Stage] = {
    "top_n_sigma": Stage(
        lambda p: p.top_n_sigma > 0,
        own=top_n_sigma,
        opening=lambda p: lambda row: near_top(row, p.top_n_sigma),
    ),
    "top_k": Stage(
        lambda p: p.top_k > 0,
        native=lambda p, chain: chain.add_top_k(p.top_k),
        opening=lambda p: lambda row: largest(row, p.top_k),
    ),
    "top_a": Stage(lambda p: p.top_a > 0, own=top_a, opening=_open_top_a),
    "tfs": Stage(lambda p: p.tfs < 1, own=tail_free),
    "typical_p": Stage(lambda p: p.typical_p < 1, own=typical),
    "epsilon_cutoff": Stage(
        lambda p: p.epsilon_cutoff > 0, own=epsilon_cutoff, opening=_open_epsilon
    ),
    "eta_cutoff": Stage(lambda p: p.eta_cutoff > 0, own=eta_cutoff, opening=_open_eta),
    "top_p": Stage(
        lambda p: p.top_p < 1,
        native=lambda p, chain: chain.add_top_p(p.top_p),
        opening=lambda p: lambda row: nucleus(row, p.top_p),
    ),
    "min_p": Stage(
        lambda p: p.min_p > 0,
        native=lambda p, chain: chain.add_min_p(p.min_p),
        opening=_open_min_p,
        is_opened_whole=False,
    ),
    "xtc": Stage(lambda p: p.xtc_probability > 0 and p.xtc_threshold <= 0.5, own=xtc),
    "temperature": Stage(_has_temperature, native=_temperature),
    "smoothing": Stage(lambda p: p.smoothing_factor > 0, own=smoothing),
}

"""Each stage against the slowest, plainest account of what it should do; then the whole chain."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from fake_executor import EOG, N_VOCAB, FakeExecutor, FakeVocab
from naiad.engine.base import CoreJob
from naiad.engine.core import CoreLimits, EngineCore
from naiad.engine.executor import Run
from naiad.engine.sampling import DEFAULT_ORDER, STAGES, Sampler, draw, uniform
from naiad.engine.scheduler import StepBudget
from naiad.ipc.messages import StreamItem
from naiad.native.sampler import CANDIDATE, Candidates, SamplerChain
from naiad.types import FinishReason, SamplingParams

pytestmark = pytest.mark.engine

Logits = npt.NDArray[np.float32]
Left = dict[int, float]  # token -> logit of the candidates that are left
SIZES = (1, 2, 17, 300, 4000)


def random_logits(seed: int, n: int, spread: float = 4.0) -> Logits:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(n) * spread).astype(np.float32)


def softmax(left: Left) -> dict[int, float]:
    top = max(left.values())
    weights = {t: math.exp(x - top) for t, x in left.items()}
    total = sum(weights.values())
    return {t: w / total for t, w in weights.items()}


def by_logit(left: Left) -> list[int]:
    return sorted(left, key=lambda t: -left[t])


# -- what the stages should do ----------------------------------------------------------------


def plain_logit_bias(left: Left, p: SamplingParams, _seen: list[int]) -> Left:
    out = dict(left)
    for token, bias in p.logit_bias:
        if token in out:
            out[token] += bias
    return out


def plain_penalties(left: Left, p: SamplingParams, seen: list[int]) -> Left:
    last_n = len(seen) if p.penalty_last_n < 0 else p.penalty_last_n
    counts = Counter(seen[max(0, len(seen) - last_n) :])
    out = dict(left)
    for token, n in counts.items():
        x = out[token]
        x = x * p.repetition_penalty if x <= 0 else x / p.repetition_penalty
        out[token] = x - n * p.frequency_penalty - p.presence_penalty
    return out


def plain_top_k(left: Left, p: SamplingParams, _seen: list[int]) -> Left:
    kept = by_logit(left)[: p.top_k] if p.top_k else left
    return {t: left[t] for t in kept}


def plain_typical(left: Left, p: SamplingParams, _seen: list[int]) -> Left:
    """Those whose surprise is nearest to the expected one, until they hold typical_p."""
    if p.typical_p >= 1:
        return left
    shares = softmax(left)
    entropy = -sum(q * math.log(q) for q in shares.values() if q > 0)
    order = sorted(left, key=lambda t: abs(-math.log(max(shares[t], 1e-300)) - entropy))
    return _until(left, order, shares, p.typical_p)


def plain_top_p(left: Left, p: SamplingParams, _seen: list[int]) -> Left:
    if p.top_p >= 1:
        return left
    return _until(left, by_logit(left), softmax(left), p.top_p)


def _until(left: Left, order: list[int], shares: dict[int, float], mass: float) -> Left:
    out, total = {}, 0.0
    for token in order:
        out[token] = left[token]
        total += shares[token]
        if total >= mass:
            break
    return out


def plain_min_p(left: Left, p: SamplingParams, _seen: list[int]) -> Left:
    if p.min_p <= 0:
        return left
    shares = softmax(left)
    top = max(shares.values())
    return {t: x for t, x in left.items() if shares[t] >= p.min_p * top}


def plain_temperature(left: Left, p: SamplingParams, _seen: list[int]) -> Left:
    return {t: x / p.temperature for t, x in left.items()}


PLAIN: dict[str, Callable[[Left, SamplingParams, list[int]], Left]] = {
    "logit_bias": plain_logit_bias,
    "penalties": plain_penalties,
    "top_k": plain_top_k,
    "typical_p": plain_typical,
    "top_p": plain_top_p,
    "min_p": plain_min_p,
    "temperature": plain_temperature,
}


def through(logits: Logits, p: SamplingParams, stages: tuple[str, ...], seen: list[int]) -> Left:
    """What llama.cpp's stages leave."""
    chain, candidates = SamplerChain(), Candidates(len(logits))
    for name in stages:
        STAGES[name](chain, p, len(logits), 1024)
    for token in seen:
        chain.accept(token)
    candidates.fill(logits)
    rows = candidates.apply(chain)
    left = {int(t): float(x) for t, x in zip(rows["id"], rows["logit"], strict=True)}
    assert len(left) == len(rows), "a token twice"
    chain.close()
    return left


def check(logits: Logits, p: SamplingParams, stages: tuple[str, ...], seen: list[int]) -> Left:
    want: Left = {t: float(x) for t, x in enumerate(logits)}
    for name in stages:
        want = PLAIN[name](want, p, seen)
    got = through(logits, p, stages, seen)
    assert got.keys() == want.keys()
    for token, x in want.items():
        assert got[token] == pytest.approx(x, rel=1e-4, abs=1e-4)
    return got


# -- each alone -------------------------------------------------------------------------------


def test_the_table_and_the_plain_accounts_are_complete() -> None:
    assert tuple(PLAIN) == DEFAULT_ORDER == tuple(STAGES)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("k", [1, 2, 40, 129, 3999, 4000, 10**6])
def test_top_k(n: int, k: int) -> None:
    left = check(random_logits(n, n), SamplingParams(top_k=k), ("top_k",), [])
    assert len(left) == min(n, k)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.97])
@pytest.mark.parametrize("name", ["top_p", "min_p", "typical_p"])
def test_cuts(n: int, share: float, name: str) -> None:
    p = SamplingParams(**{name: share})  # type: ignore[arg-type]
    for spread in (0.5, 4.0):
        left = check(random_logits(n + 1, n, spread), p, (name,), [])
        assert left


@pytest.mark.parametrize("temperature", [0.01, 0.7, 1.0, 1.9, 100.0])
def test_temperature(temperature: float) -> None:
    check(random_logits(5, 300), SamplingParams(temperature=temperature), ("temperature",), [])


@pytest.mark.parametrize("repetition", [0.5, 1.0, 1.3])
@pytest.mark.parametrize(("frequency", "presence"), [(0.0, 0.0), (0.7, 0.0), (0.0, -1.5), (2, 2)])
@pytest.mark.parametrize("last_n", [-1, 0, 1, 5, 64])
def test_penalties(repetition: float, frequency: float, presence: float, last_n: int) -> None:
    rng = random.Random(last_n)
    seen = [rng.randrange(30) for _ in range(100)]
    p = SamplingParams(
        repetition_penalty=repetition,
        frequency_penalty=frequency,
        presence_penalty=presence,
        penalty_last_n=last_n,
    )
    check(random_logits(6, 60), p, ("penalties",), seen)


def test_logit_bias_adds_up_and_ignores_what_is_no_token() -> None:
    p = SamplingParams(logit_bias=((3, 2.5), (59, -100.0), (3, 1.0), (60, 9.0), (-1, 9.0)))
    left = check(random_logits(7, 60), p, ("logit_bias",), [])
    assert len(left) == 60


@pytest.mark.parametrize("name", DEFAULT_ORDER)
def test_neutral_settings_add_no_stage(name: str) -> None:
    logits = random_logits(8, 300)
    left = through(logits, SamplingParams(), (name,), [1, 2, 3])
    assert list(left.items()) == [(t, float(x)) for t, x in enumerate(logits)]


# -- together ---------------------------------------------------------------------------------


def random_params(rng: random.Random) -> SamplingParams:
    return SamplingParams(
        temperature=rng.choice([0.3, 0.8, 1.0, 1.5]),
        top_k=rng.choice([0, 5, 40, 200]),
        top_p=rng.choice([1.0, 0.95, 0.5]),
        min_p=rng.choice([0.0, 0.05, 0.3]),
        typical_p=rng.choice([1.0, 0.9, 0.4]),
        repetition_penalty=rng.choice([1.0, 1.2]),
        frequency_penalty=rng.choice([0.0, 0.4]),
        presence_penalty=rng.choice([0.0, -0.6]),
        penalty_last_n=rng.choice([-1, 0, 20]),
        logit_bias=rng.choice([(), ((2, 4.0), (9, -3.0))]),
        seed=rng.randrange(2**64),
    )


@pytest.mark.parametrize("seed", range(40))
def test_the_whole_chain_is_the_stages_in_order(seed: int) -> None:
    rng = random.Random(seed)
    n = rng.choice([40, 400, 3000])
    seen = [rng.randrange(n) for _ in range(rng.randrange(60))]
    check(random_logits(seed, n, 3.0), random_params(rng), DEFAULT_ORDER, seen)


def test_cuts_come_before_temperature() -> None:
    """Hot settings flatten what the cuts have kept; they do not let more through."""
    logits = np.array([4.0, 3.0, 1.0, 0.0], np.float32)
    p = SamplingParams(temperature=50.0, top_p=0.9)
    assert check(logits, p, DEFAULT_ORDER, []).keys() == {0, 1}


@pytest.mark.parametrize("seed", range(6))
def test_tokens_come_as_often_as_their_share(seed: int) -> None:
    rng = random.Random(100 + seed)
    p = random_params(rng)
    logits = random_logits(seed, 30, 1.5)
    want: Left = {t: float(x) for t, x in enumerate(logits)}
    for name in DEFAULT_ORDER:
        want = PLAIN[name](want, p, [])
    n = 4000
    candidates = Candidates(30)
    counts: Counter[int] = Counter()
    for position in range(n):
        sampler = Sampler(p, 30, 64, frozenset(), [])
        counts[sampler.sample(logits.copy(), position, candidates)] += 1
        sampler.close()
    assert counts.keys() <= want.keys()
    for token, share in softmax(want).items():
        assert counts[token] / n == pytest.approx(share, abs=0.035)


# -- greedy -----------------------------------------------------------------------------------


def one(p: SamplingParams, logits: Logits, seen: list[int] | None = None) -> int:
    sampler = Sampler(p, len(logits), 64, frozenset({0}), seen or [])
    try:
        return sampler.sample(logits.copy(), 5, Candidates(len(logits)))
    finally:
        sampler.close()


@pytest.mark.parametrize("seed", range(10))
def test_the_fast_way_and_the_long_way_agree(seed: int) -> None:
    logits = np.round(random_logits(seed, 200, 1.0), 1)  # rounded: ties happen
    fast = one(SamplingParams(temperature=0), logits)
    assert fast == one(SamplingParams(temperature=0, logit_bias=((5, 0.0),)), logits)
    assert fast == one(SamplingParams(temperature=0, presence_penalty=0.5), logits)
    assert fast == one(SamplingParams(top_k=1, temperature=3.0), logits)
    assert fast == int(logits.argmax())


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-45])
def test_a_temperature_that_would_overflow_is_greedy(temperature: float) -> None:
    logits = random_logits(3, 500)
    for seed in range(20):
        p = SamplingParams(temperature=temperature, seed=seed)
        assert one(p, logits) == int(logits.argmax())


def test_the_coldest_draw_is_still_finite() -> None:
    logits = random_logits(3, 500, 20.0)
    assert one(SamplingParams(temperature=1e-5), logits) == int(logits.argmax())


def test_greedy_with_penalties_is_the_plain_account() -> None:
    rng = random.Random(5)
    for seed in range(20):
        logits, seen = random_logits(seed, 40, 1.0), [rng.randrange(40) for _ in range(30)]
        p = SamplingParams(temperature=0, repetition_penalty=1.4, frequency_penalty=0.2)
        left = plain_penalties({t: float(x) for t, x in enumerate(logits)}, p, seen)
        assert one(p, logits, seen) == by_logit(left)[0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_banned_ends_are_never_chosen_whatever_favours_them(temperature: float) -> None:
    logits = np.zeros(3, np.float32)
    logits[0] = 50
    for seed in range(30):
        p = SamplingParams(
            temperature=temperature, ignore_eos=True, logit_bias=((0, 100.0),), seed=seed, top_k=3
        )
        assert one(p, logits) != 0


def test_tokens_of_no_weight_are_never_drawn() -> None:
    rows = np.zeros(4, CANDIDATE)
    rows["id"] = [7, 8, 9, 10]
    rows["logit"] = [-np.inf, 0.0, -np.inf, -np.inf]
    for u in (0.0, 0.5, 1 - 2**-53):
        assert draw(rows, u) == 8


def test_draws_invert_the_running_sum() -> None:
    logits = random_logits(9, 25)
    rows = np.zeros(25, CANDIDATE)
    rows["id"], rows["logit"] = np.arange(25), logits
    shares = softmax({t: float(x) for t, x in enumerate(logits)})
    for position in range(200):
        u, total = uniform(3, 0, position), 0.0
        for want in range(25):
            total += shares[want]
            if total > u:
                break
        assert draw(rows, u) == want


def test_closing_twice_is_safe() -> None:
    sampler = Sampler(SamplingParams(), 10, 64, frozenset(), [])
    sampler.close()
    sampler.close()


# -- in the engine ----------------------------------------------------------------------------


class NoisyExecutor(FakeExecutor):
    """Logits that depend on every token of the sequence and favour none for long."""

    poison: float | None = None

    def _row(self, run: Run) -> Logits:
        row = super()._row(run)  # checks for holes
        cells = self.memory.sequences[run.slot]
        key = hash(tuple(cells[p][0] for p in sorted(cells))) % 2**32
        row[:] = np.random.default_rng(key).standard_normal(N_VOCAB).astype(np.float32) * 2
        if self.poison is not None:
            row[5] = self.poison
        return row


def run(jobs: dict[int, CoreJob], n_cells: int, executor: FakeExecutor) -> dict[int, list[int]]:
    limits = CoreLimits(
        n_ctx=120,
        pool_cells=n_cells,
        parallel=4,
        n_parked=2,
        budget=StepBudget(alone=32, beside=8),
        check_integrity=True,
    )
    core = EngineCore(executor, FakeVocab(), limits)
    for job in jobs.values():
        core.add(job)
    said: dict[int, list[int]] = {uid: [] for uid in jobs}
    for _ in range(5000):
        if not core.has_work():
            return said
        for item in core.step():
            said[item.uid] += item.tokens
    raise AssertionError("a livelock")


def test_seeds_and_penalties_survive_starting_over() -> None:
    """A pool so small that streams are put back: each says what it says alone."""
    rng = random.Random(11)
    jobs = {
        uid: CoreJob(
            uid,
            tuple(rng.randrange(EOG) for _ in range(25)),
            60,
            SamplingParams(
                seed=uid, repetition_penalty=1.3, frequency_penalty=0.3, top_k=30, ignore_eos=True
            ),
        )
        for uid in range(4)
    }
    alone = {uid: run({uid: job}, 4096, NoisyExecutor(4096))[uid] for uid, job in jobs.items()}
    crowded = NoisyExecutor(125)
    assert run(jobs, 125, crowded) == alone
    assert all(len(tokens) == 60 for tokens in alone.values())
    restarts = [r for runs in crowded.decoded for r in runs if r.start == 0]
    assert len(restarts) > len(jobs)  # the pool was too small indeed


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_one_bad_number_ends_the_stream_before_a_token_is_drawn(
    poison: float, temperature: float
) -> None:
    executor = NoisyExecutor()
    executor.poison = poison
    core = EngineCore(executor, FakeVocab(), CoreLimits(n_ctx=50, pool_cells=50, parallel=1))
    core.add(CoreJob(1, (1, 2, 3, 4), 9, SamplingParams(temperature=temperature, top_p=0.9)))
    items: list[StreamItem] = core.step()
    assert [(i.tokens, i.finish) for i in items] == [([], FinishReason.ERROR)]
    assert items[0].error is not None
    assert "NaN or infinity" in items[0].error[1]
    assert not core.has_work()


def test_minus_infinity_is_a_number_like_any_other() -> None:
    executor = NoisyExecutor()
    executor.poison = -math.inf
    jobs = {1: CoreJob(1, (1, 2, 3, 4), 40, SamplingParams(ignore_eos=True))}
    assert 5 not in run(jobs, 4096, executor)[1]

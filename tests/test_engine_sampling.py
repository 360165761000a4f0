"""Each stage against the slowest, plainest account of what it should do; then whole orders."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import sampling_reference as plain
from fake_executor import EOG, N_VOCAB, FakeExecutor, FakeVocab
from naiad.dialects.sampler_order import NAMED_STAGES
from naiad.engine.base import CoreJob
from naiad.engine.core import CoreLimits, EngineCore
from naiad.engine.executor import Run
from naiad.engine.sampling import (
    DEFAULT_ORDER,
    NO_TOKEN,
    STAGES,
    Sampler,
    draw,
    uniform,
)
from naiad.engine.scheduler import StepBudget
from naiad.engine.text_bias import with_text_biases
from naiad.ipc.messages import StreamItem
from naiad.native.sampler import CANDIDATE, Candidates, SamplerChain
from naiad.types import FinishReason, SamplingParams
from sampling_reference import Case, Left, softmax

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("steady_clock")]

Logits = npt.NDArray[np.float32]
SIZES = (1, 2, 17, 300, 4000)
_CUTS = [
    "top_p",
    "min_p",
    "typical_p",
    "tfs",
    "top_a",
    "top_n_sigma",
    "epsilon_cutoff",
    "eta_cutoff",
]


def piece(token: int) -> bytes:
    return b"%d," % token


def random_logits(seed: int, n: int, spread: float = 4.0) -> Logits:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(n) * spread).astype(np.float32)


def sampler_of(p: SamplingParams, n: int, seen: list[int]) -> Sampler:
    return Sampler(p, n, plain.N_CTX, frozenset({0}), seen, piece)


def through(logits: Logits, p: SamplingParams, seen: list[int]) -> Left:
    """What the engine draws from; the logits must be as they were."""
    sampler, before = sampler_of(p, len(logits), seen), logits.copy()
    ids, left = sampler.distribution(logits, 0, Candidates(len(logits)))
    sampler.close()
    assert np.array_equal(logits, before)
    assert len(set(ids.tolist())) == len(ids), "a token twice"
    found = dict(zip(ids.tolist(), left.tolist(), strict=True))
    return {t: x for t, x in found.items() if x > -math.inf}


def check(logits: Logits, p: SamplingParams, seen: list[int], order: tuple[str, ...] = ()) -> Left:
    whole = {t: float(x) for t, x in enumerate(logits)}
    want = plain.run(whole, Case(p, seen, 0, piece), order or p.order or DEFAULT_ORDER[:-1])
    got = through(logits, p, seen)
    assert got.keys() == want.keys()
    if len(want) > 1:  # the last one left is not changed any more
        for token, x in want.items():
            assert got[token] == pytest.approx(x, rel=1e-4, abs=1e-4)
    return got


def params(**values: Any) -> SamplingParams:
    return SamplingParams(**values)


# -- each alone -------------------------------------------------------------------------------


def test_tables_orders_and_accounts_name_the_same_stages() -> None:
    shaping, choosing = {"penalties", "dry"}, {"adaptive_p"}
    assert set(STAGES) | shaping == set(plain.STAGES)
    assert set(DEFAULT_ORDER) == set(plain.STAGES) | choosing
    assert {stage for stages in NAMED_STAGES.values() for stage in stages} == set(DEFAULT_ORDER)


@pytest.mark.parametrize("n", [*SIZES, 8192, 9001])
@pytest.mark.parametrize("k", [1, 2, 40, 129, 256, 257, 3999, 4000, 10**6])
def test_top_k(n: int, k: int) -> None:
    left = through(random_logits(n, n), params(top_k=k), [])
    want = sorted(range(n), key=lambda t: -random_logits(n, n)[t]) if n < 20 else None
    order = np.argsort(-random_logits(n, n), kind="stable")[:k].tolist()
    assert list(left) == (want[:k] if want else order) or k == 1
    assert len(left) == min(n, k)


def test_top_k_breaks_ties_by_token() -> None:
    logits = np.round(random_logits(4, 20_000, 1.0))
    want = np.argsort(-logits, kind="stable")[:50].tolist()
    assert list(through(logits, params(top_k=50), [])) == want
    assert list(through(logits, params(top_k=50, temperature=0.5), [])) == want


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.97])
@pytest.mark.parametrize("name", [*_CUTS])
def test_cuts(n: int, share: float, name: str) -> None:
    for spread in (0.5, 4.0):
        for order in ((), (name, "temperature"), ("temperature", name), ("top_k", name)):
            p = params(**{name: share}, top_k=100, temperature=0.7, order=order)
            assert check(random_logits(n + 1, n, spread), p, [])


@pytest.mark.parametrize("banned", [1, 50])
def test_banned_tokens_do_not_count_for_top_n_sigma(banned: int) -> None:
    p = params(top_n_sigma=1.0, logit_bias=tuple((t, -math.inf) for t in range(banned)))
    assert check(random_logits(1, 300), p, []).keys().isdisjoint(range(banned))


@pytest.mark.parametrize("temperature", [0.01, 0.7, 1.0, 1.9, 100.0])
@pytest.mark.parametrize(("spread", "power"), [(0.0, 1.0), (0.5, 1.0), (2.0, 0.5)])
def test_temperature(temperature: float, spread: float, power: float) -> None:
    p = params(temperature=temperature, dynatemp_range=spread, dynatemp_exponent=power)
    check(random_logits(5, 300), p, [])


@pytest.mark.parametrize("factor", [0.05, 0.3, 5.0])
@pytest.mark.parametrize("curve", [1.0, 1.5, 3.0, 4.0])
def test_smoothing(factor: float, curve: float) -> None:
    check(random_logits(5, 300), params(smoothing_factor=factor, smoothing_curve=curve), [])


@pytest.mark.parametrize("repetition", [0.5, 1.0, 1.3])
@pytest.mark.parametrize(("frequency", "presence"), [(0.0, 0.0), (0.7, 0.0), (0.0, -1.5), (2, 2)])
@pytest.mark.parametrize("last_n", [-1, 0, 1, 5, 64])
@pytest.mark.parametrize("slope", [1.0, 0.3])
def test_penalties(
    repetition: float, frequency: float, presence: float, last_n: int, slope: float
) -> None:
    rng = random.Random(last_n)
    p = params(
        repetition_penalty=repetition,
        frequency_penalty=frequency,
        presence_penalty=presence,
        penalty_last_n=last_n,
        penalty_slope=slope,
    )
    for n in (100, 6, 1, 0):
        check(random_logits(6, 60), p, [rng.randrange(30) for _ in range(n)])


def test_llama_cpps_penalties_say_the_same() -> None:
    rng = random.Random(1)
    seen, logits = [rng.randrange(40) for _ in range(90)], random_logits(2, 60)
    chain, candidates = SamplerChain(), Candidates(60)
    chain.add_penalties(60, 50, 1.3, 0.4, 0.2)
    for token in seen:
        chain.accept(token)
    candidates.fill(logits)
    rows = candidates.apply(chain)
    p = params(
        repetition_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.2, penalty_last_n=50
    )
    got = through(logits, p, seen)
    assert [got[t] for t in range(60)] == pytest.approx(rows["logit"].tolist(), rel=1e-5)
    chain.close()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("breakers", [(), ("2,",), ("1,2", "3,3,3")])
def test_dry(seed: int, breakers: tuple[str, ...]) -> None:
    rng = random.Random(seed)
    for n in (0, 1, 2, 5, 40, 200):
        p = params(
            dry_multiplier=0.8,
            dry_base=rng.choice([1.0, 1.1, 1.75, 4.0]) + 1e-5,
            dry_allowed_length=rng.choice([0, 1, 2, 5]),
            dry_last_n=rng.choice([-1, 0, 1, 2, 30, 500]),
            dry_breakers=breakers,
        )
        check(random_logits(seed, 60), p, [rng.randrange(4) for _ in range(n)])


def test_dry_of_one_token_over_and_over_does_not_overflow() -> None:
    p = params(dry_multiplier=1.0, dry_base=1.75, dry_last_n=400)
    left = through(random_logits(1, 9), p, [5] * 600)
    assert -3e38 < left[5] < -1e30
    assert left.keys() == set(range(9))


def test_logit_bias_adds_up_and_ignores_what_is_no_token() -> None:
    biases = ((3, 2.5), (59, -100.0), (3, 1.0), (60, 9.0), (-1, 9.0))
    assert len(check(random_logits(7, 60), params(logit_bias=biases), [])) == 60


def test_biases_by_text_become_biases_of_its_tokens() -> None:
    texts = (("ab", 2.0), ("b", -math.inf), ("aa", 1.0))
    p = params(logit_bias=((9, 1.0),), text_bias=texts)
    found = with_text_biases(p, lambda text: [ord(c) for c in text])
    a, b = ord("a"), ord("b")
    assert found.text_bias == ()
    assert found.logit_bias[0] == (9, 1.0)
    assert Counter(found.logit_bias[1:]) == Counter([(a, 2.0), (b, 2.0), (b, -math.inf), (a, 1.0)])
    assert with_text_biases(found, ord) is found  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(20))
def test_xtc(seed: int) -> None:
    for threshold in (0.01, 0.1, 0.3, 0.6):
        p = params(xtc_probability=0.5, xtc_threshold=threshold, seed=seed, temperature=0.4)
        check(random_logits(seed, 100, 2.0), p, [])


def test_xtc_excludes_as_often_as_it_is_asked_to() -> None:
    logits = np.array([2.0, 1.9, 1.0], np.float32)
    p = params(xtc_probability=0.3, xtc_threshold=0.1)
    sampler, candidates = sampler_of(p, 3, []), Candidates(3)
    left = [len(sampler.distribution(logits, at, candidates).ids) for at in range(3000)]
    assert set(left) == {1, 3}
    assert left.count(1) / 3000 == pytest.approx(0.3, abs=0.03)


# -- together ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(250))
def test_any_order_of_any_stages_is_the_stages_in_that_order(seed: int) -> None:
    rng = random.Random(seed)
    n = rng.choice([40, 400, 3000])
    seen = [rng.randrange(min(n, 12)) for _ in range(rng.randrange(60))]
    check(random_logits(seed, n, 3.0), plain.random_params(rng), seen)


@pytest.mark.parametrize("seed", range(8))
def test_whole_vocabularies(seed: int) -> None:
    """Long rows are cut by other means than short ones."""
    rng = random.Random(seed)
    p = plain.random_params(rng)
    seen = [rng.randrange(12) for _ in range(30)]
    logits = random_logits(seed, 20_000 + 37 * seed, 3.0)
    logits[:12] += 8
    check(logits, SamplingParams(**{**_fields(p), "order": DEFAULT_ORDER[:-1]}), seen)


def _fields(p: SamplingParams) -> dict[str, Any]:
    return {name: getattr(p, name) for name in p.__struct_fields__}


def test_a_stage_that_an_order_leaves_out_does_not_run() -> None:
    p = params(top_k=2, min_p=0.9, temperature=0.5, order=("top_k",))
    logits = random_logits(3, 50)
    assert list(through(logits, p, [])) == np.argsort(-logits)[:2].tolist()


def test_cuts_come_before_temperature() -> None:
    """Hot settings flatten what the cuts have kept; they do not let more through."""
    logits = np.array([4.0, 3.0, 1.0, 0.0], np.float32)
    assert check(logits, params(temperature=50.0, top_p=0.9), []).keys() == {0, 1}


@pytest.mark.parametrize("seed", range(6))
def test_tokens_come_as_often_as_their_share(seed: int) -> None:
    rng = random.Random(100 + seed)
    p = SamplingParams(**{**_fields(plain.random_params(rng)), "xtc_probability": 0.0})
    logits = random_logits(seed, 30, 1.5)
    want = plain.run({t: float(x) for t, x in enumerate(logits)}, Case(p, []), p.order)
    n = 4000
    candidates, sampler = Candidates(30), sampler_of(p, 30, [])
    counts = Counter(sampler.choose(logits, position, candidates) for position in range(n))
    assert counts.keys() <= want.keys()
    for token, share in softmax(want).items():
        assert counts[token] / n == pytest.approx(share, abs=0.035)


@pytest.mark.parametrize("n", [30, 600, 5000])
def test_draws_from_the_whole_distribution_come_as_often_as_their_share(n: int) -> None:
    """Chi-square over the likeliest tokens and all others together."""
    logits = random_logits(n, n, 3.0)
    sampler, candidates = sampler_of(params(temperature=1.3), n, []), Candidates(n)
    n_draws = 4000
    counts = Counter(sampler.choose(logits, at, candidates) for at in range(n_draws))
    shares = softmax({t: float(x) / 1.3 for t, x in enumerate(logits)})
    best = sorted(shares, key=lambda t: -shares[t])[:12]
    rest = 1 - sum(shares[t] for t in best)
    found = [counts[t] for t in best]
    cells = [(k, shares[t]) for k, t in zip(found, best, strict=True)]
    cells.append((n_draws - sum(found), rest))
    chi = sum((k - n_draws * q) ** 2 / (n_draws * q) for k, q in cells if q > 1e-9)
    assert chi < 34.5  # 12 degrees of freedom: once in 1,800


# -- greedy -----------------------------------------------------------------------------------


def one(p: SamplingParams, logits: Logits, seen: list[int] | None = None) -> int:
    sampler = sampler_of(p, len(logits), seen or [])
    try:
        return sampler.sample(logits.copy(), 5, Candidates(len(logits)))
    finally:
        sampler.close()


@pytest.mark.parametrize("seed", range(10))
def test_the_fast_way_and_the_long_way_agree(seed: int) -> None:
    logits = np.round(random_logits(seed, 200, 1.0), 1)  # rounded: ties happen
    fast = one(params(temperature=0), logits)
    assert fast == one(params(temperature=0, logit_bias=((5, 0.0),)), logits)
    assert fast == one(params(temperature=0, presence_penalty=0.5), logits)
    assert fast == one(params(top_k=1, temperature=3.0), logits)
    assert fast == one(params(temperature=0, mirostat=2, xtc_probability=1.0), logits)
    assert fast == int(logits.argmax())


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-45])
def test_a_temperature_that_would_overflow_is_greedy(temperature: float) -> None:
    logits = random_logits(3, 500)
    for seed in range(20):
        assert one(params(temperature=temperature, seed=seed), logits) == int(logits.argmax())


def test_the_coldest_draw_is_still_finite() -> None:
    logits = random_logits(3, 500, 20.0)
    for more in ({}, {"top_p": 0.9}, {"order": ("temperature", "min_p"), "min_p": 0.1}):
        assert one(params(temperature=1e-5, **more), logits) == int(logits.argmax())


def test_greedy_with_penalties_is_the_plain_account() -> None:
    rng = random.Random(5)
    for seed in range(20):
        logits, seen = random_logits(seed, 40, 1.0), [rng.randrange(40) for _ in range(30)]
        p = params(temperature=0, repetition_penalty=1.4, frequency_penalty=0.2)
        left = plain.penalties({t: float(x) for t, x in enumerate(logits)}, Case(p, seen))
        assert one(p, logits, seen) == plain.by_logit(left)[0]


def test_one_token_left_by_top_k_is_not_penalised_afterwards() -> None:
    logits = np.array([1.0, 3.0, 2.9], np.float32)
    late = params(top_k=1, presence_penalty=2.0, order=("top_k", "penalties"))
    early = params(top_k=1, presence_penalty=2.0, order=("penalties", "top_k"))
    assert (one(late, logits, [1]), one(early, logits, [1])) == (1, 2)
    xtc_first = params(top_k=1, xtc_probability=1.0, order=("xtc", "top_k"))
    assert one(xtc_first, logits) == 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_banned_ends_are_never_chosen_whatever_favours_them(temperature: float) -> None:
    logits = np.zeros(3, np.float32)
    logits[0] = 50
    for seed in range(30):
        p = params(
            temperature=temperature, ignore_eos=True, logit_bias=((0, 100.0),), seed=seed, top_k=3
        )
        assert one(p, logits) != 0


@pytest.mark.parametrize("p", [params(temperature=0), params(), params(top_k=3), params(min_p=0.1)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_where_nothing_can_be_chosen_nothing_is(p: SamplingParams, value: float) -> None:
    for n in (20, 9000):
        logits = random_logits(1, n)
        logits[7:] = value
        logits[:7] = -np.inf
        assert one(p, logits) == NO_TOKEN
        sampler = sampler_of(p, n, [])
        assert len(sampler.distribution(logits, 0, Candidates(n)).ids) == 0


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


def test_draws_for_other_purposes_are_others() -> None:
    assert uniform(1, 0, 5) == uniform(1, 0, 5, b"") != uniform(1, 0, 5, b"xtc")


def test_closing_twice_is_safe() -> None:
    sampler = Sampler(params(top_k=5), 10, 64, frozenset(), [])
    sampler.close()
    sampler.close()


# -- in the engine ----------------------------------------------------------------------------


class NoisyExecutor(FakeExecutor):
    """Logits that depend on every token of the sequence and favour none for long."""

    poison: float | None = None

    def _row(self, run: Run, back: int) -> Logits:
        row = super()._row(run, back)  # checks for holes
        cells = self.memory.sequences[run.slot]
        key = hash(tuple(cells[p][0] for p in sorted(cells)[: len(cells) - back])) % 2**32
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

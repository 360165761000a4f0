"""Stages that learn, states that go back, and many sequences at once."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import sampling_reference as plain
from naiad.engine.sampling import NO_TOKEN, BatchSampler, Sampler
from naiad.engine.sampling.history import History, Tally
from naiad.native.sampler import Candidates, SamplerChain
from naiad.types import SamplingParams

pytestmark = pytest.mark.engine

Logits = npt.NDArray[np.float32]
N = 300


def random_logits(seed: int, n: int = N, spread: float = 3.0) -> Logits:
    return (np.random.default_rng(seed).standard_normal(n) * spread).astype(np.float32)


def make(seen: list[int] | None = None, n: int = N, **values: Any) -> Sampler:
    p = SamplingParams(**values)
    return Sampler(p, n, plain.N_CTX, frozenset({0}), seen or [], lambda t: b"%d," % t)


# -- mirostat -----------------------------------------------------------------------------------


def zipf_k(logits: list[float], mu: float, n_vocab: int) -> int:
    """Mirostat 1's k from the logits, best first, as its paper has it."""
    shares = plain.softmax(dict(enumerate(logits)))
    steps = [(math.log((i + 2) / (i + 1)), math.log(shares[i] / shares[i + 1])) for i in range(99)]
    slope = sum(t * b for t, b in steps) / sum(t * t for t, _ in steps)
    excess = slope - 1
    k = (excess * 2**mu / (1 - n_vocab**-excess)) ** (1 / slope)
    return int(max(1, min(k, n_vocab)))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", ["warm", "cold"])
@pytest.mark.parametrize("n", [N, 9000])
def test_mirostat_keeps_what_its_paper_says_and_learns_from_each_token(
    version: int, order: str, n: int
) -> None:
    t = 1.0 if order == "cold" else 1.4
    sampler, candidates = (
        make(n=n, mirostat=version, mirostat_tau=3.0, temperature=t),
        Candidates(n),
    )
    mu = 6.0
    for position in range(25):
        logits = random_logits(position, n)
        left = sampler.distribution(logits, position, candidates)
        warm = {token: float(x) / t for token, x in enumerate(logits)}
        ranked = plain.by_logit(warm)
        if version == 2:
            shares = plain.softmax(warm)
            want = [k for k in ranked if -math.log2(shares[k]) <= mu] or ranked[:1]
        else:
            want = ranked[: zipf_k([warm[k] for k in ranked[:100]], mu, n)]
        assert set(left.ids.tolist()) == set(want)
        token = sampler.sample(logits, position, candidates)
        share = plain.softmax({k: warm[k] for k in want})[token]
        mu -= 0.1 * (-math.log2(share) - 3.0)
        assert sampler.state == pytest.approx((mu,), abs=1e-4)
    sampler.close()


def test_mirostat_keeps_the_surprise_near_its_target() -> None:
    sampler, candidates = make(mirostat=2, mirostat_tau=2.5, mirostat_eta=0.1), Candidates(N)
    logits = random_logits(1, N, 1.0)
    surprise = []
    for position in range(600):
        left = sampler.distribution(logits, position, candidates)
        token = sampler.sample(logits, position, candidates)
        share = plain.softmax(dict(zip(left.ids.tolist(), left.logits.tolist(), strict=True)))
        surprise.append(-math.log2(share[token]))
    assert sum(surprise[100:]) / 500 == pytest.approx(2.5, abs=0.2)


def test_mirostat_after_penalties_cuts_candidates_not_the_row() -> None:
    """With a smoothing in between, the row's own shares are not those it goes by."""
    sampler = make(mirostat=2, mirostat_tau=3.0, smoothing_factor=0.05)
    logits = random_logits(2)
    left = sampler.distribution(logits, 0, Candidates(N))
    case = plain.Case(SamplingParams(smoothing_factor=0.05), [])
    smooth = plain.smoothing({t: float(x) for t, x in enumerate(logits)}, case)
    shares = plain.softmax(smooth)
    assert set(left.ids.tolist()) == {t for t, q in shares.items() if -math.log2(q) <= 6.0}


# -- adaptive-p ---------------------------------------------------------------------------------


def test_adaptive_p_is_llama_cpps() -> None:
    """Its stage shows its logits, and learns from the tokens that it is told of."""
    sampler = make(adaptive_target=0.3, adaptive_decay=0.8, min_p=0.01)
    chain, candidates, theirs = SamplerChain(), Candidates(N), Candidates(N)
    chain.add_min_p(0.01)
    chain.add_adaptive_p(0.3, 0.8, 1)
    total = weight = 0.0
    for position in range(30):
        logits = random_logits(position)
        ours = sampler.distribution(logits, position, candidates)
        if total == 0:
            theirs.fill(logits)
            rows = theirs.apply(chain)
            want = dict(zip(rows["id"].tolist(), rows["logit"].tolist(), strict=True))
            got = dict(zip(ours.ids.tolist(), ours.logits.tolist(), strict=True))
            assert got == pytest.approx(want, abs=1e-3)
            total, weight = 0.3 / 0.2, 1 / 0.2
        token = sampler.sample(logits, position, candidates)
        kept = plain.min_p(
            {t: float(x) for t, x in enumerate(logits)}, plain.Case(SamplingParams(min_p=0.01), [])
        )
        total, weight = plain.softmax(kept)[token] + 0.8 * total, 1 + 0.8 * weight
        assert sampler.state == pytest.approx((total, weight), rel=1e-4)
        aim = min(max(0.6 - total / weight, 0), 1)
        left = sampler.distribution(random_logits(99), 0, candidates)
        near = plain.softmax(_kept(random_logits(99)))
        away = {t: abs(near[t] - aim) / 0.3 for t in left.ids.tolist()}
        want = {t: 5 - 10 * d * d / (1 + d) for t, d in away.items()}
        assert dict(zip(left.ids.tolist(), left.logits.tolist(), strict=True)) == pytest.approx(
            want, abs=1e-3
        )
    chain.close()


def _kept(logits: Logits) -> dict[int, float]:
    case = plain.Case(SamplingParams(min_p=0.01), [])
    return plain.min_p({t: float(x) for t, x in enumerate(logits)}, case)


def test_adaptive_p_cuts_the_tail_when_nobody_else_does_and_comes_last() -> None:
    logits = random_logits(3)
    for order in ((), ("adaptive_p", "temperature"), ("adaptive_p",)):
        sampler = make(adaptive_target=0.5, order=order)
        left = sampler.distribution(logits, 0, Candidates(N))
        case = plain.Case(SamplingParams(min_p=0.002), [])
        whole = {t: float(x) for t, x in enumerate(logits)}
        assert set(left.ids.tolist()) == set(plain.min_p(whole, case))


# -- going on and going back ----------------------------------------------------------------------


LEARNING: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3, "frequency_penalty": 0.3, "penalty_last_n": 7},
    {"repetition_penalty": 1.3, "penalty_slope": 0.4, "penalty_last_n": 30},
    {"dry_multiplier": 0.8, "dry_last_n": 9, "dry_allowed_length": 1},
    {"dry_multiplier": 0.8, "dry_breakers": ("3,1", "2")},
    {"mirostat": 1},
    {"mirostat": 2},
    {"adaptive_target": 0.4},
    {
        "presence_penalty": 0.4,
        "dry_multiplier": 0.5,
        "adaptive_target": 0.4,
        "xtc_probability": 0.5,
    },
]


def shown(sampler: Sampler, position: int = 3) -> dict[int, float]:
    left = sampler.distribution(random_logits(77), position, Candidates(N))
    return dict(zip(left.ids.tolist(), left.logits.tolist(), strict=True))


@pytest.mark.parametrize("values", LEARNING)
@pytest.mark.parametrize("n_prompt", [0, 3, 90])
def test_going_back_is_as_if_it_had_never_been(values: dict[str, Any], n_prompt: int) -> None:
    rng = random.Random(n_prompt)
    prompt = [rng.randrange(5) for _ in range(n_prompt)]
    sampler, tokens = make(prompt, **values), list[int]()
    states = [sampler.state]
    candidates = Candidates(N)
    for at in range(150):
        if rng.random() < 0.25:
            n = min(len(tokens), rng.choice([0, 1, 2, 5, 40]))
            sampler.rewind(n)
            del tokens[len(tokens) - n :], states[len(states) - n :]
            assert sampler.state == states[-1]
        if rng.random() < 0.5:
            token = rng.randrange(5)
            sampler.accept(token)  # forced
        else:
            logits = random_logits(at)
            logits[:5] += 12
            token = sampler.sample(logits, len(tokens), candidates)
        tokens.append(token)
        states.append(sampler.state)
        if at % 10 == 0:
            again = Sampler(
                SamplingParams(**values),
                N,
                plain.N_CTX,
                frozenset(),
                prompt + tokens,
                lambda t: b"%d," % t,
                state=sampler.state,
            )
            assert shown(sampler) == pytest.approx(shown(again), abs=1e-5)
            again.close()


def test_choosing_changes_nothing() -> None:
    sampler, candidates = make([1, 2, 1], **LEARNING[-1]), Candidates(N)
    logits, before = random_logits(5), sampler.state
    tokens = {sampler.choose(logits, 9, candidates) for _ in range(5)}
    assert len(tokens) == 1
    assert sampler.state == before
    token = sampler.choose(logits, 9, candidates)
    sampler.accept(token)
    assert sampler.state != before


def test_more_than_was_accepted_cannot_be_taken_back() -> None:
    sampler = make([1, 2, 3], presence_penalty=1.0)
    sampler.accept(4)
    for n in (2, -1):
        with pytest.raises(ValueError, match=f"cannot take back {n} of 1 tokens"):
            sampler.rewind(n)
    sampler.rewind(1)
    sampler.rewind(0)


def test_choices_of_one_request_draw_apart() -> None:
    logits, candidates = random_logits(1, N, 1.0), Candidates(N)
    said = {}
    for choice in range(3):
        p = SamplingParams(seed=5)
        sampler = Sampler(p, N, 64, frozenset(), [], choice=choice)
        said[choice] = tuple(sampler.choose(logits, at, candidates) for at in range(20))
    assert len(set(said.values())) == 3


def test_a_tally_is_a_count_of_its_window() -> None:
    rng = random.Random(3)
    tokens = [rng.randrange(150) for _ in range(900)]
    tally = Tally(History(tokens))
    for _ in range(300):
        start = rng.randrange(900)
        end = min(900, start + rng.choice([0, 1, 40, 300]))
        tally.move(start, end)
        want: dict[int, int] = {}
        for token in tokens[start:end]:
            want[token] = want.get(token, 0) + 1
        assert dict(zip(tally.ids.tolist(), tally.counts.tolist(), strict=True)) == want
        last = dict(zip(tally.ids.tolist(), tally.last.tolist(), strict=True))
        assert last == {token: at for at, token in enumerate(tokens[start:end], start)}


# -- a grammar's mask -----------------------------------------------------------------------------


@pytest.mark.parametrize("values", [{}, {"temperature": 0.0}, {"top_k": 5}, *LEARNING])
def test_a_mask_comes_before_every_stage(values: dict[str, Any]) -> None:
    logits, candidates = random_logits(4), Candidates(N)
    best = int(logits.argmax())
    mask = np.zeros(N, np.bool_)
    mask[[7, 8, 9]] = True
    sampler, before = make([8, 8], logit_bias=((best, 50.0),), **values), logits.copy()
    for position in range(20):
        assert sampler.choose(logits, position, candidates, mask) in {7, 8, 9}
    assert sampler.choose(logits, 0, candidates, np.zeros(N, np.bool_)) == NO_TOKEN
    assert np.array_equal(logits, before)


@pytest.mark.parametrize("n_vocab", [1, 7, 8, 13, 300])
def test_a_mask_hides_whatever_stands_behind_it(n_vocab: int) -> None:
    rng = np.random.default_rng(n_vocab)
    for _ in range(20):
        logits = (rng.standard_normal(n_vocab) * 3).astype(np.float32)
        logits[rng.random(n_vocab) < 0.2] = rng.choice([np.nan, np.inf, -np.inf])
        mask = rng.random(n_vocab) < 0.7
        greedy = make_sampler(SamplingParams(temperature=0), n_vocab)
        allowed = np.where(mask, logits, -np.inf)
        is_whole = (
            not (np.isnan(allowed) | np.isposinf(allowed)).any() and np.isfinite(allowed).any()
        )
        wanted = int(allowed.argmax()) if is_whole else NO_TOKEN
        assert greedy.choose(logits, 0, Candidates(n_vocab), mask) == wanted


def make_sampler(params: SamplingParams, n_vocab: int) -> Sampler:
    return Sampler(params, n_vocab, 64, frozenset(), [])


# -- many at once ---------------------------------------------------------------------------------


def mixed_samplers(n: int, n_vocab: int) -> list[Sampler]:
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {},
        {"top_k": 40, "top_p": 0.9, "min_p": 0.05},
        {"top_p": 0.8},
        {"min_p": 0.1, "temperature": 1.5, "order": ("temperature", "min_p")},
        *LEARNING,
    ]
    return [
        make([1, 2, 3, 1, 2], n_vocab, seed=i, ignore_eos=True, **kinds[i % len(kinds)])
        for i in range(n)
    ]


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize(("n_rows", "n_vocab"), [(20, N), (26, 60_000), (1, 60_000), (0, N)])
def test_together_each_says_what_it_says_alone(n_threads: int, n_rows: int, n_vocab: int) -> None:
    rows = [random_logits(i, n_vocab) for i in range(n_rows)]
    before = [row.copy() for row in rows]
    together, alone = mixed_samplers(n_rows, n_vocab), mixed_samplers(n_rows, n_vocab)
    batch, candidates = BatchSampler(n_vocab, n_threads), Candidates(n_vocab)
    for step in range(3):
        positions = [step + i for i in range(n_rows)]
        assert batch.choose(together, rows, positions) == batch.choose(together, rows, positions)
        want = [s.sample(r, p, candidates) for s, r, p in zip(alone, rows, positions, strict=True)]
        assert batch.sample(together, rows, positions) == want
    assert all(np.array_equal(row, old) for row, old in zip(rows, before, strict=True))
    assert [s.state for s in together] == [s.state for s in alone]
    batch.close()
    batch.close()


def test_one_bad_row_spoils_no_other() -> None:
    rows = [random_logits(i) for i in range(3)]
    rows[1][5] = math.nan
    masks = [None, None, np.zeros(N, np.bool_)]
    samplers = [make(presence_penalty=0.5) for _ in rows]
    batch = BatchSampler(N, 1)
    tokens = batch.sample(samplers, rows, [0, 0, 0], masks)
    assert tokens[1:] == [NO_TOKEN, NO_TOKEN]
    assert tokens[0] != NO_TOKEN
    samplers[1].rewind(0)
    with pytest.raises(ValueError, match="of 0 tokens"):
        samplers[1].rewind(1)

"""Thousands of random cases: each stage alone and stages together against the plain account, and
drawn tokens against their shares."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sampling_reference as plain
from naiad.native.sampler import Candidates
from naiad.types import SamplingParams
from sampling_reference import Case, softmax
from test_engine_sampling import check, random_logits, sampler_of
from test_engine_sampling_state import zipf_k

pytestmark = [pytest.mark.engine, pytest.mark.soak]

_share = st.floats(0.001, 0.999)
_positive = st.floats(0.01, 10.0)
#: The fields of each stage, on; everything else stays off.
STAGES: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "penalties": {
        "repetition_penalty": st.floats(0.1, 3.0),
        "penalty_last_n": st.integers(-1, 80),
        "penalty_slope": st.floats(0.0, 3.0),
        "frequency_penalty": st.floats(-2.0, 2.0),
        "presence_penalty": st.floats(-2.0, 2.0),
    },
    "dry": {
        "dry_multiplier": st.floats(0.1, 3.0),
        "dry_base": st.floats(1.01, 4.0),
        "dry_allowed_length": st.integers(0, 5),
        "dry_last_n": st.integers(-1, 80),
        "dry_breakers": st.sampled_from([(), ("1,",), ("2,3", "0,")]),
    },
    "top_n_sigma": {"top_n_sigma": st.floats(0.05, 5.0)},
    "top_k": {"top_k": st.integers(1, 500)},
    "top_a": {"top_a": _share},
    "tfs": {"tfs": _share},
    "typical_p": {"typical_p": _share},
    "epsilon_cutoff": {"epsilon_cutoff": st.floats(0.0001, 0.5)},
    "eta_cutoff": {"eta_cutoff": st.floats(0.0001, 0.5)},
    "top_p": {"top_p": _share},
    "min_p": {"min_p": _share},
    "xtc": {"xtc_probability": _share, "xtc_threshold": st.floats(0.001, 0.5)},
    "temperature": {
        "temperature": st.floats(0.05, 5.0),
        "dynatemp_range": st.floats(0.0, 2.0),
        "dynatemp_exponent": st.floats(0.2, 3.0),
    },
    "smoothing": {"smoothing_factor": _positive, "smoothing_curve": st.floats(1.0, 4.0)},
}
_SETTINGS: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


def seen_tokens(rng: random.Random, n_vocab: int) -> list[int]:
    return [rng.randrange(min(n_vocab, 12)) for _ in range(rng.randrange(60))]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_alone_is_its_plain_account(name: str) -> None:
    @settings(max_examples=120, **_SETTINGS)
    @given(
        values=st.fixed_dictionaries(STAGES[name]),
        seed=st.integers(0, 2**32),
        n=st.integers(1, 300),
        spread=st.floats(0.2, 6.0),
    )
    def holds(values: dict[str, Any], seed: int, n: int, spread: float) -> None:
        seen = seen_tokens(random.Random(seed), n)
        check(random_logits(seed, n, spread), SamplingParams(seed=seed, **values), seen)

    holds()


def test_every_stage_is_tried_alone() -> None:
    assert set(STAGES) == set(plain.STAGES)


@settings(max_examples=2500, **_SETTINGS)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 300), spread=st.floats(0.5, 5.0))
def test_stages_together_are_their_plain_account(seed: int, n: int, spread: float) -> None:
    rng = random.Random(seed)
    check(random_logits(seed, n, spread), plain.random_params(rng), seen_tokens(rng, n))


def chi_square(counts: Counter[int], shares: dict[int, float], n_draws: int) -> tuple[float, int]:
    """The statistic and its degrees of freedom; shares too small for it are taken together."""
    large = {token: q for token, q in shares.items() if q * n_draws >= 8}
    cells = [(counts[token], q * n_draws) for token, q in large.items()]
    rest = (1 - sum(large.values())) * n_draws
    if rest >= 8:
        cells.append((n_draws - sum(n for n, _ in cells), rest))
    return sum((n - want) ** 2 / want for n, want in cells), len(cells) - 1


def is_likely(statistic: float, freedom: int) -> bool:
    """Wilson and Hilferty's normal approximation; False once in a million."""
    if freedom < 1:
        return True
    scale = 2 / (9 * freedom)
    return bool(((statistic / freedom) ** (1 / 3) - (1 - scale)) / scale**0.5 < 4.75)


@pytest.mark.parametrize("seed", range(40))
def test_drawn_tokens_come_as_often_as_the_stages_leave_them(seed: int) -> None:
    """Each place draws for itself, so many places of one row are independent draws."""
    rng = random.Random(1000 + seed)
    params = msgspec.structs.replace(plain.random_params(rng), xtc_probability=0.0)  # draws as well
    logits, n_draws = random_logits(seed, 60, 1.5), 3000
    want = softmax(plain.run(dict(enumerate(map(float, logits))), Case(params, []), params.order))
    sampler, candidates = sampler_of(params, 60, []), Candidates(60)
    counts = Counter(sampler.choose(logits, at, candidates) for at in range(n_draws))
    sampler.close()
    assert counts.keys() <= want.keys()
    assert is_likely(*chi_square(counts, want, n_draws))


def test_a_wrong_distribution_is_noticed() -> None:
    counts = Counter({0: 1650, 1: 1350})
    assert not is_likely(*chi_square(counts, {0: 0.5, 1: 0.5}, 3000))


# Stages that draw, or shape what is drawn from, by rules of their own. -------------------------


def shares_with_xtc(logits: list[float], values: dict[str, Any]) -> dict[int, float]:
    """Once in so many times it excludes, else it does nothing."""
    excluding = SamplingParams(**{**values, "xtc_probability": 1.0})
    never = SamplingParams(**{**values, "xtc_probability": 0.0})
    found: dict[int, float] = dict.fromkeys(range(len(logits)), 0.0)
    chance = values["xtc_probability"]
    for params, weight in ((excluding, chance), (never, 1 - chance)):
        left = plain.run(dict(enumerate(logits)), Case(params, []), ("xtc", "temperature"))
        for token, share in softmax(left).items():
            found[token] += weight * share
    return found


def shares_with_mirostat(logits: list[float], values: dict[str, Any]) -> dict[int, float]:
    """Its first token, before it has learnt: mu is twice tau."""
    warm = {t: x / values["temperature"] for t, x in enumerate(logits)}
    ranked, mu = plain.by_logit(warm), 2 * values["mirostat_tau"]
    if values["mirostat"] == 1:
        kept = ranked[: zipf_k([warm[t] for t in ranked[:100]], mu, len(logits))]
    else:
        shares = softmax(warm)
        kept = [t for t in ranked if -math.log2(shares[t]) <= mu] or ranked[:1]
    return softmax({t: warm[t] for t in kept})


def shares_with_adaptive_p(logits: list[float], values: dict[str, Any]) -> dict[int, float]:
    """Its first token, which aims at the target itself."""
    case = Case(SamplingParams(min_p=values["min_p"]), [])
    near = softmax(plain.min_p(dict(enumerate(logits)), case))
    away = {t: abs(q - values["adaptive_target"]) / 0.3 for t, q in near.items()}
    return softmax({t: 5 - 10 * d * d / (1 + d) for t, d in away.items()})


DRAWING: list[tuple[Callable[[list[float], dict[str, Any]], dict[int, float]], dict[str, Any]]] = [
    (shares_with_xtc, {"xtc_probability": 0.3, "xtc_threshold": 0.02}),
    (shares_with_xtc, {"xtc_probability": 0.7, "xtc_threshold": 0.01, "temperature": 1.5}),
    (shares_with_mirostat, {"mirostat": 1, "mirostat_tau": 5.0, "temperature": 1.3}),
    (shares_with_mirostat, {"mirostat": 2, "mirostat_tau": 2.5, "temperature": 1.3}),
    (shares_with_adaptive_p, {"adaptive_target": 0.2, "adaptive_decay": 0.9, "min_p": 0.05}),
]


@pytest.mark.parametrize(("account", "values"), DRAWING)
@pytest.mark.parametrize("seed", range(4))
def test_stages_that_draw_or_learn_leave_tokens_as_often_as_their_account(
    account: Callable[[list[float], dict[str, Any]], dict[int, float]],
    values: dict[str, Any],
    seed: int,
) -> None:
    logits, n_draws = random_logits(seed, 300, 2.0), 3000
    want = account(list(map(float, logits)), values)
    sampler, candidates = sampler_of(SamplingParams(seed=seed, **values), 300, []), Candidates(300)
    counts = Counter(sampler.choose(logits, at, candidates) for at in range(n_draws))
    sampler.close()
    assert counts.keys() <= {token for token, share in want.items() if share}
    statistic, freedom = chi_square(counts, want, n_draws)
    assert freedom > 1
    assert is_likely(statistic, freedom)

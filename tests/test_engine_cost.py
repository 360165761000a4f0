"""What a step costs, learned from steps that follow a known law."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from naiad.engine.cost import MIN_CHUNK, StepCost


def taught(a: float, b: float, decode_s: float, n: int = 60, noise: float = 0.0) -> StepCost:
    """A machine where a token at depth d takes a + b d seconds, and a decode decode_s."""
    cost, rng = StepCost(), random.Random(1)
    for i in range(n):
        cost.saw_decode(decode_s)
        n_tokens, depth = rng.randrange(MIN_CHUNK, 512), rng.randrange(4000)
        beside = i % 2 == 0
        seconds = n_tokens * (a + b * depth) * rng.uniform(1 - noise, 1 + noise)
        cost.saw_prefill(n_tokens, depth, seconds + decode_s * beside, beside=beside)
    return cost


def test_before_anything_was_seen_it_guesses() -> None:
    cost = StepCost(0.002)
    assert cost.decode_s == 0
    assert cost.prefill_s(100, 0) == pytest.approx(0.2)
    assert cost.chunk(0.08, 0, 1) == 40


@settings(max_examples=25, derandomize=True)
@given(st.floats(1e-5, 1e-2), st.floats(0, 5e-4), st.floats(0.1, 50), st.integers(0, 8000))
def test_the_law_is_found(a: float, steepness: float, decode_tokens: float, depth: int) -> None:
    b = a * steepness
    cost = taught(a, b, a * decode_tokens)
    assert cost.decode_s == pytest.approx(a * decode_tokens)
    assert cost.prefill_s(100, depth) == pytest.approx(100 * (a + b * (depth + 50)), rel=0.02)


@settings(max_examples=25, derandomize=True)
@given(st.floats(1e-4, 1e-3), st.floats(0, 1e-6), st.integers(0, 4000), st.floats(0.02, 1.0))
def test_a_chunk_fits_its_time(a: float, b: float, depth: int, target_s: float) -> None:
    cost = taught(a, b, 20 * a)
    n = cost.chunk(target_s, depth, 1)
    assert n >= MIN_CHUNK
    if n > MIN_CHUNK:
        assert 20 * a + n * (a + b * depth) <= target_s * 1.02


def test_a_target_shorter_than_a_step_leaves_the_smallest_chunk() -> None:
    assert taught(1e-3, 0, 0.5).chunk(0.08, 0, 1) == MIN_CHUNK


def test_a_chunk_beside_many_streams_leaves_them_their_time() -> None:
    """Each number of streams its own, whatever steps took last."""
    cost = taught(1e-3, 0, 0.005)
    for n_rows in (1, 16, 16, 1, 16, 1, 16):
        cost.saw_decode(0.005 + 0.002 * (n_rows - 1), n_rows)
    assert cost.chunk(0.08, 0, 1) == pytest.approx(75, abs=1)
    assert cost.chunk(0.08, 0, 16) == pytest.approx(45, abs=1)


def test_a_clock_that_stood_still_is_no_division_by_zero() -> None:
    cost = StepCost()
    for _ in range(3):
        cost.saw_decode(0.0)
        cost.saw_prefill(64, 100, 0.0, beside=True)
    assert cost.chunk(0.08, 100, 1) > 1000
    assert cost.chunk(math.inf, 100, 1) > 1000
    assert cost.prefill_s(100, 0) >= 0


def test_deeper_costs_more_and_noise_does_little() -> None:
    cost = taught(2e-4, 1e-7, 0.01, n=400, noise=0.2)
    assert cost.prefill_s(100, 4000) > 1.5 * cost.prefill_s(100, 0)
    assert cost.prefill_s(100, 1000) == pytest.approx(100 * 3.05e-4, rel=0.3)


def test_a_change_of_load_is_followed_within_a_few_steps() -> None:
    cost = taught(1e-4, 0, 0.01)
    for _ in range(30):
        cost.saw_decode(0.03)
        cost.saw_prefill(256, 500, 256 * 3e-4, beside=False)
    assert cost.decode_s == pytest.approx(0.03, rel=0.1)
    assert cost.prefill_s(100, 500) == pytest.approx(100 * 3e-4, rel=0.1)


def test_cost_never_falls_with_depth_nor_to_nothing() -> None:
    """A machine that happened to be busy at small depths only."""
    cost = StepCost()
    for depth, token_s in ((0, 1e-3), (4000, 1e-4)) * 10:
        cost.saw_prefill(100, depth, 100 * token_s, beside=False)
    assert cost.prefill_s(10, 8000) >= cost.prefill_s(10, 0) > 0


def test_a_step_shorter_than_its_decode_still_teaches_a_cost() -> None:
    cost = StepCost()
    cost.saw_decode(0.05)
    cost.saw_prefill(10, 0, 0.04, beside=True)
    assert cost.prefill_s(10, 0) == pytest.approx(0.004)


def test_chunks_too_small_to_tell_teach_nothing() -> None:
    cost = StepCost(0.002)
    cost.saw_prefill(MIN_CHUNK - 1, 0, 9.0, beside=False)
    assert cost.prefill_s(1, 0) == pytest.approx(0.002)


# -- steps of several tokens ----------------------------------------------------------------------


def saw(cost: StepCost, n_rows: int, seconds: float, n: int = 1) -> None:
    for _ in range(n):
        cost.saw_decode(seconds, n_rows, n_rows - 1)


def test_a_guessed_token_is_no_plain_step() -> None:
    cost = StepCost(0.002)
    cost.saw_decode(0.01)
    saw(cost, 4, 0.5, 20)
    assert cost.decode_s == pytest.approx(0.01)


def test_sizes_never_seen_lie_between_their_neighbours() -> None:
    cost = StepCost(0.002)
    saw(cost, 1, 0.01, 3)
    assert cost.step_s(3, 0) == pytest.approx(0.014)  # two more at the cost of prefill
    saw(cost, 5, 0.05, 3)
    assert cost.step_s(3, 0) == pytest.approx(0.03)
    assert cost.step_s(6, 0) == pytest.approx(0.052)
    saw(cost, 3, 0.04, 3)
    assert cost.step_s(2, 0) == pytest.approx(0.025)


@pytest.mark.parametrize("slow", [0.2, 9.0])
def test_a_size_is_believed_when_it_was_seen_more_than_once(slow: float) -> None:
    cost = StepCost(0.002)
    saw(cost, 1, 0.01, 3)
    saw(cost, 5, slow)
    assert cost.step_s(5, 0) == pytest.approx(0.018)
    saw(cost, 5, 0.03)
    assert cost.step_s(5, 0) == pytest.approx(0.03)
    saw(cost, 5, 0.03)
    assert cost.step_s(5, 0) == pytest.approx(0.03)
    saw(cost, 5, slow, 3)
    assert cost.step_s(5, 0) == pytest.approx(slow)


def test_what_was_not_seen_for_long_is_forgotten() -> None:
    cost = StepCost(0.002)
    saw(cost, 5, 9.0, 5)
    saw(cost, 1, 0.01, 400)
    assert cost.step_s(5, 0) == 9.0
    saw(cost, 1, 0.01, 200)
    assert cost.step_s(5, 0) == pytest.approx(0.018)
    saw(cost, 5, 0.02)
    assert cost.step_s(5, 0) == pytest.approx(0.018)


def test_cost_between_sizes_never_falls() -> None:
    cost = StepCost(0.002)
    saw(cost, 1, 0.05, 3)
    saw(cost, 5, 0.01, 3)
    assert cost.step_s(3, 0) >= cost.step_s(1, 0)


def test_a_clock_that_stands_still_divides_nothing_by_zero() -> None:
    cost = StepCost()
    saw(cost, 1, 0.0, 5)
    saw(cost, 2, 0.0, 5)
    assert cost.decode_s > 0
    assert cost.step_s(2, 0) > 0
    assert cost.step_s(9, 0) > 0

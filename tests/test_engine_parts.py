"""The small pieces of the engine: scheduler, host cache, draws."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.engine.base import CoreJob
from naiad.engine.cost import StepCost
from naiad.engine.host_cache import BLOCK, HostCache
from naiad.engine.sampling import Sampler, draw, uniform
from naiad.engine.scheduler import JUST_BEGUN, StepBudget, plan
from naiad.engine.sequence import Sequence, common_prefix
from naiad.native.sampler import CANDIDATE, Candidates
from naiad.types import SamplingParams


def sequence(n_prompt: int, computed: int = 0) -> Sequence:
    made = Sequence(CoreJob(n_prompt, tuple(range(n_prompt)), 8, SamplingParams()))
    made.computed = computed
    return made


def decoding(n_prompt: int, n_generated: int = 5) -> Sequence:
    made = sequence(n_prompt)
    made.tokens += range(n_generated)
    made.computed = len(made.tokens) - 1
    return made


# -- sequence ---------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 2), max_size=200),
    st.lists(st.integers(0, 2), max_size=200),
    st.integers(0, 200),
)
def test_common_prefix_is_what_a_loop_says(a: list[int], tail: list[int], cut: int) -> None:
    b = a[:cut] + tail
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    assert common_prefix(a, b) == n


# -- scheduler --------------------------------------------------------------------------------

COST = StepCost(1e-6)  # a token costs next to nothing, so time limits nothing here


def test_alone_a_prompt_gets_the_whole_budget() -> None:
    [chunk] = plan([sequence(1000)], StepBudget(alone=512, beside=128), COST, 0.0)
    assert chunk.n_tokens == 512
    assert not chunk.is_last


def test_decoding_comes_first_and_shrinks_the_rest() -> None:
    budget = StepBudget(alone=512, beside=100)
    chunks = plan([sequence(70), sequence(50), decoding(9), sequence(90)], budget, COST, 0.0)
    assert [(c.sequence.n_prompt, c.n_tokens) for c in chunks] == [(9, 1), (50, 50), (70, 50)]
    assert [c.is_last for c in chunks] == [True, True, False]


class Machine:
    """Runs plans on a clock of its own: a prefilled token takes 0.75 ms, a decoded one 2 ms, and a
    step 5 ms beside.
    """

    def __init__(self, *prompts: Sequence) -> None:
        self.now = 0.0
        self.cost = StepCost()
        for n in (1, 8, 16) * 3:
            self.cost.saw_decode(0.005 + 0.002 * n, n)
            self.cost.saw_prefill(80, 0, 80 * 75e-5 + 0.005, beside=0)
        self.running = list(prompts)
        self.said: dict[Sequence, list[float]] = {sequence: [] for sequence in prompts}

    def step(self, budget: StepBudget) -> None:
        chunks = plan(self.running, budget, self.cost, self.now)
        n_rows = sum(chunk.n_tokens == 1 for chunk in chunks)
        n_prefill = sum(chunk.n_tokens for chunk in chunks) - n_rows
        self.now += 0.005 + 0.002 * n_rows + 75e-5 * n_prefill
        for chunk in chunks:
            chunk.sequence.computed += chunk.n_tokens
            if chunk.sequence.n_pending == 0:
                chunk.sequence.tokens.append(0)
                self.said[chunk.sequence].append(self.now)

    @property
    def first_words(self) -> list[float]:
        return sorted(times[0] for times in self.said.values())

    @property
    def longest_gap(self) -> float:
        return max(b - a for times in self.said.values() for a, b in pairwise(times))


@pytest.mark.parametrize(("n", "n_targets"), [(4, 1), (8, 2), (16, 3)])
def test_prompts_that_come_together_do_not_freeze_the_first_of_them(n: int, n_targets: int) -> None:
    """It waits a target or a few at a time; and all begin as soon, on average, as if all had been
    computed before anybody went on.
    """
    machine = Machine(sequence(80))
    machine.step(StepBudget())
    for each in [sequence(80) for _ in range(n - 1)]:
        machine.running.append(each)
        machine.said[each] = []
    while not all(machine.said.values()):
        machine.step(StepBudget())
    assert machine.longest_gap <= n_targets * StepBudget().target_s * 1.02
    at_once = [0.065, *[0.065 + 0.007 + (n - 1) * 0.06] * (n - 1)]
    assert sum(machine.first_words) < sum(at_once)
    assert machine.first_words[-1] < at_once[-1] * 1.35


def n_steps_to_begin(budget: StepBudget) -> int:
    """Steps until 15 prompts of 80 tokens have begun beside one that has."""
    machine = Machine(sequence(80))
    machine.step(budget)
    for each in [sequence(80) for _ in range(15)]:
        machine.running.append(each)
        machine.said[each] = []
    n_steps = 0
    while not all(machine.said.values()):
        machine.step(budget)
        n_steps += 1
    return n_steps


def test_for_throughput_prompts_that_come_together_are_computed_in_whole_micro_batches() -> None:
    """1,200 tokens: two micro-batches, the rest, and what that left for its own time's sake."""
    n_steps = n_steps_to_begin(StepBudget(most_targets=24, share=1.0))
    assert n_steps <= 4
    assert n_steps_to_begin(StepBudget()) > 2 * n_steps


def test_who_has_been_reading_keeps_the_target_whatever_comes() -> None:
    machine = Machine(decoding(9, JUST_BEGUN + 1), *[sequence(80) for _ in range(15)])
    while not all(machine.said.values()):
        machine.step(StepBudget())
    assert machine.longest_gap <= StepBudget().target_s * 1.02


def test_a_long_prompt_is_not_starved_by_short_ones_that_keep_coming() -> None:
    """It needs 2.25 s; of those that come later than 2.3 s after it, nobody is served before it."""
    long = sequence(3000)
    machine = Machine(decoding(9, JUST_BEGUN + 1), long)
    long.since = 0.0
    late: list[Sequence] = []
    for _ in range(400):
        machine.step(StepBudget())
        if machine.said[long]:
            break
        newcomer = sequence(100)
        newcomer.since = machine.now
        late += [newcomer] if machine.now > 2.3 else []
        machine.running.append(newcomer)
        machine.said[newcomer] = []
    assert machine.said[long]
    assert late
    assert not any(machine.said[each] for each in late)


def test_nothing_to_run_is_an_empty_plan() -> None:
    assert plan([], StepBudget(), COST, 0.0) == []


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(0, 299)), max_size=20),
    st.integers(1, 64),
    st.integers(1, 64),
)
def test_plans_keep_their_bounds(shapes: list[tuple[int, int]], alone: int, beside: int) -> None:
    sequences = [decoding(n) if c == n - 1 else sequence(n, min(c, n - 1)) for n, c in shapes]
    chunks = plan(sequences, StepBudget(alone=alone, beside=beside), COST, 0.0)
    n_decoding = sum(c.sequence.n_pending == 1 for c in chunks)
    is_older = any(c.sequence.n_pending == 1 and c.sequence.n_generated for c in chunks)
    prefill = sum(c.n_tokens for c in chunks if c.sequence.n_pending > 1)
    assert n_decoding == sum(s.n_pending == 1 for s in sequences)
    assert prefill <= (beside if is_older else alone)
    assert all(1 <= c.n_tokens <= c.sequence.n_pending for c in chunks)
    assert bool(chunks) == bool(sequences)


# -- host cache -------------------------------------------------------------------------------


def save_all(cache: HostCache[str], namespace: str, tokens: list[int], size: int = 10) -> None:
    for start in list(cache.missing(namespace, tokens)):
        assert cache.add(namespace, tokens, start, f"{namespace}:{start}", size)


def matched(cache: HostCache[str], namespace: str, tokens: list[int]) -> int:
    return sum(m.n_tokens for m in cache.match(namespace, tokens))


def test_what_was_saved_is_found() -> None:
    cache: HostCache[str] = HostCache(1000)
    tokens = list(range(BLOCK * 2 + 10))
    save_all(cache, "a", tokens)
    assert matched(cache, "a", [*tokens, 1, 2]) == len(tokens)
    assert matched(cache, "a", tokens[: BLOCK + 5]) == BLOCK + 5
    assert matched(cache, "b", tokens) == 0
    assert list(cache.missing("a", tokens)) == []
    cache.check_integrity()


def test_a_longer_conversation_replaces_its_shorter_tail() -> None:
    cache: HostCache[str] = HostCache(1000)
    save_all(cache, "", list(range(BLOCK + 5)))
    save_all(cache, "", list(range(BLOCK + 60)))
    assert cache.n_bytes == 20
    assert matched(cache, "", list(range(500))) == BLOCK + 60
    cache.check_integrity()


def test_branches_live_side_by_side() -> None:
    cache: HostCache[str] = HostCache(1000)
    stem = list(range(BLOCK))
    save_all(cache, "", [*stem, 1, 2, 3])
    save_all(cache, "", [*stem, 1, 2, 9, 9])
    assert cache.n_bytes == 30
    assert matched(cache, "", [*stem, 1, 2, 3, 4]) == BLOCK + 3
    assert matched(cache, "", [*stem, 1, 2, 9, 9]) == BLOCK + 4
    assert matched(cache, "", [*stem, 1, 7]) == BLOCK + 1


def test_the_least_recently_used_leaf_goes_first() -> None:
    cache: HostCache[str] = HostCache(30)
    save_all(cache, "", [1] * 10)
    save_all(cache, "", [2] * 10)
    save_all(cache, "", [3] * 10)
    matched(cache, "", [1] * 10)
    save_all(cache, "", [4] * 10)
    assert [matched(cache, "", [t] * 10) for t in (1, 2, 3, 4)] == [10, 0, 10, 10]
    cache.check_integrity()


def test_what_a_state_really_takes_counts() -> None:
    cache: HostCache[str] = HostCache(30, weigh=len)
    save_all(cache, "", [1] * 5, size=1)  # said to be less than it is
    n_one = cache.n_bytes
    assert n_one > 1
    for first in range(2, 40):
        save_all(cache, "", [first] * 5, size=1)
        cache.check_integrity()
        assert cache.n_bytes <= 30
    assert len(list(cache._blocks())) == 30 // n_one
    cache.clear()
    assert cache.n_bytes == 0


def test_a_block_whose_beginning_is_gone_is_not_kept() -> None:
    cache: HostCache[str] = HostCache(30)
    assert not cache.add("", list(range(BLOCK * 2)), BLOCK, "orphan", 10)
    assert not cache.add("", [1], 0, "too large", 31)
    cache.check_integrity()


def test_a_block_that_a_caller_still_holds_does_not_keep_its_state() -> None:
    cache: HostCache[str] = HostCache(20)
    save_all(cache, "", [1] * 10)
    [match] = cache.match("", [1] * 10)
    save_all(cache, "", [2] * 10)
    save_all(cache, "", [3] * 10)
    assert matched(cache, "", [1] * 10) == 0
    assert cache.state_of(match.block) is None
    assert match.block.state is None
    cache.check_integrity()


def test_recent_paths_are_whole_and_the_last_used_first() -> None:
    cache: HostCache[str] = HostCache(1000)
    stem = list(range(BLOCK))
    save_all(cache, "", [*stem, 1])
    save_all(cache, "", [*stem, 2])
    save_all(cache, "other", [9])
    matched(cache, "", [*stem, 1])
    paths = cache.recent_paths("", 5)
    assert [[b.tokens for b in path] for path in paths] == [[stem, [1]], [stem, [2]]]
    assert len(cache.recent_paths("", 1)) == 1
    assert cache.recent_paths("nobody", 5) == []


def test_adding_what_is_there_changes_nothing_but_its_use() -> None:
    cache: HostCache[str] = HostCache(1000)
    save_all(cache, "", [1] * (BLOCK + 5))
    assert cache.add("", [1] * (BLOCK + 5), 0, "again", 10)
    assert matched(cache, "", [1] * (BLOCK + 5)) == BLOCK + 5
    assert cache.n_bytes == 20
    cache.check_integrity()


def test_clear_leaves_nothing() -> None:
    cache: HostCache[str] = HostCache(1000)
    save_all(cache, "", [1] * 300)
    cache.clear()
    assert cache.n_bytes == matched(cache, "", [1] * 300) == 0
    cache.check_integrity()


@given(st.integers(0, 2**32), st.integers(20, 400))
def test_host_cache_never_overflows_nor_lies(seed: int, capacity: int) -> None:
    rng = random.Random(seed)
    cache: HostCache[tuple[int, ...]] = HostCache(capacity)
    known: list[list[int]] = [[]]
    for _ in range(30):
        base = rng.choice(known)
        tokens = base[: rng.randrange(len(base) + 1)] + [
            rng.randrange(3) for _ in range(rng.randrange(1, BLOCK * 2))
        ]
        known.append(tokens)
        for start in list(cache.missing("", tokens)):
            cache.add("", tokens, start, tuple(tokens[start : start + BLOCK]), rng.randrange(1, 40))
        cache.check_integrity()
        wanted = rng.choice(known)
        at = 0
        for match in cache.match("", wanted):
            state = match.block.state
            assert state is not None
            assert match.block.start == at
            assert list(state[: match.n_tokens]) == wanted[at : at + match.n_tokens]
            at += match.n_tokens


# -- draws ------------------------------------------------------------------------------------


def test_draws_depend_on_their_place_alone() -> None:
    assert uniform(1, 0, 5) == uniform(1, 0, 5)
    places = {uniform(s, c, p) for s in range(5) for c in range(3) for p in range(50)}
    assert len(places) == 5 * 3 * 50
    assert all(0 <= u < 1 for u in places)


def test_draws_follow_the_distribution() -> None:
    rows = np.zeros(3, CANDIDATE)
    rows["id"] = [10, 20, 30]
    rows["logit"] = np.log([0.5, 0.3, 0.2])
    counts = Counter(draw(rows, uniform(7, 0, i)) for i in range(20_000))
    shares = [counts[t] / 20_000 for t in (10, 20, 30)]
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.015)


@pytest.mark.parametrize("u", [0.0, 0.999999999999])
def test_the_ends_of_the_interval_are_tokens(u: float) -> None:
    rows = np.zeros(2, CANDIDATE)
    rows["id"] = [4, 5]
    assert draw(rows, u) == (4 if u == 0 else 5)


def sampled(params: SamplingParams, logits: list[float], prompt: list[int] | None = None) -> int:
    sampler = Sampler(params, len(logits), 64, frozenset({0}), prompt or [1])
    try:
        return sampler.sample(np.array(logits, np.float32), 3, Candidates(len(logits)))
    finally:
        sampler.close()


@pytest.mark.engine
@pytest.mark.parametrize(
    ("params", "want"),
    [
        (SamplingParams(temperature=0), 0),
        (SamplingParams(temperature=0, ignore_eos=True), 2),
        (SamplingParams(top_k=1, temperature=5), 0),
        (SamplingParams(temperature=0, logit_bias=((3, 50.0),)), 3),
        (SamplingParams(temperature=0, logit_bias=((0, -100.0), (99, 5.0))), 2),
        (SamplingParams(top_p=0.01), 0),
        (SamplingParams(min_p=0.999), 0),
        (SamplingParams(temperature=0.001), 0),
    ],
)
def test_stages_do_what_they_say(params: SamplingParams, want: int) -> None:
    assert sampled(params, [9.0, 1.0, 8.0, -2.0]) == want


@pytest.mark.engine
def test_penalties_look_back_over_the_prompt() -> None:
    params = SamplingParams(temperature=0, repetition_penalty=3.0)
    assert sampled(params, [9.0, 1.0, 8.0, -2.0], prompt=[0, 0, 1]) == 2
    limited = SamplingParams(temperature=0, repetition_penalty=3.0, penalty_last_n=1)
    assert sampled(limited, [9.0, 1.0, 8.0, -2.0], prompt=[0, 0, 1]) == 0
    whole = SamplingParams(temperature=0, presence_penalty=2.0, penalty_last_n=-1)
    assert sampled(whole, [9.0, 1.0, 8.0, -2.0], prompt=[0, *[1] * 60]) == 2


@pytest.mark.engine
def test_the_seed_decides_and_nothing_else() -> None:
    logits = [1.0] * 50
    by_seed = [sampled(SamplingParams(seed=s), logits) for s in range(20)]
    assert by_seed == [sampled(SamplingParams(seed=s), logits) for s in range(20)]
    assert len(set(by_seed)) > 5

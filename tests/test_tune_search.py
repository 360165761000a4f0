"""The search for good settings, over engines whose times are made up."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from naiad.engine.sizing import Machine
from naiad.tune.candidate import FULL, QUICK, Candidate, Workload
from naiad.tune.record import LaneResult
from naiad.tune.runner import CandidateFailed, OutOfTime
from naiad.tune.search import (
    QUICK_MARGIN,
    WEIGHTS,
    Challenge,
    Search,
    combine,
    default_challenges,
    judge,
    lane_pays,
    thread_counts,
    throughput_challenges,
    told,
)

BASE = Candidate(threads=2)
TWO = Machine(logical=2, physical=2)
LANE = LaneResult(
    gap_lane_ms=40, gap_chunks_ms=300, ttft_lane_ms=5000, ttft_chunks_ms=4000, ttft_alone_ms=2500
)
Cost = Callable[[Candidate, Workload], float]


class FakeEngine:
    """Takes as long as `cost` says, times the drift of a machine that gets slower and slower."""

    def __init__(self, lab: Lab, candidate: Candidate) -> None:
        self.lab, self.candidate, self.is_open = lab, candidate, True

    def seconds(self, workload: Workload) -> float:
        assert self.is_open
        self.lab.asked.append((self.candidate, workload))
        if self.candidate in self.lab.crash_at_work:
            raise CandidateFailed("crashed with SIGILL")
        if self.lab.now > self.lab.end:
            raise OutOfTime("no answer")
        self.lab.drift *= self.lab.drifts
        cost = self.lab.cost(self.candidate, workload) * self.lab.drift
        self.lab.now += cost
        return cost

    def compare_lane(self) -> LaneResult:
        if self.lab.lane is None:
            raise CandidateFailed("crashed with SIGABRT")
        return self.lab.lane

    def close(self) -> None:
        self.is_open = False


class Lab:
    """Starts fake engines, and remembers them."""

    def __init__(self, cost: Cost = lambda *_: 1.0) -> None:
        self.cost = cost
        self.drifts = self.drift = 1.0
        self.now = 0.0
        self.end = math.inf
        self.lane: LaneResult | None = LANE
        self.crash_at_start: set[Candidate] = set()
        self.crash_at_work: set[Candidate] = set()
        self.engines: list[FakeEngine] = []
        self.asked: list[tuple[Candidate, Workload]] = []

    def open(self, candidate: Candidate) -> FakeEngine:
        if candidate in self.crash_at_start:
            raise CandidateFailed("cannot make a context")
        self.engines.append(FakeEngine(self, candidate))
        return self.engines[-1]

    def search(self, n_turns: int = 3, **changes: Any) -> Search:
        return Search(self.open, n_turns=n_turns, clock=lambda: self.now, **changes)


def flash() -> Challenge:
    work: tuple[Workload, ...] = ("shared", "deep")
    return Challenge(lambda b: b.with_(flash_attention=False), work)


def threads(n: int) -> Challenge:
    return Challenge(lambda best: best.with_(threads=n), ("decode_one",))


def faster_without_flash(candidate: Candidate, _: Workload) -> float:
    return 1.0 if candidate.flash_attention else 0.5


def test_a_faster_challenger_wins_and_is_the_next_ones_measure() -> None:
    lab = Lab(faster_without_flash)
    search = lab.search()
    best = search.run("default", BASE, [flash(), threads(1)])
    assert best == BASE.with_(flash_attention=False)
    assert lab.engines[-1].candidate == best.with_(threads=1)
    assert [one.won for one in search.found.measured] == [True, False]
    assert search.found.measured[0].detail == {"shared": 0.5, "deep": 0.5}
    assert not any(engine.is_open for engine in lab.engines)


@pytest.mark.parametrize("gain", [1.0, 0.99, 0.93])
def test_a_small_gain_is_noise(gain: float) -> None:
    lab = Lab(lambda one, _: 1.0 if one.flash_attention else gain)
    search = lab.search()  # 0.93 in two of five pieces of work is 0.971 of all
    assert search.run("default", BASE, [flash()]) == BASE
    assert not search.found.measured[0].won


@pytest.mark.parametrize("drifts", [0.9, 1.1])
def test_a_machine_that_drifts_does_not_decide(drifts: float) -> None:
    lab = Lab()
    lab.drifts = drifts
    search = lab.search(n_turns=4)
    assert search.run("default", BASE, [flash()]) == BASE
    lab.cost = lambda one, _: 1.0 if one.flash_attention else 0.6
    assert search.run("default", BASE, [flash()]) != BASE


def test_turns_alternate() -> None:
    lab = Lab(lambda one, _: one.threads)
    lab.search(n_turns=2).run("default", BASE, [threads(1)])
    assert [one.threads for one, _ in lab.asked] == [2, 1, 1, 2]


@pytest.mark.parametrize(("cost", "n_turns"), [(9.0, 1), (1.0, 1), (0.9, 5)])
def test_a_challenger_that_loses_a_turn_gets_no_other(cost: float, n_turns: int) -> None:
    lab = Lab(lambda one, _: cost if one.threads == 1 else 1.0)
    lab.search(n_turns=5).run("default", BASE, [threads(1)])
    assert len(lab.asked) == 2 * n_turns


@pytest.mark.parametrize("crash", ["crash_at_start", "crash_at_work"])
def test_a_challenger_that_crashes_is_a_result_and_not_the_end(crash: str) -> None:
    lab = Lab(lambda one, _: 0.1 if one.threads == 1 else 1.0)
    getattr(lab, crash).add(BASE.with_(flash_attention=False))
    search = lab.search()
    assert search.run("default", BASE, [flash(), threads(1)]) == BASE.with_(threads=1)
    first, second = search.found.measured
    assert (first.ratio, first.won, second.won) == (None, False, True)
    assert first.crashed in {"cannot make a context", "crashed with SIGILL"}
    assert not any(engine.is_open for engine in lab.engines)


@pytest.mark.parametrize("crash", ["crash_at_start", "crash_at_work"])
def test_a_base_that_does_not_run_is_told(crash: str) -> None:
    lab = Lab()
    getattr(lab, crash).add(BASE)
    search = lab.search()
    with pytest.raises(CandidateFailed):
        search.run("default", BASE, [flash()])
    assert search.found.best == {}
    assert not any(engine.is_open for engine in lab.engines)


def test_what_there_is_no_time_for_is_named() -> None:
    lab = Lab()
    search = lab.search(n_turns=1, deadline_s=5.5)
    search.run("default", BASE, [threads(1), flash(), threads(3)], with_lane=True)
    assert [one.what for one in search.found.measured] == ["threads 1", "threads 3"]
    assert search.found.notes == [
        "default: no time to measure flash_attention off",
        "default: no time to measure a lane for long prompts",
    ]
    lab.now = 9.0
    assert search.run("throughput", BASE, [flash()]) == BASE
    assert search.found.notes[-1] == "throughput: no time to measure anything"
    assert set(search.found.best) == {"default"}


def test_time_that_runs_out_ends_the_turns_without_a_winner() -> None:
    lab = Lab(faster_without_flash)
    search = lab.search(n_turns=5, deadline_s=2.5)
    assert search.run("default", BASE, [flash()]) == BASE
    assert search.found.measured[0].ratio is not None


def test_the_best_so_far_outlives_the_time() -> None:
    lab = Lab(faster_without_flash)
    lab.end = 6.0
    search = lab.search(n_turns=2)
    with pytest.raises(OutOfTime):
        search.run("default", BASE, [flash(), threads(1), threads(3), threads(4)])
    assert search.found.best == {"default": BASE.with_(flash_attention=False)}


def test_the_lane_is_measured_with_the_best_and_may_fail() -> None:
    lab = Lab(faster_without_flash)
    search = lab.search()
    search.run("default", BASE, [flash()], with_lane=True)
    assert search.found.lane == LANE
    lab.lane = None
    failing = lab.search()
    assert failing.run("default", BASE, [], with_lane=True) == BASE
    assert failing.found.lane is None
    assert "does not work: crashed with SIGABRT" in failing.found.notes[0]


def test_progress_grows_within_its_share() -> None:
    seen: list[tuple[str, float]] = []
    lab = Lab(faster_without_flash)
    search = lab.search(n_turns=2, on_progress=lambda what, done: seen.append((what, done)))
    search.run("default", BASE, [flash(), threads(1)], share=(0.2, 0.6), with_lane=True)
    assert [what for what, _ in seen] == [
        *["default: flash_attention off"] * 3,
        *["default: threads 1"] * 2,  # no faster in the first turn
        "default: a lane for long prompts",
    ]
    assert [done for _, done in seen] == pytest.approx([0.2, 0.3, 0.4, 0.4, 0.5, 0.6])


# -- judging ----------------------------------------------------------------------------------


def test_what_is_not_measured_counts_as_equal() -> None:
    for weights in WEIGHTS.values():
        assert sum(weights.values()) == pytest.approx(1.0)
        assert combine({}, weights) == 1.0
        assert combine(dict.fromkeys(weights, 0.5), weights) == pytest.approx(0.5)
    one = combine({"decode_one": 0.5}, WEIGHTS["default"])
    assert one == pytest.approx(math.exp(0.25 * math.log(0.5)))


def test_one_lucky_turn_does_not_win() -> None:
    fast: dict[Workload, float] = {"decode_many": 0.1}
    slow: dict[Workload, float] = {"decode_many": 1.01}
    assert judge("throughput", "x", [fast, fast]).won
    assert not judge("throughput", "x", [fast]).won
    close: dict[Workload, float] = {"decode_many": 0.9}  # 1.08 times as fast
    assert judge("throughput", "x", [close, close]).won
    assert not judge("throughput", "x", [close, close], QUICK_MARGIN).won
    assert not judge("throughput", "x", [fast, fast, slow]).won


@pytest.mark.parametrize(
    ("changes", "want"),
    [
        ({}, True),
        ({"gap_lane_ms": 299}, False),  # no smoother
        ({"ttft_lane_ms": 5600}, False),  # its own client waits too long
        ({"ttft_lane_ms": 5600, "ttft_chunks_ms": 6000}, True),  # but no longer than otherwise
    ],
)
def test_a_lane_pays_when_it_is_smooth_and_not_slow(changes: dict[str, Any], want: bool) -> None:
    values = {name: getattr(LANE, name) for name in LANE.__struct_fields__}
    assert lane_pays(LaneResult(**values | changes)) is want


def test_an_unmeasured_lane_is_neither_good_nor_bad() -> None:
    assert lane_pays(None) is None


# -- what is tried ----------------------------------------------------------------------------


def tried(base: Candidate, machine: Machine, **flags: bool) -> list[dict[str, Any]]:
    applied = [c.apply(base) for c in default_challenges(base, machine, **flags)]
    return [one.differences(base) for one in applied if one is not None]


def test_what_is_tried_is_named_by_its_values() -> None:
    challenger = BASE.with_(kv_type="q8_0", kv_unified=False, wait_policy="passive")
    assert told(challenger, BASE) == "kv_unified off, kv_type q8_0, wait_policy passive"


def test_a_quick_run_tries_each_setting_once() -> None:
    assert tried(BASE, TWO, has_openmp=True, is_quick=True) == [
        {"flash_attention": False},
        {"threads": 1},
        {"wait_policy": "passive"},
        {"extra_buffers": False},
    ]


def test_a_full_run_tries_more() -> None:
    every = tried(BASE, Machine(8, 4), has_openmp=True, is_quick=False)
    assert [one["threads"] for one in every if "threads" in one] == [1, 3, 4, 5, 6, 7, 8]
    assert [one["n_ubatch"] for one in every if "n_ubatch" in one] == [128, 256, 1024]
    assert {"wait_policy": "active"} in every


def test_threads_that_spin_for_ever_need_a_processor_to_spare() -> None:
    """Or the server's front would get none."""
    assert {"wait_policy": "active"} not in tried(BASE, TWO, has_openmp=True, is_quick=False)


def test_without_openmp_nothing_waits_its_way() -> None:
    every = tried(BASE, Machine(8, 4), has_openmp=False, is_quick=False)
    assert not any("wait_policy" in one for one in every)


@pytest.mark.parametrize(
    ("machine", "quick", "full"),
    [
        (Machine(1, 1), [1], [1]),
        (Machine(4, 2), [1, 2, 3, 4], [1, 2, 3, 4]),
        (Machine(32, 16), [8, 16, 32], [8, 12, 16, 31, 32]),
        (Machine(6, 12), [3, 6], [1, 2, 3, 4, 5, 6]),
    ],
)
def test_thread_counts(machine: Machine, quick: list[int], full: list[int]) -> None:
    assert thread_counts(machine, is_quick=True) == quick
    assert thread_counts(machine, is_quick=False) == full


def test_the_throughput_profile_never_asks_for_the_impossible() -> None:
    """A quantised cache needs flash attention."""
    for kv_type in ("f16", "q8_0"):
        base = Candidate(threads=2, kv_unified=False, kv_type=kv_type, flash_attention=True)
        for challenge in throughput_challenges():
            one = challenge.apply(base)
            assert one is None or one.kv_type == "f16" or one.flash_attention
    off = Candidate(threads=2, flash_attention=False)
    assert throughput_challenges()[0].apply(off) == off.with_(kv_type="q8_0", flash_attention=True)


@pytest.mark.parametrize("scale", [QUICK, FULL])
def test_a_context_holds_what_is_measured_in_it(scale: Any) -> None:
    steps = scale.n_decode + 1
    unified = scale.n_cells(kv_unified=True)
    assert unified % 256 == 0
    assert unified >= scale.n_prefix + max(scale.n_deep, scale.n_streams * steps)
    assert unified >= scale.n_streams * (scale.n_short + steps) + scale.n_newcomer
    each = scale.n_cells(kv_unified=False) // (scale.n_streams + 1)
    assert each >= max(scale.n_short + steps, scale.n_prompt)

"""Finding good settings: one setting after another, each new value against the best so far.

Machines are noisy and drift, so nothing is compared with a number from minutes ago: the best so far
and its challenger take turns, A B, B A, A B, and only the ratios of a turn count. A challenger wins
after two turns or more, when the median of its ratios is better by more than a margin and no turn
went the other way; the first that does is its last.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from naiad.config import Profile
from naiad.engine.sizing import Machine
from naiad.tune.candidate import Candidate, WaitPolicy, Workload
from naiad.tune.record import LaneResult, Measured
from naiad.tune.runner import CandidateFailed, Engine, OutOfTime

#: A challenger must be this much faster; with few turns, and short ones, this much.
MARGIN, QUICK_MARGIN = 1.05, 1.1
#: A lane's newcomer may take so many times as long as alone (the price of nobody else waiting).
LANE_PATIENCE = 2.2

#: How much each piece of work counts; what a setting has no bearing on is taken as equal.
WEIGHTS: dict[Profile, dict[Workload, float]] = {
    "default": {
        "decode_one": 0.25,
        "decode_many": 0.2,
        "shared": 0.25,
        "prefill": 0.15,
        "deep": 0.15,
    },
    "throughput": {"decode_many": 0.7, "prefill": 0.3},
}

Open = Callable[[Candidate], Engine]
#: Called with what is going on and how much of the whole is done, 0 to 1.
Progress = Callable[[str, float], object]


@dataclass(frozen=True, slots=True)
class Challenge:
    """A change to try. apply: the challenger, or None where it makes no sense."""

    apply: Callable[[Candidate], Candidate | None]
    workloads: tuple[Workload, ...]


@dataclass(slots=True)
class Found:
    """What a search came to; best has the profiles whose base ran."""

    best: dict[Profile, Candidate] = field(default_factory=dict)
    measured: list[Measured] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lane: LaneResult | None = None


def default_challenges(
    base: Candidate, machine: Machine, *, has_openmp: bool, is_quick: bool
) -> list[Challenge]:
    """What the default profile tries, the most telling first."""
    flash: tuple[Workload, ...] = ("shared", "deep", "decode_many", "prefill")
    compute: tuple[Workload, ...] = ("decode_one", "decode_many", "prefill")
    found = [_set(flash, flash_attention=not base.flash_attention)]
    counts = thread_counts(machine, is_quick=is_quick)
    found += [_set(compute, threads=n) for n in counts if n != base.threads]
    if has_openmp:
        found += [_wait("passive", machine)]
        found += [] if is_quick else [_wait("active", machine)]
    found.append(_set(compute, extra_buffers=not base.extra_buffers))
    sizes = () if is_quick else (128, 256, 1024)  # seldom matters, and needs long prompts to tell
    found += [_set(("prefill", "deep"), n_ubatch=n) for n in sizes if n != base.n_ubatch]
    return found


def throughput_challenges() -> list[Challenge]:
    """What the throughput profile tries, from streams apart with a small cache on."""
    work: tuple[Workload, ...] = ("decode_many", "prefill")
    return [
        Challenge(_other_kv_type, work),
        _set(work, kv_unified=True),
        Challenge(_other_flash, work),
    ]


def thread_counts(machine: Machine, *, is_quick: bool) -> list[int]:
    """Thread counts worth a measurement, the smaller first."""
    logical, physical = machine.logical, min(machine.physical, machine.logical)
    if logical <= (4 if is_quick else 8):
        return list(range(1, logical + 1))
    some = {physical // 2, physical, logical}
    return sorted(some if is_quick else some | {physical * 3 // 4, logical - 1})


def _set(workloads: tuple[Workload, ...], **changes: object) -> Challenge:
    return Challenge(lambda best: best.with_(**changes), workloads)


def told(challenger: Candidate, best: Candidate) -> str:
    """What is different in the challenger."""
    changes = challenger.differences(best)
    return ", ".join(f"{name} {_shown(value)}" for name, value in changes.items())


def _shown(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _wait(policy: WaitPolicy, machine: Machine) -> Challenge:
    """Threads that spin between steps need a processor to spare: the front must run, too."""

    def apply(best: Candidate) -> Candidate | None:
        has_spare = best.threads < machine.logical
        return best.with_(wait_policy=policy) if policy == "passive" or has_spare else None

    return Challenge(apply, ("decode_one", "decode_many"))


def _other_kv_type(best: Candidate) -> Candidate | None:
    if best.kv_type == "q8_0":
        return best.with_(kv_type="f16")
    return best.with_(kv_type="q8_0", flash_attention=True)


def _other_flash(best: Candidate) -> Candidate | None:
    is_free = best.kv_type == "f16"  # a quantised cache cannot do without
    return best.with_(flash_attention=not best.flash_attention) if is_free else None


class Search:
    """Runs challenges against the best so far.

    Args:
        open_engine: starts a candidate's engine; raises CandidateFailed.
        n_turns: how often each pair is compared.
        margin: how much faster a challenger must be.
        deadline_s: seconds after which no further challenge starts; infinite for no limit.
        clock: a monotonic clock, seconds.
    """

    def __init__(
        self,
        open_engine: Open,
        *,
        n_turns: int,
        margin: float = MARGIN,
        deadline_s: float = math.inf,
        on_progress: Progress = lambda *_: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.found = Found()
        self._open = open_engine
        self._n_turns = n_turns
        self._margin = margin
        self._clock = clock
        self._end = clock() + deadline_s
        self._on_progress = on_progress
        self._share = (0.0, 0.0)  # of the whole progress, what the present challenge is
        self._per_workload_s = 0.0  # the longest that a challenge took for each so far

    def run(
        self,
        profile: Profile,
        base: Candidate,
        challenges: Sequence[Challenge],
        *,
        share: tuple[float, float] = (0.0, 1.0),
        with_lane: bool = False,
    ) -> Candidate:
        """The best candidate found, which is kept in `found` too.

        share: the part of the whole progress that this is.

        Raises:
            CandidateFailed: the best so far does not run, or no longer.
        """
        if not self._has_time():
            self.found.notes.append(f"{profile}: no time to measure anything")
            return base
        best, engine = base, self._open(base)
        self.found.best[profile] = best
        try:
            for challenge, self._share in _shares(challenges, share):
                challenger = challenge.apply(best)
                if challenger is None or challenger == best:
                    continue
                what = told(challenger, best)
                self._tell(f"{profile}: {what}", 0.0)
                if not self._has_time(len(challenge.workloads)):
                    self.found.notes.append(f"{profile}: no time to measure {what}")
                    continue
                winner = self._challenge(profile, what, challenge.workloads, engine, challenger)
                if winner is not None:
                    engine.close()
                    best, engine = challenger, winner
                    self.found.best[profile] = best
            if with_lane:
                self._try_lane(engine, share[1])
        except OutOfTime:
            raise
        except CandidateFailed:
            del self.found.best[profile]  # what crashes is no advice
            raise
        finally:
            engine.close()
        return best

    def _tell(self, what: str, part: float) -> None:
        """part: of the present challenge that is done."""
        low, high = self._share
        self._on_progress(what, low + (high - low) * part)

    def _has_time(self, n_workloads: int = 1) -> bool:
        return self._clock() + self._per_workload_s * n_workloads <= self._end

    def _challenge(
        self,
        profile: Profile,
        what: str,
        workloads: Sequence[Workload],
        engine: Engine,
        challenger: Candidate,
    ) -> Engine | None:
        """The challenger's engine, still open, if it wins; else None."""
        begun = self._clock()
        other: Engine | None = None
        won = False
        try:
            other = self._open(challenger)
            turns = []
            for turn in self._turns(engine, other, workloads, WEIGHTS[profile]):
                turns.append(turn)
                self._tell(f"{profile}: {what}", len(turns) / self._n_turns)
            outcome = judge(profile, what, turns, self._margin)
            won = outcome.won
        except OutOfTime:
            raise
        except CandidateFailed as error:
            engine.seconds(workloads[0])  # raises when it was not the challenger's fault
            outcome = Measured(profile=profile, what=what, crashed=str(error))
        finally:
            if other is not None and not won:
                other.close()
        self.found.measured.append(outcome)
        each = (self._clock() - begun) / len(workloads)
        self._per_workload_s = max(self._per_workload_s, each)
        return other if won else None

    def _turns(
        self,
        engine: Engine,
        other: Engine,
        workloads: Sequence[Workload],
        weights: dict[Workload, float],
    ) -> Iterator[dict[Workload, float]]:
        """The challenger's time over the other's, for each workload, turn by turn."""
        used = [workload for workload in workloads if workload in weights]
        for turn in range(self._n_turns):
            ratios: dict[Workload, float] = {}
            for workload in used:
                if turn % 2:
                    late, early = other.seconds(workload), engine.seconds(workload)
                else:
                    early, late = engine.seconds(workload), other.seconds(workload)
                ratios[workload] = late / early
            yield ratios
            if combine(ratios, weights) >= 1 or self._clock() > self._end:
                return

    def _try_lane(self, engine: Engine, done: float) -> None:
        """Compare the ways to take a long prompt; without an answer there is no lane."""
        if not self._has_time():
            self.found.notes.append("default: no time to measure a lane for long prompts")
            return
        self._on_progress("default: a lane for long prompts", done)
        try:
            results = [engine.compare_lane() for _ in range(1 + self._n_turns // 3)]
        except CandidateFailed as error:
            self.found.notes.append(f"default: a lane for long prompts does not work: {error}")
            return
        self.found.lane = min(results, key=lambda result: result.gap_lane_ms)


def _shares(
    challenges: Sequence[Challenge], share: tuple[float, float]
) -> Iterator[tuple[Challenge, tuple[float, float]]]:
    """Each challenge with its part of the progress."""
    low, high = share
    each = (high - low) / max(len(challenges), 1)
    for i, challenge in enumerate(challenges):
        yield challenge, (low + each * i, low + each * (i + 1))


def judge(
    profile: Profile,
    what: str,
    turns: Sequence[dict[Workload, float]],
    margin: float = MARGIN,
) -> Measured:
    """What the ratios of some turns say about a challenger."""
    weights = WEIGHTS[profile]
    detail = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
    ratio = combine(detail, weights)
    is_steady = all(combine(turn, weights) < 1 for turn in turns)
    shown = {str(name): value for name, value in detail.items()}
    won = len(turns) > 1 and is_steady and ratio < 1 / margin
    return Measured(profile=profile, what=what, ratio=ratio, detail=shown, won=won)


def combine(ratios: dict[Workload, float], weights: dict[Workload, float]) -> float:
    """The weighted geometric mean; workloads that are missing count as equal."""
    logs = sum(weights[name] * math.log(ratio) for name, ratio in ratios.items())
    return math.exp(logs / sum(weights.values()))


def lane_pays(result: LaneResult | None) -> bool | None:
    """Whether a lane makes running streams wait less, at a price that its newcomer can pay."""
    if result is None:
        return None
    is_smoother = result.gap_lane_ms * MARGIN < result.gap_chunks_ms
    worst = max(LANE_PATIENCE * result.ttft_alone_ms, MARGIN * result.ttft_chunks_ms)
    return is_smoother and result.ttft_lane_ms <= worst

"""One run of `naiad tune`: what is tried, in which order, and what is written down."""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from naiad.config import EngineConfig, Profile, Tuning
from naiad.engine import sizing
from naiad.errors import ModelFileError, NaiadError
from naiad.tune import record as records
from naiad.tune.candidate import FULL, QUICK, Candidate, Scale
from naiad.tune.child import Facts
from naiad.tune.record import Record
from naiad.tune.runner import CandidateFailed, ChildEngine, look_at_build
from naiad.tune.search import (
    MARGIN,
    QUICK_MARGIN,
    Found,
    Open,
    Progress,
    Search,
    default_challenges,
    lane_pays,
    throughput_challenges,
)

#: A quick run starts nothing new after so many seconds, and ends within 30 with the starter.
QUICK_DEADLINE_S, QUICK_AT_MOST_S = 23.0, 28.0
_QUICK_TURNS, _FULL_TURNS = 2, 5
#: Processors used by other programs from which on they disturb the measurement.
BUSY = 0.4
FULL_PATIENCE_S = 600.0


class NothingMeasured(NaiadError):
    """The time was too short for a single comparison."""

    code = "nothing_measured"


@dataclass(frozen=True, slots=True)
class Effort:
    """How much to measure.

    deadline_s: nothing new is started after it; at_most_s: what runs then is given up;
    patience_s: how long one answer of an engine may take.
    """

    is_quick: bool
    scale: Scale
    n_turns: int
    deadline_s: float
    at_most_s: float
    patience_s: float


QUICK_EFFORT = Effort(True, QUICK, _QUICK_TURNS, QUICK_DEADLINE_S, QUICK_AT_MOST_S, QUICK_AT_MOST_S)
FULL_EFFORT = Effort(False, FULL, _FULL_TURNS, math.inf, math.inf, FULL_PATIENCE_S)


def measure(
    model: Path,
    effort: Effort,
    on_progress: Progress,
    *,
    anyway: bool = False,
    facts: Facts | None = None,
    open_engine: Open | None = None,
    in_use: Callable[[], float] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Record:
    """Measure, and return what was found; nothing is written.

    anyway: measure on a busy machine, too. facts and open_engine are found out and made when not
    given; in_use tells how many processors other programs use.

    Raises:
        NothingMeasured: the machine is busy, or not one comparison came about.
        EngineUnavailable: the engine is not installed.
        ModelFileError: the model cannot be read, or does not run with the usual settings.
    """
    begun = clock()
    in_use = in_use or processors_in_use
    used = in_use()
    if used > BUSY and not anyway:
        raise NothingMeasured(
            f"Nothing was measured, since {_busy(used)}. "
            "Measure when the machine rests, or with --anyway."
        )
    facts = facts or look_at_build()
    opener = open_engine or _opener(model, effort, clock() + effort.at_most_s)
    search = Search(
        opener,
        n_turns=effort.n_turns,
        margin=QUICK_MARGIN if effort.is_quick else MARGIN,
        deadline_s=effort.deadline_s,
        on_progress=on_progress,
        clock=clock,
    )
    _search_as_far_as_it_goes(search, facts, effort, model)
    if not any(one.ratio for one in search.found.measured):
        raise NothingMeasured(
            f"Nothing could be measured in {clock() - begun:.0f} s: the machine is busy, or slow. "
            "Measure when it rests: naiad tune"
        )
    on_progress("done", 1.0)
    record = _record(model, effort, search.found, clock() - begun)
    used = max(used, in_use())
    if used <= BUSY:
        return record
    return msgspec.structs.replace(record, was_busy=True, notes=[*record.notes, _busy(used)])


def _search_as_far_as_it_goes(search: Search, facts: Facts, effort: Effort, model: Path) -> None:
    """What was found before a candidate failed still counts. ModelFileError: nothing was."""
    try:
        _search_profiles(search, facts, effort)
    except CandidateFailed as error:
        if not search.found.best:
            raise ModelFileError(f"{model.name} does not run here: {error}") from error
        search.found.notes.append(f"measuring ended early: {error}")


def _busy(used: float) -> str:
    return f"other programs keep {used:.1f} processors busy: figures would mislead"


def processors_in_use() -> float:
    """How many processors are at work, on average over half a second."""
    import psutil

    n = psutil.cpu_count() or 1
    return n * psutil.cpu_percent(interval=0.5) / 100


def _search_profiles(search: Search, facts: Facts, effort: Effort) -> None:
    machine = machine_of(facts)
    base = base_candidate(machine)
    challenges = default_challenges(
        base, machine, has_openmp=facts.has_openmp, is_quick=effort.is_quick
    )
    best = search.run("default", base, challenges, share=(0.0, 0.75), with_lane=True)
    wide = throughput_base(best, machine)
    search.run("throughput", wide, throughput_challenges(), share=(0.75, 1.0))


def machine_of(facts: Facts) -> sizing.Machine:
    """This machine, as the rules of thumb see it."""
    return sizing.this_machine(on_gpu=facts.has_gpu, has_amx=facts.has_amx)


def base_candidate(machine: sizing.Machine) -> Candidate:
    """What an engine would run with if nothing had been measured."""
    choice = sizing.choose(EngineConfig(), machine)
    return Candidate(
        threads=choice.threads,
        n_ubatch=choice.n_ubatch,
        flash_attention=choice.flash_attention,
        kv_unified=choice.kv_unified,
        kv_type=choice.kv_type,
        extra_buffers=choice.extra_buffers,
    )


def throughput_base(best: Candidate, machine: sizing.Machine) -> Candidate:
    """The throughput profile's rule of thumb, on what the default profile has found."""
    choice = sizing.choose(EngineConfig(profile="throughput"), machine)
    return best.with_(
        kv_unified=choice.kv_unified,
        kv_type=choice.kv_type,
        flash_attention=choice.flash_attention,
    )


def _opener(model: Path, effort: Effort, end: float) -> Open:
    patience_s = effort.patience_s
    return lambda one: ChildEngine(model, one, effort.scale, patience_s=patience_s, end=end)


def _record(model: Path, effort: Effort, found: Found, seconds: float) -> Record:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Record(
        version=records.VERSION,
        model=model.stem,
        model_fingerprint=records.model_fingerprint(model),
        build_fingerprint=records.build_fingerprint(),
        measured_at=now,
        is_quick=effort.is_quick,
        seconds=round(seconds, 1),
        profiles=tunings(found, f"measured on {model.stem}, {now[:10]}"),
        measured=found.measured,
        lane=found.lane,
        notes=found.notes,
    )


def tunings(found: Found, source: str) -> dict[Profile, Tuning]:
    """What engines are told. Streams apart have no lane: it needs as many streams as the pool; nor
    has a single thread, which could compute but one of the two.
    """
    lane = lane_pays(found.lane)
    return {
        profile: best.tuning(source, lane if best.kv_unified and best.threads > 1 else None)
        for profile, best in found.best.items()
    }

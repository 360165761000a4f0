"""The process that measures one candidate: it may crash, and that is a result too.

Questions and answers are JSON messages over an inherited pipe; one question, one answer.
"""

from __future__ import annotations

import argparse
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from naiad.errors import NaiadError
from naiad.native.orphans import die_with_parent
from naiad.tune.candidate import Candidate, Scale, Workload
from naiad.tune.record import LaneResult


class Ask(msgspec.Struct, frozen=True):
    """workload: what to time, or "lane" for the comparison of the ways to take a long prompt."""

    workload: Workload | str


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it; exactly one is set. The first answer, seconds 0, says that it is ready."""

    seconds: float | None = None
    lane: LaneResult | None = None
    trouble: str | None = None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the build says of itself and of the machine."""

    has_gpu: bool
    has_amx: bool
    has_openmp: bool


def main(arguments: list[str] | None = None) -> int:
    """Serve questions until the pipe ends, or print Facts; the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--facts", action="store_true")
    parser.add_argument("--fd", type=int)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--candidate")
    parser.add_argument("--scale")
    options = parser.parse_args(arguments)
    if options.facts:
        print(msgspec.json.encode(facts()).decode())
        return 0
    die_with_parent()
    candidate = msgspec.json.decode(options.candidate, type=Candidate)
    scale = msgspec.json.decode(options.scale, type=Scale)
    with Connection(options.fd) as pipe:
        try:
            return serve(pipe, options.model, candidate, scale)
        except EOFError:
            return 0  # nobody asks any more
        except (NaiadError, RuntimeError, MemoryError) as error:
            pipe.send_bytes(msgspec.json.encode(Answer(trouble=str(error) or repr(error))))
            return 1


def facts() -> Facts:
    """Loads the engine's library, without a model."""
    from naiad.native import library

    library.start()
    info = library.system_info()
    return Facts(
        has_gpu=library.has_gpu(),
        has_amx="AMX_INT8 = 1" in info,
        has_openmp="OPENMP = 1" in info,
    )


def serve(pipe: Connection, model: Path, candidate: Candidate, scale: Scale) -> int:
    """Answer until the pipe ends. Raises EOFError then, and what the engine raises."""
    from naiad.tune.workloads import Workloads  # the parent reads this module without the engine

    workloads = Workloads(model, candidate, scale)
    pipe.send_bytes(msgspec.json.encode(Answer(seconds=0.0)))
    while True:
        ask = msgspec.json.decode(pipe.recv_bytes(), type=Ask)
        if ask.workload == "lane":
            answer = Answer(lane=workloads.compare_lane())
        else:
            workload = msgspec.convert(ask.workload, Workload)
            answer = Answer(seconds=workloads.run(workload))
        pipe.send_bytes(msgspec.json.encode(answer))

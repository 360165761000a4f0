"""A candidate's child process as the parent sees it.

Between questions a child is stopped (SIGSTOP): the threads of OpenMP may go on spinning after a
step, for minutes under some wait policies, and would slow whichever candidate is measured next.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import msgspec

import naiad
from naiad.errors import EngineUnavailable
from naiad.tune.candidate import Candidate, Scale, Workload
from naiad.tune.child import Answer, Ask, Facts
from naiad.tune.record import LaneResult

WAIT_POLICY = "OMP_WAIT_POLICY"
_START = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from naiad.tune.child import main; sys.exit(main())"
)


class CandidateFailed(Exception):
    """The candidate crashed, hung, or could not be loaded; the message says which."""


class OutOfTime(CandidateFailed):
    """There was no time left for an answer, which says nothing of the candidate."""


class Engine(Protocol):
    """What a comparison needs of a candidate. Both methods raise CandidateFailed."""

    def seconds(self, workload: Workload) -> float:
        """How long the workload took."""
        ...

    def compare_lane(self) -> LaneResult:
        """See `naiad.tune.workloads.Workloads.compare_lane`."""
        ...

    def close(self) -> None:
        """End it. Safe to call twice."""
        ...


def look_at_build() -> Facts:
    """What the installed engine is. Raises EngineUnavailable when it does not load."""
    command = [*_command(), "--facts"]
    answer = subprocess.run(command, capture_output=True, check=False)
    try:
        return msgspec.json.decode(answer.stdout.splitlines()[-1], type=Facts)
    except (IndexError, msgspec.DecodeError):
        lines = answer.stderr.decode(errors="replace").strip().splitlines()
        why = lines[-1] if lines else f"exit status {answer.returncode}"
        raise EngineUnavailable(f"The engine does not load: {why}") from None


def _command() -> list[str]:
    """Runs the child from the same sources as this process."""
    return [sys.executable, "-P", "-c", _START, str(Path(naiad.__file__).parents[1])]


class ChildEngine:
    """Starts the child and waits until its model is loaded. Raises CandidateFailed.

    patience_s: how long one answer may take before the child counts as hung.
    end: the time.monotonic() after which no answer is of use any more.
    """

    def __init__(
        self,
        model: Path,
        candidate: Candidate,
        scale: Scale,
        *,
        patience_s: float,
        end: float = math.inf,
    ) -> None:
        self._patience_s = patience_s
        self._end = end
        self._last_words = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._pipe, theirs = Pipe()
        try:
            self._process = self._start(theirs, model, candidate, scale)
        finally:
            theirs.close()
        try:
            self._answer()
        except CandidateFailed:
            self.close()
            raise

    def _start(
        self, theirs: Connection, model: Path, candidate: Candidate, scale: Scale
    ) -> subprocess.Popen[bytes]:
        command = [*_command(), "--fd", str(theirs.fileno())]
        command += ["--model", str(model), "--candidate", msgspec.json.encode(candidate).decode()]
        command += ["--scale", msgspec.json.encode(scale).decode()]
        env = {k: v for k, v in os.environ.items() if k != WAIT_POLICY}
        return subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._last_words,
            stderr=self._last_words,
            env=env | ({WAIT_POLICY: candidate.wait_policy} if candidate.wait_policy else {}),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def seconds(self, workload: Workload) -> float:
        """See Engine."""
        answer = self._ask(workload)
        assert answer.seconds is not None
        return answer.seconds

    def compare_lane(self) -> LaneResult:
        """See Engine."""
        answer = self._ask("lane")
        assert answer.lane is not None
        return answer.lane

    def _ask(self, workload: str) -> Answer:
        try:
            self._process.send_signal(signal.SIGCONT)
            self._pipe.send_bytes(msgspec.json.encode(Ask(workload)))
        except OSError as error:
            raise CandidateFailed(self._how_it_ended()) from error
        return self._answer()

    def _answer(self) -> Answer:
        try:
            patience_s = max(0.0, min(self._patience_s, self._end - time.monotonic()))
            if not self._pipe.poll(patience_s):
                kind = OutOfTime if patience_s < self._patience_s else CandidateFailed
                raise kind(f"no answer within {patience_s:.0f} s")
            answer = msgspec.json.decode(self._pipe.recv_bytes(), type=Answer)
        except (EOFError, OSError) as error:
            raise CandidateFailed(self._how_it_ended()) from error
        self._process.send_signal(signal.SIGSTOP)
        if answer.trouble is not None:
            raise CandidateFailed(answer.trouble)
        return answer

    def _how_it_ended(self) -> str:
        code = self._process.wait(timeout=10)
        self._last_words.seek(0)
        lines = self._last_words.read().decode(errors="replace").strip().splitlines()
        words = f": {lines[-1][:200]}" if lines else ""
        if code < 0:
            return f"crashed with {signal.Signals(-code).name}{words}"
        return f"ended with exit status {code}{words}"

    def close(self) -> None:
        """See Engine."""
        self._pipe.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()  # it may be stopped; there is nothing to save
        self._process.wait()
        self._last_words.close()

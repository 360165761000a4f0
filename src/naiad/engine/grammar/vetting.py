"""The owner of the helper process: a grammar that does not come back in time is given up."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from naiad.engine.grammar.definition import MAX_BYTES
from naiad.errors import InternalError, InvalidRequest

#: -P: the directory the server was started in is no place to import from.
_COMMAND = (sys.executable, "-P", "-m", "naiad.engine.grammar.helper")
_START_S = 60.0  # a busy machine may take long to start Python; a grammar gets no such time
_PIECE = 1 << 16
#: Grammars in use are compiled within so many seconds; what takes longer stands back.
_QUICK_S = 0.1


class _Gone(Exception):
    """The pipe broke before the answer was there."""


class Vetting:
    """One helper, started when it is first needed and replaced when it is lost. Not thread-safe.

    cpu_s: seconds of the processor that one grammar may take. timeout_s: seconds in all; a slow
    one has only what others leave of the processor. command: how the helper is started.
    """

    def __init__(
        self, cpu_s: float = 1.0, timeout_s: float = 10.0, command: Sequence[str] = _COMMAND
    ) -> None:
        self._cpu_s = cpu_s
        self._timeout_s = timeout_s
        self._command = command
        self._helper: subprocess.Popen[bytes] | None = None

    def vet(self, kind: str, text: str) -> str:
        """The grammar as llguidance reads it. Raises InvalidRequest, or InternalError where no
        helper can be started."""
        if len(text) > MAX_BYTES:
            raise InvalidRequest(
                f"the grammar has {len(text)} characters; at most {MAX_BYTES} bytes are allowed"
            )
        line = json.dumps({"kind": kind, "text": text, "cpu_s": self._cpu_s}).encode() + b"\n"
        helper = self._warm()
        try:
            reply = self._ask(helper, line)
        except TimeoutError:
            self.close()
            raise _too_long(self._timeout_s) from None
        except _Gone:
            is_spent = helper.wait() == -signal.SIGPROF
            self.close()
            if is_spent:
                raise _too_long(self._cpu_s) from None
            raise InvalidRequest("the grammar is too large or too deep to be compiled") from None
        if reply["error"] is not None:
            raise InvalidRequest(str(reply["error"]))
        return str(reply["definition"])

    def _warm(self) -> subprocess.Popen[bytes]:
        helper = self._helper
        if helper is not None and helper.poll() is None:
            return helper
        self.close()
        pipe = subprocess.PIPE
        helper = self._helper = subprocess.Popen(self._command, stdin=pipe, stdout=pipe)
        try:
            _read_line(helper, time.monotonic() + _START_S)
        except (TimeoutError, _Gone):
            self.close()
            raise InternalError("the helper that compiles grammars cannot be started") from None
        return helper

    def _ask(self, helper: subprocess.Popen[bytes], line: bytes) -> dict[str, Any]:
        assert helper.stdin is not None
        assert helper.stdout is not None
        try:
            helper.stdin.write(line)
            helper.stdin.flush()
        except OSError:
            raise _Gone from None
        deadline = time.monotonic() + self._timeout_s
        is_quick, _, _ = select.select([helper.stdout], [], [], min(_QUICK_S, self._timeout_s))
        if not is_quick:
            stand_back(helper.pid)
        reply: dict[str, Any] = json.loads(_read_line(helper, deadline))
        if not is_quick:
            self.close()  # it cannot be called forward again; the next grammar gets another
        return reply

    def close(self) -> None:
        """End the helper. Safe to call twice; the next grammar starts another."""
        helper, self._helper = self._helper, None
        if helper is None:
            return
        helper.kill()
        helper.wait()
        for pipe in (helper.stdin, helper.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except OSError:  # what was never read cannot be flushed to the dead
                continue


def stand_back(pid: int) -> None:
    """Let a process have what all others leave of the processor, so that streams notice nothing."""
    with contextlib.suppress(OSError):  # gone; or a sandbox that forbids it, and it is only a hint
        os.setpriority(os.PRIO_PROCESS, pid, 19)
        if hasattr(os, "SCHED_IDLE"):
            os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))


def _too_long(seconds: float) -> InvalidRequest:
    return InvalidRequest(f"the grammar took longer than {seconds:g} s to compile and was given up")


def _read_line(helper: subprocess.Popen[bytes], deadline: float) -> bytes:
    """One line; the helper sends nothing behind it before it is asked again."""
    assert helper.stdout is not None
    found = b""
    while not found.endswith(b"\n"):
        ready, _, _ = select.select([helper.stdout], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        piece = os.read(helper.stdout.fileno(), _PIECE)
        if not piece:
            raise _Gone
        found += piece
    return found

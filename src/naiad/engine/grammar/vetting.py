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
from dataclasses import dataclass
from typing import Any

from naiad.engine.grammar.definition import MAX_BYTES
from naiad.errors import InternalError, InvalidRequest

#: -P: the directory the server was started in is no place to import from.
_COMMAND = (sys.executable, "-P", "-m", "naiad.engine.grammar.helper")
_START_S = 60.0  # a busy machine may take long to start Python; a grammar gets no such time
_SLACK_S = 5.0  # the helper itself gives a grammar up; this much later it is given up as well
_PIECE = 1 << 16


class _Gone(Exception):
    """The pipe broke before the answer was there."""


@dataclass(frozen=True, slots=True)
class Vetted:
    """A grammar as llguidance reads it, and the seconds of the processor that trying it took."""

    definition: str
    cpu_s: float


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

    def vet(self, kind: str, text: str) -> Vetted:
        """Try a grammar out. Raises InvalidRequest, or InternalError where no helper can be started
        or none answers."""
        if len(text) > MAX_BYTES:
            raise InvalidRequest(
                f"the grammar has {len(text)} characters; at most {MAX_BYTES} bytes are allowed"
            )
        limits = {"cpu_s": self._cpu_s, "timeout_s": self._timeout_s}
        line = json.dumps({"kind": kind, "text": text, **limits}).encode() + b"\n"
        try:
            reply = self._ask(self._warm(), line)
        except (TimeoutError, _Gone):
            self.close()
            raise InternalError("the helper that compiles grammars does not answer") from None
        if reply["error"] is not None:
            raise InvalidRequest(str(reply["error"]))
        return Vetted(str(reply["definition"]), float(reply["cpu_s"]))

    def _warm(self) -> subprocess.Popen[bytes]:
        helper = self._helper
        if helper is not None and helper.poll() is None:
            return helper
        self.close()
        pipe = subprocess.PIPE
        helper = self._helper = subprocess.Popen(
            self._command,
            stdin=pipe,
            stdout=pipe,
            # So that its child ends with it. Not a session of its own: Linux shares the processors
            # out among sessions first (autogroups), and then standing back within one is no use.
            process_group=0,
        )
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
        deadline = time.monotonic() + self._timeout_s + _SLACK_S
        reply: dict[str, Any] = json.loads(_read_line(helper, deadline))
        return reply

    def close(self) -> None:
        """End the helper. Safe to call twice; the next grammar starts another."""
        helper, self._helper = self._helper, None
        if helper is None:
            return
        if helper.returncode is None:  # its number is nobody else's yet
            with contextlib.suppress(ProcessLookupError, PermissionError):  # all of them are gone
                os.killpg(helper.pid, signal.SIGKILL)
        helper.wait()
        for pipe in (helper.stdin, helper.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except OSError:  # what was never read cannot be flushed to the dead
                continue


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

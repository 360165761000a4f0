"""Markdown is rendered in a process of its own, one job after another.

What is rendered comes out of a model. There are texts that keep a parser or a highlighter busy for
hours, and Python's regular expressions keep every thread of their process waiting; so they run
elsewhere, and a timer ends a job that takes too long. Such a text is shown as it is.

A job is a line of JSON, a list of texts; its reply is a line with a list of HTML.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

JOB_S = 2.0  # seconds of the processor that one job may take
_TEXTS = msgspec.json.Decoder(list[str])
_COMMAND = (sys.executable, "-P", "-m", "naiad.ui.helper")


class MarkdownHelper:
    """Owner of one process, which starts with the first job. Not for several threads at once.

    Args:
        command: how the process is started.
    """

    def __init__(self, command: Sequence[str] = _COMMAND) -> None:
        self._command = tuple(command)
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, texts: list[str]) -> list[str | None]:
        """The HTML of each text; None for one that cannot be rendered in time. Blocks."""
        together = self._ask(texts)
        if together is not None:
            return [*together]
        if len(texts) == 1:
            return [None]
        return [html for text in texts for html in self.render([text])]

    def close(self) -> None:
        """End the process. Safe to call twice; the next job starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.communicate()

    def _ask(self, texts: list[str]) -> list[str] | None:
        process = self._process = self._process or _start(self._command)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(msgspec.json.encode(texts) + b"\n")
            process.stdin.flush()
            reply = process.stdout.readline()
        except BrokenPipeError:
            reply = b""
        if not reply.endswith(b"\n"):
            self.close()
            return None
        return _TEXTS.decode(reply)


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer jobs until the source ends."""
    from naiad.ui.markdown import render

    render("*warm* `up` $x^2$\n```python\nx = 1\n```")
    for line in source:
        signal.setitimer(signal.ITIMER_PROF, JOB_S)
        html = [render(text) for text in _TEXTS.decode(line)]
        signal.setitimer(signal.ITIMER_PROF, 0)
        sink.write(msgspec.json.encode(html) + b"\n")
        sink.flush()


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's business
    serve(sys.stdin.buffer, sys.stdout.buffer)

"""`naiad` in a pseudo-terminal of its own, and servers for it to talk to."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pexpect

import naiad
from patience import PATIENCE_S

SOURCE = Path(naiad.__file__).parents[1]
#: What prompt_toolkit sends when a line may be typed, and when it has been taken.
READY, TAKEN = "\x1b[?2004h", "\x1b[?2004l"
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r")


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a user who has set nothing."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NAIAD_", "HF_"))}
    kept |= {"PYTHONPATH": str(SOURCE), "HOME": str(home), "XDG_CONFIG_HOME": str(home)}
    kept |= {"NAIAD_STATE_DIR": str(home / "state"), "NAIAD_MODELS_DIR": str(home / "models")}
    return {**kept, "NAIAD_DISK_CACHE": "false", **more}


@dataclass
class Served:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    url: str

    @property
    def port(self) -> str:
        return self.url.rpartition(":")[2]

    def kill(self) -> None:
        """End it without a word, as the system does when memory runs out."""
        self.process.kill()
        self.process.wait()


@contextmanager
def served(home: Path, *arguments: str, port: str = "0", **more: str) -> Iterator[Served]:
    """A scripted server that has loaded, until the block ends."""
    command = [sys.executable, "-m", "naiad", "serve", "--engine", "scripted", "--json"]
    process = subprocess.Popen(
        [*command, "--port", port, *arguments],
        env=environment(home, NAIAD_SCRIPTED_RATE="0", **more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        try:
            yield Served(process, _ready(process)["url"])
        finally:
            process.terminate()
            process.wait()


def _ready(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        told: dict[str, Any] = json.loads(line)
        if told["event"] == "ready":
            return told
    raise AssertionError("the server ended before it was ready")


def _heed_ctrl_c() -> None:
    """Tests that run in the background of a shell inherit that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A program at a terminal of so many lines and columns, and somebody who types."""

    def __init__(
        self, home: Path, *arguments: str, size: tuple[int, int] = (40, 200), **more: str
    ) -> None:
        env = environment(home, TERM="xterm-256color", PROMPT_TOOLKIT_NO_CPR="1", **more)
        command = ["-m", "naiad", *arguments]
        self.child: Any = pexpect.spawn(
            sys.executable, command, env=env, encoding="utf-8", timeout=PATIENCE_S,
            dimensions=size, preexec_fn=_heed_ctrl_c,
        )  # fmt: skip
        self.child.delaybeforesend = None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.close(force=True)

    def until(self, text: str) -> str:
        """Wait for a text, and give what came before it, without what moves the cursor."""
        self.child.expect_exact(text)
        return _ESCAPES.sub("", self.child.before)

    def ready(self) -> str:
        """Wait until a line can be typed."""
        return self.until(READY)

    def type(self, text: str) -> None:
        self.child.send(text)

    def say(self, message: str) -> None:
        """Type a message and send it."""
        self.type(f"{message}\r")
        self.until(TAKEN)

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.child.sendintr()

    def leave(self) -> int:
        """Ctrl-D, and the exit status."""
        self.child.send("\x04")
        return self.ended()

    def ended(self) -> int:
        """Wait until the program ends by itself; its exit status, or minus its signal."""
        self.child.expect(pexpect.EOF)
        self.child.wait()
        status = self.child.exitstatus
        return int(status) if status is not None else -int(self.child.signalstatus)

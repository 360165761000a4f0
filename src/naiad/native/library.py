"""The loaded llama.cpp library: start-up, log lines, what it was built with.

llama_cpp is imported before NumPy everywhere in this room: on toolchains that link the C++ runtime
statically the other order crashes every model load.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llama_cpp as lib

logger = logging.getLogger("naiad.native")

#: ggml_log_level -> Python level, debug for the others; 5 continues the line before it.
_LEVELS = {3: logging.WARNING, 4: logging.ERROR}
_CONTINUE = 5
#: The pool is meant to be larger than one request's context; llama.cpp warns of it each time.
_FALSE_ALARM = "> n_ctx_train"


@dataclass(slots=True)
class Held:
    """Lines held back. is_expected: they tell of an expected outcome, so debug is loud enough."""

    is_expected: bool = False
    lines: list[tuple[int, str]] = field(default_factory=list)


class _LogRelay:
    """Joins the fragments that llama.cpp logs into lines and remembers the latest errors."""

    def __init__(self) -> None:
        self.recent_errors: deque[str] = deque(maxlen=8)
        self._pending = ""
        self._local = threading.local()  # two contexts may decode at once, each in its thread
        self._level = logging.DEBUG
        # ctypes keeps no reference to a callback: this attribute is what keeps it alive.
        self.callback = lib.llama_log_callback(self._on_text)

    def _on_text(self, level: int, text: bytes, _user_data: Any) -> None:
        if level != _CONTINUE:
            self._level = _LEVELS.get(level, logging.DEBUG)
        self._pending += text.decode("utf-8", "replace")
        *lines, self._pending = self._pending.split("\n")
        for line in filter(None, (line.rstrip() for line in lines)):
            self._take(logging.DEBUG if _FALSE_ALARM in line else self._level, line)

    def _take(self, level: int, line: str) -> None:
        if level >= logging.ERROR:
            self.recent_errors.append(line)
        held = getattr(self._local, "held", None)
        if held is None:
            logger.log(level, "%s", line)
        else:
            held.append((level, line))

    @contextlib.contextmanager
    def holding(self) -> Iterator[Held]:
        """Keep this thread's lines back until the end, when it is known what they are worth."""
        held = Held()
        self._local.held = held.lines
        try:
            yield held
        finally:
            self._local.held = None
            for level, line in held.lines:
                logger.log(logging.DEBUG if held.is_expected else level, "%s", line)


@functools.cache
def start() -> _LogRelay:
    """Initialise the backends once and route the native log to `naiad.native`."""
    relay = _LogRelay()
    lib.llama_log_set(relay.callback, ctypes.c_void_p(0))
    lib.llama_backend_init()
    return relay


def recent_errors() -> list[str]:
    """The latest error lines of the native library, oldest first, at most eight."""
    return list(start().recent_errors)


def system_info() -> str:
    """llama.cpp's own line on the processor features it was built with and uses."""
    return str(lib.llama_print_system_info().decode("utf-8", "replace")).strip(" |")


def version() -> str:
    """The release of the binding, which brings its own library."""
    return str(lib.__version__)


def files() -> list[Path]:
    """The library's files, in order of their names."""
    return sorted(path for path in lib.llama_cpp._base_path.iterdir() if path.is_file())


def has_gpu() -> bool:
    """True when this build can put layers on a GPU and one is there."""
    return bool(lib.llama_supports_gpu_offload())


def max_sequences() -> int:
    """The most sequences one context of this build can hold."""
    return int(lib.llama_max_parallel_sequences())

"""Tool calls written as JSON, read while they come. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from naiad.chat.output import Output
from naiad.chat.source import Reading, Source

_NAME_KEYS = frozenset({"name", "function", "tool"})
_ARGUMENT_KEYS = frozenset({"arguments", "parameters", "args"})


class _Scanner:
    """Where a JSON text stands: how deep, and whether inside a string."""

    __slots__ = ("_is_escaped", "depth", "is_in_string")

    def __init__(self) -> None:
        self.depth = 0
        self.is_in_string = False
        self._is_escaped = False

    def step(self, char: str) -> None:
        if self.is_in_string:
            if self._is_escaped:
                self._is_escaped = False
            elif char == "\\":
                self._is_escaped = True
            elif char == '"':
                self.is_in_string = False
        elif char == '"':
            self.is_in_string = True
        elif char in "{[":
            self.depth += 1
        elif char in "}]":
            self.depth -= 1


class _Call:
    """One object with a name and arguments; the arguments are passed on as they form.

    raw: all characters so far. is_rejected: it is no call, and nothing of it was told. has_begun:
    its name was told.
    """

    def __init__(self, output: Output, is_known: Callable[[str], bool]) -> None:
        self.raw: list[str] = []
        self.is_rejected = False
        self.is_over = False
        self.has_begun = False
        self._output = output
        self._is_known = is_known
        self._scanner = _Scanner()
        self._key: str | None = None  # of the value that is being read
        self._part: list[str] = []  # of the key or value that is being read
        self._is_passing = False  # the value is passed on as it comes
        self._has_arguments = False
        self._kept = ""  # arguments that came before the name

    def feed(self, text: str) -> str:
        """Read on; returns what is left of the text once the object is over or rejected."""
        for place, char in enumerate(text):
            self.raw.append(char)
            self._step(char)
            if self.is_over or self.is_rejected:
                return text[place + 1 :]
        if self._is_passing or self._may_pass():
            self._pass()
        return ""

    def _step(self, char: str) -> None:
        scanner = self._scanner
        is_within = scanner.is_in_string or scanner.depth > 1
        scanner.step(char)
        if scanner.depth == 0:
            self._end_value()
            self._end()
        elif is_within or scanner.is_in_string or scanner.depth > 1:
            self._part.append(char)
        elif char == ":":
            self._begin_value()
        elif char == ",":
            self._end_value()
        elif char != "{" and not char.isspace():
            self._part.append(char)

    def _begin_value(self) -> None:
        key = _loaded("".join(self._part))
        self._part = []
        self._key = key if isinstance(key, str) else ""

    def _end_value(self) -> None:
        key = self._key
        if self._is_passing:
            self._pass()
        elif key in _NAME_KEYS and not self.has_begun:
            self._name(_loaded("".join(self._part)))
        elif key in _ARGUMENT_KEYS and not self._has_arguments:
            self._arguments("".join(self._part))
        self._part, self._key, self._is_passing = [], None, False

    def _name(self, name: Any) -> None:
        if not isinstance(name, str) or not name:
            return
        if not self._is_known(name):
            self.is_rejected = True
            return
        self.has_begun = True
        self._output.call(name)
        self._output.arguments(self._kept)

    def _arguments(self, text: str) -> None:
        self._has_arguments = True
        if text.startswith('"'):
            text = str(_loaded(text) or "{}")  # JSON within a string
        elif text == "null":
            text = "{}"
        if self.has_begun:
            self._output.arguments(text)
        else:
            self._kept = text

    def _may_pass(self) -> bool:
        """Whether the value that is being read is an object of arguments of a known function."""
        is_wanted = self._key in _ARGUMENT_KEYS and not self._has_arguments
        return self.has_begun and is_wanted and self._part[:1] == ["{"]

    def _pass(self) -> None:
        self._is_passing = self._has_arguments = True
        self._output.arguments("".join(self._part))
        self._part = []

    def _end(self) -> None:
        self.is_over = True
        if not self.has_begun:
            self.is_rejected = True
            return
        if not self._has_arguments:
            self._output.arguments("{}")
        self._output.end_call()


def read_call(
    source: Source, output: Output, is_known: Callable[[str], bool] = lambda _name: True
) -> Reading[bool]:
    """Read `{"name": ..., "arguments": {...}}`. False for anything else, which is left unread."""
    if (yield from source.accept("{")) is None:
        return False
    source.unread("{")
    call = _Call(output, is_known)
    while True:
        rest = call.feed(source.take())
        if call.is_rejected or (source.has_ended and not call.is_over and not call.has_begun):
            source.unread("".join(call.raw) + rest)
            return False
        if call.is_over or source.has_ended:
            source.unread(rest)
            return True
        yield


def read_object(source: Source, tell: Callable[[str], None]) -> Reading[None]:
    """Tell one JSON object as it comes; nothing when none comes."""
    scanner = _Scanner()
    while True:
        text = source.take()
        for place, char in enumerate(text):
            scanner.step(char)
            if scanner.depth <= 0:
                end = place + 1 if char == "}" else place
                tell(text[:end])
                source.unread(text[end:])
                return
        tell(text)
        if source.has_ended:
            return
        yield


def _loaded(text: str) -> Any:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None

"""Where the parsers of an answer put what they find. Pure."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

from naiad.chat.source import split_first
from naiad.types import ReasoningDelta, TextDelta, ToolCallDelta

CallEvent = TextDelta | ReasoningDelta | ToolCallDelta
_TextKind = type[TextDelta | ReasoningDelta]


def random_id() -> str:
    """An id for a tool call: 24 hex digits; dialects put their prefix before it."""
    return secrets.token_hex(12)


class Output:
    """Events in order; text of one kind that comes in a row becomes one event.

    new_id: makes the id of a call. max_calls: what comes after so many is dropped; None: no limit.
    hidden: marks that are told to nobody, wherever they stand.
    is_full: that many calls are complete.
    """

    __slots__ = (
        "_events",
        "_held",
        "_held_arguments",
        "_held_kind",
        "_hidden",
        "_id",
        "_is_open",
        "_max_calls",
        "_name",
        "_new_id",
        "is_full",
        "n_calls",
    )

    def __init__(
        self,
        new_id: Callable[[], str],
        max_calls: int | None = None,
        hidden: Sequence[str] = (),
    ) -> None:
        self.n_calls = 0
        self.is_full = False
        self._max_calls = max_calls
        self._new_id = new_id
        self._events: list[CallEvent] = []
        self._hidden = tuple(hidden)
        self._held = ""  # text that may become a hidden mark
        self._held_kind: _TextKind = TextDelta
        self._held_arguments = ""
        self._is_open = False
        self._id = self._name = ""

    @property
    def has_limit(self) -> bool:
        """True when calls are counted."""
        return self._max_calls is not None

    def take(self) -> list[CallEvent]:
        """The events since the last time."""
        events, self._events = self._events, []
        return events

    def text(self, text: str) -> None:
        """Text of the answer; "" is none."""
        if text and not self.is_full:
            self._append_text(TextDelta, text)

    def reasoning(self, text: str) -> None:
        """Text of the reasoning; "" is none."""
        if text:
            self._append_text(ReasoningDelta, text)

    def _append_text(self, kind: _TextKind, text: str) -> None:
        if self._hidden:
            text = self._without_marks(kind, text)
        if text:
            self._append(kind, text)

    def _without_marks(self, kind: _TextKind, text: str) -> str:
        """The text that is sure to hold no hidden mark; its end may have to wait."""
        if kind is not self._held_kind:
            self._release()
        self._held_kind = kind
        sure, self._held = self._split(self._held + text)
        return sure

    def _split(self, text: str) -> tuple[str, str]:
        """A text without hidden marks, and the end of it that may become one."""
        parts = []
        mark: str | None = ""
        while mark is not None:
            before, mark, text = split_first(text, self._hidden)
            parts.append(before)
        return "".join(parts), text

    def _release(self) -> None:
        """What was held back became no mark."""
        held, self._held = self._held, ""
        if held:
            self._append(self._held_kind, held)

    def _append(self, kind: _TextKind, text: str) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(last, TextDelta | ReasoningDelta) and isinstance(last, kind):
            text = last.text + text
            self._events.pop()
        self._events.append(kind(text, 0))

    def call(self, name: str) -> None:
        """A call of this function begins."""
        if self.is_full:
            return
        self._release()
        self._id, self._name = self._new_id(), name
        self._is_open = True
        self.n_calls += 1
        self._events.append(self._piece("", is_first=True))

    def arguments(self, text: str) -> None:
        """More of the arguments' JSON text; "" is none."""
        if self._hidden:
            text, self._held_arguments = self._split(self._held_arguments + text)
        if text and self._is_open:
            self._events.append(self._piece(text))

    def end_call(self) -> None:
        """The call is complete."""
        held, self._held_arguments = self._held_arguments, ""
        if not self._is_open:
            return
        if held:
            self._events.append(self._piece(held))
        self._is_open = False
        self._events.append(self._piece("", is_last=True))
        self.is_full = self.n_calls == self._max_calls

    def close(self) -> None:
        """The answer is over, perhaps within a call."""
        self._release()
        if self._is_open:
            self.end_call()

    def _piece(self, text: str, *, is_first: bool = False, is_last: bool = False) -> ToolCallDelta:
        return ToolCallDelta(self.n_calls - 1, self._id, self._name, text, is_first, is_last)

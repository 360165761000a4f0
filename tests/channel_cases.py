"""What the tests of channels share: cutting text into pieces, and folding events."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from naiad.chat.channels import Channels
from naiad.chat.output import CallEvent
from naiad.types import ReasoningDelta, TextDelta


@dataclass(frozen=True)
class FoldedCall:
    name: str
    arguments: str
    is_whole: bool = True


@dataclass(frozen=True)
class Folded:
    """An answer, put together again."""

    reasoning: str = ""
    text: str = ""
    calls: tuple[FoldedCall, ...] = ()


def fold(events: Iterable[CallEvent]) -> Folded:
    """Put events together; checks that those of a call are in order."""
    reasoning, text = "", ""
    calls: list[FoldedCall] = []
    for event in events:
        if isinstance(event, TextDelta):
            assert event.text
            text += event.text
        elif isinstance(event, ReasoningDelta):
            assert event.text
            reasoning += event.text
        elif event.is_first:
            assert event.index == len(calls)
            calls.append(FoldedCall(event.name, event.arguments, is_whole=False))
        else:
            assert event.index == len(calls) - 1
            last = calls.pop()
            assert last.name == event.name
            assert not last.is_whole
            calls.append(FoldedCall(last.name, last.arguments + event.arguments, event.is_last))
    return Folded(reasoning, text, tuple(calls))


def read(channels: Channels, *pieces: str) -> Folded:
    """An answer that came in these pieces."""
    events = [event for piece in pieces for event in channels.feed(piece, 1)]
    return fold(events + channels.finish())


def cut(text: str, sizes: Iterable[int]) -> list[str]:
    """A text in pieces of these sizes, the last as long as what is left."""
    pieces = []
    for size in sizes:
        pieces.append(text[:size])
        text = text[size:]
    return [*pieces, text]

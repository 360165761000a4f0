"""Bytes of tokens in, releasable text out: assembling and stop strings together."""

from __future__ import annotations

from collections.abc import Sequence

from naiad.text.assembler import Assembler
from naiad.text.stops import StopMatcher


class StreamText:
    """The text side of one stream.

    feed(bytes) any number of times, then finish() once; the released pieces joined are the answer.

    Args:
        stops: strings that end the text and are no part of it.
    """

    __slots__ = ("_assembler", "_matcher")

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._assembler = Assembler()
        self._matcher = StopMatcher(stops) if any(stops) else None

    @property
    def matched(self) -> str | None:
        """The stop that ended the text, once there is one (finish can find one too)."""
        return self._matcher.matched if self._matcher is not None else None

    def feed(self, data: bytes, *, may_stop: bool = True) -> tuple[str, str | None]:
        """The text that may be sent now ("" for none yet), and the stop that ended it, if any.

        may_stop: False where no stop counts yet, nor the beginning of one.
        """
        text = self._assembler.feed(data)
        if self._matcher is None or not may_stop:
            return text, None
        return self._matcher.feed(text)

    def finish(self) -> str:
        """Every character still held back, for the end of a stream that no stop has ended."""
        return "" if self._matcher is None else self._matcher.finish()

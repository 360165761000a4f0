"""Which logprobs go with which text, where text is held back, cut off, or split into channels.

A token belongs to the piece of text in which its own text begins. So what is told of tokens comes
with the text that they made, never before it, and tokens of a stop string are never told of. Those
of a character that a limit on tokens has cut come at the end, with no text: there is one entry for
each token that was counted. OpenAI's `bytes` are for characters that several tokens make; no rule
is stated for one that is cut off.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from naiad.text import Assembler
from naiad.types import TokenLogprob


class Alignment:
    """Of one stream. `begins` each token, then `released` the text that could be sent after it."""

    __slots__ = ("_assembler", "_n_made", "_n_released", "_waiting")

    def __init__(self) -> None:
        self._assembler = Assembler()
        self._n_made = 0  # characters complete so far, held back or not
        self._n_released = 0
        self._waiting: deque[tuple[int, TokenLogprob]] = deque()  # with where their text begins

    def begins(self, told: TokenLogprob) -> None:
        """The next token. One without text (a control token) is not told of."""
        if told.data:
            self._waiting.append((self._n_made, told))
            self._n_made += len(self._assembler.feed(told.data))

    def released(self, text: str) -> tuple[TokenLogprob, ...]:
        """The tokens that go with this text, which is the next to be sent."""
        self._n_released += len(text)
        found = []
        while self._waiting and self._waiting[0][0] < self._n_released:
            found.append(self._waiting.popleft()[1])
        return tuple(found)

    def rest(self) -> tuple[TokenLogprob, ...]:
        """The tokens of a character that the end of the answer has cut off: they have no text, but
        were counted."""
        found = tuple(told for _, told in self._waiting)
        self._waiting.clear()
        return found


class ChannelAlignment:
    """The same behind the parsers of channels, which leave out tags and trim white space."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[TokenLogprob] = []

    def begins(self, told: Sequence[TokenLogprob]) -> None:
        """Tokens whose text is now with the parsers."""
        self._waiting += told

    def told(self, text: str) -> tuple[TokenLogprob, ...]:
        """The tokens of a piece of a channel: those that made the text where it came last."""
        wanted = text.encode()
        joined = b"".join(one.data for one in self._waiting)
        start = joined.rfind(wanted)
        if start < 0:  # bytes that are no text were shown otherwise
            found, self._waiting = tuple(self._waiting), []
            return found
        end, at, found_at, n_past = start + len(wanted), 0, [], 0
        for one in self._waiting:
            if at < end and at + len(one.data) > start:
                found_at.append(one)
            n_past += at < end
            at += len(one.data)
        del self._waiting[:n_past]
        return tuple(found_at)

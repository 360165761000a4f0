"""Phrases that are never said: text is held back while it may become one, taken back if it does.

The rule: a phrase is found wherever its characters stand in the answer, in any case (characters are
compared in lower case, one by one), inside of words too, and however the text is split into tokens.
What the prompt ends with does not count.

Source of the automaton: Aho and Corasick, "Efficient string matching", 1975. Its state is how much
of any phrase the text ends with, so each character is looked at once.
"""

from __future__ import annotations

import codecs
from collections import deque
from functools import lru_cache


class Phrases:
    """An automaton for some phrases; shared by all streams that ban the same."""

    def __init__(self, phrases: tuple[str, ...]) -> None:
        self._next: dict[tuple[int, str], int] = {}
        self._fail = [0]
        self.depth = [0]  # of a state: characters that may belong to a phrase
        self.found = [0]  # of a state: length of the longest phrase that is complete; 0 for none
        for phrase in phrases:
            self._add("".join(map(fold, phrase)))
        self._link()

    def _add(self, phrase: str) -> None:
        state = 0
        for char in phrase:
            following = self._next.get((state, char))
            if following is None:
                following = self._next[state, char] = len(self.depth)
                self.depth.append(self.depth[state] + 1)
                self.found.append(0)
                self._fail.append(0)
            state = following
        self.found[state] = self.depth[state]

    def _link(self) -> None:
        """Where to go on when a state has no way on: its longest suffix that is a state too."""
        ways: dict[int, list[tuple[str, int]]] = {}
        for (state, char), following in self._next.items():
            ways.setdefault(state, []).append((char, following))
        waiting = deque([0])
        while waiting:
            state = waiting.popleft()
            for char, following in ways.get(state, ()):
                if state:
                    self._fail[following] = self.after(self._fail[state], char)
                suffix = self._fail[following]
                self.found[following] = self.found[following] or self.found[suffix]
                waiting.append(following)

    def after(self, state: int, char: str) -> int:
        """The state after one more (folded) character."""
        while state and (state, char) not in self._next:
            state = self._fail[state]
        return self._next.get((state, char), 0)


@lru_cache(maxsize=16)
def automaton(phrases: tuple[str, ...]) -> Phrases:
    """The automaton for these phrases. 16,000 characters take some 20 ms, once."""
    return Phrases(phrases)


def fold(char: str) -> str:
    """As characters are compared: in lower case, where that is one character as well."""
    lower = char.lower()
    return lower if len(lower) == 1 else char


class PhraseWatch:
    """Watches one stream, token by token; the last of them can be taken back."""

    def __init__(self, phrases: Phrases) -> None:
        self._phrases = phrases
        self._state = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._half: int | None = None  # the token in which an incomplete character begins
        self._begins: list[int] = []  # the token in which each character begins
        # Before each token: all of the above, to go back to.
        self._past: list[tuple[int, tuple[bytes, int], int | None, int]] = []

    @property
    def n_held(self) -> int:
        """Of the last tokens, those that must not be sent yet."""
        depth = self._phrases.depth[self._state]
        first = self._begins[len(self._begins) - depth] if depth else self._half
        return 0 if first is None else len(self._past) - first

    def feed(self, data: bytes) -> int:
        """Take in a token's bytes. How many of the last tokens hold a banned phrase; 0 for none.

        After any but 0 they must be taken back: see `rewind`.
        """
        token, before = len(self._past), self._half
        self._past.append((self._state, self._decoder.getstate(), before, len(self._begins)))
        for char in self._decoder.decode(data):
            self._begins.append(token if before is None else before)
            before = None
            self._state = self._phrases.after(self._state, fold(char))
            if found := self._phrases.found[self._state]:
                return token + 1 - self._begins[len(self._begins) - found]
        if not self._decoder.getstate()[0]:
            self._half = None
        elif before is None:
            self._half = token
        return 0

    def rewind(self, n_tokens: int) -> None:
        """Take the last tokens back; at least 1, and no more than were fed."""
        self._state, decoder, self._half, n_chars = self._past[-n_tokens]
        self._decoder.setstate(decoder)
        del self._past[-n_tokens:]
        del self._begins[n_chars:]

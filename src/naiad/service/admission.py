"""Who may come in: the requests the engine runs at once, and a bounded queue behind them.

The queue is bounded twice: in requests, and in prompt tokens that still have to be computed, since
one request may bring as much work as a thousand others. Both are checked before a template is
rendered or a token counted, so a refusal costs next to nothing; until the engine has counted the
tokens of a prompt, they are estimated from its length.

The estimates of waiting time come from one figure, learned from requests that ended by themselves:
the seconds from one start to the next while requests wait.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from naiad.errors import Overloaded
from naiad.types import Prompt, TextPrompt, TokenPrompt

#: UTF-8 bytes of text to a token, about: a little more in English, half in many other scripts.
BYTES_PER_TOKEN = 4

_WEIGHT = 0.1  # of the newest interval in the running average
_FIRST_GUESS_S = 1.0  # until something is known
_LONGEST_WAIT_S = 60  # clients stop retrying altogether when told to wait for minutes


class Place:
    """One request's place, from its admission until it leaves.

    n_tokens: of its prompt; an estimate until the engine has counted them.
    """

    __slots__ = ("_admission", "_is_waiting", "began", "had_to_wait", "n_tokens")

    def __init__(
        self, admission: Admission, n_tokens: int, began: float, *, had_to_wait: bool
    ) -> None:
        self._admission = admission
        self._is_waiting = True
        self.n_tokens = n_tokens
        self.began = began
        self.had_to_wait = had_to_wait

    def counted(self, n_tokens: int) -> None:
        """The engine has accepted the request, and knows the length of its prompt."""
        if self._is_waiting:
            self._admission.n_tokens += n_tokens - self.n_tokens
            self.n_tokens = n_tokens

    def started(self) -> None:
        """Its prompt is computed: there is text. Safe to call twice."""
        if self._is_waiting:
            self._is_waiting = False
            self._admission.n_tokens -= self.n_tokens

    def eta_s(self, position: int) -> float | None:
        """Seconds until it starts, about, with `position` requests before it; None: not known."""
        return self._admission.eta_s(position)


class Admission:
    """Counts what is in the house and refuses what goes beyond the limits.

    max_requests: requests that may wait beyond the `parallel` ones that run; 0 or more.
    max_tokens: prompt tokens that may wait to be computed, 1 or more. A single request may exceed
        it, when none is before it: whether it fits the context is not decided here.

    Attributes:
        n_tokens: prompt tokens of all requests that have no text yet.
    """

    def __init__(
        self,
        max_requests: int,
        max_tokens: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.n_tokens = 0
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._clock = clock
        self._n_in_flight = 0
        self._interval_s: float | None = None  # between two starts while requests wait
        self._last_end = -math.inf

    @property
    def n_in_flight(self) -> int:
        """Requests admitted and not yet ended, waiting ones included."""
        return self._n_in_flight

    def n_queued(self, parallel: int) -> int:
        """Requests beyond those that the engine runs at once."""
        return max(0, self._n_in_flight - parallel)

    def check(self, parallel: int, n_tokens: int = 0) -> None:
        """Raises Overloaded when a request with that many prompt tokens cannot come in now."""
        if self._n_in_flight >= parallel + self._max_requests:
            raise self._refusal(f"requests in progress or waiting: {self._n_in_flight}", 1)
        if self.n_tokens and self.n_tokens + n_tokens > self._max_tokens:
            excess = self.n_tokens + n_tokens - self._max_tokens
            n_leaving = math.ceil(excess * self._n_in_flight / self.n_tokens)
            told = f"prompt tokens waiting: about {self.n_tokens}, at most {self._max_tokens}"
            raise self._refusal(told, min(n_leaving, self._n_in_flight))

    @contextmanager
    def admit(self, parallel: int, n_tokens: int = 0) -> Iterator[Place]:
        """Hold a place for as long as the context lasts. Raises Overloaded.

        What leaves with an exception (refused, hung up) teaches nothing about waiting times.
        """
        self.check(parallel, n_tokens)
        place = Place(self, n_tokens, self._clock(), had_to_wait=self._n_in_flight >= parallel)
        self._n_in_flight += 1
        self.n_tokens += n_tokens
        try:
            yield place
            self._learn(place, parallel)
        finally:
            place.started()
            self._n_in_flight -= 1

    def eta_s(self, position: int) -> float | None:
        """Seconds until one starts that has `position` others before it; None: not known yet."""
        return None if self._interval_s is None else (position + 1) * self._interval_s

    def _learn(self, place: Place, parallel: int) -> None:
        """From a request that ends, what it tells of the interval between two starts.

        One that ran from the beginning took its time in one of the parallel places. One that had
        to wait tells nothing by itself, but there was work all along: so the next one starts as
        long after the one before it as it ends after the one that ended before it.
        """
        now = self._clock()
        ran_s = (now - place.began) / max(1, parallel)
        seen_s = now - max(self._last_end, place.began) if place.had_to_wait else ran_s
        self._last_end = now
        known = seen_s if self._interval_s is None else self._interval_s
        self._interval_s = known + _WEIGHT * (seen_s - known)

    def _refusal(self, what_is_full: str, n_leaving: int) -> Overloaded:
        """n_leaving: requests that must leave before this one can come in."""
        wait_s = n_leaving * (_FIRST_GUESS_S if self._interval_s is None else self._interval_s)
        return Overloaded(
            f"The server is busy; {what_is_full}. Try again later.",
            retry_after=min(_LONGEST_WAIT_S, max(1, math.ceil(wait_s))),
        )


def tokens_in(prompt: Prompt) -> int:
    """The tokens of a prompt, about; 1 or more. Exact for token ids."""
    if isinstance(prompt, TokenPrompt):
        return max(1, len(prompt.ids))
    if isinstance(prompt, TextPrompt):
        return tokens_of(len(prompt.text.encode()))
    n_bytes = sum(len(message.content.encode()) for message in prompt.messages)
    # Agents bring more text in their tools than in their turns.
    return tokens_of(n_bytes + sum(len(str(tool.parameters)) for tool in prompt.tools))


def tokens_of(n_bytes: int) -> int:
    """The tokens of that many bytes of text, about; 1 or more."""
    return max(1, n_bytes // BYTES_PER_TOKEN)

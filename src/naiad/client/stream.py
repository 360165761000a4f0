"""One stream's mailbox: what comes while the reader is away is merged, in order, into one batch.

Nothing else grows here: the ids are kept once (a stream can be resumed from its prompt and what it
has emitted), and a slow reader finds one larger batch, not a longer queue.
"""

from __future__ import annotations

import asyncio

from naiad.client.base import Job, TokenBatch
from naiad.errors import Cancelled, EngineFailed, NaiadError, from_code
from naiad.ipc.messages import StreamItem
from naiad.types import FinishReason


class Stream:
    """The engine's answer to one job: a TokenStream. One writer, one reader, one end.

    Attributes:
        job: what was asked for.
        emitted: every token id that has come, in order, read or not.
        next_seq: the place that the next item must have.
        is_ended: nothing more will come; the last batch may still wait for its reader.
    """

    __slots__ = (
        "_cached", "_data", "_error", "_finish", "_has_news", "_taken", "_waiter",
        "accepted", "emitted", "is_ended", "job", "n_prompt", "next_seq", "uid",
    )  # fmt: skip

    def __init__(self, uid: int, job: Job, accepted: asyncio.Future[Stream]) -> None:
        self.uid = uid
        self.job = job
        self.n_prompt = 0
        self.accepted = accepted  # resolved by the engine's yes or no
        self.emitted: list[int] = []
        self.next_seq = 0
        self.is_ended = False
        self._taken = 0
        self._data = bytearray()
        self._has_news = False
        self._cached = 0
        self._finish: FinishReason | None = None
        self._error: NaiadError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def accept(self, n_prompt: int) -> None:
        """The engine's yes; submit() returns."""
        self.n_prompt = n_prompt
        if not self.accepted.done():
            self.accepted.set_result(self)

    def put(self, item: StreamItem) -> None:
        """Add the next item; the caller has checked its place."""
        self.next_seq += 1
        self.emitted += item.tokens
        self._data += item.data
        self._cached = item.n_cached or self._cached
        if item.finish is not None:
            self.end(item.finish, _error_of(item))
        elif item.tokens or item.data:
            self._wake()

    def end(self, finish: FinishReason, error: NaiadError | None = None) -> None:
        """The one terminal; later calls change nothing. Fails submit() if it still waits."""
        if self.is_ended:
            return
        self.is_ended = True
        self._finish = finish
        self._error = error
        if not self.accepted.done():
            self.accepted.set_exception(error or Cancelled("the request was cancelled"))
        self._wake()

    async def get(self) -> TokenBatch:
        """Everything new since the last call; waits until there is something.

        Raises RuntimeError after the batch with `finish`, instead of waiting for ever.
        """
        while not self._has_news:
            if self.is_ended:
                raise RuntimeError(f"stream {self.uid} has ended; nothing more will come")
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._take()

    def _take(self) -> TokenBatch:
        tokens = tuple(self.emitted[self._taken :])
        data = bytes(self._data)
        self._taken = len(self.emitted)
        self._data.clear()
        self._has_news = False
        return TokenBatch(tokens, data, self._cached, self._finish, self._error)

    def _wake(self) -> None:
        self._has_news = True
        if self._waiter is not None:
            if not self._waiter.done():
                self._waiter.set_result(None)
            self._waiter = None


def _error_of(item: StreamItem) -> NaiadError | None:
    if item.finish is not FinishReason.ERROR:
        return None
    if item.error is None:
        return EngineFailed("the engine failed while it worked on this request")
    return from_code(*item.error)

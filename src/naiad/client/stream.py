"""One stream's mailbox: a batch for each step, merged in order when the reader is far behind.

A reader that is only a little late still sees one batch a step, so that a client gets its tokens as
the engine made them. A slow one finds one larger batch, not a longer queue: nothing else grows here
(the ids are kept once, so that a stream can be resumed from its prompt and what it has emitted).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from naiad.client.base import Job, TokenBatch
from naiad.errors import Cancelled, EngineFailed, NaiadError, from_code
from naiad.ipc.messages import StreamItem
from naiad.types import FinishReason, Progress, TokenLogprob

#: Tokens that no reader has taken yet, their bytes and logprobs, and how many bytes each has.
Waiting = tuple[list[int], bytes, list[TokenLogprob], list[int]]

#: Steps that a reader may be behind before what waits for it is merged.
MERGE_BEYOND = 64


class Stream:
    """The engine's answer to one job: a TokenStream. One writer, one reader, one end.

    Attributes:
        job: what was asked for.
        emitted: every token id that has come, in order, read or not.
        n_dropped: tokens left out of a prompt that was too long, or given up since.
        next_seq: the place that the next item must have.
        is_accepted: the engine's yes has come. Not the same as `accepted` being done: a caller
            that leaves cancels the future at once, and the yes may come before the abort goes out.
        is_ended: nothing more will come; the last batch may still wait for its reader.
    """

    __slots__ = (
        "_backlog", "_cached", "_error", "_finish", "_is_end_taken", "_n_cut", "_progress",
        "_waiter", "accepted", "emitted", "is_accepted", "is_ended", "job", "n_dropped", "n_prompt",
        "next_seq", "uid",
    )  # fmt: skip

    def __init__(self, uid: int, job: Job, accepted: asyncio.Future[Stream]) -> None:
        self.uid = uid
        self.job = job
        self.n_prompt = 0
        self.n_dropped = 0
        self.accepted = accepted  # resolved by the engine's yes or no
        self.emitted: list[int] = []
        self.next_seq = 0
        self.is_accepted = False
        self.is_ended = False
        self._backlog: deque[Waiting] = deque()
        self._is_end_taken = False
        self._cached = 0
        self._n_cut = 0  # from the prompt, before it began
        self._progress: Progress | None = None  # told while there is nothing else to tell
        self._finish: FinishReason | None = None
        self._error: NaiadError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def accept(self, n_prompt: int, n_dropped: int = 0) -> None:
        """The engine's yes; submit() returns."""
        self.n_prompt = n_prompt
        self.n_dropped = self._n_cut = n_dropped
        self.is_accepted = True
        if not self.accepted.done():
            self.accepted.set_result(self)

    def put(self, item: StreamItem) -> None:
        """Add the next item; the caller has checked its place."""
        self.next_seq += 1
        self.emitted += item.tokens
        self._cached = item.n_cached or self._cached
        self.n_dropped = self._n_cut + item.n_dropped
        if item.tokens or item.data:
            self._backlog.append((item.tokens, item.data, item.logprobs or [], item.sizes or []))
            if len(self._backlog) > MERGE_BEYOND:
                self._merge()
            self._wake()
        if item.finish is not None:
            self.end(item.finish, _error_of(item))

    def report(self, progress: Progress) -> None:
        """How far it is. The newest replaces one that was not read; tokens replace them all."""
        if self.next_seq == 0 and not self.is_ended:
            self._progress = progress
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
        """The next batch; waits until there is one.

        Raises RuntimeError after the batch with `finish`, instead of waiting for ever.
        """
        while not self._backlog and not self.is_ended:
            if self._progress is not None and self.next_seq == 0:
                return self._take_progress()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._is_end_taken:
            raise RuntimeError(f"stream {self.uid} has ended; nothing more will come")
        return self._take()

    def _take_progress(self) -> TokenBatch:
        progress, self._progress = self._progress, None
        return TokenBatch((), b"", progress=progress)

    def _take(self) -> TokenBatch:
        tokens, data, told, each = self._backlog.popleft() if self._backlog else _NOTHING
        logprobs, sizes = tuple(told), tuple(each)
        end: FinishReason | None = None
        error: NaiadError | None = None
        if self.is_ended and not self._backlog:
            self._is_end_taken = True
            end, error = self._finish, self._error
        return TokenBatch(
            tuple(tokens), data, self._cached, end, error, logprobs=logprobs, sizes=sizes
        )

    def _merge(self) -> None:
        self._backlog = deque([_joined(self._backlog)])

    def _wake(self) -> None:
        if self._waiter is not None:
            if not self._waiter.done():
                self._waiter.set_result(None)
            self._waiter = None


_NOTHING: Waiting = ([], b"", [], [])


def _joined(parts: Iterable[Waiting]) -> Waiting:
    tokens: list[int] = []
    logprobs: list[TokenLogprob] = []
    sizes: list[int] = []
    data = b""
    for some, theirs, told, each in parts:
        tokens += some
        logprobs += told
        sizes += each or [len(theirs)] * len(some)  # one token, or none
        data += theirs
    return tokens, data, logprobs, sizes


def _error_of(item: StreamItem) -> NaiadError | None:
    if item.finish is not FinishReason.ERROR:
        return None
    if item.error is None:
        return EngineFailed("the engine failed while it worked on this request")
    return from_code(*item.error)

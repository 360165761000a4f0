"""Which uids the front knows, and the check of every frame against them. No I/O.

A uid is in one of three states. *Open*: submitted, its items go to its stream. *Tombstone*: ended
here (aborted, or failed a check) but not yet at the worker; whatever still comes is swallowed,
until its last item. *Unknown*: everything else, and nothing may come for it.

An item must be of the current epoch, for an open uid that was accepted, and the next in its place.
Anything else is counted, logged, and ends its stream with an error: a wrong token is never shown.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable

from naiad.client.base import Job
from naiad.client.stream import Stream
from naiad.errors import IntegrityViolation, NaiadError, from_code
from naiad.ipc.messages import Accepted, AnyEvent, Progressed, Refused, StepDone, StreamItem
from naiad.types import FinishReason, Progress

logger = logging.getLogger(__name__)

#: Never repeated in this process, so that no frame of an earlier worker can fit a later stream.
_uids = itertools.count(1)


class StreamTable:
    """The streams of one engine, across its workers.

    Args:
        abort: tells the worker to stop work for a uid.
    """

    def __init__(self, abort: Callable[[int], None]) -> None:
        self.violations = 0
        self._abort = abort
        self._open: dict[int, Stream] = {}
        self._tombstones: set[int] = set()

    @property
    def n_open(self) -> int:
        return len(self._open)

    @property
    def n_tombstones(self) -> int:
        """Streams that have ended here while the worker may still say something of them."""
        return len(self._tombstones)

    def open(self, job: Job, accepted: asyncio.Future[Stream]) -> Stream:
        """Enter a new stream under a new uid."""
        stream = Stream(next(_uids), job, accepted)
        self._open[stream.uid] = stream
        return stream

    def forget(self, uid: int) -> None:
        """Take back an `open` that never reached the worker."""
        self._open.pop(uid, None)

    def abort(self, uid: int) -> None:
        """End a stream as cancelled, here at once and at the worker soon."""
        self._bury(uid, FinishReason.CANCELLED, None)

    # --- events

    def accepted(self, event: Accepted) -> None:
        stream = self._open.get(event.uid)
        if stream is not None and not stream.is_accepted:
            stream.accept(event.n_prompt, event.n_dropped)
        elif event.uid not in self._tombstones:
            self._violated(event.uid, "Accepted was not awaited")

    def refused(self, event: Refused) -> None:
        stream = self._open.get(event.uid)
        if stream is not None and not stream.is_accepted:
            del self._open[event.uid]
            stream.end(FinishReason.ERROR, from_code(event.code, event.message, event.details))
        elif event.uid in self._tombstones:
            self._tombstones.discard(event.uid)
        else:
            self._violated(event.uid, "Refused was not awaited")

    def step_done(self, event: StepDone) -> None:
        """Give each item to its stream."""
        streams = self._open
        for item in event.items:
            stream = streams.get(item.uid)
            if stream is not None and stream.next_seq == item.seq and stream.is_accepted:
                if item.finish is not None:
                    del streams[item.uid]
                stream.put(item)
            else:
                self._misplaced(item, stream)

    def progressed(self, event: Progressed) -> None:
        """Tell streams how far they are; it is no part of an answer, so what is late is dropped."""
        for item in event.items:
            stream = self._open.get(item.uid)
            if stream is not None and stream.is_accepted:
                stream.report(Progress(item.position, item.n_done, item.n_total, item.n_cached))

    def wrong_epoch(self, event: AnyEvent, epoch: int) -> None:
        """An event of another worker than the one that now runs: count it, fail who it names."""
        what = f"{type(event).__name__} of epoch {event.epoch} came in epoch {epoch}"
        match event:
            case StepDone(items=items):
                uids = [item.uid for item in items]
            case Accepted(uid=uid) | Refused(uid=uid):
                uids = [uid]
            case _:
                uids = []
        for uid in uids or [0]:
            self._violated(uid, what)

    def _misplaced(self, item: StreamItem, stream: Stream | None) -> None:
        if stream is not None and not stream.is_accepted:
            self._violated(item.uid, "an item came before Accepted")
        elif stream is not None:
            self._violated(item.uid, f"item {item.seq} came where {stream.next_seq} was due")
        elif item.uid not in self._tombstones:
            self._violated(item.uid, "an item came for a stream that is not open")
        if item.finish is not None:
            self._tombstones.discard(item.uid)

    # --- ends

    def fail_all(self, error: Callable[[Stream], NaiadError]) -> None:
        """End every stream; what the worker still says of them is swallowed."""
        streams = list(self._open.values())
        self._tombstones.update(self._open)
        self._open.clear()
        for stream in streams:
            stream.end(FinishReason.ERROR, error(stream))

    def forget_tombstones(self) -> None:
        """The worker is gone, and can say nothing more."""
        self._tombstones.clear()

    def _violated(self, uid: int, what: str) -> None:
        self.violations += 1
        logger.error("stream %d: integrity violated: %s", uid, what)
        error = IntegrityViolation("the engine's answer lost its order; this stream was ended")
        self._bury(uid, FinishReason.ERROR, error)

    def _bury(self, uid: int, finish: FinishReason, error: NaiadError | None) -> None:
        stream = self._open.pop(uid, None)
        if stream is None:
            return
        self._tombstones.add(uid)
        self._abort(uid)
        stream.end(finish, error)

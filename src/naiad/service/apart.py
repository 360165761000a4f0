"""Generations that go on whether or not anybody waits for them: background answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from naiad.errors import InternalError, NaiadError
from naiad.service.generate import Generation
from naiad.types import Caller, Finished, FinishReason, GenerateRequest, StreamEvent, Usage

log = logging.getLogger(__name__)

#: Runs a request; see Service.generate.
Generate = Callable[[GenerateRequest, Caller], AbstractAsyncContextManager[Generation]]


@dataclass(slots=True)
class Work:
    """One of them.

    subject: whatever it was started with, for who finds it. take: is told each event, the Started
    first. done: awaited once, after the end was told.
    """

    subject: Any
    request: GenerateRequest
    caller: Caller
    take: Callable[[StreamEvent], None]
    done: Callable[[], Awaitable[None]]
    begun: asyncio.Future[None]
    is_over: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, event: StreamEvent) -> None:
        self.take(event)
        self.notify()

    def notify(self) -> None:
        """Something has changed: wake who follows."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changes(self) -> AsyncIterator[None]:
        """Once at the beginning, and then after each change, until it is over."""
        while not self.is_over:
            changed = self._changed
            yield
            await changed.wait()
        yield


class Apart:
    """Owns the tasks; one that fails is logged, and told as an end of its own."""

    def __init__(self, generate: Generate) -> None:
        self._generate = generate
        self._running: dict[tuple[str, str], tuple[Work, asyncio.Task[None]]] = {}

    async def start(
        self,
        key: str,
        subject: Any,
        request: GenerateRequest,
        caller: Caller,
        take: Callable[[StreamEvent], None],
        done: Callable[[], Awaitable[None]],
    ) -> Work:
        """Begin, and wait until the engine has accepted it. Raises what refuses it."""
        begun = asyncio.get_running_loop().create_future()
        work = Work(subject, request, caller, take, done, begun)
        place = (caller.namespace, key)
        task = asyncio.create_task(self._run(work), name=f"naiad-apart-{key}")
        self._running[place] = work, task
        task.add_done_callback(lambda _: self._running.pop(place, None))
        try:
            await asyncio.shield(begun)
        except asyncio.CancelledError:
            task.cancel()  # whoever asked is gone, and does not know its key
            raise
        return work

    def find(self, caller: Caller, key: str) -> Work | None:
        """The one of that key, while it runs."""
        found = self._running.get((caller.namespace, key))
        return None if found is None else found[0]

    async def cancel(self, caller: Caller, key: str) -> bool:
        """End it, and wait until it is done. False when it does not run."""
        found = self._running.get((caller.namespace, key))
        if found is None:
            return False
        found[1].cancel()
        await asyncio.wait({found[1]})
        return True

    async def close(self) -> None:
        """End all of them."""
        tasks = {task for _, task in self._running.values()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self, work: Work) -> None:
        end: Finished | None = None
        try:
            async with self._generate(work.request, work.caller) as generation:
                end = await _follow(generation, work)
        except asyncio.CancelledError:
            end = Finished(FinishReason.CANCELLED, Usage())
        except NaiadError as error:
            end = _refused(work, error)
        except Exception as error:
            log.exception("work in the background failed")
            end = _refused(work, error)
        if end is not None:
            work.tell(end)
        try:
            if work.begun.done() and work.begun.exception() is None:
                await work.done()
        except Exception:
            log.exception("work in the background could not be kept")
        work.is_over = True
        work.notify()


async def _follow(generation: Generation, work: Work) -> Finished | None:
    """Tell everything but a cancelled end; what is returned is still to be told."""
    try:
        work.tell(generation.started)
        work.begun.set_result(None)
        async for event in generation:
            work.tell(event)
    except asyncio.CancelledError:
        return Finished(FinishReason.CANCELLED, generation.outcome().usage)
    return None


def _refused(work: Work, error: Exception) -> Finished | None:
    """A refusal before the beginning belongs to who asked; a failure after it is the end."""
    if not work.begun.done():
        work.begun.set_exception(error)
        return None
    known = error if isinstance(error, NaiadError) else InternalError("The answer failed.")
    return Finished(FinishReason.ERROR, Usage(), error=known)

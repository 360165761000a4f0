"""Several answers to one body, on one line: their events come as they are made, mixed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from naiad.dialects.base import Formatter, ManyFormatter
from naiad.errors import EngineFailed, InternalError
from naiad.http.exchange import INTERNAL_MESSAGE, Exchange
from naiad.http.watch import Line
from naiad.service.generate import Generation
from naiad.types import (
    Finished,
    FinishReason,
    Progress,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)

log = logging.getLogger(__name__)


class _PartFailed(Exception):
    """One of the answers ended in an error, which is the end of all."""

    def __init__(self, end: bytes) -> None:
        super().__init__()
        self.end = end


async def stream_many(
    generations: Sequence[Generation], formatter: ManyFormatter, line: Line
) -> None:
    """As for one: headers, the events of all, then the end, whatever it is."""
    await line.begin()
    turn = asyncio.Lock()
    end = b""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_stream_part(generation, formatter.part(index), line, turn))
                for index, generation in enumerate(generations)
            ]
        end = formatter.close_all([task.result() for task in tasks])
    except* _PartFailed as failures:
        end = _first(failures).end
    except* Exception:
        log.exception("a stream failed")
        end = formatter.part(0).close(failure())
    if line.is_open:
        await line.end(end)


def _first(failures: BaseExceptionGroup[_PartFailed]) -> _PartFailed:
    found = failures.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found


async def _stream_part(
    generation: Generation, formatter: Formatter, line: Line, turn: asyncio.Lock
) -> Finished:
    async with turn:
        await line.write(formatter.open(generation.started))
    async for event in generation:
        if isinstance(event, Finished):
            data = formatter.close(event)
            if event.reason is FinishReason.ERROR:
                raise _PartFailed(data)
        else:
            data = told(formatter, event)
        async with turn:
            await line.write(data)
    return generation.outcome()


def told(
    formatter: Formatter, event: TextDelta | Progress | ReasoningDelta | ToolCallDelta
) -> bytes:
    """The bytes of an event that is not the end."""
    if isinstance(event, TextDelta):
        return formatter.delta(event)
    if isinstance(event, ReasoningDelta):
        return formatter.reasoning(event)
    if isinstance(event, ToolCallDelta):
        return formatter.tool_call(event)
    return formatter.progress(event)


async def send_many(
    generations: Sequence[Generation], formatter: ManyFormatter, exchange: Exchange
) -> None:
    """All answers in one object. What comes for a later one waits while an earlier one is read."""
    completions = [await generation.whole() for generation in generations]
    for completion in completions:
        if completion.finished.reason is FinishReason.ERROR:
            raise completion.finished.error or EngineFailed("The engine failed on this request.")
    await exchange.answer_json(formatter.whole_all(completions))


def failure() -> Finished:
    """The end of a stream that failed for a reason that only the log may tell."""
    return Finished(FinishReason.ERROR, Usage(), error=InternalError(INTERNAL_MESSAGE))

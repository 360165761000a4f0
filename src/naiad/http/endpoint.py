"""The one function that runs any generation, and the one that answers any plain query.

Raw ASGI, because a token passes here: no task, timer or wrapper per event. The order never
changes: who asks, what is asked, the engine's yes, then headers, then text.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope, Send

from naiad.dialects.base import (
    Call,
    Dialect,
    Formatter,
    Handle,
    Immediate,
    Operation,
    Parse,
    Parsed,
)
from naiad.errors import EngineFailed, InternalError, NaiadError
from naiad.http.auth import Door
from naiad.http.body import read_object
from naiad.http.exchange import INTERNAL_MESSAGE, Exchange, answering_errors
from naiad.http.watch import ClientWatch, Line
from naiad.service.generate import Generation
from naiad.service.models import Tell
from naiad.service.service import Service
from naiad.types import (
    Caller,
    Finished,
    FinishReason,
    Progress,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)

log = logging.getLogger(__name__)

_MOST_IGNORED = 1000  # names remembered; beyond that nothing more is logged


@dataclass(frozen=True, slots=True)
class House:
    """What all endpoints share.

    max_body_bytes: 1 or more. heartbeat_s: longest silence of a stream; 0 or less for no
    heartbeats. stalled_s: how long a client may take no byte, more than 0. ignored: field names
    already logged as having no effect.
    """

    service: Service
    door: Door
    max_body_bytes: int
    heartbeat_s: float
    stalled_s: float
    ignored: set[tuple[str, str]]


class GenerationEndpoint:
    """Runs one kind of generation: reads a body, streams the answer or sends it whole."""

    def __init__(self, house: House, dialect: Dialect, operation: Operation, parse: Parse) -> None:
        self._house = house
        self._dialect = dialect
        self._access = operation.access
        self._parse = parse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._dialect)
        async with answering_errors(exchange):
            caller = self._house.door.admit(scope, self._access)
            self._house.service.check_room(caller)  # cheaper than reading what would be refused
            body = await read_object(scope, receive, self._house.max_body_bytes)
            parsed = self._parse(body, self._house.service.model)
            if isinstance(parsed, Immediate):
                if parsed.wish is not None:
                    wish = parsed.wish
                    await self._house.service.load(wish.model, wish.keep_alive_s, caller)
                await exchange.answer_json(parsed.value)
                return
            self._log_ignored(parsed)
            await self._run(exchange, parsed, caller)

    async def _run(self, exchange: Exchange, parsed: Parsed, caller: Caller) -> None:
        line = Line(exchange, parsed.formatter)
        tell = _loading_teller(parsed, line) if parsed.request.stream else None
        async with (
            ClientWatch(exchange, line, self._house.heartbeat_s, self._house.stalled_s),
            _ending(line, parsed.formatter),
            self._house.service.generate(parsed.request, caller, tell) as generation,
        ):
            if parsed.request.stream:
                await _stream(generation, parsed.formatter, line)
            else:
                await _send_whole(generation, parsed.formatter, exchange)

    def _log_ignored(self, parsed: Parsed) -> None:
        known = self._house.ignored
        for field in parsed.ignored:
            if (self._dialect.name, field) not in known and len(known) < _MOST_IGNORED:
                known.add((self._dialect.name, field))
                log.info("%s: field %.64r has no effect here", self._dialect.name, field)


class QueryEndpoint:
    """Answers one kind of plain request with JSON."""

    def __init__(
        self, house: House, dialect: Dialect, operation: Operation, handle: Handle
    ) -> None:
        self._house = house
        self._dialect = dialect
        self._access = operation.access
        self._has_body = operation.has_body
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._dialect)
        async with answering_errors(exchange):
            caller = self._house.door.admit(scope, self._access)
            call = Call(
                body=await self._body(scope, receive),
                query=dict(QueryParams(scope["query_string"])),
                path_params=scope.get("path_params", {}),
                caller=caller,
            )
            await exchange.answer_json(await self._handle(self._house.service, call))

    async def _body(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        if scope["method"] in {"GET", "HEAD"} or not self._has_body:
            return {}
        return await read_object(scope, receive, self._house.max_body_bytes)


def _loading_teller(parsed: Parsed, line: Line) -> Tell:
    """Tells a client that the model is being loaded for its request.

    One that asked for progress gets it, and so its headers, at once. For others the headers wait
    for the first heartbeat: a refusal that comes before it still has a status of its own.
    """

    async def tell(loaded: float) -> None:
        line.may_begin = True
        if parsed.request.wants_progress:
            await line.begin()
            await line.write(parsed.formatter.loading(loaded))

    return tell


@asynccontextmanager
async def _ending(line: Line, formatter: Formatter) -> AsyncIterator[None]:
    """A refusal after the headers (the model had to be loaded first) is the stream's last event."""
    try:
        yield
    except NaiadError as error:
        if not line.is_open:
            raise
        await line.end(formatter.close(Finished(FinishReason.ERROR, Usage(), error=error)))


async def _stream(generation: Generation, formatter: Formatter, line: Line) -> None:
    """Send headers, then each event as it comes, then the end, whatever it is."""
    await line.begin()
    try:
        await line.write(formatter.open(generation.started))
        async for event in generation:
            if isinstance(event, TextDelta):
                await line.write(formatter.delta(event))
            elif isinstance(event, Finished):
                await line.end(formatter.close(event))
            else:
                await line.write(_rare(formatter, event))
    except Exception:
        log.exception("a stream failed")
        if line.is_open:
            await line.end(formatter.close(_failure()))


def _rare(formatter: Formatter, event: Progress | ReasoningDelta | ToolCallDelta) -> bytes:
    if isinstance(event, ReasoningDelta):
        return formatter.reasoning(event)
    if isinstance(event, ToolCallDelta):
        return formatter.tool_call(event)
    return formatter.progress(event)


async def _send_whole(generation: Generation, formatter: Formatter, exchange: Exchange) -> None:
    completion = await generation.whole()
    finished = completion.finished
    if finished.reason is FinishReason.ERROR:
        raise finished.error or EngineFailed("The engine failed on this request.")
    await exchange.answer_json(formatter.whole(completion))


def _failure() -> Finished:
    return Finished(FinishReason.ERROR, Usage(), error=InternalError(INTERNAL_MESSAGE))

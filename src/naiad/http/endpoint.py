"""The one function that runs any generation, and the one that answers any plain query.

Raw ASGI, because a token passes here: no task, timer or wrapper per event. The order never
changes: who asks, what is asked, the engine's yes, then headers, then text.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope, Send

from naiad.dialects.base import (
    Call,
    Dialect,
    Formatter,
    Handle,
    Immediate,
    ManyFormatter,
    Ongoing,
    Operation,
    Parsed,
    Raw,
)
from naiad.errors import EngineFailed, NaiadError
from naiad.http.auth import Door
from naiad.http.body import read_object
from naiad.http.exchange import Exchange, answering_errors
from naiad.http.many import failure, send_many, stream_many, told
from naiad.http.watch import ClientWatch, Line, Relayed
from naiad.service.generate import Generation
from naiad.service.models import Tell
from naiad.service.service import Service
from naiad.types import (
    Caller,
    ChatPrompt,
    Finished,
    FinishReason,
    GenerateRequest,
    TextDelta,
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

    def __init__(self, house: House, dialect: Dialect, operation: Operation) -> None:
        self._house = house
        self._dialect = dialect
        self._access = operation.access
        self._parse = operation.parse
        self._plan = operation.plan

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._dialect)
        async with answering_errors(exchange):
            caller = self._house.door.admit(scope, self._access)
            body = {}
            if scope["method"] not in {"GET", "HEAD"}:
                self._house.service.check_room(caller)  # cheaper than reading what would be refused
                body = await read_object(scope, receive, self._house.max_body_bytes)
            parsed = await self._read(body, scope, caller)
            if isinstance(parsed, Immediate):
                if parsed.wish is not None:
                    wish = parsed.wish
                    await self._house.service.load(wish.model, wish.keep_alive_s, caller)
                await exchange.answer_json(parsed.value)
            elif isinstance(parsed, Ongoing):
                await self._relay(exchange, parsed)
            else:
                self._log_ignored(parsed)
                await self._run(exchange, parsed, caller)

    async def _read(
        self, body: dict[str, Any], scope: Scope, caller: Caller
    ) -> Parsed | Immediate | Ongoing:
        service = self._house.service
        if self._parse is not None:
            return self._parse(body, service.model)
        assert self._plan is not None
        return await self._plan(service, _call(body, scope, caller))

    async def _relay(self, exchange: Exchange, ongoing: Ongoing) -> None:
        line = Line(exchange, Relayed(ongoing.media))
        async with ClientWatch(exchange, line, self._house.heartbeat_s, self._house.stalled_s):
            await line.begin()
            async for frame in ongoing.frames:
                await line.write(frame)
            await line.end(b"")

    async def _run(self, exchange: Exchange, parsed: Parsed, caller: Caller) -> None:
        line = Line(exchange, parsed.formatter)
        tell = _loading_teller(parsed, line) if parsed.request.stream else None
        if parsed.others:
            await self._run_many(exchange, line, parsed, caller, tell)
            return
        async with (
            ClientWatch(exchange, line, self._house.heartbeat_s, self._house.stalled_s),
            _ending(line, parsed.formatter),
            self._house.service.generate(parsed.request, caller, tell) as generation,
        ):
            if parsed.request.stream:
                await _stream(generation, parsed, line)
            else:
                await _send_whole(generation, parsed, exchange)

    async def _run_many(
        self, exchange: Exchange, line: Line, parsed: Parsed, caller: Caller, tell: Tell | None
    ) -> None:
        requests = (parsed.request, *parsed.others)
        formatter = cast(ManyFormatter, parsed.formatter)
        async with (
            ClientWatch(exchange, line, self._house.heartbeat_s, self._house.stalled_s),
            _ending(line, formatter),
            self._house.service.generate_all(requests, caller, tell) as generations,
        ):
            if parsed.request.stream:
                await stream_many(generations, formatter, line)
            else:
                await send_many(generations, formatter, exchange)

    def _log_ignored(self, parsed: Parsed) -> None:
        known = self._house.ignored
        for field in (*parsed.ignored, *_overruled(parsed.request)):
            if (self._dialect.name, field) not in known and len(known) < _MOST_IGNORED:
                known.add((self._dialect.name, field))
                log.info("%s: field %.64r has no effect here", self._dialect.name, field)


def _overruled(request: GenerateRequest) -> tuple[str, ...]:
    """The field of a grammar beside a tool call that is demanded: the call's own form counts."""
    prompt = request.prompt
    is_call = isinstance(prompt, ChatPrompt) and bool(prompt.forced)
    return (request.grammar.field,) if is_call and request.grammar else ()


class QueryEndpoint:
    """Answers one kind of plain request, with JSON unless the handler says otherwise."""

    def __init__(
        self, house: House, dialect: Dialect, operation: Operation, handle: Handle
    ) -> None:
        self._house = house
        self._dialect = dialect
        self._access = operation.access
        self._is_long = operation.is_long
        self._has_body = operation.has_body
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._dialect)
        async with answering_errors(exchange):
            caller = self._house.door.admit(scope, self._access)
            call = _call(await self._body(scope, receive), scope, caller)
            value = await self._value(exchange, call)
            if isinstance(value, Raw):
                await exchange.answer(value.status, value.media, value.data)
            else:
                await exchange.answer_json(value)

    async def _value(self, exchange: Exchange, call: Call) -> Any:
        if not self._is_long:
            return await self._handle(self._house.service, call)
        line = Line(exchange)
        async with ClientWatch(exchange, line, 0, self._house.stalled_s):
            return await self._handle(self._house.service, call)

    async def _body(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        if scope["method"] in {"GET", "HEAD", "DELETE"} or not self._has_body:
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


async def _stream(generation: Generation, parsed: Parsed, line: Line) -> None:
    """Send headers, then each event as it comes, then the end, whatever it is."""
    formatter = parsed.formatter
    await line.begin()
    try:
        await line.write(formatter.open(generation.started))
        async for event in generation:
            if isinstance(event, TextDelta):
                await line.write(formatter.delta(event))
            elif isinstance(event, Finished):
                end = formatter.close(event)
                if parsed.keep is not None:
                    await parsed.keep()
                await line.end(end)
            else:
                await line.write(told(formatter, event))
    except Exception:
        log.exception("a stream failed")
        if line.is_open:
            await line.end(formatter.close(failure()))


async def _send_whole(generation: Generation, parsed: Parsed, exchange: Exchange) -> None:
    completion = await generation.whole()
    finished = completion.finished
    if finished.reason is FinishReason.ERROR:
        raise finished.error or EngineFailed("The engine failed on this request.")
    value = parsed.formatter.whole(completion)
    if parsed.keep is not None:
        await parsed.keep()
    await exchange.answer_json(value)


def _call(body: dict[str, Any], scope: Scope, caller: Caller) -> Call:
    query = dict(QueryParams(scope["query_string"]))
    return Call(body=body, query=query, path_params=scope.get("path_params", {}), caller=caller)

"""What a dialect is: a table of operations, a way to read a body, and a way to write events.

The HTTP room knows only this file. Adding a dialect is one file and one line in `registry.py`.
Formatters are pure: events in, framed bytes out. A whole answer is the fold of the same events.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from naiad.errors import NaiadError
from naiad.types import (
    Caller,
    Completion,
    Finished,
    GenerateRequest,
    ModelInfo,
    Progress,
    ReasoningDelta,
    Residency,
    Started,
    TextDelta,
    ToolCallDelta,
)


class Access(enum.StrEnum):
    """Who may call a route. Every route declares one; there is no default."""

    PUBLIC = "public"  # anyone who passed the Host and Origin guard
    USER = "user"  # needs the key when the server has one
    ADMIN = "admin"  # needs the admin key


class Media(enum.StrEnum):
    """Content types of answers."""

    SSE = "text/event-stream"
    NDJSON = "application/x-ndjson"
    JSON = "application/json"


class Formatter(Protocol):
    """Turns one stream's events into bytes on the wire. One instance per request; keeps its place.

    The endpoint calls open once (before it perhaps loading and heartbeat), progress any number of
    times if the request wants it, then delta, reasoning and tool_call any number of times, close
    once. Bytes may be empty. Derive from this class to inherit what a dialect without reasoning and
    tools need not write.
    """

    media: Media  # of the streamed form

    def open(self, started: Started) -> bytes: ...

    def progress(self, progress: Progress) -> bytes:
        """How far a request is that has no text yet."""
        ...

    def loading(self, loaded: float) -> bytes:  # noqa: ARG002 - the default
        """How much of the model is loaded, 0 to 1. Comes before `open`, any number of times, if the
        request wants progress and the model has to be loaded first."""
        return self.heartbeat()

    def delta(self, delta: TextDelta) -> bytes: ...

    def reasoning(self, delta: ReasoningDelta) -> bytes:  # noqa: ARG002 - the default
        """Text of the model's reasoning. Comes only for chats that ask for it to be split off;
        a dialect that inherits this shows none."""
        return b""

    def tool_call(self, delta: ToolCallDelta) -> bytes:  # noqa: ARG002 - the default
        """A piece of a tool call. Comes only for chats with tools."""
        return b""

    def close(self, finished: Finished) -> bytes:
        """The end, whatever it is: finish reason, usage, error frame, end marker."""
        ...

    def heartbeat(self) -> bytes:
        """Bytes that the dialect's clients skip, to keep a silent connection alive."""
        ...

    def whole(self, completion: Completion) -> Any:
        """The JSON value of a non-streamed answer. Not called when the stream ended in ERROR."""
        ...


@dataclass(frozen=True, slots=True)
class Parsed:
    """A body that was understood. `ignored` are fields accepted without effect (logged once)."""

    request: GenerateRequest
    formatter: Formatter
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelWish:
    """That the model be in memory: for keep_alive_s seconds, math.inf for ever, 0 or less for no
    longer, None for as long as the server keeps it anyhow. model: as sent, None for the only one.
    """

    model: str | None
    keep_alive_s: float | None


@dataclass(frozen=True, slots=True)
class Immediate:
    """A body that asks for no generation: its answer is known at once (JSON value).

    wish: what has to be done with the model before the answer is sent.
    """

    value: Any
    wish: ModelWish | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One plain request, free of HTTP machinery, as a Query handler sees it."""

    body: Mapping[str, Any]  # {} when there is none
    query: Mapping[str, str]
    path_params: Mapping[str, str]
    caller: Caller


class Backend(Protocol):
    """What handlers of a dialect may ask of the service; implemented by service.Service."""

    @property
    def model(self) -> ModelInfo:
        """The loaded model. Raises EngineUnavailable while there is none."""
        ...

    @property
    def is_protected(self) -> bool:
        """True when callers need a key."""
        ...

    @property
    def residency(self) -> Residency:
        """Whether the model is in memory now, and for how long."""
        ...

    async def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]: ...

    async def detokenize(self, ids: list[int], *, special: bool = True) -> str: ...

    def abort(self, caller: Caller, handle: str | None) -> bool:
        """Cancel by handle, or by the rule for key-less aborts. True when something was cancelled
        or the abort was swallowed because a disconnect had just done the same."""
        ...

    def partial_text(self, caller: Caller, handle: str | None) -> str:
        """The text so far of a running generation of this caller; "" when there is none."""
        ...

    def progress(self, caller: Caller, handle: str | None) -> Progress | None:
        """How far that generation is; None when it has text or did not ask to be told."""
        ...

    def perf(self) -> Mapping[str, Any]:
        """Counters: see service.perf for the names."""
        ...

    @property
    def has_reasoning(self) -> bool:
        """True when the model's chat template shows how it marks its reasoning."""
        ...

    async def render_chat(self, request: GenerateRequest) -> str:
        """The prompt text that the chat template makes of a ChatPrompt request."""
        ...


#: Reads a body. Raises NaiadError (with the caller's field name as `param`).
Parse = Callable[[Mapping[str, Any], ModelInfo], Parsed | Immediate]

#: Answers a plain request with a JSON value.
Handle = Callable[[Backend, Call], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One route of a dialect: exactly one of `parse` (a generation) and `handle` (a query).

    The first sentence of its docstring tells people what it does. has_body: False if a body, of
    whatever kind, is not even read. example: a body that it takes,
    for people and for the reference; needed where the usual fields are not enough.
    """

    method: str
    path: str  # Starlette path syntax
    access: Access
    parse: Parse | None = None
    handle: Handle | None = None
    example: Mapping[str, Any] = field(default_factory=dict, hash=False)
    has_body: bool = True


@dataclass(frozen=True, slots=True)
class Dialect:
    """A wire dialect. `error_body` shapes errors, before headers and in the JSON of queries.

    error_status lets a dialect map a status (Anthropic's 529); most return error.status.
    prefixes: path prefixes whose 404, 405 and 413 are answered in this dialect.
    id_header: a further header for the request's id, which then also stands in error bodies under
        the same name with underscores.
    """

    name: str
    operations: tuple[Operation, ...]
    error_body: Callable[[NaiadError], Any]
    error_status: Callable[[NaiadError], int] = field(default=lambda error: error.status)
    prefixes: tuple[str, ...] = ()
    id_header: str | None = None

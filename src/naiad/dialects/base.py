"""What a dialect is: a table of operations, a way to read a body, and a way to write events.

The HTTP room knows only this file. Adding a dialect is one file and one line in `registry.py`.
Formatters are pure: events in, framed bytes out. A whole answer is the fold of the same events.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from naiad.errors import NaiadError
from naiad.types import (
    Caller,
    Completion,
    EmbeddedText,
    Finished,
    GenerateRequest,
    ModelInfo,
    Progress,
    ReasoningDelta,
    Residency,
    Running,
    SavedStory,
    SharedTurn,
    Started,
    StreamEvent,
    TextDelta,
    TokenLogprob,
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


class ManyFormatter(Formatter, Protocol):
    """Also writes several answers to one body. As for one, but each with its own part, and
    `close_all` once when all parts are closed; after a part that failed it is not called."""

    def part(self, index: int) -> Formatter:
        """The formatter of that answer, 0 for the first; its `close` does not end the stream."""
        ...

    def close_all(self, ends: Sequence[Finished]) -> bytes:
        """The end of all."""
        ...

    def whole_all(self, completions: Sequence[Completion]) -> Any:
        """The JSON value of a non-streamed answer."""
        ...


@dataclass(frozen=True, slots=True)
class Parsed:
    """A body that was understood. `ignored` are fields accepted without effect (logged once).

    others: further answers that the same body asks for; then the formatter is a ManyFormatter.
    keep: awaited when the formatter has told the end, before the client is told.
    """

    request: GenerateRequest
    formatter: Formatter
    ignored: tuple[str, ...] = ()
    others: tuple[GenerateRequest, ...] = ()
    keep: Callable[[], Awaitable[None]] | None = None


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
class Ongoing:
    """A body whose answer is a stream that comes from elsewhere: framed bytes, each an event."""

    frames: AsyncIterator[bytes]
    media: Media = Media.SSE


@dataclass(frozen=True, slots=True)
class Call:
    """One plain request, free of HTTP machinery, as a Query handler sees it."""

    body: Mapping[str, Any]  # {} when there is none
    query: Mapping[str, str]
    path_params: Mapping[str, str]
    caller: Caller


class Documents(Protocol):
    """Documents by key; each caller's key opens its own only."""

    async def save(self, caller: Caller, key: str, data: bytes) -> None: ...

    async def load(self, caller: Caller, key: str) -> bytes | None: ...

    async def delete(self, caller: Caller, key: str) -> bool:
        """True when there was one."""
        ...


class ApartWork(Protocol):
    """A generation that runs by itself. subject: what it was started with."""

    subject: Any

    def changes(self) -> AsyncIterator[None]:
        """Once now, then after each event, until it is done."""
        ...


@dataclass(frozen=True, slots=True)
class Raw:
    """A handler's answer that is no JSON value, or has a status of its own."""

    data: bytes
    media: str = Media.JSON
    status: int = 200


class SaveSlots(Protocol):
    """Stories in numbered slots; implemented in service.stories."""

    async def titles(self) -> list[str]:
        """The title of each slot; "" for an empty one."""
        ...

    async def load(self, slot: int) -> SavedStory | None: ...

    async def save(self, slot: int, story: SavedStory | None) -> None:
        """Replace what a slot holds; None empties it. Raises InvalidRequest, InternalError."""
        ...


class SharedStory(Protocol):
    """One story that several players write in turns; implemented in service.stories."""

    @property
    def data(self) -> str:
        """The whole story; "" before the first turn."""
        ...

    def status(self, sender: str, *, is_busy: bool = False) -> SharedTurn: ...

    def replace(
        self, sender: str, data: str, data_format: str, *, is_full: bool = False
    ) -> SharedTurn: ...


class Stories(Protocol):
    """Stories that clients keep on the server. preloaded: the JSON object of one to open at first,
    {} for none. shared: None when players may not share one."""

    @property
    def slots(self) -> SaveSlots: ...

    @property
    def preloaded(self) -> Any: ...

    @property
    def shared(self) -> SharedStory | None: ...


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
    def stories(self) -> Stories: ...

    @property
    def residency(self) -> Residency:
        """Whether the model is in memory now, and for how long."""
        ...

    async def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]: ...

    async def detokenize(self, ids: list[int], *, special: bool = True) -> str: ...

    async def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each token id, control tokens as text. One question for each kind of id."""
        ...

    def running(self, caller: Caller) -> list[Running]:
        """This caller's own requests that the engine has accepted, oldest first."""
        ...

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

    def last_logprobs(self, caller: Caller, handle: str | None) -> Sequence[TokenLogprob]:
        """Of this caller's newest generation under that handle that is to be remembered, so far."""
        ...

    def perf(self) -> Mapping[str, Any]:
        """Counters: see service.perf for the names."""
        ...

    async def embed(
        self,
        inputs: Sequence[str | tuple[int, ...]],
        model: str | None = None,
        *,
        truncate: bool = False,
        keep_alive_s: float | None = None,
        caller: Caller | None = None,
    ) -> list[EmbeddedText]:
        """The embedding of each text or list of token ids. model: as the caller named it.

        truncate: the end of what is too long is left out instead of refused. keep_alive_s: how long
        the model shall stay afterwards, if the caller may say so. Without inputs, the model is
        loaded. Raises ContextExceeded, InvalidRequest, Unsupported, ModelNotFound.
        """
        ...

    @property
    def documents(self) -> Documents:
        """What callers leave with the server."""
        ...

    async def start_apart(
        self,
        key: str,
        subject: Any,
        request: GenerateRequest,
        caller: Caller,
        take: Callable[[StreamEvent], None],
        done: Callable[[], Awaitable[None]],
    ) -> ApartWork:
        """Run a request whether or not anybody waits for it, once the engine has accepted it.

        take: is told each event. done: awaited after the last. Raises what refuses the request.
        """
        ...

    def find_apart(self, caller: Caller, key: str) -> ApartWork | None:
        """The work of that key, while it runs."""
        ...

    async def cancel_apart(self, caller: Caller, key: str) -> bool:
        """End it and wait until it is done; False when it does not run."""
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

#: As Parse, for bodies that only the service can tell the meaning of.
Plan = Callable[[Backend, Call], Awaitable[Parsed | Immediate | Ongoing]]

#: Answers a plain request with a JSON value, or with Raw.
Handle = Callable[[Backend, Call], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One route of a dialect: exactly one of `parse` or `plan` (a generation), `handle` (a query).

    The first sentence of its docstring tells people what it does. is_long: the query may take long,
    so it ends when its client hangs up. has_body: False if a body, of whatever kind, is not even
    read. example: a body that it takes, for people and for the reference; needed where the usual
    fields are not enough.
    """

    method: str
    path: str  # Starlette path syntax
    access: Access
    parse: Parse | None = None
    plan: Plan | None = None
    handle: Handle | None = None
    is_long: bool = False
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

"""An engine in memory and a dialect as small as can be, for tests of the service and of HTTP."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import struct
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from naiad.client.base import EngineState, EngineStatus, Job, TokenBatch
from naiad.config import Config
from naiad.dialects.base import Access, Backend, Call, Dialect, Formatter, Media, Operation, Parsed
from naiad.errors import (
    ContextExceeded,
    EngineFailed,
    EngineUnavailable,
    InvalidRequest,
    NaiadError,
)
from naiad.service.service import Service
from naiad.types import (
    Caller,
    ChatPrompt,
    Completion,
    EmbeddedText,
    EngineSettings,
    Finished,
    FinishReason,
    GenerateRequest,
    Likely,
    ModelInfo,
    Progress,
    Started,
    TextDelta,
    TextPrompt,
    TokenLogprob,
)
from patience import PATIENCE_S

MODEL = ModelInfo(name="fake", n_vocab=256, engine=EngineSettings(parallel=2, n_ctx=100))
ALICE = Caller("alice")


class FakeStream:
    """A mailbox that merges; the test is its writer."""

    def __init__(self, uid: int, job: Job, n_prompt: int) -> None:
        self.uid = uid
        self.job = job
        self.n_prompt = n_prompt
        self.n_dropped = 0
        self.is_ended = False
        self.most_merged = 0
        self._tokens: list[int] = []
        self._told: list[TokenLogprob] = []
        self._sizes: list[int] = []
        self._data = b""
        self._end: tuple[FinishReason | None, NaiadError | None] = (None, None)
        self._progress: Progress | None = None
        self._news = asyncio.Event()

    def report(self, progress: Progress) -> None:
        self._progress = progress
        self._news.set()

    def put(self, text: str | bytes, n_tokens: int = 1) -> None:
        data = text.encode() if isinstance(text, str) else text
        self._data += data
        self._tokens += [7] * n_tokens
        self._sizes += [1] * n_tokens if n_tokens == len(data) else [len(data)] * bool(n_tokens)
        if (n_top := self.job.sampling.n_logprobs) >= 0:
            top = (Likely(7, data, -0.5), Likely(8, b"</s>", -math.inf))[:n_top]
            self._told.append(TokenLogprob(7, data, -0.5, top))
        self.most_merged = max(self.most_merged, len(self._tokens))
        self._news.set()

    def end(self, reason: FinishReason, error: NaiadError | None = None) -> None:
        if not self.is_ended:
            self.is_ended = True
            self._end = (reason, error)
            self._news.set()

    async def get(self) -> TokenBatch:
        await self._news.wait()
        self._news.clear()
        progress, self._progress = self._progress, None
        if progress is not None and not self._tokens and not self.is_ended:
            return TokenBatch((), b"", progress=progress)
        told = tuple(self._told)
        tokens, sizes = tuple(self._tokens), tuple(self._sizes)
        batch = TokenBatch(tokens, self._data, 1, *self._end, logprobs=told, sizes=sizes)
        self._tokens, self._data, self._told, self._sizes = [], b"", [], []
        return batch


class SteppedStream(FakeStream):
    """One that never merges: each token comes in a batch of its own, the end with the last."""

    def __init__(self, uid: int, job: Job, n_prompt: int) -> None:
        super().__init__(uid, job, n_prompt)
        self._pieces: deque[bytes] = deque()

    def put(self, text: str | bytes, n_tokens: int = 1) -> None:
        assert n_tokens == 1
        self._pieces.append(text.encode() if isinstance(text, str) else text)
        self._news.set()

    async def get(self) -> TokenBatch:
        await self._news.wait()
        if self._pieces:
            super().put(self._pieces.popleft())
        end = self._end
        if self._pieces:
            self._end = (None, None)
        batch = await super().get()
        self._end = end
        self._news.set()
        return batch


class FakeEngine:
    """Implements EngineClient. By default each job's text is its prompt, one token a character.

    kind: of the streams.
    script: called with each accepted stream; replace it to drive streams by hand.
    gate: submit waits for it (a queue that does not answer yet) when it is cleared.
    """

    def __init__(
        self,
        script: Callable[[FakeStream], None] | None = None,
        kind: type[FakeStream] = FakeStream,
    ) -> None:
        self.kind = kind
        self.state = EngineState.READY
        self.model: ModelInfo | None = MODEL
        self.after_load = EngineState.READY  # STARTING: the test says when it is loaded
        self.progress = 0.5
        self.n_unloads = 0
        self.script = script or echo
        self.gate = asyncio.Event()
        self.gate.set()
        self.streams: dict[int, FakeStream] = {}
        self.aborted: list[int] = []
        self.n_waiting = 0
        self.is_closed = False
        self._uids = itertools.count(1)
        self._changed = asyncio.Event()

    @property
    def status(self) -> EngineStatus:
        return EngineStatus(self.state, reason="because", progress=self.progress, model=self.model)

    def unload(self) -> None:
        self.n_unloads += self.state is EngineState.READY
        self.become(EngineState.UNLOADED)

    def load(self) -> None:
        if self.state is EngineState.UNLOADED:
            self.become(self.after_load)

    def become(self, state: EngineState, progress: float = 0.5) -> None:
        self.state, self.progress = state, progress
        self.notify()

    def next_change(self) -> asyncio.Event:
        return self._changed

    async def start(self) -> None:
        pass

    async def wait_ready(self) -> ModelInfo:
        return self.model or MODEL

    async def submit(self, job: Job) -> FakeStream:
        if self.is_closed:
            raise EngineUnavailable("The engine is closed.")
        if job.prompt == "refuse":
            raise InvalidRequest("No such prompt.", param="prompt")
        self.n_waiting += 1
        self.notify()
        try:
            await self.gate.wait()
        finally:
            self.n_waiting -= 1
            self.notify()
        stream = self.kind(next(self._uids), job, len(job.prompt))
        self.streams[stream.uid] = stream
        self.script(stream)
        self.notify()
        return stream

    def abort(self, uid: int) -> None:
        self.aborted.append(uid)
        self.streams[uid].end(FinishReason.CANCELLED)
        self.notify()

    async def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        return list(text.encode())

    async def detokenize(self, ids: list[int], *, special: bool = True) -> bytes:
        return bytes(ids)

    async def embed(self, prompt: str | tuple[int, ...]) -> EmbeddedText:
        if prompt == "refuse":
            raise ContextExceeded("too long", n_prompt_tokens=9, n_ctx=4)
        await self.gate.wait()
        numbers = (3.0, 4.0, float(len(prompt)), 0.0)
        length = math.hypot(*numbers)
        vector = struct.pack("<4f", *(number / length for number in numbers))
        return EmbeddedText(vector, len(prompt))

    async def close(self) -> None:
        self.is_closed = True
        for stream in self.streams.values():
            stream.end(FinishReason.ERROR, EngineFailed("The server is shutting down."))

    def notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait for a state of this engine; each change wakes it, so nothing is polled."""
        async with asyncio.timeout(PATIENCE_S):
            while not is_so():
                await self._changed.wait()


def echo(stream: FakeStream) -> None:
    """The answer is the prompt, at once."""
    for character in str(stream.job.prompt):
        stream.put(character)
    stream.end(FinishReason.STOP)


def silent(stream: FakeStream) -> None:
    """Nothing comes by itself."""


class FakeRenderer:
    """A template that joins the turns."""

    def __init__(self) -> None:
        self.n_rendered = 0

    async def start(self) -> None:
        pass

    async def render(self, template: str | None, prompt: ChatPrompt, model: ModelInfo) -> str:
        self.n_rendered += 1
        return "|".join(message.content for message in prompt.messages)

    async def close(self) -> None:
        pass


def make_service(engine: FakeEngine, config: Config | None = None) -> Service:
    return Service(engine, config or Config(max_queue=2), FakeRenderer())


def script(*verbs: list[Any]) -> str:
    """The prompt that makes the scripted engine act so; see naiad.testing.actor."""
    return json.dumps({"script": verbs})


def request(text: str = "hello", **fields: Any) -> GenerateRequest:
    return replace(GenerateRequest(prompt=TextPrompt(text)), **fields)


class FakeFormatter(Formatter):
    """Events as readable lines."""

    media = Media.SSE

    def open(self, started: Started) -> bytes:
        return b"open %d\n" % started.n_prompt

    def progress(self, progress: Progress) -> bytes:
        return b"progress %s %d\n" % (str(progress.position).encode(), progress.n_done)

    def loading(self, loaded: float) -> bytes:
        return b"load %.2f\n" % loaded

    def delta(self, delta: TextDelta) -> bytes:
        if delta.text == "boom":
            raise RuntimeError("a defect in the formatter")
        return f"delta {delta.text}\n".encode()

    def close(self, finished: Finished) -> bytes:
        code = finished.error.code if finished.error else "-"
        return f"close {finished.reason} {code}\n".encode()

    def heartbeat(self) -> bytes:
        return b"beat\n"

    def whole(self, completion: Completion) -> Any:
        return {"text": completion.text, "reason": str(completion.finished.reason)}


def parse(body: Mapping[str, Any], model: ModelInfo) -> Parsed:
    if not isinstance(body.get("prompt"), str):
        raise InvalidRequest("'prompt' must be a string.", param="prompt")
    made = request(
        body["prompt"],
        stream=body.get("stream", False),
        handle=body.get("handle"),
        model=body.get("model"),
        priority=body.get("priority", 0),
        wants_progress=body.get("wants_progress", False),
    )
    known = {"prompt", "stream", "handle", "model", "priority", "wants_progress"}
    return Parsed(made, FakeFormatter(), tuple(sorted(set(body) - known)))


async def count(backend: Backend, call: Call) -> Any:
    if call.body.get("crash"):
        raise RuntimeError("secret detail")
    ids = await backend.tokenize(str(call.body.get("text", "")))
    return {"n": len(ids), "query": dict(call.query), "path": dict(call.path_params)}


async def abort(backend: Backend, call: Call) -> Any:
    return {"done": backend.abort(call.caller, call.body.get("handle"))}


def error_body(error: NaiadError) -> Any:
    return {"fake": {"code": error.code, "message": error.message, "param": error.param}}


FAKE = Dialect(
    name="fake",
    operations=(
        Operation("POST", "/fake/generate", Access.USER, parse=parse),
        Operation("POST", "/fake/count", Access.USER, handle=count),
        Operation("GET", "/fake/count/{name:path}", Access.USER, handle=count),
        Operation("POST", "/fake/abort", Access.USER, handle=abort),
        Operation("GET", "/fake/open", Access.PUBLIC, handle=count),
    ),
    error_body=error_body,
    prefixes=("/fake",),
)


def decode(data: bytes) -> Any:
    return json.loads(data)

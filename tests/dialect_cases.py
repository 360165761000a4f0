"""What the tests of the dialects share: a model, scenarios, a reader of streams, a backend."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from naiad.dialects.base import ApartWork, Documents, Formatter
from naiad.errors import EngineFailed
from naiad.service.stories import Stories
from naiad.types import (
    Caller,
    Completion,
    EmbeddedText,
    EngineSettings,
    Finished,
    FinishReason,
    GenerateRequest,
    ModelInfo,
    Progress,
    Residency,
    Running,
    Started,
    TextDelta,
    TokenLogprob,
    Usage,
)

MODEL = ModelInfo(
    name="tiny.Q4_1",
    n_vocab=1000,
    n_ctx_train=8192,
    n_params=135,
    size_bytes=98,
    chat_template="{{ messages }}",
    bos_token="<s>",
    eos_token="</s>",
    engine=EngineSettings(n_ctx=4096, parallel=8),
)
CALLER = Caller("me")
USAGE = Usage(prompt_tokens=7, completion_tokens=3, cached_tokens=4)

#: name -> the pieces of text and how the stream ends.
SCENARIOS: dict[str, tuple[tuple[str, ...], Finished]] = {
    "stop": (("Hel", "lo"), Finished(FinishReason.STOP, USAGE, matched_stop="\n")),
    "length": (("Hello",), Finished(FinishReason.LENGTH, USAGE)),
    "error": (
        ("Hel",),
        Finished(FinishReason.ERROR, USAGE, error=EngineFailed("The engine died.")),
    ),
    "cancelled": (("Hel",), Finished(FinishReason.CANCELLED, USAGE)),
    "empty": ((), Finished(FinishReason.STOP, USAGE)),
    "unicode": (('你"\n', "\\😀\u2028"), Finished(FinishReason.STOP, USAGE)),
}


def stream(formatter: Formatter, pieces: Iterable[str], finished: Finished) -> bytes:
    """All bytes of a streamed answer."""
    frames = [formatter.open(Started(finished.usage.prompt_tokens))]
    frames += [formatter.delta(TextDelta(piece, 1)) for piece in pieces]
    return b"".join([*frames, formatter.close(finished)])


def whole(formatter: Formatter, pieces: Iterable[str], finished: Finished) -> Any:
    """The object of an answer that is not streamed."""
    return formatter.whole(Completion("".join(pieces), finished))


def events(data: bytes) -> list[Any]:
    """The JSON values of an event stream; end markers stay strings. Heartbeats, which a busy
    machine lets come, are none."""
    blocks = data.decode().split("\n\n")
    assert blocks.pop() == ""
    blocks = [block for block in blocks if not block.startswith(":")]
    lines = [block.split("\n")[-1].removeprefix("data: ") for block in blocks]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


@dataclass
class FakeBackend:
    """A backend that counts characters as tokens and remembers what it was asked."""

    asked: list[Any] = field(default_factory=list)
    is_found: bool = True
    is_protected: bool = False
    counters: Mapping[str, Any] = field(default_factory=dict)
    told: Progress | None = None
    remembered: tuple[TokenLogprob, ...] = ()
    at_work: list[Running] = field(default_factory=list)
    stories: Stories = field(default_factory=lambda: Stories("/nowhere"))
    stay: Residency = field(default_factory=lambda: Residency(is_loaded=True, expires_in_s=None))

    @property
    def model(self) -> ModelInfo:
        return MODEL

    @property
    def residency(self) -> Residency:
        return self.stay

    async def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        return [1] * add_special + [ord(char) for char in text]

    async def detokenize(self, ids: list[int], *, special: bool = True) -> str:
        return "".join(map(chr, ids)) + "!" * special

    def abort(self, caller: Caller, handle: str | None) -> bool:
        self.asked.append((caller, handle))
        return self.is_found

    def partial_text(self, caller: Caller, handle: str | None) -> str:
        self.asked.append((caller, handle))
        return "so far"

    def progress(self, caller: Caller, handle: str | None) -> Progress | None:
        return self.told

    async def pieces(self, ids: Sequence[int]) -> list[bytes]:
        return ["é€".encode()[one % 5 : one % 5 + 1] if one > 127 else bytes([one]) for one in ids]

    def running(self, caller: Caller) -> list[Running]:
        self.asked.append(caller)
        return self.at_work

    def last_logprobs(self, caller: Caller, handle: str | None) -> Sequence[TokenLogprob]:
        self.asked.append((caller, handle))
        return self.remembered

    def perf(self) -> Mapping[str, Any]:
        return self.counters

    @property
    def documents(self) -> Documents:
        raise NotImplementedError

    async def start_apart(self, *_: Any) -> ApartWork:
        raise NotImplementedError

    def find_apart(self, caller: Caller, key: str) -> ApartWork | None:
        return None

    async def cancel_apart(self, caller: Caller, key: str) -> bool:
        return False

    async def embed(
        self,
        inputs: Sequence[str | tuple[int, ...]],
        model: str | None = None,
        *,
        truncate: bool = False,
        keep_alive_s: float | None = None,
        caller: Caller | None = None,
    ) -> list[EmbeddedText]:
        self.asked.append((inputs, model))
        return [EmbeddedText(b"\0" * 16, len(one)) for one in inputs]

    @property
    def has_reasoning(self) -> bool:
        return False

    async def render_chat(self, request: GenerateRequest) -> str:
        self.asked.append(request)
        return "rendered"

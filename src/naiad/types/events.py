"""What a stream can say, and what is left of it at the end."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import msgspec

from naiad.errors import NaiadError
from naiad.types.requests import GenerateRequest, ToolCall


class FinishReason(enum.StrEnum):
    """Why a stream ended. Exactly one per stream."""

    STOP = "stop"  # the model ended its turn, or a stop string matched
    LENGTH = "length"  # max_tokens or the context is used up
    CANCELLED = "cancelled"  # the caller hung up or aborted
    ERROR = "error"  # something failed; Finished.error says what


@dataclass(frozen=True, slots=True)
class EmbeddedText:
    """A text's embedding: 32-bit floats, little-endian, of length 1; and the tokens of the text.

    n_dropped: tokens at its end that did not fit, and were not to be refused. seconds: that the
    engine took, with its other work before it.
    """

    vector: bytes
    n_tokens: int
    n_dropped: int = 0
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one stream; cached_tokens are those of the prompt that were not computed.

    dropped_tokens: the oldest ones, left out of a prompt that was too long (these are not among
        prompt_tokens) or given up while the answer went on past the end of the context.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    dropped_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Running:
    """A request that has been accepted and has not ended, and what was counted so far."""

    request: GenerateRequest
    usage: Usage


@dataclass(frozen=True, slots=True)
class Started:
    """The engine has accepted the request. Always the first event; headers may follow it.

    echo: the text of the prompt, for requests that want it before the answer.
    """

    n_prompt: int
    echo: str = ""


class Progress(msgspec.Struct, frozen=True):
    """Where a request without text is. Only the newest counts; none comes after the first text.

    position: how many requests start before it; None once it has started.
    n_done: prompt tokens computed, of n_total; n_cached of them were reused, not computed.
    eta_s: estimated seconds until it starts; None when it has, or when nothing is known yet.
    prompt_s: seconds that its prompt has been in work; 0 while it waits.
    """

    position: int | None
    n_done: int
    n_total: int
    n_cached: int = 0
    eta_s: float | None = None
    prompt_s: float = 0.0


class Likely(msgspec.Struct, frozen=True, array_like=True):
    """A token that might have stood somewhere.

    data: its bytes; of a control token, the name that it is written with. logprob: ln of its
    probability there, at most 0; minus infinity for one that was impossible.
    """

    token: int
    data: bytes
    logprob: float


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """How likely a token of an answer was, and what else was likely in its place.

    data: its bytes in the text, so none for a control token. top: the likeliest tokens there, best
    first, as many as were asked for; the token itself may be among them.
    """

    token: int
    data: bytes
    logprob: float
    top: tuple[Likely, ...] = ()


class TextDelta(msgspec.Struct, frozen=True):  # a struct, since one is made for every token
    """New text, valid Unicode. One delta may carry several tokens. It is empty only where tokens of
    a character that the end has cut off have logprobs.

    logprobs: if they were asked for, those of the tokens whose text begins in this delta.
    """

    text: str
    n_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()


class ReasoningDelta(msgspec.Struct, frozen=True):
    """New text of the model's reasoning, never empty. logprobs: as of TextDelta."""

    text: str
    n_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()


class ToolCallDelta(msgspec.Struct, frozen=True):
    """A piece of a tool call. The first of each call may have no arguments yet.

    index: 0 for the first call of the answer. id, name: the same in every piece. arguments: JSON
    text to append. is_last: the call is complete (or the answer ended within it).
    """

    index: int
    id: str
    name: str
    arguments: str
    is_first: bool = False
    is_last: bool = False


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds: from acceptance to the first text (its wait included), and from there to the end."""

    prompt_s: float = 0.0
    text_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Finished:
    """The end. Always the last event, exactly once; `error` is set when reason is ERROR.

    n_tool_calls: in the answer; with any, a STOP means that the model waits for their results.
    context: the tokens of prompt and answer, for requests that want them.
    """

    reason: FinishReason
    usage: Usage
    matched_stop: str | None = None
    error: NaiadError | None = None
    n_tool_calls: int = 0
    context: tuple[int, ...] = ()
    timings: Timings = field(default=Timings(), compare=False)  # measured, so never the same


StreamEvent = Started | Progress | TextDelta | ReasoningDelta | ToolCallDelta | Finished


@dataclass(frozen=True, slots=True)
class Completion:
    """The fold of a whole stream: what a non-streamed answer is made of.

    logprobs: of the text's tokens, if they were asked for. echo: as of Started. n_reasoning: tokens
    of the reasoning.
    """

    text: str
    finished: Finished
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    echo: str = ""
    n_reasoning: int = 0

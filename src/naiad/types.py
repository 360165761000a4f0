"""The internal vocabulary: what a request is once it is parsed, and what a stream can say.

No wire name of any API stands here; dialects translate. Everything is frozen.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from naiad.errors import NaiadError


class FinishReason(enum.StrEnum):
    """Why a stream ended. Exactly one per stream."""

    STOP = "stop"  # the model ended its turn, or a stop string matched
    LENGTH = "length"  # max_tokens or the context is used up
    CANCELLED = "cancelled"  # the caller hung up or aborted
    ERROR = "error"  # something failed; Finished.error says what


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the next token is chosen. Neutral values switch a stage off.

    Crosses the process border inside Submit (what is left at its default is not sent); every range
    is checked by the dialects first. The formulas stand beside the stages, in
    `naiad.engine.sampling`.
    """

    temperature: float = 1.0  # >= 0; 0 is greedy
    dynatemp_range: float = 0.0  # >= 0; the temperature varies by this much up and down; 0 is off
    dynatemp_exponent: float = 1.0  # > 0
    smoothing_factor: float = 0.0  # >= 0; 0 is off
    smoothing_curve: float = 1.0  # [1, 3] is usual; 1 is quadratic
    top_k: int = 0  # >= 0; 0 is off
    top_p: float = 1.0  # (0, 1]; 1 is off
    min_p: float = 0.0  # [0, 1]; 0 is off
    top_a: float = 0.0  # >= 0; 0 is off
    typical_p: float = 1.0  # (0, 1]; 1 is off
    tfs: float = 1.0  # (0, 1]; 1 is off
    top_n_sigma: float = 0.0  # >= 0; 0 is off
    repetition_penalty: float = 1.0  # > 0; 1 is off
    penalty_last_n: int = 64  # tokens looked back over; 0 is off, -1 the whole context
    penalty_slope: float = 1.0  # >= 0; how much of it the older half of those tokens gets
    presence_penalty: float = 0.0  # [-2, 2]
    frequency_penalty: float = 0.0  # [-2, 2]
    dry_multiplier: float = 0.0  # >= 0; 0 is off
    dry_base: float = 1.75  # >= 1
    dry_allowed_length: int = 2  # >= 0
    dry_last_n: int = -1  # tokens looked back over; 0 and -1: the whole context
    dry_breakers: tuple[str, ...] = ()
    xtc_probability: float = 0.0  # [0, 1]; 0 is off
    xtc_threshold: float = 0.1  # [0, 1]; above 0.5 is off
    mirostat: int = 0  # version 1 or 2; 0 is off. Replaces every stage that cuts
    mirostat_tau: float = 5.0  # > 0, bits
    mirostat_eta: float = 0.1  # >= 0
    adaptive_target: float = -1.0  # [0, 1]; below 0 is off
    adaptive_decay: float = 0.9  # [0, 0.99]
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, added to its logit); -inf bans it
    text_bias: tuple[tuple[str, float], ...] = ()  # the same for each token of a text
    ignore_eos: bool = False  # end-of-generation tokens are never chosen
    bypass_eos: bool = False  # they may be chosen, but end nothing
    banned_phrases: tuple[str, ...] = ()  # never said, in any case; see naiad.engine.phrases
    order: tuple[str, ...] = ()  # stages that run, in this order; () is the engine's default
    seed: int = 0  # [0, 2**64): the key of the counter-based draws; the dialect draws one if unset


class Grammar(msgspec.Struct, frozen=True, array_like=True):
    """What the whole answer must follow.

    kind: json_schema, regex, lark or gbnf. text: the schema as JSON, the expression, the rules.
    after: it holds only for what follows this text (the end of a reasoning section), and an answer
        without that text cannot end; None for all of the answer.
    opening: with `after`: only an answer that begins with this text has such a section, and may.
    field: the caller's own name of it, for errors.
    """

    kind: str
    text: str
    after: str | None = None
    opening: str | None = None
    field: str = ""


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Plain text, tokenised by the worker (special tokens in the text are recognised)."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids, used as they are."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model made. arguments: JSON text of an object, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. parameters: the JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn. `role` is what the template knows: system, user, assistant, tool, ...

    reasoning, tool_calls: of an assistant's turn. tool_call_id, name: of a tool's turn, which holds
    the result of that call of the function of that name.
    """

    role: str
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Turns, rendered by the model's own chat template.

    continue_final: the last (assistant) turn is left open and the model goes on with it.
    tools: functions that the model may call; calls become ToolCallDelta events.
    forced: names of the tools one of which must be called; () leaves it to the model.
    has_one_call: the answer ends with its first tool call.
    thinking: whether the model should reason first, as far as its template can be told; None: the
        template's own choice. True is refused for a model whose template shows no reasoning.
    is_split: reasoning becomes ReasoningDelta events; otherwise it stays in the text with its tags.
    """

    messages: tuple[ChatMessage, ...]
    continue_final: bool = False
    template_kwargs: tuple[tuple[str, Any], ...] = ()
    tools: tuple[Tool, ...] = ()
    forced: tuple[str, ...] = ()
    has_one_call: bool = False
    thinking: bool | None = None
    is_split: bool = False


Prompt = TextPrompt | TokenPrompt | ChatPrompt


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A validated request, free of any dialect.

    max_tokens: None means "up to the end of the context". A value that reaches past the context
        is no error; the stream then ends with LENGTH.
    stop: strings that end the stream; not part of the text.
    handle: the caller's own name for this generation (Kobold's genkey), for check and abort; never
        used as a key of anything but the caller's own registry entry.
    model: the model the caller named, as sent; None when the request names none.
    priority: [-100, 100]; lower starts first, and below 0 is for administrators.
    keep_alive_s: seconds that the model shall stay loaded after this, math.inf for ever; only an
        administrator's counts. None says nothing.
    wants_context: the end tells the tokens of prompt and answer, for `context` of the next request.
    context: token ids before the prompt: what an earlier answer's end told.
    shift_at_limit: when the context is full, the oldest tokens are given up and it goes on;
        else it ends with LENGTH.
    wants_progress: Progress events may come before the first text.
    grammar: what the answer must follow; None for free text.
    """

    prompt: Prompt
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    model: str | None = None
    handle: str | None = None
    priority: int = 0
    wants_progress: bool = False
    shift_at_limit: bool = False
    grammar: Grammar | None = None
    keep_alive_s: float | None = None
    wants_context: bool = False
    context: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Residency:
    """Is the model in memory? expires_in_s: seconds until it leaves unused; None: it stays."""

    is_loaded: bool
    expires_in_s: float | None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `identity` separates callers from each other: the key's id and the peer's host."""

    identity: str
    namespace: str = ""  # whose prefix cache this caller shares
    is_admin: bool = False  # may do what concerns everybody


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one stream; cached_tokens are those of the prompt that were not computed."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Started:
    """The engine has accepted the request. Always the first event; headers may follow it."""

    n_prompt: int


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


class TextDelta(msgspec.Struct, frozen=True):  # a struct, since one is made for every token
    """New text, valid Unicode, never empty. One delta may carry several tokens."""

    text: str
    n_tokens: int


class ReasoningDelta(msgspec.Struct, frozen=True):
    """New text of the model's reasoning, never empty."""

    text: str
    n_tokens: int


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
    """The fold of a whole stream: what a non-streamed answer is made of."""

    text: str
    finished: Finished
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine really runs with, as /health reports it under `engine`."""

    threads: int = 0
    flash_attention: bool = False
    kv_type: str = "f16"
    kv_unified: bool = True
    n_ubatch: int = 512
    gpu_layers: int = 0
    n_ctx: int = 0  # each request's limit, tokens
    pool_cells: int = 0  # cells that all requests share
    parallel: int = 0  # sequences in one batch
    extra_buffers: bool = True  # repacked weights (AMX and friends) in use
    profile: str = "default"  # what the settings are chosen for: default or throughput
    tuned: bool = False  # some of them were measured on this machine
    build: str = ""  # llama.cpp's system-info line


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the front needs to know of the loaded model."""

    name: str  # file stem, e.g. "SmolLM2-135M-Instruct.Q4_1"
    description: str = ""  # llama.cpp's one-line description
    architecture: str = ""
    n_params: int = 0
    size_bytes: int = 0
    n_ctx_train: int = 0
    n_vocab: int = 0
    chat_template: str | None = None
    bos_token: str = ""
    eos_token: str = ""
    add_bos: bool = False
    engine: EngineSettings = msgspec.field(default_factory=EngineSettings)

"""What a request is once it is parsed, whatever dialect it came in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from naiad.types.sampling import Grammar, SamplingParams, Trim


@dataclass(frozen=True, slots=True)
class ThinkingBudget:
    """What a request asks for. n_tokens: at least 0. message: the section's last words then."""

    n_tokens: int
    message: str = ""


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
    has_echo: the prompt's text comes before the answer.
    keeps_stop: the stop string that ended the text is part of it after all.
    shows_controls: control tokens show as their text.
    trim: a text that is too long for a prompt is cut; None: it is refused.
    thinking_budget: how long the model may reason before it answers; None: as long as it likes.
    is_deterministic: the same text every time, whatever else runs.
    recalls_logprobs: what is told of its tokens can be asked for afterwards.
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
    has_echo: bool = False
    keeps_stop: bool = False
    shows_controls: bool = False
    trim: Trim | None = None
    thinking_budget: ThinkingBudget | None = None
    is_deterministic: bool = False
    keep_alive_s: float | None = None
    wants_context: bool = False
    context: tuple[int, ...] = ()
    recalls_logprobs: bool = False


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `identity` separates callers from each other: the key's id and the peer's host."""

    identity: str
    namespace: str = ""  # whose prefix cache this caller shares
    is_admin: bool = False  # may do what concerns everybody

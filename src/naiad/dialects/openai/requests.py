"""OpenAI's two generation bodies.

Names of other servers are read as well: llama-server's and vLLM's extras, and KoboldCpp's, because
SillyTavern sends those to /v1/completions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from naiad.dialects.base import Parsed
from naiad.dialects.fields import Fields, boolean, listed, short_text
from naiad.dialects.grammars import read_grammar
from naiad.dialects.logprobs import with_switched_logprobs
from naiad.dialects.openai.calls import read_callable
from naiad.dialects.openai.choices import each_choice, read_n, refuse_text_fields, with_suffix
from naiad.dialects.openai.formatter import ChatFormatter, Head, OpenAIFormatter, TextFormatter
from naiad.dialects.openai.logprobs import with_text_logprobs
from naiad.dialects.prompts import read_messages, read_prompts, read_template_kwargs
from naiad.dialects.sampling import (
    ignored,
    keeps_stop,
    read_deterministic,
    read_handle,
    read_max_tokens,
    read_object,
    read_priority,
    read_sampling,
    read_stops,
    shows_controls,
    wants_progress,
)
from naiad.dialects.thinking import read_thinking_budget, read_thinking_wish
from naiad.errors import InvalidRequest, Unsupported
from naiad.types import (
    ChatMessage,
    ChatPrompt,
    GenerateRequest,
    ModelInfo,
    Prompt,
    SamplingParams,
)

MAX_MODEL_CHARS = 512
MAX_EFFORT_CHARS = 32

#: What applies where a request is silent: llama-server's choice. The API's own (temperature 1 and
#: nothing cut off) makes small quantised models ramble.
DEFAULTS = SamplingParams(
    temperature=0.8, top_k=40, top_p=0.95, min_p=0.05, dry_breakers=("\n", ":", '"', "*")
)

#: The first that is present counts. None of them present: up to the end of the context.
MAX_TOKENS = (
    "max_completion_tokens",
    "max_output_tokens",
    "max_tokens",
    "max_new_tokens",
    "max_length",
    "n_predict",
)
STOPS = ("stop", "stop_sequence", "stopping_strings")

#: Variables that the server itself gives to a chat template.
RESERVED_KWARGS = frozenset(
    {"messages", "add_generation_prompt", "bos_token", "eos_token", "tools", "documents"}
)


def parse_completion(body: Mapping[str, Any], model: ModelInfo) -> Parsed:
    """POST /v1/completions."""
    fields = Fields(body)
    prompts = with_suffix(fields, read_prompts(fields, model), model)
    parsed = _finish(fields, model, prompts, TextFormatter, "cmpl", with_text_logprobs)
    if parsed.request.has_echo and parsed.request.sampling.n_logprobs >= 0:
        raise Unsupported(
            "'echo' and 'logprobs' do not go together here: logprobs are told of the answer's "
            "tokens only, not of the prompt's.",
            param="echo",
        )
    return parsed


def parse_chat(body: Mapping[str, Any], model: ModelInfo) -> Parsed:
    """POST /v1/chat/completions."""
    fields = Fields(body)
    refuse_text_fields(fields)
    messages, unread = read_messages(fields)
    kwargs, reserved = read_template_kwargs(fields, RESERVED_KWARGS)
    tools, forced, forms = read_callable(fields)
    effort = fields.get(short_text(MAX_EFFORT_CHARS), "reasoning_effort")
    if effort and effort != "none":
        kwargs = {"reasoning_effort": effort, **kwargs}
    wish = False if effort == "none" else read_thinking_wish(fields)
    if wish:
        kwargs = {"enable_thinking": True, "thinking": True, **kwargs}
    prompt = ChatPrompt(
        messages=messages,
        continue_final=_continues(fields, messages),
        template_kwargs=tuple(kwargs.items()),
        tools=tools,
        forced=forced,
        has_one_call=fields.get(boolean, "parallel_tool_calls") is False or forms.is_old,
        thinking=False if wish is False else None,  # wishing for it is no demand
        is_split=fields.get(short_text(MAX_EFFORT_CHARS), "reasoning_format") != "none",
    )
    ignored_too = unread + reserved
    formatter = partial(ChatFormatter, forms=forms)
    return _finish(
        fields, model, [prompt], formatter, "chatcmpl", with_switched_logprobs, ignored_too
    )


def _finish(
    fields: Fields,
    model: ModelInfo,
    prompts: Sequence[Prompt],
    formatter: Callable[..., OpenAIFormatter],
    kind: str,
    with_logprobs: Callable[[SamplingParams, Fields], SamplingParams],
    without_effect: tuple[str, ...] = (),
) -> Parsed:
    n = read_n(fields, len(prompts))
    has_echo = formatter is TextFormatter and (fields.get(boolean, "echo") or False)
    request = replace(read_request(fields, model, prompts[0], with_logprobs), has_echo=has_echo)
    options = read_object(fields, "stream_options")
    include_usage = options.get(boolean, "include_usage") or False
    first, *others = each_choice(request, prompts, n)
    return Parsed(
        request=first,
        formatter=formatter(
            Head.new(model.name, kind),
            include_usage=include_usage,
            has_logprobs=request.sampling.n_logprobs >= 0,
            n_per_prompt=n,
        ),
        ignored=ignored(fields) + listed(without_effect),
        others=tuple(others),
    )


def read_request(
    fields: Fields,
    model: ModelInfo,
    prompt: Prompt,
    with_logprobs: Callable[[SamplingParams, Fields], SamplingParams],
) -> GenerateRequest:
    """What the generation bodies of the API have in common."""
    is_streamed = fields.get(boolean, "stream") or False
    fields.find("max_context_length", "truncation_length", "num_ctx")  # the server's own holds
    return GenerateRequest(
        prompt=prompt,
        sampling=with_logprobs(read_sampling(fields, model, DEFAULTS), fields),
        max_tokens=_read_limit(fields),
        stop=read_stops(fields, *STOPS),
        stream=is_streamed,
        model=fields.get(short_text(MAX_MODEL_CHARS), "model") or None,
        handle=read_handle(fields),
        priority=read_priority(fields),
        wants_progress=wants_progress(fields) and is_streamed,
        grammar=read_grammar(fields),
        thinking_budget=read_thinking_budget(fields),
        is_deterministic=read_deterministic(fields),
        shift_at_limit=fields.get(boolean, "context_shift") or False,
        keeps_stop=keeps_stop(fields),
        shows_controls=shows_controls(fields),
    )


def _read_limit(fields: Fields) -> int | None:
    """Under llama-server's own name, -1 is no limit; under OpenAI's names it is a mistake."""
    is_without = fields.find(*MAX_TOKENS) == ("n_predict", -1)
    return None if is_without else read_max_tokens(fields, *MAX_TOKENS)


def _continues(fields: Fields, messages: tuple[ChatMessage, ...]) -> bool:
    """Whether the last turn is to be gone on with; three servers, three ways to say so."""
    wants = {
        "continue_final_message": fields.get(boolean, "continue_final_message") is True,
        "add_generation_prompt": fields.get(boolean, "add_generation_prompt") is False,
    }
    is_assistant = messages[-1].role == "assistant"
    for name, is_wanted in wants.items():
        if is_wanted and not is_assistant:
            raise InvalidRequest(
                f"'{name}' asks to continue the last message, but its role is not assistant.",
                param=name,
            )
    # KoboldCpp's switch is a standing wish: without an assistant's turn there is nothing to do.
    standing = fields.get(boolean, "continue_assistant_turn") is True
    return any(wants.values()) or (standing and is_assistant)

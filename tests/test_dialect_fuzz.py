"""Any JSON under any known name: a request that can cross processes, or a clean refusal."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialect_cases import MODEL
from naiad.dialects.base import Dialect, Immediate, Parse
from naiad.dialects.registry import DIALECTS
from naiad.dialects.sampling import DEPENDENT, KNOBS, NEUTRAL
from naiad.errors import NaiadError
from naiad.types import ChatPrompt, SamplingParams, TokenPrompt

NAMES = sorted(
    {name for knob in KNOBS for name in knob.names}
    | set(NEUTRAL)
    | set(DEPENDENT)
    | {"prompt", "messages", "memory", "model", "stream", "stream_options", "stop", "genkey"}
    | {"stop_sequence", "max_tokens", "max_length", "max_context_length", "logit_bias"}
    | {"custom_token_bans", "chat_template_kwargs", "response_format", "echo", "suffix"}
    | {"tools", "tool_choice", "system", "thinking", "think", "options", "format", "images"}
    | {"reasoning_effort", "stop_sequences", "output_config", "keep_alive", "raw", "template"}
    | {"input_prefix", "input_suffix", "input_extra", "n_predict", "n_cmpl", "response_fields"}
    | {"text", "audio", "trim_stop", "render_special", "replace_instruct_placeholders"}
    | {"best_of", "continue_final_message", "add_generation_prompt", "unknown"}
)
#: What a JSON decoder can hand over, lone surrogates and numbers beyond a float included.
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(st.characters(), max_size=5)
    | st.sampled_from(
        ["1", "2.0", "nan", "\ud800", "user", "assistant", "text", "auto", "{{[OUTPUT]}}"]
    )
)
KEYS = (
    *("role", "content", "type", "text", "5", "include_usage", "\ud800", "function", "name"),
    *("parameters", "arguments", "tool_calls", "input", "thinking", "id"),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
BODIES = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), VALUES, max_size=5)
GENERATIONS = [
    pytest.param(dialect, operation.parse, id=f"{dialect.name} {operation.path}")
    for dialect in DIALECTS
    for operation in dialect.operations
    if operation.parse is not None and "latest" not in operation.path
]


def check(dialect: Dialect, parse: Parse, body: dict[str, Any]) -> None:
    try:
        parsed = parse(body, MODEL)
    except NaiadError as error:
        assert error.fault == "client"
        assert json.loads(msgspec.json.encode(dialect.error_body(error)))
        return
    if isinstance(parsed, Immediate):
        assert msgspec.json.encode(parsed.value)
        return
    request = parsed.request
    packed = msgspec.msgpack.encode(request.sampling)
    assert msgspec.msgpack.decode(packed, type=SamplingParams) == request.sampling
    texts = [*request.stop, request.model or "", request.handle or "", *parsed.ignored]
    if isinstance(request.prompt, ChatPrompt):
        assert msgspec.json.encode(dict(request.prompt.template_kwargs))
        texts += [turn.role + turn.content for turn in request.prompt.messages]
    elif not isinstance(request.prompt, TokenPrompt):
        texts.append(request.prompt.text)
    for text in texts:
        text.encode("utf-8")


@pytest.mark.parametrize(("dialect", "parse"), GENERATIONS)
@settings(max_examples=60)
@given(body=BODIES)
def test_any_body_is_understood_or_refused(
    dialect: Dialect, parse: Parse, body: dict[str, Any]
) -> None:
    check(dialect, parse, body)


@pytest.mark.parametrize(("dialect", "parse"), GENERATIONS)
@settings(max_examples=60)
@given(name=st.sampled_from(NAMES), value=VALUES)
def test_any_value_of_one_field_is_understood_or_refused(
    dialect: Dialect, parse: Parse, name: str, value: Any
) -> None:
    least = {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}
    check(dialect, parse, {**least, name: value})

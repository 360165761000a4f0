"""OpenAI's bodies, models and errors."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialect_cases import CALLER, MODEL, FakeBackend, events, stream, whole
from naiad.dialects.base import Access, Call, Parsed
from naiad.dialects.openai import DIALECT, list_models, quantisation_of, show_model
from naiad.dialects.openai.errors import error_body
from naiad.dialects.openai.formatter import ChatFormatter, Head, TextFormatter
from naiad.dialects.openai.requests import parse_chat, parse_completion
from naiad.errors import (
    ContextExceeded,
    EngineUnavailable,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    NaiadError,
    Unauthorized,
    Unsupported,
)
from naiad.types import (
    ChatMessage,
    ChatPrompt,
    Finished,
    FinishReason,
    TextPrompt,
    TokenPrompt,
    ToolCall,
)
from naiad.types import Usage as Counts

HI = [{"role": "user", "content": "Hi"}]
PREFILL = [*HI, {"role": "assistant", "content": "Sure"}]


def chat(**body: Any) -> Parsed:
    return parse_chat({"messages": HI, **body}, MODEL)


def completion(**body: Any) -> Parsed:
    return parse_completion({"prompt": "Once", **body}, MODEL)


def messages(turns: Any) -> tuple[ChatMessage, ...]:
    prompt = chat(messages=turns).request.prompt
    assert isinstance(prompt, ChatPrompt)
    return prompt.messages


def test_the_least_chat() -> None:
    parsed = chat()
    request = parsed.request
    assert request.prompt == ChatPrompt((ChatMessage("user", "Hi"),), is_split=True)
    assert (request.max_tokens, request.stop, request.stream) == (None, (), False)
    assert (request.model, request.handle, parsed.ignored) == (None, None, ())
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (
        0.8,
        40,
        0.95,
        0.05,
    )


def test_the_usual_fields() -> None:
    request = chat(
        model="gpt-3.5-turbo", stream=True, stop="\n", seed=7, max_tokens=16, temperature=0.5
    ).request
    assert (request.model, request.stream, request.stop) == ("gpt-3.5-turbo", True, ("\n",))
    assert (request.sampling.seed, request.sampling.temperature) == (7, 0.5)
    assert request.max_tokens == 16


@pytest.mark.parametrize(
    "name", ["max_tokens", "max_completion_tokens", "max_new_tokens", "n_predict", "max_length"]
)
def test_names_of_max_tokens(name: str) -> None:
    assert chat(**{name: 5}).request.max_tokens == 5
    assert completion(**{name: "5"}).request.max_tokens == 5
    with pytest.raises(InvalidRequest, match=f"'{name}' must be an integer of at least 1"):
        chat(**{name: 0})


def test_max_tokens_past_the_context_is_no_error() -> None:
    assert chat(max_tokens=10**12).request.max_tokens == 2**31 - 1


def test_minus_one_is_no_limit_under_the_name_that_has_it_so() -> None:
    assert chat(n_predict=-1).request.max_tokens is None
    assert completion(n_predict=-1).request.max_tokens is None
    with pytest.raises(InvalidRequest, match="'n_predict' must be an integer of at least 1"):
        chat(n_predict=-2)
    with pytest.raises(InvalidRequest, match="'max_tokens' must be an integer of at least 1"):
        chat(max_tokens=-1)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("Hi", "Hi"),
        (None, ""),
        ([], ""),
        ([{"type": "text", "text": "a "}, {"type": "text", "text": "b"}], "a b"),
        ([{"type": "input_text", "text": "a"}, "b"], "ab"),
    ],
)
def test_content(content: Any, expected: str) -> None:
    assert messages([{"role": "user", "content": content}])[0].content == expected


def test_developer_is_the_system_of_templates() -> None:
    assert messages([{"role": "developer", "content": "x"}])[0].role == "system"
    assert messages([{"role": "tool", "content": "x"}])[0].role == "tool"


@pytest.mark.parametrize(
    ("turns", "why"),
    [
        ([], "at least one message"),
        ("Hi", "must be a list"),
        (None, "'messages' is missing"),
        ({"role": "user"}, "must be a list"),
        (["Hi"], r"'messages\[0\]' must be an object"),
        ([{"content": "Hi"}], r"'messages\[0\]\.role' is missing"),
        ([{"role": "", "content": "Hi"}], "empty 'role'"),
        ([{"role": 5, "content": "Hi"}], r"'messages\[0\]\.role' must be a string"),
        ([{"role": "user", "content": 5}], r"'messages\[0\]\.content' must be a string or"),
        ([{"role": "user", "content": "\ud800"}], "lone surrogate"),
        ([{"role": "user", "content": [{"text": "x"}]}], r"content\[0\]\.type' is missing"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\]\.text' is missing"),
        ([{"role": "user", "content": [5]}], r"content\[0\]' must be an object"),
    ],
)
def test_bad_messages(turns: Any, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        chat(messages=turns)


def test_what_an_assistant_refused_is_what_it_said() -> None:
    part = {"type": "refusal", "refusal": "I cannot."}
    prompt = chat(messages=[{"role": "assistant", "content": [part]}, *HI]).request.prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages[0].content == "I cannot."


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "video_url"])
def test_parts_that_are_no_text_are_unsupported(kind: str) -> None:
    with pytest.raises(Unsupported, match=f"type '{kind}'"):
        chat(messages=[{"role": "user", "content": [{"type": kind, kind: {}}]}])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("continue_final_message", True),
        ("add_generation_prompt", False),
        ("continue_assistant_turn", True),
    ],
)
def test_continuing_the_last_turn_has_to_be_asked_for(field: str, value: bool) -> None:
    def continues(**body: Any) -> bool:
        prompt = chat(messages=PREFILL, **body).request.prompt
        assert isinstance(prompt, ChatPrompt)
        return prompt.continue_final

    assert not continues()
    assert continues(**{field: value})
    assert not continues(**{field: not value})


def test_only_an_assistants_turn_can_be_continued() -> None:
    for field, value in (("continue_final_message", True), ("add_generation_prompt", False)):
        with pytest.raises(InvalidRequest, match="role is not assistant"):
            chat(**{field: value})
    assert chat(continue_assistant_turn=True).ignored == ()


def test_template_arguments() -> None:
    parsed = chat(chat_template_kwargs={"enable_thinking": False, "messages": []})
    assert isinstance(parsed.request.prompt, ChatPrompt)
    assert parsed.request.prompt.template_kwargs == (("enable_thinking", False),)
    assert parsed.ignored == ("chat_template_kwargs.messages",)
    with pytest.raises(InvalidRequest, match="'chat_template_kwargs' must be an object"):
        chat(chat_template_kwargs=[1])
    with pytest.raises(InvalidRequest, match="'chat_template_kwargs' holds"):
        chat(chat_template_kwargs={"x": [{"y": "\ud800"}]})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("best_of", 3),
        ("echo", True),
        ("suffix", "end"),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(field: str, value: Any) -> None:
    for parse in (chat, completion) if field != "echo" else (chat,):
        with pytest.raises(Unsupported, match=f"'{field}' is not supported") as caught:
            parse(**{field: value})
        assert (caught.value.param, caught.value.status) == (field, 400)


TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]


def allowing(mode: str, *names: str) -> dict[str, Any]:
    named = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": named}}


@pytest.mark.parametrize(
    ("choice", "names", "forced"),
    [
        (None, ["f", "g"], ()),
        ("auto", ["f", "g"], ()),
        ("none", [], ()),
        ("required", ["f", "g"], ("f", "g")),
        ({"type": "function", "function": {"name": "g"}}, ["f", "g"], ("g",)),
        (allowing("auto", "g"), ["g"], ()),
        (allowing("required", "g", "f"), ["f", "g"], ("f", "g")),
    ],
)
def test_which_tools_may_and_must_be_called(choice: Any, names: Any, forced: Any) -> None:
    prompt = chat(tools=TOOLS, tool_choice=choice).request.prompt
    assert isinstance(prompt, ChatPrompt)
    assert [tool.name for tool in prompt.tools] == names
    assert prompt.forced == forced


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tool_choice": "required"}, "'tool_choice' forces a call, but there are no tools"),
        ({"tool_choice": "always", "tools": TOOLS}, "'tool_choice' must be none, auto, required"),
        ({"tool_choice": {"function": {"name": "h"}}, "tools": TOOLS}, "there is no tool 'h'"),
        ({"tool_choice": allowing("auto", "h"), "tools": TOOLS}, "'h', but there is no such tool"),
        ({"tool_choice": allowing("any", "f"), "tools": TOOLS}, r"tools.mode' must be auto or req"),
        ({"tools": [{"type": "web_search"}]}, "only functions are known"),
        ({"tools": [{"function": {}}]}, r"'tools\[0\].function.name' is missing"),
        ({"tools": [{"function": {"name": "", "parameters": {}}}]}, "is empty"),
        ({"tools": [{"function": {"name": "f", "parameters": []}}]}, "must be an object"),
    ],
)
def test_bad_tools_are_refused_by_name(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        chat(**fields)


def test_calls_and_results_in_messages() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    other = {"function": {"name": "g", "arguments": {"b": "ö"}}}
    turns = [
        {"role": "assistant", "content": None, "tool_calls": [call, other], "reasoning": "why"},
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
    ]
    prompt = chat(messages=[*HI, *turns]).request.prompt
    assert isinstance(prompt, ChatPrompt)
    calls = (ToolCall("c1", "f", '{"a": 1}'), ToolCall("", "g", '{"b":"ö"}'))
    assert prompt.messages[1:] == (
        ChatMessage("assistant", "", "why", calls),
        ChatMessage("tool", "one", tool_call_id="c1", name="f"),
    )


def test_reasoning_is_split_off_unless_it_is_to_stay() -> None:
    def prompt(**fields: Any) -> ChatPrompt:
        found = chat(**fields).request.prompt
        assert isinstance(found, ChatPrompt)
        return found

    assert prompt().is_split
    assert not prompt(reasoning_format="none").is_split
    assert prompt(reasoning_effort="none").thinking is False
    assert prompt(reasoning_effort="low").template_kwargs == (("reasoning_effort", "low"),)


def test_harmless_values_of_the_same_fields_pass_unnoticed() -> None:
    body = {"n": 1, "best_of": "1", "echo": False, "suffix": "", "tool_choice": "none"}
    assert completion(**body, response_format={"type": "text"}).ignored == ()


def test_fields_without_effect_are_listed() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    parsed = chat(
        tools=tools, tool_choice="auto", logprobs=True, top_logprobs=5, user="me", store=None
    )
    assert parsed.ignored == ("user",)
    turns = [{"role": "assistant", "content": None, "tool_calls": []}, {**HI[0], "mood": "good"}]
    assert chat(messages=turns).ignored == ("messages[].mood",)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Once", TextPrompt("Once")),
        ("", TextPrompt("")),
        (["Once"], TextPrompt("Once")),
        ([1, 2], TokenPrompt((1, 2))),
        ([[1, 2]], TokenPrompt((1, 2))),
    ],
)
def test_prompts(prompt: Any, expected: Any) -> None:
    assert completion(prompt=prompt).request.prompt == expected


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        (None, "'prompt' is missing"),
        (5, "must be a string or a list of token ids, not a number"),
        ({}, "must be a string or a list of token ids, not an object"),
        (["a"] * 65, "holds 65 prompts; at most 64"),
        (["a", 1], "each is a string or a list of token ids, not a number"),
        ([[1], ["a"]], "token ids from 0 to 999"),
        ([], "empty list"),
        ([[]], "empty list"),
        ([1, 1000], "token ids from 0 to 999"),
        ([1, "a"], "token ids from 0 to 999"),
        ("\udfff", "lone surrogate"),
    ],
)
def test_bad_prompts(prompt: Any, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        completion(prompt=prompt)


def test_a_token_prompt_beyond_the_context_is_refused_with_both_numbers() -> None:
    with pytest.raises(ContextExceeded, match=r"4097 tokens.*only 4096") as caught:
        completion(prompt=[1] * 4097)
    assert caught.value.details == {"n_prompt_tokens": 4097, "n_ctx": 4096}


def test_bad_options() -> None:
    with pytest.raises(InvalidRequest, match="'stream' must be true or false, not 'maybe'"):
        chat(stream="maybe")
    with pytest.raises(InvalidRequest, match="'stream_options' must be an object"):
        chat(stream_options=True)
    with pytest.raises(InvalidRequest, match=r"'stream_options\.include_usage' must be"):
        chat(stream_options={"include_usage": "x"})
    with pytest.raises(InvalidRequest, match="'model' must be a string"):
        chat(model=5)


def test_usage_comes_only_when_asked_for() -> None:
    finished = Finished(FinishReason.STOP, Counts(1, 2, 0))
    plain = events(stream(chat().formatter, ["x"], finished))
    asked = chat(stream=True, stream_options={"include_usage": True}).formatter
    told = events(stream(asked, ["x"], finished))
    assert all(chunk["choices"] and "usage" not in chunk for chunk in plain[:-1])
    assert [chunk["usage"] for chunk in told[:-2]] == [None] * 3
    assert (told[-2]["choices"], told[-2]["usage"]["total_tokens"]) == ([], 3)
    assert plain[-1] == told[-1] == "[DONE]"


def test_ids_are_unguessable_and_the_model_is_the_loaded_one() -> None:
    finished = Finished(FinishReason.STOP, Counts())
    first, second = (whole(chat(model="gpt-4").formatter, [], finished) for _ in range(2))
    assert first["id"] != second["id"]
    assert len(first["id"].removeprefix("chatcmpl-")) == 32
    assert first["model"] == MODEL.name
    assert whole(completion().formatter, [], finished)["id"].startswith("cmpl-")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=6))
def test_the_fold_of_a_stream_is_the_whole(pieces: list[str]) -> None:
    finished = Finished(FinishReason.LENGTH, Counts(1, 2, 0))
    head = Head("m", "id", 0)

    text = events(stream(TextFormatter(head), pieces, finished))[:-1]
    choice = whole(TextFormatter(head), pieces, finished)["choices"][0]
    assert "".join(chunk["choices"][0]["text"] for chunk in text) == choice["text"]

    turns = events(stream(ChatFormatter(head), pieces, finished))[:-1]
    choice = whole(ChatFormatter(head), pieces, finished)["choices"][0]
    deltas = [chunk["choices"][0]["delta"] for chunk in turns]
    assert "".join(one.get("content", "") for one in deltas) == choice["message"]["content"]
    assert turns[-1]["choices"][0]["finish_reason"] == choice["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (InvalidRequest("m"), "invalid_request_error", "invalid_request"),
        (Unsupported("m"), "invalid_request_error", "unsupported"),
        (Unauthorized("m"), "authentication_error", "invalid_api_key"),
        (ModelNotFound("m"), "not_found_error", "model_not_found"),
        (EngineUnavailable("m"), "service_unavailable", "engine_unavailable"),
        (InternalError("m"), "server_error", "internal_error"),
    ],
)
def test_errors(error: NaiadError, kind: str, code: str) -> None:
    assert error_body(error) == {
        "error": {"message": "m", "type": kind, "param": None, "code": code}
    }


def test_context_errors_carry_both_numbers() -> None:
    body = error_body(ContextExceeded("m", param="prompt", n_prompt_tokens=9, n_ctx=8))["error"]
    assert (body["type"], body["code"]) == ("exceed_context_size_error", "context_length_exceeded")
    assert (body["n_prompt_tokens"], body["n_ctx"], body["param"]) == (9, 8, "prompt")


def call(**path_params: str) -> Call:
    return Call(body={}, query={}, path_params=path_params, caller=CALLER)


async def test_models() -> None:
    listed = await list_models(FakeBackend(), call())
    assert [one["id"] for one in listed["data"]] == [MODEL.name]
    shown = await show_model(FakeBackend(), call(model_id=MODEL.name))
    assert shown == listed["data"][0]
    assert (shown["object"], shown["max_model_len"], shown["meta"]["n_params"]) == (
        "model",
        4096,
        135,
    )
    assert (await show_model(FakeBackend(), call(model_id="TINY.q4_1"))) == shown
    assert shown["meta"]["quantization"] == "Q4_1"
    with pytest.raises(ModelNotFound, match="'org/other'"):
        await show_model(FakeBackend(), call(model_id="org/other"))


@pytest.mark.parametrize(
    ("name", "description", "quantisation"),
    [
        ("SmolLM2-135M-Instruct.Q4_1", "llama 135M Q4_1", "Q4_1"),
        ("model-q4_k_m", "", "Q4_K_M"),
        ("model.IQ4_XS", "", "IQ4_XS"),
        ("my-model", "gemma3 270M Q8_0", "Q8_0"),
        ("model-BF16", "", "BF16"),
        ("Q-model", "llama 1B all F32", "F32"),
        ("scripted", "", None),
    ],
)
def test_a_models_quantisation(name: str, description: str, quantisation: str | None) -> None:
    model = msgspec.structs.replace(MODEL, name=name, description=description)
    assert quantisation_of(model) == quantisation


def test_routes_have_aliases_without_the_prefix_and_all_need_the_key() -> None:
    routes = {(one.method, one.path) for one in DIALECT.operations}
    assert {(method, path.removeprefix("/v1")) for method, path in routes} <= routes
    assert len(routes) == 28
    assert {one.access for one in DIALECT.operations} == {Access.USER}
    ways = [(one.parse, one.plan, one.handle) for one in DIALECT.operations]
    assert all(sum(way is not None for way in one) == 1 for one in ways)


def test_choices_of_several_prompts_come_in_order_with_draws_of_their_own() -> None:
    parsed = completion(prompt=["a", [1, 2]], n=2, seed=7, logprobs=0)
    requests = [parsed.request, *parsed.others]
    assert [one.prompt for one in requests] == [TextPrompt("a")] * 2 + [TokenPrompt((1, 2))] * 2
    assert [one.sampling.choice for one in requests] == [0, 1, 0, 1]
    assert {one.sampling.seed for one in requests} == {7}
    assert {one.sampling.n_logprobs for one in requests} == {0}
    assert len({one.handle for one in requests}) == 1
    assert requests[0].handle is not None
    assert (chat(n=0).others, chat(n=1).others, chat().request.handle) == ((), (), None)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"n": 17}, "'n' must be an integer from 0 to 16"),
        ({"n": 16, "prompt": ["a"] * 5}, "at most 64 answers"),
        ({"best_of": 3, "n": 2}, "'best_of' is not supported"),
        ({"echo": True, "logprobs": 1}, "'echo' and 'logprobs' do not go together"),
        ({"suffix": "x", "echo": True}, "'suffix' is not supported together with 'echo'"),
        ({"logprobs": 21}, "'logprobs' must be an integer from 0 to 20"),
    ],
)
def test_what_cannot_be_asked_of_completions(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        completion(**fields)
    assert completion(best_of=2, n=2).request.sampling.choice == 0


def test_a_suffix_is_filled_in_by_models_made_for_it() -> None:
    filling = msgspec.structs.replace(MODEL, infill=("<P>", "<S>", "<M>"))
    parsed = parse_completion({"prompt": "def f(", "suffix": "): pass"}, filling)
    assert parsed.request.prompt == TextPrompt("<P>def f(<S>): pass<M>")
    with pytest.raises(Unsupported, match="text, not token ids"):
        parse_completion({"prompt": [1, 2], "suffix": "x"}, filling)


def test_logprobs_as_chats_and_completions_ask_for_them() -> None:
    def asked(parsed: Parsed) -> tuple[int, bool]:
        return parsed.request.sampling.n_logprobs, parsed.request.sampling.logprobs_after

    assert asked(chat(logprobs=True)) == (0, False)
    assert asked(chat(logprobs=True, top_logprobs=20, post_sampling_probs=True)) == (20, True)
    assert asked(chat(logprobs=False, top_logprobs=0)) == asked(chat()) == (-1, False)
    assert asked(completion(logprobs=5)) == (5, False)
    assert asked(completion(logprobs=True)) == (1, False)
    assert asked(completion(logprobs=False)) == (-1, False)
    with pytest.raises(InvalidRequest, match="'top_logprobs' tells how many"):
        chat(top_logprobs=2)
    with pytest.raises(InvalidRequest, match="from 0 to 20"):
        chat(logprobs=True, top_logprobs=21)

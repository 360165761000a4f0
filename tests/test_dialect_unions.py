"""Every kind of block, part and item that the vendors' packages know is read, or refused by name.

The kinds come from the packages' types, so a new one is noticed here when they are updated.
"""

from __future__ import annotations

import base64
import json
import typing
from collections.abc import Iterator
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from anthropic.types import ContentBlockParam, ToolUnionParam, tool_result_block_param
from anthropic.types.beta import BetaContentBlockParam, BetaToolUnionParam
from openai.types.chat import ChatCompletionContentPartParam, ChatCompletionMessageParam
from openai.types.responses import ResponseInputContentParam, ResponseInputItemParam, ToolParam

from dialect_cases import MODEL
from naiad.dialects.anthropic.requests import parse_messages
from naiad.dialects.base import Parsed
from naiad.dialects.files import text_of_file
from naiad.dialects.openai.requests import parse_chat
from naiad.dialects.openai.responses.requests import Asked, read_body
from naiad.errors import InvalidRequest, Unsupported
from naiad.types import ChatMessage, ChatPrompt, ToolCall

REFUSED = "refused"  # by name
SKIPPED = "skipped"  # and named in the log
PICTURE = "[a picture, which this model cannot see]"
FILE = base64.b64encode("naïve 😀".encode()).decode()


def members(union: Any) -> Iterator[Any]:
    """The typed dictionaries of a union; models, which are what answers hold, are left out."""
    if get_origin(union) is typing.Annotated:
        union = get_args(union)[0]
    if get_args(union):
        for one in get_args(union):
            yield from members(one)
    elif hasattr(union, "__required_keys__"):
        yield union


def kinds(union: Any, field: str = "type") -> set[str]:
    """What `type` may be in the members of a union."""
    return {kind for one in members(union) for kind in _literals(get_type_hints(one)[field])}


def _literals(hint: Any) -> Iterator[str]:
    for one in get_args(hint):
        if isinstance(one, str):
            yield one
        else:
            yield from _literals(one)


def turns(prompt: Any) -> tuple[ChatMessage, ...]:
    assert isinstance(prompt, ChatPrompt)
    return prompt.messages


# -- Anthropic -------------------------------------------------------------------------------------

TEXT = {"type": "text", "text": "so"}
WEB = {
    "type": "web_search_result", "title": "T", "url": "http://x", "encrypted_content": "SEALED",
}  # fmt: skip
RAN = {"type": "code_execution_result", "stdout": "42", "stderr": "", "return_code": 0}
PDF = {"type": "base64", "media_type": "application/pdf", "data": "SEALED"}


def called(name: str) -> ChatMessage:
    return ChatMessage("assistant", "", tool_calls=(ToolCall("u1", name, '{"q":1}'),))


def result(told: Any, name: str = "") -> ChatMessage:
    text = told if isinstance(told, str) else json.dumps(told, separators=(",", ":"))
    return ChatMessage("tool", text, tool_call_id="u1", name=name)


CALL = {"id": "u1", "name": "f", "input": {"q": 1}}
FOUND = [{"type": "web_search_result", "title": "T", "url": "http://x"}]
FETCHED = {"type": "web_fetch_result", "content": {"type": "document", "source": PDF}}
OPEN = {**FETCHED, "content": {"type": "document", "source": {**PDF, "data": None}}}
del OPEN["content"]["source"]["data"]  # type: ignore[index]

#: kind -> (fields of the block, the assistant's turns that it means)
BLOCKS: dict[str, tuple[dict[str, Any], Any]] = {
    "text": (TEXT, "so"),
    "image": ({"source": PDF}, REFUSED),
    "document": (
        {"source": {"type": "text", "media_type": "text/plain", "data": "d"}, "title": "T"},
        "T\n\nd",
    ),
    "search_result": ({"source": "http://x", "title": "T", "content": [TEXT]}, "T\nhttp://x\n\nso"),
    "thinking": ({"thinking": "hm", "signature": ""}, [ChatMessage("assistant", "", "hm")]),
    "redacted_thinking": ({"data": "x"}, SKIPPED),
    "tool_use": (CALL, [called("f")]),
    "server_tool_use": (CALL, [called("f")]),
    "mcp_tool_use": ({**CALL, "server_name": "s"}, [called("f")]),
    "tool_result": ({"tool_use_id": "u1"}, REFUSED),  # it belongs to the user's turn
    "web_search_tool_result": ({"content": [WEB]}, [result(FOUND)]),
    "web_fetch_tool_result": ({"content": FETCHED}, [result(OPEN)]),
    "advisor_tool_result": ({"content": {"text": "a"}}, [result({"text": "a"})]),
    "code_execution_tool_result": ({"content": RAN}, [result(RAN)]),
    "bash_code_execution_tool_result": ({"content": RAN}, [result(RAN)]),
    "text_editor_code_execution_tool_result": ({"content": RAN}, [result(RAN)]),
    "tool_search_tool_result": ({"content": {"tool_references": []}}, None),
    "mcp_tool_result": ({"content": [TEXT, TEXT], "is_error": True}, [result("Error: so\n\nso")]),
    "container_upload": ({"file_id": "f"}, REFUSED),
    "compaction": ({"content": "so far"}, "so far"),
    "tool_addition": ({"tool": {}}, SKIPPED),
    "tool_removal": ({"tool": {}}, SKIPPED),
    "mcp_tool_listing": ({"mcp_server_name": "s", "tools": []}, SKIPPED),
    "fallback": ({"from": {}, "to": {}}, SKIPPED),
}


def messages(*content: Any, role: str = "assistant", **fields: Any) -> Parsed:
    said = [{"role": "user", "content": "Hi"}, {"role": role, "content": list(content)}]
    return parse_messages({"max_tokens": 9, "messages": said, **fields}, MODEL)


def test_no_block_of_anthropics_is_unknown() -> None:
    assert kinds(ContentBlockParam) | kinds(BetaContentBlockParam) == set(BLOCKS)


@pytest.mark.parametrize("kind", BLOCKS)
def test_anthropics_blocks_mean_turns(kind: str) -> None:
    fields, means = BLOCKS[kind]
    block = {"tool_use_id": "u1", "cache_control": {"type": "ephemeral"}, **fields, "type": kind}
    if means == REFUSED:
        with pytest.raises(Unsupported) as caught:
            messages(block)
        assert caught.value.param == "messages[1].content[0]"
        assert repr(kind) in caught.value.message
        return
    parsed = messages(block)
    _, *got = turns(parsed.request.prompt)
    assert parsed.ignored == ((f"content[].type: {kind}",) if means == SKIPPED else ())
    if isinstance(means, list):
        assert got == means
    elif means is not None:
        assert got == [ChatMessage("assistant", "" if means == SKIPPED else means)]
    assert "SEALED" not in str(got)


def test_what_a_servers_tool_did_stands_between_what_was_said() -> None:
    search = {"type": "server_tool_use", **CALL}
    found = {"type": "web_search_tool_result", "tool_use_id": "u1", "content": [WEB]}
    _, *got = turns(messages(TEXT, search, found, TEXT).request.prompt)
    said = ChatMessage("assistant", "so", tool_calls=called("f").tool_calls)
    assert got == [said, result(FOUND, "f"), ChatMessage("assistant", "so")]


#: kind inside a tool's result -> (fields, what the model reads)
PIECES: dict[str, tuple[dict[str, Any], str]] = {
    "text": (TEXT, "so"),
    "image": ({"source": PDF}, PICTURE),
    "document": ({"source": {"type": "content", "content": [TEXT]}, "context": "C"}, "C\n\nso"),
    "search_result": ({"source": "s", "title": "", "content": []}, "s\n\n"),
    "tool_reference": ({"tool_name": "f"}, "f"),
    "browser_state": ({"tabs": []}, '{"tabs":[],"type":"browser_state"}'),
}


def test_results_of_tools_may_hold_every_kind() -> None:
    assert kinds(tool_result_block_param.Content) == set(PIECES)
    content = [{**fields, "type": kind} for kind, (fields, _) in PIECES.items()]
    held = {"type": "tool_result", "tool_use_id": "u1", "content": content}
    told = "\n\n".join(text for _, text in PIECES.values())
    assert turns(messages(held, role="user").request.prompt)[1:] == (result(told),)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"type": "base64", "media_type": "text/plain", "data": FILE}, "naïve 😀"),
        ({"type": "content", "content": "c"}, "c"),
        ({"type": "base64", "data": base64.b64encode(b"%PDF-1.7").decode()}, "no text"),
        ({"type": "base64", "data": base64.b64encode(b"\xff\x00").decode()}, "no text"),
        ({"type": "base64", "data": "!"}, "in base64"),
        ({"type": "url", "url": "http://x"}, "not fetched here"),
        ({"type": "file", "file_id": "f"}, "not fetched here"),
    ],
)
def test_documents_are_their_text_or_refused(source: dict[str, Any], told: str) -> None:
    block = {"type": "document", "source": source}
    try:
        got = turns(messages(block, role="user").request.prompt)[1].content
    except InvalidRequest as error:
        got = error.message
        assert "messages[1].content[0].source" in (error.param or "")
    assert told in got


@pytest.mark.parametrize("kind", ["document", "search_result"])
def test_blocks_of_text_hold_text_only_however_deep(kind: str) -> None:
    block: dict[str, Any] = TEXT
    for _ in range(400):
        inner = {"content": [block]}
        held = {"source": {"type": "content", **inner}} if kind == "document" else inner
        block = {"type": kind, **held}
    for outer in (block, {"type": "tool_result", "tool_use_id": "u1", "content": [block]}):
        with pytest.raises(InvalidRequest, match="only blocks of type 'text' belong") as caught:
            messages(outer, role="user")
        assert str(caught.value.param).startswith("messages[1].content[0].")
        assert str(caught.value.param).count("content") <= 4


def test_a_conversation_of_nothing_that_is_read_is_refused() -> None:
    said = [{"role": "user", "content": [{"type": "tool_addition", "tool": {}}]}]
    with pytest.raises(InvalidRequest, match="holds no block that this model reads"):
        parse_messages({"max_tokens": 9, "messages": said}, MODEL)


def test_tools_of_anthropics_own_are_named_in_the_log() -> None:
    for kind in kinds(ToolUnionParam) | kinds(BetaToolUnionParam):
        tool = {"type": kind, "name": "f"}
        ignored = messages(TEXT, tools=[tool]).ignored
        assert ignored == (() if kind == "custom" else (f"tools.{kind}",))


# -- OpenAI ----------------------------------------------------------------------------------------

DATA = f"data:text/plain;base64,{FILE}"
INPUT_FILE = {"file_data": DATA, "filename": "a.txt"}
PARTS: dict[str, tuple[dict[str, Any], str]] = {
    "text": ({"text": "so"}, "so"),
    "refusal": ({"refusal": "no"}, "no"),
    "file": ({"file": INPUT_FILE}, "a.txt\n\nnaïve 😀"),
    "image_url": ({"image_url": {"url": "data:"}}, REFUSED),
    "input_audio": ({"input_audio": {"data": "", "format": "wav"}}, REFUSED),
    "input_text": ({"text": "so"}, "so"),
    "output_text": ({"text": "so"}, "so"),
    "input_file": (INPUT_FILE, "a.txt\n\nnaïve 😀"),
    "input_image": ({"image_url": "data:"}, REFUSED),
}


def chat(*said: Any) -> Parsed:
    return parse_chat({"messages": list(said)}, MODEL)


def response(*items: Any, **fields: Any) -> Asked:
    return read_body({"input": list(items), **fields}, MODEL)


def test_no_part_of_openais_is_unknown() -> None:
    unions = (ChatCompletionContentPartParam, ResponseInputContentParam)
    known = {kind for union in unions for kind in kinds(union)}
    assert known | {"refusal", "output_text"} == set(PARTS)  # those of an assistant's turns


@pytest.mark.parametrize("kind", PARTS)
def test_openais_parts_are_text_or_refused_by_name(kind: str) -> None:
    fields, means = PARTS[kind]
    turn = {"role": "user", "content": [{"type": kind, **fields}]}
    for read, name in ((chat, "messages"), (response, "input")):
        if means == REFUSED:
            with pytest.raises(Unsupported) as caught:
                read(turn)
            assert caught.value.param == f"{name}[0].content[0]"
            assert repr(kind) in caught.value.message
        else:
            assert turns(read(turn).request.prompt) == (ChatMessage("user", means),)


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"file_id": "f"}, "not in the request"), ({"file_data": "data:x;base64,!"}, "in base64")],
)
def test_files_that_cannot_be_read_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        chat({"role": "user", "content": [{"type": "file", "file": fields}]})


def test_every_role_of_openais_chats_is_read_also_the_old_ones() -> None:
    old = {"name": "f", "arguments": "{}"}
    custom = {"id": "c2", "type": "custom", "custom": {"name": "g", "input": "x"}}
    said: list[Any] = [
        {"role": "developer", "content": "rules"},
        {"role": "system", "content": "more"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "function_call": old},
        {"role": "function", "name": "f", "content": "42"},
        {"role": "assistant", "content": "", "tool_calls": [custom]},
        {"role": "tool", "tool_call_id": "c2", "content": "7"},
    ]
    assert kinds(ChatCompletionMessageParam, "role") == {one["role"] for one in said}
    parsed = chat(*said)
    assert parsed.ignored == ()
    assert turns(parsed.request.prompt)[3:] == (
        ChatMessage("assistant", "", tool_calls=(ToolCall("", "f", "{}"),)),
        ChatMessage("tool", "42", name="f"),
        ChatMessage("assistant", "", tool_calls=(ToolCall("c2", "g", '{"input":"x"}'),)),
        ChatMessage("tool", "7", tool_call_id="c2", name="g"),
    )


def call(name: str, arguments: Any) -> ChatMessage:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, separators=(",", ":"))
    return ChatMessage("assistant", "", tool_calls=(ToolCall("u1", name, text),))


ACTION = {"type": "exec", "command": ["ls"]}
OUT = [{"stdout": "a", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}]
#: kind -> (fields of the item, the turns that it means)
ITEMS: dict[str, tuple[dict[str, Any], Any]] = {
    "message": ({"role": "user", "content": "Hi"}, [ChatMessage("user", "Hi")]),
    "function_call": ({"name": "f", "arguments": "{}"}, [call("f", {})]),
    "function_call_output": (
        {"output": [{"type": "input_text", "text": "4"}, {"type": "input_image"}]},
        [result(f"4{PICTURE}")],
    ),
    "reasoning": ({"summary": []}, []),
    "item_reference": ({"id": "msg_1"}, REFUSED),  # where nothing is stored
    "file_search_call": (
        {"queries": ["q"], "results": [{"text": "t"}]},
        [call("file_search", {"queries": ["q"]}), result([{"text": "t"}], "file_search")],
    ),
    "computer_call": ({"action": {}}, REFUSED),
    "computer_call_output": ({"output": {}}, REFUSED),
    "web_search_call": ({"action": {}}, SKIPPED),
    "tool_search_call": ({"arguments": {"a": 1}}, [call("tool_search", {"a": 1})]),
    "tool_search_output": ({"tools": []}, [result("")]),
    "additional_tools": ({"role": "developer", "tools": []}, SKIPPED),
    "configuration_update": ({"text": {}}, SKIPPED),
    "compaction": ({"encrypted_content": "x"}, REFUSED),
    "image_generation_call": ({"result": "x"}, SKIPPED),
    "code_interpreter_call": (
        {"code": "1", "outputs": None, "container_id": "c"},
        [call("code_interpreter", {"code": "1"}), result("", "code_interpreter")],
    ),
    "local_shell_call": ({"action": ACTION}, [call("local_shell", ACTION)]),
    "local_shell_call_output": ({"call_id": None, "id": "u1", "output": "a"}, [result("a")]),
    "shell_call": ({"action": {"commands": []}}, [call("shell", {"commands": []})]),
    "shell_call_output": ({"output": OUT}, [result(OUT)]),
    "apply_patch_call": ({"operation": ACTION}, [call("apply_patch", ACTION)]),
    "apply_patch_call_output": ({"output": None}, [result("")]),
    "mcp_list_tools": ({"tools": []}, SKIPPED),
    "mcp_approval_request": ({"name": "f"}, SKIPPED),
    "mcp_approval_response": ({"approve": True}, SKIPPED),
    "mcp_call": (
        {"call_id": None, "id": "u1", "name": "f", "arguments": "{}", "output": "a"},
        [call("f", {}), result("a", "f")],
    ),
    "custom_tool_call": ({"name": "f", "input": "x"}, [call("f", {"input": "x"})]),
    "custom_tool_call_output": ({"output": [{"type": "input_text", "text": "a"}]}, [result("a")]),
    "compaction_trigger": ({}, REFUSED),
    "program": ({"code": "x"}, [call("program", {"code": "x"})]),
    "program_output": ({"result": "a"}, [result("a")]),
}


def test_no_item_of_openais_is_unknown() -> None:
    assert kinds(ResponseInputItemParam) == set(ITEMS)


@pytest.mark.parametrize("kind", ITEMS)
def test_openais_items_mean_turns(kind: str) -> None:
    fields, means = ITEMS[kind]
    item = {"call_id": "u1", **fields, "type": kind}
    if means == REFUSED:
        with pytest.raises(Unsupported) as caught:
            response(item)
        assert caught.value.param == "input[0]"
        assert repr(kind) in caught.value.message
        return
    asked = response(item)
    assert asked.ignored == ((f"input[].type: {kind}",) if means == SKIPPED else ())
    assert list(turns(asked.request.prompt)) == ([] if means == SKIPPED else means)
    # what is stored of it means the same to a response that follows
    again = read_body({"input": "Hi"}, MODEL, asked.items).request.prompt
    assert list(turns(again))[:-1] == list(turns(asked.request.prompt))


@pytest.mark.parametrize("kind", ["function_call_output", "custom_tool_call_output"])
def test_a_result_of_parts_is_read_as_a_message_is(kind: str) -> None:
    picture = {"type": "input_image", "image_url": "data:image/png;base64,aGVsbG8="}
    parts = [{"type": "input_text", "text": "see: "}, picture]
    item = {"type": kind, "call_id": "u1", "output": parts}
    assert list(turns(response(item).request.prompt)) == [result("see: " + PICTURE)]
    sound = {"type": "input_audio", "data": "aGVsbG8="}
    with pytest.raises(Unsupported) as caught:
        response({**item, "output": [sound]})
    assert caught.value.param == "input[0].output[0]"


def test_no_picture_of_a_result_is_told_as_its_bytes() -> None:
    drawn = [{"type": "logs", "logs": "ok"}, {"type": "image", "url": "data:image/png;base64,aGk="}]
    item = {"type": "code_interpreter_call", "id": "u1", "code": "1", "outputs": drawn}
    *_, told = turns(response(item).request.prompt)
    assert json.loads(told.content) == [drawn[0], PICTURE]


def test_items_without_their_parts_are_refused_by_field() -> None:
    for item, param in (
        ({"type": "shell_call", "action": {}}, "input[0].call_id"),
        ({"type": "custom_tool_call", "call_id": "c"}, "input[0].name"),
        ({"type": "local_shell_call_output", "id": 5}, "input[0].id"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            response(item)
        assert caught.value.param == param


def test_tools_of_openais_own_are_named_in_the_log() -> None:
    for kind in kinds(ToolParam):
        ignored = response({"role": "user", "content": "Hi"}, tools=[{"type": kind, "name": "f"}])
        is_known = kind in ("function", "custom")
        assert ignored.ignored == (() if is_known else (f"tools[].type: {kind}"[:40],))


@pytest.mark.parametrize("content", [5, True, {"a": 1}, {"type": "image", "source": {}}])
def test_results_are_texts_or_lists(content: Any) -> None:
    block = {"type": "tool_result", "tool_use_id": "u", "content": content}
    body = {"max_tokens": 9, "messages": [{"role": "user", "content": [block]}]}
    with pytest.raises(InvalidRequest, match="must be a string or a list of blocks"):
        parse_messages(body, MODEL)


def test_a_system_prompt_alone_is_no_conversation() -> None:
    turn = {"role": "user", "content": [{"type": "tool_addition", "tool": {}}]}
    with pytest.raises(InvalidRequest, match="holds no block that this model reads"):
        parse_messages({"max_tokens": 9, "system": "S", "messages": [turn]}, MODEL)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("data:text/plain;base64," + FILE, "naïve 😀"),
        ("data:text/plain,aGVsbG8h", "aGVsbG8h"),
        ("data:,Hello%20world", "Hello world"),
        (FILE, "naïve 😀"),
    ],
)
def test_files_come_in_base64_or_in_data_urls(data: str, told: str) -> None:
    assert text_of_file("file_data", data) == told


@pytest.mark.parametrize("data", ["data:text/plain;base64", "data:text/plain;base64,%%", "%"])
def test_files_in_neither_are_refused(data: str) -> None:
    with pytest.raises(InvalidRequest, match="'file_data' must be a file in base64"):
        text_of_file("file_data", data)

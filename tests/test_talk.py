"""The parts of `naiad run` and `chat`: conversations, commands, a server's words, the screen."""

from __future__ import annotations

import http.client
import io
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import click
import pytest

from naiad.cli.main import run as main
from naiad.cli.talk import chat as chatting
from naiad.cli.talk import slash
from naiad.cli.talk.chat import Chat, lines, unquoted
from naiad.cli.talk.commands import only_word, split, with_input
from naiad.cli.talk.conversation import Conversation, load, option, read_value
from naiad.cli.talk.prompt import Commands, is_open
from naiad.cli.talk.screen import Screen, harmless
from naiad.cli.talk.server import Keeper, Server
from naiad.cli.talk.wire import Api, Done, Event, ServerLost, Text, Thought, Wait, events, refusal
from naiad.errors import (
    ConfigError,
    EngineUnavailable,
    ModelFileError,
    NaiadError,
    Unauthorized,
    Unsupported,
)
from naiad.models.catalogue import find

Output = pytest.CaptureFixture[str]


# --- conversations


def test_a_conversation_becomes_a_request() -> None:
    talk = Conversation("Be brief.", {"seed": 1})
    talk.ask("Hello!")
    roles = [(m["role"], m["content"]) for m in talk.body("tiny")["messages"]]
    assert roles == [("system", "Be brief."), ("user", "Hello!")]
    assert (talk.body("tiny")["seed"], talk.body("")["model"]) == (1, "default")


def test_turns_can_be_taken_back() -> None:
    talk = Conversation()
    assert talk.undo() is None
    assert not talk.unanswer()
    talk.ask("one")
    talk.answered("1")
    assert talk.unanswer() and [m["content"] for m in talk.messages] == ["one"]
    talk.answered("")
    assert talk.undo() == "one" and talk.messages == []


def test_a_conversation_is_saved_and_loaded(tmp_path: Path) -> None:
    talk = Conversation("S", {"top_k": 3})
    talk.ask("水 🌊")
    talk.save(tmp_path / "talk.json")
    assert load(tmp_path / "talk.json") == talk


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"messages": [1]}', '{"messages": [{"role": 1, "content": ""}]}']
)
def test_other_files_are_no_conversations(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(ConfigError, match="no conversation that can be read"):
        load(tmp_path / "x")


def test_options_are_json_or_texts() -> None:
    assert option("top-k=40") == ("top_k", 40)
    assert option("stop=END") == ("stop", "END")
    assert option('response_format={"type": "json_object"}')[1] == {"type": "json_object"}
    assert read_value("true") is True
    for bad in ("", "x", "=1", "x="):
        with pytest.raises(ConfigError, match="must be NAME=VALUE"):
            option(bad)


def test_arguments_are_told_apart() -> None:
    assert split(()) == (None, None)
    assert split(("starter",)) == ("starter", None)
    assert split(("Tell me.",)) == (None, "Tell me.")
    assert split(("starter", "Tell", "me")) == ("starter", "Tell me")


def test_what_is_piped_goes_behind_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    for piped, prompt, want in (("x\n", "p", "p\n\nx"), ("", "p", "p"), ("x", None, "x")):
        monkeypatch.setattr("sys.stdin", io.StringIO(piped))
        assert with_input(prompt) == want
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert with_input(None) is None


def test_nothing_piped_is_nothing_to_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert main(["run", "starter"]) == 2
    assert "the prompt is empty" in capsys.readouterr().err


def failure_to_find(name: str, folder: Path) -> ModelFileError:
    with pytest.raises(ModelFileError) as caught:
        find(name, folder)
    return caught.value


@pytest.mark.parametrize(("word", "quoted"), [("Hi", "Hi"), ("What's?", """'What'"'"'s?'""")])
def test_a_word_that_is_no_model_may_have_been_a_prompt(
    tmp_path: Path, word: str, quoted: str
) -> None:
    error = failure_to_find(word, tmp_path)
    error.param = "model"
    told = only_word((word,), error)
    assert told.message == f"{error.message} If that is a prompt: naiad run starter {quoted}"
    assert (told.param, told.details) == ("model", {"unknown": word})


def test_no_prompt_is_proposed_where_a_model_was_meant(tmp_path: Path) -> None:
    damaged = ModelFileError("It is damaged.")
    assert only_word(("Hi",), damaged) is damaged
    for name in ("a.gguf", "folder/name", "hf:owner/name", "gemma3", "starter"):
        error = failure_to_find(name, tmp_path)
        assert only_word((name,), error) is error
    unknown = failure_to_find("Hi", tmp_path)
    for words in (("Hi", "there"), ("Hi there",), ()):
        assert only_word(words, unknown) is unknown


def test_triple_quotes_hold_several_lines() -> None:
    assert is_open('"""one') and is_open('  """') and is_open('"""\n"')
    assert not is_open('"""one"""') and not is_open("one") and not is_open('""""""')
    assert unquoted('"""\none\ntwo\n"""') == "one\ntwo"
    assert unquoted('say "hi"') == 'say "hi"'
    assert unquoted('"""') == '"""'


# --- what the server says


class Wire(http.client.HTTPResponse):
    """An answer that has arrived in full."""

    def __init__(self, *chunks: dict[str, Any] | str) -> None:
        told = [c if isinstance(c, str) else f"data: {json.dumps(c)}" for c in chunks]
        self._body = io.BytesIO("\n\n".join(told).encode())

    def readline(self, limit: int = -1) -> bytes:  # type: ignore[override]
        return self._body.readline(limit)

    def close(self) -> None:
        """There is no connection."""


def delta(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"delta": fields, "finish_reason": None}]}


def test_a_stream_is_read_as_events() -> None:
    response = Wire(
        {"choices": [], "queue": {"position": 2, "eta_s": 3.4}},
        ": a comment",
        {"choices": [], "prompt_progress": {"total": 2000, "processed": 500}},
        delta(role="assistant", content=""),
        delta(reasoning_content="hm"),
        delta(content="hi"),
        {"choices": [{"text": "!", "finish_reason": "stop"}]},
        {"choices": [], "usage": {"completion_tokens": 3}},
        "data: [DONE]",
    )
    *told, done = events(response, 0.0)
    assert told == [
        Wait("waiting, number 2 in the queue, about 3 s"),
        Wait("reading the prompt, 25 % of 2,000 tokens"),
        Thought("hm"),
        Text("hi"),
        Text("!"),
    ]
    assert isinstance(done, Done)
    assert (done.finish, done.n_tokens) == ("stop", 3)


def test_a_stream_without_its_end_is_a_lost_server() -> None:
    with pytest.raises(ServerLost, match="in the middle of the answer"):
        list(events(Wire(delta(content="hi")), 0.0))


def test_an_error_in_the_stream_is_raised() -> None:
    with pytest.raises(NaiadError, match="The engine died"):
        list(events(Wire({"error": {"message": "The engine died."}}), 0.0))


def test_refusals_keep_the_servers_words() -> None:
    body = b'{"error": {"message": "Show a key."}}'
    assert isinstance(refusal(401, body), Unauthorized)
    assert refusal(401, body).message.startswith("Show a key. Here: --api-key KEY")
    assert isinstance(refusal(503, b""), EngineUnavailable)
    assert refusal(418, b"<html>").message == "The server answered 418."


@pytest.mark.parametrize("url", ["", "localhost:5001", "ftp://a", "http://"])
def test_odd_addresses_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="must begin with http://"):
        Api(url).get("/health")


def test_speed_counts_the_tokens_after_the_first() -> None:
    assert Done("stop", {"completion_tokens": 11}, 1.0, 2.0).tokens_per_s == 5.0
    assert Done("stop", {"completion_tokens": 1}, 1.0, 0.0).tokens_per_s == 0.0


# --- what is shown


def test_nothing_that_acts_on_a_terminal_is_shown() -> None:
    for code in (*range(9), *range(11, 32), *range(127, 160), 0x202E, 0x2028):
        assert harmless(f"a{chr(code)}b") == "a\N{REPLACEMENT CHARACTER}b"


def test_letters_of_all_kinds_are_shown() -> None:
    text = "tab\tline\nß 水 👩‍👩‍👧 e\u0301 עברית"
    assert harmless(text) == text


def test_an_answer_ends_with_one_line_break(capsys: Output) -> None:
    screen = Screen()
    for texts in (("a", "b"), ("a\n",), ()):
        screen.answer([*map(Text, texts), Done("stop")])
    assert capsys.readouterr().out == "ab\na\n"


def test_reasoning_is_no_part_of_what_goes_into_a_pipe(capsys: Output) -> None:
    screen = Screen()
    screen.answer([Wait("reading"), Thought("hm"), Text("hi"), Done("stop")])
    assert capsys.readouterr() == ("hi\n", "")
    assert (screen.text, screen.thoughts) == ("hi", "hm")


def test_what_is_waited_for_stays_on_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "12")
    Screen().answer([Wait("reading the prompt, 25 %"), Text("hi"), Done("stop")])
    told = click.unstyle(capsys.readouterr().err)
    assert told == "\rreading the\r"


def test_what_came_before_a_failure_is_kept(capsys: Output) -> None:
    def broken() -> Iterator[Event]:
        yield Text("half")
        raise ServerLost("Gone.")

    screen = Screen()
    with pytest.raises(ServerLost):
        screen.answer(broken())
    assert screen.text == "half"
    assert capsys.readouterr().out == "half\n"


# --- the commands


class FakeApi:
    """A server that says the same each time, or fails."""

    url = "http://fake:1"

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.answers: list[Iterable[Event] | Exception] = []

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[Event]:
        self.bodies.append(json.loads(json.dumps(body)))
        fine: list[Event] = [Text("fine"), Done("stop")]
        answer = self.answers.pop(0) if self.answers else fine
        if isinstance(answer, Exception):
            raise answer
        yield from answer

    def get(self, path: str, timeout_s: float = 0) -> Any:
        if path == "/health":
            return {"engine": {"n_ctx": 100}, "ready": True}
        return {"samplers": [{"name": "temperature", "minimum": 0, "maximum": 5}]}


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def chat(api: FakeApi) -> Chat:
    server = Server(cast(Api, api), "tiny")
    keeper = cast(Keeper, type("Kept", (), {"server": server, "renew": lambda self: False})())
    return Chat(keeper, Conversation(), Screen())


def contents(chat: Chat) -> list[str]:
    return [message["content"] for message in chat.talk.messages]


def test_a_message_is_answered_and_remembered(chat: Chat, capsys: Output) -> None:
    chat.say("Hello!")
    chat.say("   ")
    assert contents(chat) == ["Hello!", "fine"]
    assert capsys.readouterr().out == "fine\n"


def test_retry_asks_again_and_undo_gives_the_message_back(chat: Chat, api: FakeApi) -> None:
    chat.say("/retry")
    chat.say("/undo")
    assert chat.n_failed == 2
    chat.say("Hello!")
    chat.say("/retry")
    assert api.bodies[0]["messages"] == api.bodies[1]["messages"]
    assert contents(chat) == ["Hello!", "fine"]
    chat.say("/undo")
    assert (contents(chat), chat.draft) == ([], "Hello!")


def test_a_failure_gives_the_message_back_and_is_told(
    chat: Chat, api: FakeApi, capsys: Output
) -> None:
    api.answers = [NaiadError("Too long.")]
    chat.say("Hello!")
    assert (contents(chat), chat.draft) == ([], "Hello!")
    assert capsys.readouterr().err == "naiad: Too long.\n"


def test_half_an_answer_is_kept(chat: Chat, api: FakeApi, capsys: Output) -> None:
    def half() -> Iterator[Event]:
        yield Text("half")
        raise ServerLost("Gone.")

    api.answers = [half()]
    chat.say("Hello!")
    assert contents(chat) == ["Hello!", "half"]
    assert "Gone. What it said is kept; try again" in capsys.readouterr().err


def test_ctrl_c_keeps_what_came(chat: Chat, api: FakeApi, capsys: Output) -> None:
    def stopped() -> Iterator[Event]:
        yield Text("half")
        raise KeyboardInterrupt

    api.answers = [stopped()]
    chat.say("Hello!")
    assert contents(chat) == ["Hello!", "half"]
    assert "Stopped." in capsys.readouterr().err


def test_settings_are_checked_by_the_servers_own_table(chat: Chat, capsys: Output) -> None:
    for line in ("/set", "/set temperature 0.5", "/set max-tokens=9", "/set", "/set temperature"):
        chat.say(line)
    assert chat.talk.options == {"max_tokens": 9}
    assert chat.n_failed == 0
    err = capsys.readouterr().err
    assert "Nothing is set" in err and "temperature = 0.5" in err
    chat.say("/set temperature 7")
    chat.say("/set temprature 1")
    err = capsys.readouterr().err
    assert "it must be from 0 to 5" in err and "did you mean temperature?" in err


def test_the_other_commands(chat: Chat, tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "a.txt").write_text("content")
    saved = tmp_path / "talk.json"
    chat.say("/system Be kind.")
    chat.say(f"/file {tmp_path / 'a.txt'}")
    chat.say("What is it?")
    assert contents(chat)[0] == "a.txt:\n\ncontent\n\nWhat is it?"
    for line in (f"/save {saved}", "/new", '/system ""', f"/load {saved}", "/show", "/info", "/?"):
        chat.say(line)
    assert (chat.talk.system, len(chat.talk.messages), chat.n_failed) == ("Be kind.", 2, 0)
    out, err = capsys.readouterr()
    assert all(f"/{name}" in out for name in slash.COMMANDS)
    assert "user: a.txt" in out and "0 of 100 tokens used" in err
    for line in ("/file", f"/file {tmp_path}", f"/save {tmp_path}", "/load /none", "/nope"):
        chat.say(line)
    assert chat.n_failed == 5


def test_exit_leaves(chat: Chat) -> None:
    for name in ("exit", "quit", "BYE"):
        with pytest.raises(EOFError):
            chat.say(f"/{name}")


def test_a_path_is_no_command_when_it_has_lines(chat: Chat) -> None:
    chat.say("/etc/hosts says\nwhat?")
    assert contents(chat)[0] == "/etc/hosts says\nwhat?"


def test_lines_are_read_until_the_end(chat: Chat) -> None:
    given: list[str | BaseException] = ["one", KeyboardInterrupt(), "two", EOFError()]

    def read(draft: str) -> str:
        drafts.append(draft)
        one = given.pop(0)
        if isinstance(one, BaseException):
            raise one
        return one

    drafts: list[str] = []
    chat.draft = "begun"
    assert list(lines(chat, read)) == ["one", "two"]
    assert drafts == ["begun", "", "", ""]


def test_a_pipe_is_a_message_a_line(
    chat: Chat, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\n/exit\ntwo\n"))
    chatting.from_pipe(chat)
    assert len(api.bodies) == 1


def test_commands_complete() -> None:
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    def completed(text: str) -> list[str]:
        found = Commands().get_completions(Document(text), CompleteEvent())
        return [completion.text for completion in found]

    assert completed("/s") == ["/system", "/set", "/show", "/save"]
    assert completed("hello /s") == completed("/set te") == []


def test_an_unknown_command_without_a_near_one(chat: Chat) -> None:
    with pytest.raises(ConfigError, match=r"see /help"):
        slash.run(chat, "/xyzzy")
    with pytest.raises(Unsupported):
        slash.run(chat, "/retry")

"""`naiad chat` and `run` in a real terminal: streams, Ctrl-C, history, a server that dies."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.client import free_port
from naiad.testing.words import decode_token, expected_tokens
from patience import PATIENCE_S
from terminal import Served, Terminal, environment, served

SLOW = '{"script": [["emit", 3], ["pause", 6000]]}'


def first_words(message: str, n: int) -> str:
    """What the scripted model says to a first message."""
    prompt = f"<|user|>{message}\n<|assistant|>"
    return b"".join(map(decode_token, expected_tokens(prompt, n))).decode()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Served]:
    with served(home) as running:
        yield running


@pytest.fixture
def chat(home: Path, server: Served) -> Iterator[Terminal]:
    """A chat that waits for its first message; it finds the server by itself."""
    with Terminal(home, "chat", "--max-tokens", "8", NAIAD_PORT="9") as terminal:
        assert "scripted: /help helps" in terminal.ready()
        yield terminal


def in_flight(server: Served) -> int:
    with urllib.request.urlopen(f"{server.url}/health", timeout=PATIENCE_S) as answer:
        return int(json.load(answer)["in_flight"])


def wait_idle(server: Served) -> None:
    """Of a hang-up the server learns a little later; what runs here would go on for minutes."""
    end = time.monotonic() + PATIENCE_S
    while in_flight(server):
        assert time.monotonic() < end, "the answer goes on"


def test_answers_stream_and_the_conversation_goes_on(chat: Terminal) -> None:
    chat.say("Hello!")
    told = chat.ready()
    assert first_words("Hello!", 8) in told
    assert "8 tokens" in told and "cut at the limit" in told
    chat.say("And now?")
    chat.ready()
    chat.say("/show")
    assert "user: Hello!" in (shown := chat.ready())
    assert shown.count("assistant:") == 2
    assert chat.leave() == 0


def test_text_is_seen_before_the_answer_ends_and_ctrl_c_stops_the_answer_only(
    chat: Terminal, server: Served
) -> None:
    chat.say("/set max_tokens")
    chat.ready()
    chat.say(SLOW)
    words = first_words(SLOW, 3).split()
    chat.until(words[2])  # the answer itself goes on for ten minutes
    assert in_flight(server) == 1
    chat.type("typed ahead\r")
    chat.interrupt()
    told = chat.ready()
    assert "Stopped." in told and "typed" not in told
    chat.say("")
    assert "typed" not in chat.ready()
    wait_idle(server)
    chat.say("/show")
    assert "assistant: " in chat.ready()
    chat.say("/new")
    chat.ready()
    chat.say("Still there?")
    assert " tokens" in chat.ready()
    assert chat.leave() == 0


def test_ctrl_c_at_the_prompt_empties_the_line(chat: Terminal) -> None:
    chat.type("half a thou")
    chat.interrupt()
    assert "Ctrl-D leaves" in chat.ready()
    assert chat.leave() == 0


def test_messages_of_several_lines(chat: Terminal) -> None:
    chat.type("one\ntwo")  # Ctrl-J begins a line
    chat.say("")
    chat.ready()
    chat.say("/show")
    assert "user: one\ntwo" in chat.ready()
    chat.say("/new")
    chat.ready()
    chat.type('"""first\rsecond"""')  # Enter does, between triple quotes
    chat.say("")
    chat.ready()
    chat.say("/show")
    assert "user: first\nsecond" in chat.ready()


def test_earlier_messages_come_back_with_the_arrow_in_a_later_run_too(
    home: Path, server: Served
) -> None:
    for _ in range(2):
        with Terminal(home, "chat", "--max-tokens", "2", NAIAD_PORT="9") as chat:
            chat.ready()
            chat.say("Remember the Tiber")
            chat.ready()
            assert chat.leave() == 0
    with Terminal(home, "chat", "--max-tokens", "2", NAIAD_PORT="9") as chat:
        chat.ready()
        chat.say("\x1b[A")
        chat.ready()
        chat.say("/show")
        assert "user: Remember the Tiber" in chat.ready()
    file = home / "state" / "chat-history"
    assert file.stat().st_mode & 0o077 == 0


def test_a_model_cannot_write_to_the_terminal_itself(chat: Terminal) -> None:
    hostile = b"\x1b]0;red".hex()
    chat.say(f'{{"script": [["bytes", "{hostile}"]]}}')
    chat.until("red")
    chat.ready()
    assert "\x1b]0" not in chat.child.before


def test_wrong_commands_are_told_and_nothing_is_lost(chat: Terminal) -> None:
    chat.say("/retri")
    assert "did you mean /retry?" in chat.ready()
    chat.say("/set temperatur 1")
    assert "did you mean temperature?" in chat.ready()
    chat.say("/set top_p 7")
    assert "it must be from 0 to" in chat.ready()
    chat.say("/exit")
    assert chat.ended() == 0


# --- servers that die


def test_a_server_that_dies_in_mid_answer_is_told_and_the_chat_goes_on(tmp_path: Path) -> None:
    port = str(free_port())  # which no connection is given while nobody listens
    with (
        served(tmp_path, port=port) as first,
        Terminal(tmp_path, "chat", "--server", first.url) as chat,
    ):
        chat.ready()
        chat.say(SLOW)
        chat.until(first_words(SLOW, 3).split()[2])
        chat.type("typed ahead\r")
        first.kill()
        told = chat.ready()
        assert "went away in the middle" in told and "What it said is kept" in told
        assert "typed" not in told
        chat.until("typed ahead")  # and not sent
        chat.interrupt()
        chat.ready()
        chat.say("/new")
        chat.ready()
        chat.say("Anybody?")
        assert "does not answer: Connection refused" in chat.ready()
        with served(tmp_path, port=port):
            chat.say("")  # the message has come back and is sent again
            assert first_words("Anybody?", 5) in chat.ready()
            assert chat.leave() == 0


def test_an_engine_of_its_own_is_started_used_and_started_again(tmp_path: Path) -> None:
    with Terminal(tmp_path, "chat", "--engine", "scripted", NAIAD_PORT="9") as chat:
        chat.ready()
        (own,) = ps(tmp_path)
        assert own["is_private"]
        chat.say("Hello!")
        assert first_words("Hello!", 5) in chat.ready()
        assert naiad(tmp_path, "stop", str(own["pid"]), "--force")[0] == 0
        chat.say("More!")
        assert "It was started again. Your message is kept" in chat.ready()
        chat.say("")
        assert " tokens" in chat.ready()
        (again,) = ps(tmp_path)
        assert again["pid"] != own["pid"]
        assert chat.leave() == 0
    naiad(tmp_path, "stop", "--all")
    assert ps(tmp_path) == []


# --- pipes, and one answer


def naiad(home: Path, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
    """Run a command to its end: status, standard output, standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "naiad", *arguments],
        env=environment(home, NAIAD_PORT="9"),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def ps(home: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = json.loads(naiad(home, "ps", "--json")[1])
    return rows


def test_a_prompt_from_arguments_and_from_a_pipe(home: Path, server: Served) -> None:
    status, out, err = naiad(home, "run", "Tell me more", "--max-tokens", "4")
    assert (status, out, err) == (0, first_words("Tell me more", 4) + "\n", "")
    assert naiad(home, "run", "Sum", stdin="a file\n")[0] == 1  # one word is a model's name
    _, out, _ = naiad(home, "run", "Sum this up:", "--max-tokens", "4", stdin="a file\n")
    assert out == first_words("Sum this up:\n\na file", 4) + "\n"


def test_an_answer_as_json(home: Path, server: Served) -> None:
    status, out, _ = naiad(home, "run", "--json", "--max-tokens", "3", stdin="What now?")
    told = json.loads(out)
    assert (status, told["text"]) == (0, first_words("What now?", 3))
    assert (told["finish_reason"], told["usage"]["completion_tokens"]) == ("length", 3)


def test_a_raw_prompt_is_continued_without_a_template(home: Path, server: Served) -> None:
    _, out, _ = naiad(home, "run", "--raw", "Once upon", "--max-tokens", "3")
    assert out == b"".join(map(decode_token, expected_tokens("Once upon", 3))).decode() + "\n"


def test_a_chat_through_a_pipe_answers_line_by_line(home: Path, server: Served) -> None:
    arguments = ("chat", "--max-tokens", "3", "--quiet")
    status, out, err = naiad(home, *arguments, stdin="Hello!\n\n/undo\nHello!\n")
    assert (status, err) == (0, "")
    assert out == 2 * (first_words("Hello!", 3) + "\n")
    status, _, err = naiad(home, *arguments, stdin="/nonsense\n")
    assert (status, "There is no command /nonsense" in err) == (1, True)


def test_refusals_are_the_servers_own_words(home: Path, server: Served) -> None:
    status, out, err = naiad(home, "run", "--set", "temperature=999", "What is it?")
    assert (status, out) == (1, "")
    assert err.startswith("naiad: ") and "temperature" in err
    status, _, err = naiad(home, "run", "--server", "http://127.0.0.1:9", "Is it?")
    assert (status, "does not answer: Connection refused" in err) == (1, True)
    assert naiad(home, "run", "--set", "nonsense", "Is it?")[0] == 2


def test_ctrl_c_during_one_answer_returns_130(home: Path, server: Served) -> None:
    with Terminal(home, "run", "--server", server.url, f"A {SLOW}") as one:
        one.until(first_words(f"A {SLOW}", 3).split()[2])
        one.interrupt()
        assert one.ended() == 130


# --- ps and stop


def test_servers_are_listed_and_stopped(tmp_path: Path) -> None:
    assert "No server runs" in naiad(tmp_path, "ps")[1]
    assert naiad(tmp_path, "stop")[0] == 1
    with served(tmp_path, "--api-key", "secret") as first, served(tmp_path) as second:
        _, table, _ = naiad(tmp_path, "ps")
        assert first.url in table and second.url in table and "secret" not in table
        assert naiad(tmp_path, "run", "Is it open?", "--server", first.url)[0] == 0  # by its note
        status, _, err = naiad(tmp_path, "stop")
        assert (status, "name one, or say --all" in err) == (1, True)
        assert naiad(tmp_path, "stop", first.port)[0] == 0
        assert first.process.wait(PATIENCE_S) == 0
        assert [row["url"] for row in ps(tmp_path)] == [second.url]
        assert "Stopped scripted" in naiad(tmp_path, "stop", "scripted")[2]
    assert ps(tmp_path) == []


def test_a_server_that_a_program_started_ends_with_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "naiad", "serve", "--engine", "scripted", "--port", "0"]
    with subprocess.Popen(
        [*command, "--until-eof", "--json"],
        env=environment(tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        while json.loads(process.stdout.readline())["event"] != "ready":
            pass
        process.stdin.close()
        assert process.wait(PATIENCE_S) == 0


def test_the_welcome_fits_the_smallest_usual_terminal(home: Path) -> None:
    arguments = ("serve", "--engine", "scripted", "--port", "0")
    with Terminal(home, *arguments, size=(24, 80)) as terminal:
        shown = terminal.until("Ctrl-C stops the server.").splitlines()
        terminal.interrupt()
        terminal.ended()
    screen = shown[next(n for n, line in enumerate(shown) if "naiad serves" in line) :]
    assert len(screen) < 24
    assert max(map(len, screen)) <= 80
    assert not any(line.startswith(" " * 12) for line in screen)  # nothing was folded


def test_a_quiet_server_says_only_warnings(home: Path) -> None:
    arguments = ("serve", "--engine", "scripted", "--port", "0", "--quiet", "--json")
    with Terminal(home, *arguments, NAIAD_LOG_LEVEL="debug", NAIAD_API_KEY="k") as terminal:
        shown = terminal.until('"url"')
        terminal.interrupt()
        shown += terminal.child.read()
    assert "INFO" not in shown and "DEBUG" not in shown and "naiad serves" not in shown

"""`naiad ps` and `stop`, and the notes that servers leave while they live."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil
import pytest

from naiad.cli import processes, running
from naiad.cli.main import run
from naiad.cli.processes import choose, end, look_at
from naiad.cli.running import Running, began, noted
from naiad.cli.running import running as found
from naiad.errors import NaiadError, NotFound

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NAIAD_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def test_servers_are_asked_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=60)
    servers = [a_note(port=1), a_note(port=2)]
    assert sorted(processes.at_once(lambda _: both.wait(), servers)) == [0, 1]
    assert processes.at_once(lambda server: server.url, servers[:1]) == ["http://127.0.0.1:1"]


def a_note(pid: int = 0, port: int = 9, **more: object) -> Running:
    pid = pid or os.getpid()
    note = Running(
        pid=pid, began=began(pid) or 0.0, url=f"http://127.0.0.1:{port}", model="/m/Tiny.gguf",
        key="secret",
    )  # fmt: skip
    return msgspec.structs.replace(note, **more)


@contextmanager
def sleeping(*words: str) -> Iterator[subprocess.Popen[str]]:
    """A process that ends when it is told to; words: of its command line."""
    code = "import sys; print('up', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, *words]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[str]]:
    """What looks like a server."""
    with sleeping("naiad", "serve") as process:
        yield process


# --- notes


def test_a_note_is_there_while_the_server_is_and_for_its_user_only(state: Path) -> None:
    with noted(a_note()):
        assert found() == [a_note()]
        (file,) = (state / "servers").iterdir()
        assert file.stat().st_mode & 0o077 == 0
        assert file.parent.stat().st_mode & 0o077 == 0
    assert found() == []
    assert list((state / "servers").iterdir()) == []


def test_notes_of_the_dead_are_removed(state: Path) -> None:
    folder = state / "servers"
    with noted(a_note(began=1.0)):
        (folder / "1.json").write_text("nonsense")
        (folder / "2.json").write_bytes(msgspec.json.encode(a_note(pid=2**22 + 1)))
        assert found() == []
        assert list(folder.iterdir()) == []


def test_a_clock_that_was_set_meanwhile_makes_no_stranger_of_a_server(state: Path) -> None:
    here = a_note()
    with noted(msgspec.structs.replace(here, began=here.began - 2.0)):
        assert [note.pid for note in found()] == [os.getpid()]


def test_a_folder_that_cannot_be_written_stops_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NAIAD_STATE_DIR", str(tmp_path / "file"))
    with noted(a_note()):
        assert found() == []


def test_the_state_folder_is_the_users_own() -> None:
    assert running.state_dir({}).name == "naiad"
    assert running.state_dir({"NAIAD_STATE_DIR": "/x"}) == Path("/x")


def test_a_server_is_called_as_its_clients_call_it() -> None:
    assert a_note().name == "Tiny"
    assert a_note(model="scripted").name == "scripted"


# --- which one is meant


def test_one_server_needs_no_name_and_several_do() -> None:
    first, second = a_note(), a_note(port=8, pid=1, model="Other")
    own = a_note(pid=2, is_private=True)
    assert choose([first], (), is_all=False) == [first]
    assert choose([first, own], (), is_all=False) == [first]
    assert choose([first, second], (), is_all=True) == [first, second]
    assert choose([first, second], ("tiny", "9", "/M/TINY.GGUF"), is_all=False) == [first]
    assert choose([], (), is_all=True) == []
    for servers, which, told in (
        ([], (), "No server runs"),
        ([first, second], (), "Several servers run"),
        ([first], ("nope",), "No server is called 'nope'"),
    ):
        with pytest.raises(NotFound, match=told):
            choose(servers, which, is_all=False)


# --- ending


def test_a_process_is_ended_and_waited_for(sleeper: subprocess.Popen[str]) -> None:
    assert end(a_note(pid=sleeper.pid), force=False)
    assert not psutil.pid_exists(sleeper.pid) or sleeper.poll() is not None


def test_a_number_that_another_program_has_by_now_is_left_alone(
    sleeper: subprocess.Popen[str],
) -> None:
    assert end(a_note(pid=sleeper.pid, began=1.0), force=True)
    assert sleeper.poll() is None
    assert end(a_note(pid=2**22 + 1), force=True)


def test_a_program_that_began_when_a_server_had_is_left_alone() -> None:
    """After a restart of a container, numbers and times may come again."""
    with sleeping("something else") as other:
        assert end(a_note(pid=other.pid), force=True)
        assert other.poll() is None


def test_a_server_that_takes_its_time_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr(processes, "end", lambda server, force: False)
    with noted(a_note()):
        assert run(["stop"]) == 1
    assert "Still ending after 30 s (see --force): Tiny" in capsys.readouterr().err


def test_another_users_server_is_told(
    monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[str]
) -> None:
    def denied(self: psutil.Process) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil.Process, "terminate", denied)
    with pytest.raises(NaiadError, match="somebody else"):
        end(a_note(pid=sleeper.pid), force=False)


# --- what is shown


def test_a_silent_server_is_listed_as_such(capsys: Output) -> None:
    row = look_at(a_note())
    assert (row.state, row.n_in_flight) == ("silent", 0)
    assert row.memory_bytes > 1 << 20
    with noted(a_note()):
        assert run(["ps", "--json"]) == 0
        (told,) = json.loads(capsys.readouterr().out)
        assert (told["model"], told["state"], told["pid"]) == ("Tiny", "silent", os.getpid())
        assert "key" not in told
        assert run(["ps"]) == 0
        out = capsys.readouterr().out
    assert out.startswith("PID ") and "Tiny" in out and "secret" not in out
    assert run(["ps"]) == 0
    assert "naiad serve" in capsys.readouterr().out


def test_a_load_is_told_in_per_cent() -> None:
    assert processes._state({"status": "loading", "progress": 0.42}) == "loading 42 %"
    assert processes.memory_of(2**22 + 1) == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_completion(shell: str, capsys: Output) -> None:
    assert run(["completion", shell]) == 0
    assert "_NAIAD_COMPLETE" in capsys.readouterr().out
    assert run(["completion", "tcsh"]) == 2

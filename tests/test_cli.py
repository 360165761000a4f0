"""The `naiad` command: what it prints, what it returns, and that it starts fast."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gguf_files import small_model
from naiad.cli import main as cli_main
from naiad.cli import models as cli_models
from naiad.cli import settings
from naiad.cli.main import COMMANDS, run
from naiad.errors import EngineFailed
from naiad.models.pull import Pulled
from naiad.models.sources import STARTER


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models folder, and no settings of the user's own."""
    models = tmp_path / "models"
    models.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("NAIAD_MODELS_DIR", str(models))
    monkeypatch.setattr(settings, "default_file", lambda: tmp_path / "naiad.toml")
    return models


Output = pytest.CaptureFixture[str]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there_and_has_help_for_80_columns(
    name: str, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Usage: naiad {name}" in out
    assert max(map(len, out.splitlines())) <= 80


def test_the_help_of_serve_shows_settings_in_groups(capsys: Output) -> None:
    assert run(["serve", "--help"]) == 0
    titles = [*settings.GROUPS, "Options"]
    sections = re.split(r"^(\S.*):$", capsys.readouterr().out, flags=re.MULTILINE)[1:]
    assert sections[::2] == titles
    told = dict(zip(titles, sections[1::2], strict=True))
    assert "--[no-]disk-cache " in told["Cache"] and "[10]" in told["Limits"]
    assert "--until-eof" in told["Options"] and "--port" not in told["Options"]


def test_every_setting_is_in_one_group() -> None:
    grouped = [name for names in settings.GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(one.name for one in settings.SETTINGS if not one.hidden)


def test_the_help_names_every_command(capsys: Output) -> None:
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.setattr("click._compat.isatty", lambda stream: True)
    doctor = ["doctor", "--no-self-test"]
    run(doctor)
    assert "\x1b[" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    run(doctor)
    assert "\x1b[" not in capsys.readouterr().out


def loaded_by(*arguments: str) -> set[str]:
    """The modules that a command line loads."""
    code = "import sys; from naiad.cli.main import run; run(sys.argv[1:]); print(*sys.modules)"
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "arguments", [("--version",), ("--help",), ("list",), ("ps",), ("completion", "bash")]
)
def test_small_commands_load_little(arguments: tuple[str, ...]) -> None:
    modules = loaded_by(*arguments)
    heavy = {"prompt_toolkit", "huggingface_hub", "http.client", "asyncio"}
    heavy |= {"uvicorn", "starlette", "rich.progress", "llama_cpp", "numpy", "naiad.bench.command"}
    assert "click" in modules
    assert not modules & heavy


def test_wrong_usage_returns_2(capsys: Output) -> None:
    assert run(["frobnicate"]) == 2
    assert run(["list", "--frobnicate"]) == 2
    assert run(["show"]) == 2
    assert run(["serve", "--port", "70000"]) == 2
    err = capsys.readouterr().err
    assert "No such command 'frobnicate'" in err
    assert "naiad: --port is '70000'; it must be a whole number from 0 to 65535." in err
    assert "Traceback" not in err


def test_a_misspelt_command_is_guessed(capsys: Output) -> None:
    assert run(["sever"]) == 2
    assert "No such command 'sever'. Did you mean serve?" in capsys.readouterr().err


def test_naiad_alone_tells_what_there_is(capsys: Output) -> None:
    assert run([]) == 0
    out, err = capsys.readouterr()
    assert "Start with: naiad pull starter" in out and "doctor" in out
    assert not err


def test_a_bad_environment_is_an_error_and_not_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setenv("NAIAD_PARALLEL", "lots")
    assert run(["list"]) == 1
    assert "naiad: NAIAD_PARALLEL is 'lots'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("failure", "status", "told"),
    [
        (EngineFailed("The engine stopped."), 1, "naiad: The engine stopped.\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 1, ""),
    ],
)
def test_failures_become_a_sentence_and_a_status(
    failure: BaseException,
    status: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Output,
) -> None:
    def fail(*folders: object) -> None:
        raise failure

    monkeypatch.setattr(sys, "stdout", sys.stdout)  # put back what a broken pipe replaces
    monkeypatch.setattr(cli_models, "installed", fail)
    assert run(["list"]) == status
    assert capsys.readouterr().err.strip() == told.strip()


def test_the_script_exits_with_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["naiad", "show", "nothing"])
    with pytest.raises(SystemExit) as caught:
        cli_main.main()
    assert caught.value.code == 1


# --- list, show, rm


def test_list_says_what_to_do_when_there_is_nothing(capsys: Output) -> None:
    assert run(["list"]) == 0
    assert "naiad pull starter" in capsys.readouterr().out
    assert run(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_list_shows_the_models(folder: Path, capsys: Output) -> None:
    (folder / "One.gguf").write_bytes(bytes(3 << 20))
    assert run(["list"]) == 0
    assert capsys.readouterr().out.split() == ["One", "3.0", "MiB", str(folder / "One.gguf")]
    assert run(["list", "--json"]) == 0
    row = {"name": "One", "path": str(folder / "One.gguf"), "size_bytes": 3 << 20}
    row |= {"place": "", "repo": ""}
    assert json.loads(capsys.readouterr().out) == [row]


def test_the_models_folder_may_come_from_the_settings_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.delenv("NAIAD_MODELS_DIR")
    other = tmp_path / "other"
    other.mkdir()
    (other / "there.gguf").touch()
    (tmp_path / "naiad.toml").write_text(f'models_dir = "{other}"\n')
    assert run(["list"]) == 0
    assert "there" in capsys.readouterr().out


def test_show_tells_what_the_file_says(folder: Path, capsys: Output) -> None:
    (folder / "tiny.gguf").write_bytes(small_model())
    assert run(["show", "TINY", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["path"] == str(folder / "tiny.gguf")
    assert facts["name"] == "tiny"
    assert facts["size_bytes"] == len(small_model())
    assert facts["is_gguf"] is True
    assert (facts["architecture"], facts["n_ctx_train"]) == ("llama", 2048)
    assert (facts["quantisation"], facts["file_type"], facts["n_params"]) == ("Q8_0", 7, 128)
    assert run(["show", "tiny"]) == 0
    assert "quantisation    Q8_0" in capsys.readouterr().out


def test_show_tells_what_is_wrong_with_a_file(folder: Path, capsys: Output) -> None:
    (folder / "bad.gguf").write_bytes(b"not a model")
    (folder / "cut.gguf").write_bytes(small_model()[:-9])
    for name, is_gguf in (("bad", False), ("cut", True)):
        assert run(["show", name, "--json"]) == 1
        out, err = capsys.readouterr()
        facts = json.loads(out)
        assert facts["is_gguf"] is is_gguf
        assert facts["problem"] in err


def test_what_the_system_refuses_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NAIAD_MODELS_DIR", str(tmp_path / "file" / "models"))
    assert run(["pull", "starter", "--quiet"]) == 1
    told = capsys.readouterr().err
    assert told == f"naiad: {tmp_path / 'file' / 'models'} cannot be used: Not a directory.\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--temperature", "hot"], "'hot' is not a valid number"),
        (["--server", "http://127.0.0.1:999999"], "must begin with http://"),
        (["--server", "ftp://127.0.0.1"], "must begin with http://"),
        (["--server", "http://127.0.0.1:1"], "does not answer"),
        (["--server", "127.0.0.1:1"], "does not answer"),
    ],
)
def test_mistakes_of_run_are_told(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert run(["run", *arguments, "Hi there"]) in {1, 2}
    assert words in capsys.readouterr().err


def test_a_conversation_that_is_not_there(tmp_path: Path, capsys: Output) -> None:
    assert run(["chat", "--load", str(tmp_path / "none.json")]) == 1
    assert capsys.readouterr().err.endswith(
        "none.json cannot be read: No such file or directory.\n"
    )


def test_rm_asks_first_and_deletes_only_from_the_folder(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    model, foreign = folder / "one.gguf", tmp_path / "mine.gguf"
    model.touch()
    foreign.touch()
    monkeypatch.setattr("click.confirm", lambda text, abort: (_ for _ in ()).throw(EOFError))
    assert run(["rm", "one"]) == 130
    assert model.exists()
    assert run(["rm", "one", "--yes"]) == 0
    assert not model.exists()
    assert run(["rm", str(foreign), "--yes"]) == 1
    assert foreign.exists()
    assert "delete it yourself" in capsys.readouterr().err


# --- pull


def test_pull_says_where_the_model_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def fake(source: object, into: Path, on_progress: object) -> Pulled:
        assert (source, into) == (STARTER, folder)
        target = into / STARTER.filename
        was_there = target.exists()
        target.touch()
        return Pulled(target, was_there)

    monkeypatch.setattr("naiad.models.pull.pull", fake)
    assert run(["pull", "starter"]) == 0
    err = capsys.readouterr().err
    assert "Fetching SmolLM2 135M Instruct, Q4_1, 93.8 MiB, Apache-2.0" in err
    assert f"Ready: {folder / STARTER.filename}" in err
    assert run(["pull", "starter"]) == 0
    assert capsys.readouterr().err == f"Already here: {folder / STARTER.filename}\n"


def test_pull_refuses_what_it_cannot_fetch(capsys: Output) -> None:
    assert run(["pull", "gpt-5"]) == 1
    assert "it can fetch: starter, gemma3. From Hugging Face: " in capsys.readouterr().err
    assert run(["pull", "someone/something"]) == 1
    assert "naiad pull hf:someone/something" in capsys.readouterr().err

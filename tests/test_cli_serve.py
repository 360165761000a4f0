"""`naiad serve` from the outside and in its parts: refusals, the welcome, the key, the log."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from gguf_files import small_model
from naiad.cli import serve as serving
from naiad.cli.layout import wrapped
from naiad.cli.listen import base_url, is_loopback, key_for
from naiad.cli.log import JsonFormatter, TextFormatter, start_logging
from naiad.cli.main import run
from naiad.cli.progress import BarReporter, LineReporter, mebibytes, reporter
from naiad.cli.running import Running
from naiad.cli.serve import is_other, wait_with_progress, with_model
from naiad.cli.welcome import ScreenGreeter, greeter_for, welcome
from naiad.client.base import EngineState, EngineStatus
from naiad.config import Config, EngineConfig
from naiad.errors import ConfigError, ModelFileError
from naiad.models.sources import STARTER
from naiad.types import EngineSettings, ModelInfo
from patience import PATIENCE_S

SOURCE = Path(serving.__file__).parents[2]
INFO = ModelInfo(
    name="tiny",
    description="llama 1M Q8_0",
    n_params=1_000_000,
    size_bytes=2 << 20,
    engine=EngineSettings(
        threads=4, n_ctx=2048, pool_cells=8192, parallel=4, build="CPU : AVX2 = 1 | AMX_INT8 = 0"
    ),
)


@contextmanager
def naiad(tmp_path: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`naiad` as a process of its own, with no settings and no models."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("NAIAD_")}
    env = kept | {"PYTHONPATH": str(SOURCE), "NAIAD_MODELS_DIR": str(tmp_path / "models")}
    env |= {"XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "naiad", *arguments],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def refused(tmp_path: Path, *arguments: str) -> str:
    """Run `naiad serve`, which must fail with one sentence."""
    with naiad(tmp_path, "serve", *arguments) as process:
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert out == ""
    assert err.startswith("naiad: ")
    assert err.count("\n") == 1
    return err


def test_a_scripted_server_greets_answers_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    with naiad(tmp_path, "serve", "--engine", "scripted", "--port", "0") as process:
        assert process.stdout is not None
        lines: list[str] = []
        while "Ctrl-C" not in "".join(lines[-1:]):
            lines.append(process.stdout.readline())
            assert lines[-1], "it ended before it was ready"
        (url,) = set(re.findall(r"http://127\.0\.0\.1:\d+", "".join(lines)))
        with urllib.request.urlopen(f"{url}/health", timeout=PATIENCE_S) as answer:
            assert json.load(answer)["ready"] is True
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert "Traceback" not in err


def test_a_second_server_on_a_port_is_told_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Running(pid=7, began=1.0, url="http://127.0.0.1:5001", model="/m/tiny.gguf")
    monkeypatch.setattr(serving, "running", lambda: [first])
    with pytest.raises(ConfigError, match=r"serves tiny on .* \(process 7\).*naiad stop 5001"):
        serving.refuse_beside(Config(port=5001))
    serving.refuse_beside(Config(port=5002))


def test_bad_models_are_refused_with_one_sentence(
    tmp_path: Path, root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "foreign.gguf").write_bytes(b"MZ" * 100)
    (tmp_path / "cut.gguf").write_bytes(small_model()[:-1])
    told = {
        str(tmp_path / "foreign.gguf"): "not a usable GGUF file",
        str(tmp_path / "cut.gguf"): "is truncated",
        str(tmp_path / "none.gguf"): "There is no model file",
        "somename": "There is no model 'somename'",
    }
    for model, sentence in told.items():
        assert run(["serve", model, "--models-dir", str(tmp_path)]) == 1
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith("naiad: ")
        assert sentence in err


def test_without_a_model_the_starter_is_asked_for(tmp_path: Path) -> None:
    assert "naiad pull starter" in refused(tmp_path)


def test_a_port_in_use_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert "in use" in refused(tmp_path, "--engine", "scripted", "--port", str(port))


# --- which model


def test_the_scripted_engine_needs_no_model() -> None:
    config = Config(engine=EngineConfig(engine="scripted"))
    assert with_model(config) is config


def test_the_models_path_goes_to_the_engine(tmp_path: Path) -> None:
    (tmp_path / "Tiny.gguf").write_bytes(small_model())
    (tmp_path / STARTER.filename).write_bytes(small_model())
    named = Config(models_dir=str(tmp_path), engine=EngineConfig(model="tiny"))
    assert with_model(named).engine.model == str(tmp_path / "Tiny.gguf")
    unnamed = Config(models_dir=str(tmp_path))
    assert with_model(unnamed).engine.model == str(tmp_path / STARTER.filename)


def test_a_draft_model_is_found_like_a_model_and_refused_before_anything_starts(
    tmp_path: Path,
) -> None:
    for name in ("Tiny.gguf", STARTER.filename):
        (tmp_path / name).write_bytes(small_model())
    engine = EngineConfig(draft_model="tiny")
    found = with_model(Config(models_dir=str(tmp_path), engine=engine))
    assert found.engine.draft_model == str(tmp_path / "Tiny.gguf")
    gone = EngineConfig(draft_model="/nowhere/small.gguf")
    with pytest.raises(ConfigError, match=r"draft_model: .*small\.gguf") as refused:
        with_model(Config(models_dir=str(tmp_path), engine=gone))
    assert refused.value.param == "draft_model"


def test_another_installed_model_is_known_by_all_its_names_and_by_no_path(tmp_path: Path) -> None:
    tiny, starter = tmp_path / "Tiny.gguf", tmp_path / STARTER.filename
    for path in (tiny, starter):
        path.write_bytes(small_model())
    for name in ("TINY", "tiny.gguf"):
        assert is_other(name, tmp_path, starter)
        assert not is_other(name, tmp_path, tiny)
    assert is_other("starter", tmp_path, tiny)
    assert not is_other("starter", tmp_path, starter)
    for name in ("gemma3", "other", "", ".", str(tiny), "../" + tmp_path.name + "/Tiny.gguf"):
        assert not is_other(name, tmp_path, starter)


def test_a_missing_starter_is_fetched_for_somebody_at_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(name: str, folder: Path) -> Path:
        assert name == "starter"
        target = folder / STARTER.filename
        target.write_bytes(small_model())
        return target

    monkeypatch.setattr("naiad.cli.models.fetch", fetch)
    config = Config(models_dir=str(tmp_path))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    with pytest.raises(ModelFileError, match="naiad pull starter"):
        with_model(config)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert with_model(config).engine.model.endswith(STARTER.filename)


# --- the key and the addresses


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "LOCALHOST"])
def test_these_hosts_stay_on_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "box.local", "", "localhost.a"])
def test_these_hosts_are_reached_from_elsewhere(host: str) -> None:
    assert not is_loopback(host)


def test_a_key_is_made_when_the_door_would_be_open() -> None:
    keys = {key_for(Config(host="0.0.0.0")), key_for(Config(host="0.0.0.0"))}
    assert len(keys) == 2
    assert all(key and len(key) >= 32 for key in keys)
    assert key_for(Config()) is None
    assert key_for(Config(host="0.0.0.0", api_key="mine")) is None
    assert key_for(Config(host="0.0.0.0", no_auth=True)) is None


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:1"),
        ("0.0.0.0", "http://127.0.0.1:1"),
        ("::", "http://[::1]:1"),
        ("fe80::1", "http://[fe80::1]:1"),
        ("box", "http://box:1"),
    ],
)
def test_the_url_is_one_that_this_machine_can_open(host: str, url: str) -> None:
    assert base_url(host, 1) == url


# --- the welcome


def test_the_welcome_says_what_runs_and_where_to_go() -> None:
    text = "\n".join(welcome(INFO, "http://127.0.0.1:5001", Config(), None))
    for part in (
        "naiad serves tiny on http://127.0.0.1:5001",
        "base URL http://127.0.0.1:5001/v1",
        "SillyTavern",
        "OLLAMA_HOST=http://127.0.0.1:5001",
        "ANTHROPIC_BASE_URL=http://127.0.0.1:5001",
        "curl -N http://127.0.0.1:5001/v1/chat/completions",
        "4 threads; 4 requests at a time, 2,048 tokens each; 8,192 cells",
        "AVX2",
    ):
        assert part in text
    assert "AMX_INT8" not in text
    assert "safe mode" not in text
    assert "key" not in text


def test_the_welcome_shows_a_new_key_and_its_link_and_a_given_key_never() -> None:
    made = "\n".join(welcome(INFO, "http://h:1", Config(), "NEWKEY"))
    assert "shown only here: NEWKEY" in made
    assert "In a browser                  http://h:1/#key=NEWKEY" in made
    assert made.count("NEWKEY") == 3
    assert "Authorization: Bearer NEWKEY" in made  # what is there to paste works
    given = "\n".join(welcome(INFO, "http://h:1", Config(api_key="MINE"), None))
    assert "MINE" not in given
    assert "Bearer YOUR_KEY" in given
    none = "\n".join(welcome(INFO, "http://h:1", Config(no_auth=True), None))
    assert "No key is asked for" in none


def test_the_welcome_calls_the_program_as_the_shell_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / ".venv" / "bin" / "naiad"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(program)])
    monkeypatch.setenv("PATH", "")

    def told() -> str:
        return "\n".join(welcome(INFO, "http://h:1", Config(), None))

    monkeypatch.chdir(tmp_path)
    assert " .venv/bin/naiad chat" in told()
    monkeypatch.chdir(program.parent)
    assert " naiad chat" in told()
    monkeypatch.chdir("/")
    assert f" {program.relative_to('/')} chat" in told()
    monkeypatch.setenv("PATH", str(program.parent))
    assert " naiad chat" in told()


def test_the_welcome_fits_into_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wrapped("build ", "AVX2, " * 60).count("\n") == 0
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    told = wrapped("  build     ", "AVX2, AMX_INT8, " * 6).splitlines()
    assert len(told) >= 2 and max(map(len, told)) <= 60
    assert told[0].startswith("  build     AVX2") and told[1].startswith(" " * 12 + "AVX2")


def test_a_bar_that_is_drawn_takes_the_log_over(
    root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_logging("info", as_json=False)
    monkeypatch.setattr(sys, "stderr", taken := io.StringIO())
    logging.getLogger("naiad.y").warning("above the bar")
    assert taken.getvalue().endswith("WARNING above the bar\n")


def test_the_welcome_says_how_long_the_load_took() -> None:
    text = "\n".join(welcome(INFO, "http://h:1", Config(), None, load_s=1.26))
    assert "2.0 MiB, loaded in 1.3 s" in text


def test_a_quiet_server_prints_only_a_key_that_nobody_could_know(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for key in (None, "NEW"):
        greeter = greeter_for(Config(quiet=True), key, as_json=False)
        with greeter.progress() as progress:
            progress.update("Loading", 1, 2)
        greeter.greet(INFO, "http://h:1", 1.0)
    assert capsys.readouterr() == ("http://h:1/#key=NEW\n", "")


def test_programs_get_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    greeter = greeter_for(Config(), "NEW", as_json=True)
    with greeter.progress() as progress:
        for done in (0.0, 0.5, 0.5, 1.0):
            progress.update("Loading", done, 1.0)
    greeter.greet(INFO, "http://h:1", 1.0)
    greeter_for(Config(quiet=True), None, as_json=True).greet(INFO, "http://h:1", 1.0)
    *loading, ready, quiet = map(json.loads, capsys.readouterr().out.splitlines())
    assert [line["progress"] for line in loading] == [0.0, 0.5, 1.0]
    assert (ready["event"], ready["url"], ready["key"]) == ("ready", "http://h:1", "NEW")
    assert "key" not in quiet


def test_input_that_cannot_be_waited_for_is_refused() -> None:
    class Loop:
        def add_reader(self, *_: object) -> None:
            raise PermissionError

    with pytest.raises(ConfigError, match="needs a pipe"):
        serving.stop_at_eof(Loop())  # type: ignore[arg-type]


def test_the_welcome_names_the_address_for_other_machines() -> None:
    everywhere = "\n".join(welcome(INFO, "http://127.0.0.1:7", Config(host="0.0.0.0"), "K"))
    assert f"Other machines find it at http://{socket.gethostname()}:7" in everywhere
    assert "Other machines" not in "\n".join(welcome(INFO, "http://127.0.0.1:7", Config(), None))


def test_the_welcome_tells_of_safe_mode_plainly() -> None:
    engine = msgspec.structs.replace(INFO.engine, extra_buffers=False)
    info = msgspec.structs.replace(INFO, engine=engine)
    assert "safe mode" in "\n".join(welcome(info, "http://h:1", Config(), None))


# --- waiting


class LoadingEngine:
    """An engine whose model is loaded when the test says so."""

    def __init__(self) -> None:
        self.ready: asyncio.Future[ModelInfo] = asyncio.get_running_loop().create_future()
        self.n_looks = 0

    @property
    def status(self) -> EngineStatus:
        self.n_looks += 1
        if self.n_looks == 3 and not self.ready.done():
            self.ready.set_result(INFO)
        return EngineStatus(EngineState.STARTING, progress=self.n_looks / 4)

    async def wait_ready(self) -> ModelInfo:
        return await self.ready


async def test_the_load_is_shown_until_the_model_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serving, "REDRAW_S", 0)
    engine = LoadingEngine()
    assert await wait_with_progress(engine, reporter(in_bytes=False)) == INFO  # type: ignore[arg-type]
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"Loading the model: {n} %" for n in (25, 50, 75)]


async def test_the_load_can_be_shown_in_the_log(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(serving, "REDRAW_S", 0)
    caplog.set_level("INFO")
    shown = ScreenGreeter(Config(log_json=True), None).progress()
    await wait_with_progress(LoadingEngine(), shown)  # type: ignore[arg-type]
    assert caplog.messages == [f"Loading the model: {n} %" for n in (25, 50, 75)]
    assert capsys.readouterr().err == ""


async def test_a_failed_load_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LoadingEngine()
    engine.ready.set_exception(ModelFileError("It is damaged."))
    with pytest.raises(ModelFileError, match="It is damaged"):
        await wait_with_progress(engine, reporter(in_bytes=False))  # type: ignore[arg-type]


def test_plain_progress_is_a_line_per_quarter(capsys: pytest.CaptureFixture[str]) -> None:
    with LineReporter(in_bytes=True) as progress:
        for done in range(0, 101):
            progress.update("downloading", done << 20, 100 << 20)
        progress.update("unpacking", 0, 0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["downloading: 0 % of 100.0 MiB", "downloading: 25 % of 100.0 MiB"]
    assert len(lines) == 6


def test_plain_progress_tells_what_is_being_done(capsys: pytest.CaptureFixture[str]) -> None:
    with LineReporter(in_bytes=False) as progress:
        for done, now in ((0.01, "threads 1"), (0.02, "threads 1"), (0.07, "threads 2")):
            progress.update("measuring", done, 1.0, now)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["measuring: 1 %, threads 1", "measuring: 7 %, threads 2"]


def test_a_bar_is_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar = reporter(in_bytes=True)
    assert isinstance(bar, BarReporter)
    with bar as progress:
        progress.update("downloading", 1, 2)
        progress.update("downloading", 2, 2)
        progress.update("unpacking", 1, 2, "the last file")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert isinstance(reporter(in_bytes=True), LineReporter)


def test_sizes_are_for_people() -> None:
    assert mebibytes(98_362_432) == "93.8 MiB"
    assert mebibytes(3 << 29) == "1.5 GiB"


# --- the log


def a_record(**extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "naiad.x", "levelname": "WARNING", "levelno": 30})
    made.msg, made.args = "lost %d", (3,)
    vars(made).update(extra)
    return made


def test_json_lines_hold_the_message_and_its_extras() -> None:
    line = json.loads(JsonFormatter().format(a_record(uid=7, thing=Path("/x"))))
    assert (line["level"], line["logger"], line["message"]) == ("warning", "naiad.x", "lost 3")
    assert (line["uid"], line["thing"]) == (7, "/x")
    assert line["time"].endswith("+00:00")
    assert "error" not in line


def test_an_exception_stays_on_the_json_line() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        text = JsonFormatter().format(a_record(exc_info=sys.exc_info()))
    assert "\n" not in text
    assert "ValueError: broken" in json.loads(text)["error"]


def test_text_lines_are_for_people() -> None:
    assert TextFormatter().format(a_record(uid=7)).endswith("WARNING lost 3 (uid=7)")
    assert TextFormatter().format(a_record()).endswith("WARNING lost 3")


def test_the_log_goes_to_standard_error_at_the_asked_level(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    start_logging("warning", as_json=False)
    start_logging("warning", as_json=False)
    logging.getLogger("naiad.y").info("quiet")
    logging.getLogger("naiad.y").warning("loud")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("loud") == 1
    assert "quiet" not in err

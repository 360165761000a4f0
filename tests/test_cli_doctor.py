"""`naiad doctor`: every finding, and what it tells people to do."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from naiad.cli import doctor as checking
from naiad.cli import settings
from naiad.cli.doctor import (
    look_at_build,
    look_at_models,
    look_at_port,
    look_at_the_users,
    self_test,
    unused_features,
)
from naiad.cli.main import run
from naiad.config import Config, EngineConfig
from naiad.errors import EngineUnavailable
from naiad.setup.cpu import Processor
from naiad.setup.failure import SetupError
from naiad.setup.record import BuildRecord

XEON = Processor("Xeon", "x86_64", ("amx_int8", "avx2", "avx512f", "fpu"))
GOOD = "CPU : AVX2 = 1 | AVX512 = 1 | AMX_INT8 = 1 | OPENMP = 1 |"


def a_record(features: tuple[str, ...] = XEON.features) -> BuildRecord:
    return BuildRecord(
        fingerprint="f",
        version="0.3.36",
        compiler="gcc 12.2.0",
        compiler_banner="gcc",
        cxx_flags="-fno-tree-dse -fno-dse",
        cmake_args=(),
        gpu="none",
        cpu="Xeon",
        cpu_features=features,
        libraries_sha256="digest",
        built_at="2026-01-01T00:00:00+00:00",
    )


@pytest.fixture(autouse=True)
def untouched_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checking, "libraries_digest", lambda: "digest")
    monkeypatch.setattr(settings, "default_file", lambda: tmp_path / "naiad.toml")


def verdicts(record: BuildRecord | None, info: str | SetupError) -> dict[str, str]:
    return {finding.name: finding.verdict for finding in look_at_build(XEON, record, info)}


def test_a_good_build_is_all_right() -> None:
    findings = look_at_build(XEON, a_record(), GOOD)
    assert [finding.verdict for finding in findings] == ["ok", "ok", "ok"]
    assert "avx2, avx512f, amx_int8" in findings[0].text
    assert "gcc 12.2.0 with -fno-tree-dse -fno-dse" in findings[1].text
    assert not any(finding.todo for finding in findings)


def test_each_flaw_of_a_build_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdicts(None, GOOD)["build"] == "warn"
    assert verdicts(a_record((*XEON.features, "sse9")), GOOD)["build"] == "fail"
    assert verdicts(a_record(), SetupError("It does not load."))["engine"] == "fail"
    assert verdicts(a_record(), "CPU : AVX2 = 1 |")["features"] == "warn"
    monkeypatch.setattr(checking, "libraries_digest", lambda: "foreign")
    assert verdicts(a_record(), GOOD)["build"] == "fail"


def test_features_left_unused_are_named() -> None:
    assert unused_features(XEON, GOOD) == []
    assert unused_features(XEON, "CPU : AVX2 = 1 | AVX512 = 1 |") == ["amx_int8"]
    arm = Processor("M", "arm64", ("i8mm",))
    assert unused_features(arm, "CPU : NEON = 1 | MATMUL_INT8 = 1 |") == []


def test_an_empty_models_folder_says_how_to_fill_it(tmp_path: Path) -> None:
    assert look_at_models(tmp_path).todo.endswith("naiad pull starter")
    (tmp_path / "one.gguf").touch()
    assert look_at_models(tmp_path).verdict == "ok"


def test_a_port_in_use_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        found = look_at_port("127.0.0.1", taken.getsockname()[1])
    assert (found.verdict, "in use" in found.text) == ("warn", True)
    assert look_at_port("127.0.0.1", 0).verdict == "ok"


def test_little_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checking.look_at_memory().text.endswith("available")
    scarce = SimpleNamespace(available=1 << 29, total=1 << 33)
    monkeypatch.setattr("psutil.virtual_memory", lambda: scarce)
    assert checking.look_at_memory().verdict == "warn"


@pytest.mark.soak
def test_the_self_test_generates_with_a_real_worker(tmp_path: Path) -> None:
    (tmp_path / "any.gguf").touch()
    scripted = Config(engine=EngineConfig(engine="scripted"))
    found = self_test("any", tmp_path, scripted)
    assert (found.verdict, found.text) == ("ok", "scripted loaded and generated 4 tokens")


def test_the_self_test_tells_why_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = self_test(None, tmp_path, Config())
    assert (found.verdict, found.todo) == ("fail", "")
    assert "naiad pull starter" in found.text

    async def fail(config: EngineConfig) -> None:
        raise EngineUnavailable("The worker died three times.")

    async def hang(config: EngineConfig) -> None:
        raise TimeoutError

    (tmp_path / "any.gguf").touch()
    monkeypatch.setattr(checking, "_try_engine", fail)
    assert "make setup" in self_test("any", tmp_path, Config()).todo
    monkeypatch.setattr(checking, "_try_engine", hang)
    assert "did not answer" in self_test("any", tmp_path, Config()).text


def test_the_command_reports_and_fails_when_something_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["doctor", "--no-self-test", "--models-dir", str(tmp_path), "--port", "0"]
    monkeypatch.setattr(checking, "processor", lambda: XEON)
    monkeypatch.setattr(checking, "load_record", a_record)
    monkeypatch.setattr(checking, "engine_info", lambda: GOOD)
    assert run(arguments) == 0
    out = capsys.readouterr().out
    assert "  ok  processor: Xeon" in out
    assert "      -> Fetch the starter model" in out
    monkeypatch.setattr(checking, "engine_info", lambda: SetupError("It does not load."))
    assert run([*arguments, "--json"]) == 1
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert found["engine"]["verdict"] == "fail"
    assert found["engine"]["todo"] == checking.REBUILD


def test_the_users_own_things_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more, folder = tmp_path / "more", tmp_path / "models" / "none"
    more.mkdir()
    (more / "Other.gguf").touch()
    monkeypatch.setenv("NAIAD_STATE_DIR", str(tmp_path / "state"))
    settings = Config(more_models=(str(more),), foreign_models=False)
    found = {one.name: one for one in look_at_the_users(None, folder, settings)}
    assert found["settings"].text.endswith("naiad.toml (not there: all defaults)")
    assert found["other models"].text == f"1 in {more} (naiad list)"
    assert found["servers"].text == "none runs"
    assert found["disk"].text.endswith(f"free for models in {folder}")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1))
    (tmp_path / "mine.toml").touch()
    found = {
        one.name: one
        for one in look_at_the_users(
            str(tmp_path / "mine.toml"), folder, Config(foreign_models=False)
        )
    }
    assert (found["disk"].verdict, "Make room" in found["disk"].todo) == ("warn", True)
    assert found["settings"].text == str(tmp_path / "mine.toml")
    assert "other models" not in found

"""`naiad tune`, what `naiad doctor` says of it, and how a server comes to use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from naiad.cli import doctor_tuning, serve, settings
from naiad.cli.doctor import look_at_settings
from naiad.cli.main import run
from naiad.cli.serve import with_tuning
from naiad.cli.welcome import welcome
from naiad.client.spawn import _environment
from naiad.config import Config, EngineConfig, Tuning
from naiad.errors import EngineUnavailable
from naiad.models.catalogue import find
from naiad.tune import measure as measuring
from naiad.tune import record as records
from naiad.tune.record import LaneResult, Measured, Record
from naiad.types import EngineSettings, ModelInfo

DEFAULT = Tuning(
    threads=2,
    n_ubatch=128,
    flash_attention=False,
    kv_unified=True,
    kv_type="f16",
    extra_buffers=True,
    wait_policy="passive",
    lane=True,
    source="measured on tiny, 2026-01-01",
)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder with one file, and a folder of results that is not the user's."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(records, "folder", lambda: tmp_path / "tuning")
    monkeypatch.setattr(records, "build_fingerprint", lambda: "b" * 32)
    monkeypatch.setattr(settings, "default_file", lambda: tmp_path / "naiad.toml")
    return folder


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Stands in for measuring; holds whether each run was a quick one."""
    made: list[bool] = []

    def measure(path: Path, effort: Any, on_progress: Any, *, anyway: bool) -> Record:
        made.append(effort.is_quick)
        on_progress("default: threads 1", 0.5)
        return a_record(path, is_quick=effort.is_quick, was_busy=anyway or path.stem == "busy")

    monkeypatch.setattr(measuring, "measure", measure)
    return made


def a_record(path: Path, **changes: Any) -> Record:
    values: dict[str, Any] = {
        "version": records.VERSION,
        "model": path.stem,
        "model_fingerprint": records.model_fingerprint(path),
        "build_fingerprint": "b" * 32,
        "measured_at": "2026-01-01T00:00:00+00:00",
        "is_quick": False,
        "seconds": 20.0,
        "profiles": {
            "default": DEFAULT,
            "throughput": Tuning(threads=2, kv_unified=False, kv_type="q8_0"),
        },
        "measured": [
            Measured(
                profile="default",
                what="flash_attention off",
                ratio=0.5,
                detail={"shared": 0.25},
                won=True,
            ),
            Measured(profile="default", what="threads 1", ratio=2.0),
            Measured(profile="default", what="n_ubatch 128", ratio=1.0),
            Measured(profile="default", what="n_ubatch 256", ratio=0.9),
            Measured(profile="throughput", what="kv_unified on", crashed="crashed with SIGILL"),
        ],
        "lane": LaneResult(
            gap_lane_ms=40, gap_chunks_ms=300, ttft_lane_ms=9, ttft_chunks_ms=9, ttft_alone_ms=9
        ),
    }
    return Record(**values | changes)


def tune(models: Path, *arguments: str) -> int:
    return run(["tune", "tiny", "--models-dir", str(models), *arguments])


# -- the command ------------------------------------------------------------------------------


def test_the_table_says_what_was_tried_and_chosen_and_why(
    models: Path, runs: list[bool], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(models) == 0
    assert runs == [False]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tiny, full run of 20 s")
    table = "\n".join(lines)
    assert "2.00x  chosen    shared 4.00x" in table
    assert "0.50x  slower" in table
    assert "1.00x  no gain" in table
    assert "1.11x  unsteady" in table
    assert "-  failed    crashed with SIGILL" in table
    assert "a lane for long prompts is worth it: longest gap 40 ms instead of 300" in table
    assert "2 threads, micro-batch 128, flash attention off, one pool, KV f16" in table
    assert "OpenMP waits passively, long prompts in a lane" in table
    assert "streams apart, KV q8_0" in table


def test_the_result_is_kept_and_not_measured_twice_unless_asked(
    models: Path, runs: list[bool], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(models, "--quick", "--if-needed") == 0
    capsys.readouterr()
    assert tune(models, "--quick", "--if-needed") == 0
    assert runs == [True]
    said = capsys.readouterr()
    assert "Measured already, 2026-01-01" in said.err
    assert "tiny, quick run" in said.out
    assert tune(models, "--quick") == 0
    assert runs == [True, True]


@pytest.mark.usefixtures("runs")
def test_it_says_what_there_was_and_where_the_result_is(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(models) == 0
    said = capsys.readouterr().err
    assert "Measured before" not in said
    (kept,) = records.folder().iterdir()
    assert f"Kept for tiny and this engine, from the next start on: {kept}" in said
    assert tune(models) == 0
    assert "Measured before, 2026-01-01T00:00:00+00:00; that stays" in capsys.readouterr().err


def test_an_interrupted_run_leaves_the_earlier_result(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> Record:
        raise KeyboardInterrupt

    before = records.save(a_record(models / "tiny.gguf")).read_bytes()
    monkeypatch.setattr(measuring, "measure", interrupted)
    assert tune(models) == 130
    assert "Stopped; nothing was kept" in capsys.readouterr().err
    (kept,) = records.folder().iterdir()
    assert kept.read_bytes() == before


def test_set_up_hears_what_was_chosen_and_then_nothing(
    models: Path, runs: list[bool], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(models, "--quick", "--if-needed", "--quiet") == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out] == ["default", "throughput"]
    assert tune(models, "--quick", "--if-needed", "--quiet") == 0
    said = capsys.readouterr()
    assert (said.out, said.err, runs) == ("", "", [True])


def test_another_model_or_a_spoiled_result_is_measured_anew(models: Path, runs: list[bool]) -> None:
    assert tune(models, "--if-needed") == 0
    (models / "tiny.gguf").write_bytes(b"GGUF, another")
    assert tune(models, "--if-needed") == 0
    for path in records.folder().iterdir():
        path.write_text("{")
    assert tune(models, "--if-needed") == 0
    assert len(runs) == 3


def test_json_is_the_record(
    models: Path, runs: list[bool], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(models, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["profiles"]["default"]["lane"] is True
    assert told["measured"][0]["won"] is True
    assert runs == [False]


def test_failures_are_one_sentence(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> Record:
        raise EngineUnavailable("The engine does not load: no library")

    monkeypatch.setattr(measuring, "measure", fail)
    assert tune(models) == 1
    assert capsys.readouterr().err.endswith("naiad: The engine does not load: no library\n")
    assert run(["tune", "no-such-model", "--models-dir", str(models)]) == 1


@pytest.mark.usefixtures("runs")
def test_a_result_that_cannot_be_kept_is_told(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tuning").write_text("a file where the folder should be")
    assert tune(models) == 1
    assert "The result cannot be kept" in capsys.readouterr().err


def test_a_result_of_a_busy_machine_is_shown_and_kept_only_if_asked(
    models: Path, runs: list[bool], capsys: pytest.CaptureFixture[str]
) -> None:
    path = models / "busy.gguf"
    path.write_bytes(b"GGUF")
    arguments = ["tune", str(path), "--models-dir", str(models)]
    assert run(arguments) == 1
    said = capsys.readouterr()
    assert "busy, full run" in said.out
    assert "not kept" in said.err
    assert not records.folder().exists()
    assert run([*arguments, "--anyway"]) == 0
    assert len(list(records.folder().iterdir())) == 1
    assert len(runs) == 2


# -- the server -------------------------------------------------------------------------------


def config_for(models: Path, **changes: Any) -> Config:
    engine = EngineConfig(model=str(models / "tiny.gguf"), **changes)
    return Config(engine=engine, models_dir=str(models))


def test_the_server_takes_what_was_measured_for_its_profile(models: Path) -> None:
    assert with_tuning(config_for(models)).engine.tuning is None
    records.save(a_record(models / "tiny.gguf"))
    assert with_tuning(config_for(models)).engine.tuning == DEFAULT
    wide = with_tuning(config_for(models, profile="throughput")).engine.tuning
    assert wide is not None
    assert wide.kv_unified is False
    scripted = Config(engine=EngineConfig(engine="scripted"))
    assert with_tuning(scripted) is scripted


def test_the_worker_waits_as_was_measured_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert "OMP_WAIT_POLICY" not in _environment(EngineConfig())
    assert _environment(EngineConfig(tuning=DEFAULT))["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert _environment(EngineConfig(tuning=DEFAULT))["OMP_WAIT_POLICY"] == "active"


def test_how_memory_comes_is_the_users_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert "GLIBC_TUNABLES" not in _environment(EngineConfig())
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    assert _environment(EngineConfig())["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"


@pytest.mark.parametrize(
    ("config", "tuned", "want"),
    [
        (EngineConfig(tuning=DEFAULT), True, "default, measured on tiny, 2026-01-01"),
        (EngineConfig(tuning=DEFAULT, threads=1), False, "not measured here (naiad tune)"),
        (EngineConfig(profile="throughput"), False, "throughput, not measured here"),
    ],
)
def test_the_start_says_what_was_chosen_for(config: EngineConfig, tuned: bool, want: str) -> None:
    model = ModelInfo(name="tiny", engine=EngineSettings(tuned=tuned))
    lines = welcome(model, "http://127.0.0.1:1", Config(engine=config), None)
    (line,) = [line for line in lines if line.startswith("  profile")]
    assert want in line


def test_the_command_line_leads_to_it(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Config] = []
    monkeypatch.setattr(serve, "_serve", lambda config, *_, **__: seen.append(config))
    monkeypatch.setattr(serve, "with_model", lambda config: config)
    monkeypatch.setattr(serve, "start_logging", lambda *_, **__: None)
    path = models / "tiny.gguf"
    records.save(a_record(path))
    arguments = ["serve", str(path), "--models-dir", str(models), "--profile", "throughput"]
    assert run(arguments) == 0
    (config,) = seen
    assert config.engine.tuning is not None
    assert config.engine.tuning.kv_type == "q8_0"


# -- the doctor -------------------------------------------------------------------------------


def test_the_doctor_tells_what_applies_and_from_when(models: Path) -> None:
    config = config_for(models)
    (finding,) = look_at_settings("tiny", models, config)
    assert (finding.name, finding.verdict, finding.todo) == ("tuning", "warn", doctor_tuning.TODO)
    records.save(a_record(models / "tiny.gguf", was_busy=True))
    (finding,) = look_at_settings("tiny", models, config)
    assert finding.verdict == "ok"
    assert finding.text.startswith("2 threads, micro-batch 128, flash attention off")
    assert finding.text.endswith("full run of 2026-01-01T00:00:00+00:00")
    assert finding.todo == "The machine was busy then; measure when it rests: naiad tune"


def test_the_doctor_tells_whose_result_stands_in(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = models / "other.gguf"
    other.write_bytes(b"GGUF of another")
    records.save(a_record(models / "tiny.gguf"))
    monkeypatch.setattr("naiad.cli.tune.find", lambda name, folder: find(name or "tiny", folder))
    (finding,) = look_at_settings("other", models, config_for(models))
    assert finding.text.endswith("(of tiny; other has none)")


def test_the_doctor_misses_a_profile_and_is_silent_without_a_model(models: Path) -> None:
    path = models / "tiny.gguf"
    records.save(a_record(path, profiles={"default": DEFAULT}))
    wide = config_for(models, profile="throughput")
    (finding,) = look_at_settings("tiny", models, wide)
    assert (finding.verdict, finding.todo) == ("warn", doctor_tuning.TODO)
    path.unlink()
    assert look_at_settings("tiny", models, wide) == []

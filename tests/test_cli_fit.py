"""`naiad fit`, and the memory that `naiad show` tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gguf_files import pair
from naiad.cli import fitting, settings
from naiad.cli.fitting import fit_for, memory, most_ctx, told_of
from naiad.cli.main import run
from naiad.models.cost import Cost
from naiad.models.speed import Machine
from test_models_choice import PLAIN, a_model

MIB = 1 << 20
TINY = Cost(100 * MIB, 100 * MIB, 11520, 8192, 49152, 576, 9, n_layers=30, attended=34560)
Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one model, a machine with 1 GiB free that reads 10 GB a second."""
    monkeypatch.setattr(settings, "default_file", lambda: tmp_path / "naiad.toml")
    monkeypatch.setenv("NAIAD_MODELS_DIR", str(tmp_path))
    monkeypatch.setenv("NAIAD_FOREIGN_MODELS", "false")
    monkeypatch.setattr(fitting, "free_bytes", lambda: 1 << 30)
    monkeypatch.setattr(fitting, "read_speed", lambda _n, _n_bytes: 1e10)
    a_model(tmp_path / "Tiny.gguf", *PLAIN)
    return tmp_path


def test_memory_grows_with_the_context_by_its_cells() -> None:
    more = memory(TINY, "q8_0", 4096) - memory(TINY, "q8_0", 2048)
    assert more == 2048 * TINY.bytes_per_cell("q8_0")
    assert memory(TINY, "f16", 2048) > memory(TINY, "q8_0", 2048) > TINY.weight_bytes


@pytest.mark.parametrize("limit", [0, 1, 255, 256, 1000, 8192, 1 << 23])
def test_the_largest_context_is_found(limit: int) -> None:
    assert most_ctx(lambda n: n <= limit) == limit - limit % 256


def test_one_kv_type_is_told_with_its_context_and_speed() -> None:
    fit = fit_for(TINY, "q8_0", 1 << 30, None, Machine(1e10, 2))
    assert fit.most_ctx >= fit.ctx == 8192
    assert fit.memory_bytes == memory(TINY, "q8_0", 8192)
    assert fit.tokens_per_s is not None and fit.ms_per_token is not None
    fast, slow = fit.tokens_per_s
    assert 0 < slow < fast < 1e10 / TINY.token_bytes
    assert sum(fit.ms_per_token.values()) == pytest.approx(1000 / slow, rel=0.01)
    assert fit_for(TINY, "f16", 1 << 30, None, None).tokens_per_s is None


def test_the_command_says_whether_it_runs(capsys: Output) -> None:
    assert run(["fit", "tiny"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("It runs here: naiad serve tiny --ctx 8192 --kv-type")
    assert "made for 8,192 tokens" in out and "tokens/s at first" in out
    assert "an estimate for the processor, here with KV f16." in out and "10 GB/s" in out
    assert "off by half" in out
    assert run(["fit", "tiny", "--json", "--no-speed", "--ctx", "512"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["kv_type"] for one in told["fits"]] == ["f16", "q8_0"]
    assert told["fits"][0]["ctx"] == 512
    assert told["fits"][0]["tokens_per_s"] is told["machine"] is None
    assert run(["fit", "tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["machine"]["bytes_per_s"] == 1e10


def test_a_draft_model_is_counted_with_its_context(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    small = pair("llama.block_count", 2)
    a_model(models / "Small.gguf", small, *PLAIN[1:])
    assert run(["fit", "tiny", "--json", "--no-speed"]) == 0
    alone = json.loads(capsys.readouterr().out)["fits"]
    assert run(["fit", "tiny", "--json", "--no-speed", "--draft-model", "small"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["draft_model"] == "Small"
    for one, before in zip(told["fits"], alone, strict=True):
        assert one["memory_bytes"] - before["memory_bytes"] == one["draft_bytes"]
        assert one["most_ctx"] < before["most_ctx"]
    cells = 8192 * 2 * 3 * 128 * 2
    assert told["fits"][0]["draft_bytes"] > cells
    monkeypatch.setenv("NAIAD_DRAFT_MODEL", "small")
    assert run(["fit", "tiny", "--no-speed"]) == 0
    assert "Draft model Small: " in capsys.readouterr().out
    assert run(["show", "tiny"]) == 0
    assert "\n  draft model   Small\n" in capsys.readouterr().out


def test_a_draft_model_of_no_use_is_refused(models: Path, capsys: Output) -> None:
    a_model(models / "Other.gguf", *PLAIN, pair("tokenizer.ggml.tokens", ["a", "b"]))
    assert run(["fit", "tiny", "--draft-model", "other"]) == 1
    assert "another vocabulary than Tiny: 2 tokens instead of 0" in capsys.readouterr().err
    assert run(["show", "tiny", "--draft-model", "nowhere"]) == 1
    assert "draft_model: " in capsys.readouterr().err


def test_what_does_not_fit_is_said_and_returned(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    assert run(["fit", "tiny", "--ctx", "16000000"]) == 1
    assert "Not with so much context: at most" in capsys.readouterr().out
    monkeypatch.setattr(fitting, "free_bytes", lambda: 1 << 20)
    assert run(["fit", "tiny"]) == 1
    assert "does not fit into this machine's memory" in capsys.readouterr().out


def test_recurrent_parts_are_told(models: Path) -> None:
    cost = Cost(1, 1, 1, 0, 1, 1, 1, is_recurrent=True)
    lines = told_of(models / "x.gguf", cost, [fit_for(cost, "f16", 1 << 30, None, None)], 1 << 30)
    assert "recurrent" in lines[-1]


def test_the_speed_of_memory_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert fitting.read_speed(2, 1 << 16) > 0


@pytest.mark.parametrize(("usable", "physical", "n"), [(3, 32, 3), (64, 32, 32)])
def test_only_cores_that_this_process_may_use_count(
    monkeypatch: pytest.MonkeyPatch, usable: int, physical: int, n: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(usable)), raising=False)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: physical)
    assert fitting.this_machine() == Machine(1e10, n)


def test_more_is_read_than_caches_hold_and_less_than_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert fitting.probe_bytes(1 << 36) == 256 * MIB
    monkeypatch.setattr("os.cpu_count", lambda: 192)
    assert fitting.probe_bytes(1 << 36) == 192 * 32 * MIB
    assert fitting.probe_bytes(1 << 30) == 256 * MIB


def test_show_tells_the_memory_of_a_context(capsys: Output) -> None:
    assert run(["show", "tiny", "--json", "--ctx", "1024", "--kv-type", "q8_0"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["ctx"], told["kv_type"], told["kv_bytes_per_token"]) == (1024, "q8_0", 12240)
    assert told["memory_bytes"] > 1024 * 12240
    assert run(["show", "tiny"]) == 0
    assert "\nmemory  " in capsys.readouterr().out


def test_show_leaves_out_what_the_file_does_not_tell(models: Path, capsys: Output) -> None:
    a_model(models / "Bare.gguf")
    assert run(["show", "bare", "--json"]) == 0
    assert "memory_bytes" not in json.loads(capsys.readouterr().out)

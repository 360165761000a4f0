"""One run of measuring, over engines whose times are made up; and what is written down."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from naiad.errors import ModelFileError
from naiad.tune import measure as measuring
from naiad.tune.candidate import Candidate, Workload
from naiad.tune.child import Facts
from naiad.tune.measure import QUICK_EFFORT, NothingMeasured, measure
from naiad.tune.record import LaneResult, Record
from naiad.tune.runner import CandidateFailed, Engine
from test_tune_search import LANE, Lab

FACTS = Facts(has_gpu=False, has_amx=False, has_openmp=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF")
    return path


def run(
    model: Path,
    lab: Lab,
    facts: Facts = FACTS,
    in_use: tuple[float, float] = (0.0, 0.0),
    anyway: bool = False,
) -> Record:
    used = iter(in_use)
    effort = replace(QUICK_EFFORT, deadline_s=1e9)

    def open_engine(candidate: Candidate) -> Engine:
        return lab.open(candidate)

    return measure(
        model,
        effort,
        lambda *_: None,
        anyway=anyway,
        facts=facts,
        open_engine=open_engine,
        in_use=lambda: next(used),
        clock=lambda: lab.now,
    )


def test_without_a_winner_the_rules_of_thumb_are_confirmed(model: Path) -> None:
    record = run(model, Lab())
    default, throughput = record.profiles["default"], record.profiles["throughput"]
    assert (default.kv_unified, default.kv_type, default.flash_attention) == (True, "f16", True)
    assert (throughput.kv_unified, throughput.kv_type) == (False, "q8_0")
    assert (record.model, record.is_quick, record.lane) == ("tiny", True, LANE)
    assert default.source == f"measured on tiny, {record.measured_at[:10]}"
    assert not any(one.won for one in record.measured)
    assert (default.lane, throughput.lane) == (True, None)


def test_each_profile_finds_its_own(model: Path) -> None:
    def cost(one: Candidate, workload: Workload) -> float:
        if workload in ("shared", "deep"):
            return 1.0 if one.flash_attention else 0.2
        if one.kv_unified or one.kv_type == "f16":
            return 1.0
        return 0.5

    record = run(model, Lab(cost))
    assert record.profiles["default"].flash_attention is False
    assert record.profiles["throughput"].flash_attention is True
    assert record.profiles["throughput"].kv_type == "q8_0"


def test_amx_and_gpus_start_from_rules_of_their_own(model: Path) -> None:
    amx = run(model, Lab(), Facts(has_gpu=False, has_amx=True, has_openmp=True))
    assert amx.profiles["default"].flash_attention is False
    assert amx.profiles["throughput"].flash_attention is True
    gpu = run(model, Lab(), Facts(has_gpu=True, has_amx=True, has_openmp=False))
    assert gpu.profiles["default"].flash_attention is True
    assert gpu.profiles["throughput"].kv_type == "f16"


def test_a_lane_that_does_not_pay_is_written_down(model: Path) -> None:
    lab = Lab()
    lab.lane = LaneResult(
        gap_lane_ms=9, gap_chunks_ms=9, ttft_lane_ms=9, ttft_chunks_ms=9, ttft_alone_ms=9
    )
    assert run(model, lab).profiles["default"].lane is False
    lab.lane = None
    assert run(model, lab).profiles["default"].lane is None


def test_a_model_that_does_not_run_is_an_error(model: Path) -> None:
    def fail(_: Candidate) -> Engine:
        raise CandidateFailed("cannot load it")

    with pytest.raises(ModelFileError, match="does not run here: cannot load it"):
        measure(model, QUICK_EFFORT, lambda *_: None, anyway=True, facts=FACTS, open_engine=fail)


def test_what_was_found_before_an_early_end_is_kept(model: Path) -> None:
    lab = Lab()
    base = measuring.base_candidate(measuring.machine_of(FACTS))
    lab.crash_at_work.add(measuring.throughput_base(base, measuring.machine_of(FACTS)))
    record = run(model, lab)
    assert set(record.profiles) == {"default"}
    assert record.notes == ["measuring ended early: crashed with SIGILL"]


def test_a_run_without_one_comparison_is_no_result(model: Path) -> None:
    lab = Lab()
    lab.end = -1.0
    with pytest.raises(NothingMeasured, match=r"Nothing could be measured in 0 s.*naiad tune"):
        run(model, lab)


def test_a_busy_machine_is_not_measured_unless_asked(model: Path) -> None:
    lab = Lab()
    with pytest.raises(NothingMeasured, match=r"other programs keep 1\.5 processors busy"):
        run(model, lab, in_use=(1.5, 0.0))
    assert lab.engines == []
    assert run(model, lab, in_use=(1.5, 0.0), anyway=True).was_busy
    assert not run(model, lab).was_busy


def test_a_machine_that_got_busy_meanwhile_is_noted(model: Path) -> None:
    record = run(model, Lab(), in_use=(0.0, 1.5))
    assert record.was_busy
    assert record.notes == ["other programs keep 1.5 processors busy: figures would mislead"]


def test_processors_in_use_is_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.cpu_percent", lambda interval: 100 * interval)
    monkeypatch.setattr("psutil.cpu_count", lambda: 4)
    assert measuring.processors_in_use() == 2

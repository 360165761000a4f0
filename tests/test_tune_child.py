"""The process that measures: real ones, which answer, crash, hang or cannot load."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

import naiad
from naiad.errors import EngineUnavailable
from naiad.tune import runner
from naiad.tune.candidate import Candidate, Scale, Workload
from naiad.tune.runner import CandidateFailed, ChildEngine, OutOfTime, look_at_build
from naiad.tune.workloads import Workloads
from patience import PATIENCE_S

pytestmark = pytest.mark.engine

TINY = Scale(n_decode=2, n_streams=2, n_short=8, n_prefix=40, n_prompt=32, n_deep=16, n_newcomer=64)
EVERY: tuple[Workload, ...] = ("decode_one", "decode_many", "shared", "prefill", "deep")


def child(model: Path, **changes: Any) -> ChildEngine:
    settings = {"threads": 1, "n_ubatch": 32} | changes
    return ChildEngine(model, Candidate(**settings), TINY, patience_s=PATIENCE_S)


@pytest.mark.parametrize("unified", [True, False])
def test_each_piece_of_work_is_timed_again_and_again(lookback: Path, unified: bool) -> None:
    work = Workloads(lookback, Candidate(threads=1, n_ubatch=32, kv_unified=unified), TINY)
    every = EVERY if unified else ("decode_one", "decode_many", "prefill")
    for workload in (*every, *every):
        assert 0 < work.run(workload) < PATIENCE_S


def test_the_ways_to_take_a_long_prompt_are_compared_twice(lookback: Path) -> None:
    work = Workloads(lookback, Candidate(threads=2, n_ubatch=32), TINY)
    for _ in range(2):
        result = work.compare_lane()
        assert min(result.gap_lane_ms, result.gap_chunks_ms, result.ttft_alone_ms) > 0
        assert result.ttft_lane_ms >= result.gap_lane_ms
        assert result.ttft_chunks_ms >= result.gap_chunks_ms


def test_a_child_answers_until_it_is_closed(watermark: Path) -> None:
    with child(watermark, wait_policy="passive") as engine:
        assert engine.seconds("decode_one") > 0
        assert engine.seconds("prefill") > 0
        assert engine.compare_lane().ttft_alone_ms > 0
    engine.close()
    with pytest.raises(ProcessLookupError):
        os.kill(engine._process.pid, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="the system's part is Linux's")
def test_a_child_that_stands_still_ends_with_who_asked(watermark: Path) -> None:
    script = (
        "import sys, os; from pathlib import Path; "
        "from naiad.tune.candidate import Candidate; "
        "from naiad.tune.runner import ChildEngine; from naiad.tune.candidate import QUICK; "
        "engine = ChildEngine(Path(sys.argv[1]), Candidate(threads=1), QUICK, patience_s=60); "
        "print(engine._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    source = str(Path(naiad.__file__).parents[1])
    asked = subprocess.run(
        [sys.executable, "-c", script, str(watermark)],
        capture_output=True,
        env=os.environ | {"PYTHONPATH": source},
        check=False,
    )
    psutil.wait_procs([psutil.Process(pid) for pid in pids_left(int(asked.stdout))], 20)
    assert not pids_left(int(asked.stdout))


def pids_left(pid: int) -> list[int]:
    return [pid] if psutil.pid_exists(pid) else []


def test_between_questions_a_child_stands_still(watermark: Path) -> None:
    """Its threads might spin, and slow whoever is measured next."""
    with child(watermark) as engine:
        _, status = os.waitpid(engine._process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        assert engine.seconds("decode_one") > 0


def test_a_crash_is_told_with_its_signal(watermark: Path) -> None:
    with child(watermark) as engine:
        os.kill(engine._process.pid, signal.SIGSEGV)
        with pytest.raises(CandidateFailed, match="crashed with SIGSEGV"):
            engine.seconds("decode_one")


def test_a_model_that_cannot_be_loaded_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(CandidateFailed, match="is not a GGUF file"):
        (tmp_path / "odd.gguf").write_bytes(b"nothing")
        child(tmp_path / "odd.gguf")


def test_settings_that_the_engine_refuses_are_told_in_words(watermark: Path) -> None:
    with pytest.raises(CandidateFailed, match="cannot make a context"):
        child(watermark, kv_type="q8_0", flash_attention=False)


def test_no_answer_in_time_is_a_failure(watermark: Path) -> None:
    with pytest.raises(CandidateFailed, match="no answer within 0 s"):
        ChildEngine(watermark, Candidate(threads=1), TINY, patience_s=0.0)
    with pytest.raises(OutOfTime, match="no answer within 0 s"):
        ChildEngine(watermark, Candidate(threads=1), TINY, patience_s=9.0, end=0.0)


def test_the_build_is_looked_at_without_loading_it_here(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = look_at_build()
    assert isinstance(facts.has_amx, bool)
    monkeypatch.setattr(runner, "_START", "import sys; sys.exit('no library')")
    with pytest.raises(EngineUnavailable, match="does not load: no library"):
        look_at_build()

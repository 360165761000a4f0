"""The score of a suite by others: of all of it, or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conformance import run
from environments import Unavailable

GOOD = {"id": "a", "failures": []}
BAD = {
    "id": "b",
    "failures": [
        {"id": "odd", "message": "why", "severity": "MUST"},
        {"id": "mild", "message": "why", "severity": "SHOULD"},
    ],
}


def probed(
    monkeypatch: pytest.MonkeyPatch, folder: Path, report: dict[str, Any] | None
) -> run.Score:
    """The score of a report, as if llmprobe had just written it."""

    def write(command: list[str], _output: Path) -> str:
        if report is not None:
            Path(command[command.index("--save") + 1]).write_text(json.dumps(report))
        return ""

    monkeypatch.setattr(run, "REPORTS", folder)
    monkeypatch.setattr(run, "node_env", lambda *_: folder)
    monkeypatch.setattr(run, "_run", write)
    return run.llmprobe("http://nowhere")


def conformance(n_passed: int, *results: dict[str, Any]) -> dict[str, Any]:
    return {"conformance": {"passed": n_passed, "total": 3, "results": results}}


def test_what_must_be_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    score = probed(monkeypatch, tmp_path, conformance(2, GOOD, BAD))
    assert (score.n_passed, score.n_total) == (2, 3)
    assert score.failed == score.unexplained == {"odd": "why"}


def test_a_server_that_went_away_has_no_score(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    report = {**conformance(3, GOOD), "incomplete": "target became unreachable"}
    with pytest.raises(SystemExit, match="target became unreachable"):
        probed(monkeypatch, tmp_path, report)


def test_no_assertion_is_no_score(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = {"conformance": {"passed": 0, "total": 0, "results": []}}
    with pytest.raises(SystemExit, match="before its assertions"):
        probed(monkeypatch, tmp_path, report)
    with pytest.raises(Unavailable, match="no report"):
        probed(monkeypatch, tmp_path, None)

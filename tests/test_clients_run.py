"""`make test-clients` tells what became of each client, also of one that hangs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from clients import run

ROOT = Path(__file__).parents[1]


def client_that(does: str) -> run.Client:
    class Written(run.Client):
        def command(self) -> list[str]:
            return [sys.executable, "-c", does]

    return Written("written.py", ())


def test_a_client_that_hangs_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "CLIENT_S", 0.01)
    told = run.outcome(client_that("while True: pass"), "http://127.0.0.1:9")
    assert told == "not done within 0.01 s"


@pytest.mark.parametrize(
    ("told", "code"),
    [("passed", 0), ("not run: no Node", 0), ("exit code 1\n", 1), ("not done within 9 s", 1)],
)
def test_what_is_no_success_fails_the_whole(
    monkeypatch: pytest.MonkeyPatch, told: str, code: int
) -> None:
    def outcomes(_house: Any, clients: list[run.Client]) -> dict[str, str]:
        return {client.name: told for client in clients}

    monkeypatch.setattr(run, "outcomes", outcomes)
    lines: list[str] = []
    assert run.main([], lines.append) == code
    assert len(lines) == len(run.CLIENTS)


def test_the_workflow_names_clients_that_exist() -> None:
    steps = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    names = steps.split('make test-clients ARGS="')[1].split('"')[0].split()
    assert set(names) == {client.name for client in run.CLIENTS} - {"claude_code_client"}

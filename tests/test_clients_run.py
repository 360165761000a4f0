"""`make test-clients` tells what became of each client, also of one that hangs."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from clients import run


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
    lines: list[str] = []
    monkeypatch.setattr(run, "outcomes", telling(told))
    assert run.main([], lines.append) == code
    assert len(lines) == len([client for client in run.CLIENTS if not client.variant])


def telling(told: str) -> Any:
    def outcomes(_house: Any, clients: list[run.Client]) -> list[tuple[str, str]]:
        return [(client.name, told) for client in clients]

    return outcomes


def test_what_takes_long_runs_only_when_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(run, "outcomes", telling("passed"))
    assert run.main(["codex_gemma", "litellm_client"], lines.append) == 0
    assert [line.split()[0] for line in lines] == ["litellm_client", "codex_gemma"]
    assert run.main(["codecs_client"], lines.append) == 2
    assert "no client codecs_client; there are langchain_client," in lines[-1]

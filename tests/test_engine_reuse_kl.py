"""Reuse on the real models: equal to the last bit, or no further off than a crowd makes it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.model, pytest.mark.soak]

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def reuse_kl(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("reuse_kl")


@pytest.mark.parametrize(("model", "n_prompts"), [("starter", 3), ("gemma", 2)])
def test_reuse_is_exact_where_it_says_so(
    model: str,
    n_prompts: int,
    reuse_kl: Any,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Bit-equal from the same place, else within twice the largest of what company alone does.

    Each prompt has eight runs of the control and one of every other way: few against many.
    """
    found = reuse_kl.measure(request.getfixturevalue(model), n_prompts, tmp_path)
    promised = (*reuse_kl.BIT_EQUAL, *reuse_kl.EXACT)
    assert {way: reuse_kl.verdict(way, found) for way in promised} == dict.fromkeys(
        promised, "holds"
    ), "\n".join(reuse_kl.table(found))
    assert len(found[reuse_kl.CONTROL]) == len(reuse_kl.N_OTHERS) * n_prompts
    for way in (*reuse_kl.EXACT, *reuse_kl.SHIFTED, *reuse_kl.BIT_EQUAL[1:]):
        assert all(d.n_cached > 100 for d in found[way]), f"{way} reused nothing"


def test_a_table_says_what_was_found(reuse_kl: Any) -> None:
    control = reuse_kl.Difference(1e-3, True, False, 0)
    far = reuse_kl.Difference(1e-2, False, False, 300)
    found = {reuse_kl.CONTROL: [control], "branch": [far], "running": [control], "lore": [far]}
    assert [reuse_kl.verdict(way, found) for way in found] == ["", "FALLS SHORT", "holds", ""]
    lines = reuse_kl.table(found)
    assert len(lines) == 2 + len(found)
    assert "| branch | 300 | 1.0e-02 | 1.0e-02 | 0/1 | 0/1 | FALLS SHORT |" in lines


def test_no_token_is_reused_by_chance(reuse_kl: Any) -> None:
    """What follows a shared beginning must not go on as the prompt does, or chunks would differ."""
    trial = reuse_kl.Trial.__new__(reuse_kl.Trial)
    trial._prompt, trial._others = [1, 2, 3, 3], [[1, 3, 3, *range(4, 20)]]
    assert trial._tail(1) == [3, 3, 4, 5, 6, 7, 8, 9]
    assert trial._tail(2) == [4, 5, 6, 7, 8, 9, 10, 11]
    assert trial._tail(9) == trial._tail(1)

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


#: Correct runs in company differ from one alone by up to this many nats on these models; of so few
#: prompts the control's own largest says little.
COMPANY = 0.03


def test_reuse_is_exact_where_it_says_so(gemma: Path, reuse_kl: Any, tmp_path: Path) -> None:
    found = reuse_kl.measure(gemma, 2, tmp_path)
    verdicts = {way: reuse_kl.verdict(way, found) for way in found}
    assert {*reuse_kl.BIT_EQUAL, *reuse_kl.EXACT} <= found.keys()
    assert {way: verdicts[way] for way in reuse_kl.BIT_EQUAL if verdicts[way] != "holds"} == {}
    for way in reuse_kl.EXACT:
        assert max(difference.kl for difference in found[way]) <= COMPANY, way
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

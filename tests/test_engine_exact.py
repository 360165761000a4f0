"""The real engine under random work: every token is the only right one, the books always agree.

And four faults planted into it, to know that this would be noticed. A failure names its seed; the
same seed plays the same history again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from naiad.engine.executor import State
from naiad.engine.pool import Pool
from naiad.native.context import Memory
from random_work import Work

pytestmark = [pytest.mark.engine, pytest.mark.soak]

#: Changes of the configuration, the model's look-back, cells of the pool.
HISTORIES: tuple[tuple[dict[str, Any], int, int], ...] = (
    ({}, 40, 1536),
    ({"flash_attention": True}, 40, 1024),
    ({"flash_attention": False}, 40, 1024),
    ({"kv_type": "q8_0"}, 40, 1536),
    ({"context_shift": False, "drafts": False}, 40, 1280),
    ({"parallel": 8}, 40, 2048),
    ({"host_cache_mib": 0}, 40, 1280),
    ({"disk_cache": False}, 40, 1280),
    ({}, 400, 2048),
    ({"flash_attention": True}, 400, 1024),
    ({"flash_attention": False, "parallel": 6}, 400, 1280),
    ({"prefix_cache": False}, 400, 1280),
    ({"draft_model": "lookback"}, 40, 1280),
    ({"draft_model": "watermark", "parallel": 6}, 40, 1536),  # which guesses wrongly
)
N_STEPS = 850
#: What has to happen somewhere, or the histories have lost their meaning; at least so often.
EXPECTED = {
    "steps": 10_000,
    "share": 30,
    "load": 500,
    "load_shifted": 100,
    "move": 100,
    "put_back": 5,
    "drafted": 500,
    "restarts": 5,
    "overflows": 20,
    "from memory": 200,
    "from disk": 50,
    "NO_ROOM": 5,
    "ABORTED": 50,
    "cancelled": 50,
    "saved when idle": 3,
}


@pytest.fixture(scope="module")
def happened() -> Counter[str]:
    return Counter()


@pytest.fixture
def models(lookback: Path, lookback_400: Path) -> dict[int, Path]:
    return {40: lookback, 400: lookback_400}


@pytest.fixture
def draft_models(lookback: Path, watermark: Path) -> dict[str, str]:
    return {"lookback": str(lookback), "watermark": str(watermark)}


@pytest.mark.parametrize("seed", range(len(HISTORIES)))
def test_random_work_is_exact(
    seed: int,
    models: dict[int, Path],
    draft_models: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    happened: Counter[str],
) -> None:
    changes, back, pool_cells = HISTORIES[seed]
    if "draft_model" in changes:
        changes = changes | {"draft_model": draft_models[changes["draft_model"]]}
    work = Work(models[back], back, tmp_path, seed, monkeypatch, pool_cells=pool_cells, **changes)
    work.run(N_STEPS)
    happened += work.happened


def test_everything_that_matters_has_happened(happened: Counter[str]) -> None:
    if happened["steps"] < N_STEPS * len(HISTORIES):
        pytest.skip("only some of the histories were played")
    rare = {name: happened[name] for name, n in EXPECTED.items() if happened[name] < n}
    assert rare == {}


def test_random_work_is_exact_beside_the_lanes_own_thread(
    lookback: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Work(lookback, 40, tmp_path, 1, monkeypatch, has_thread=True).run(500)


# -- negative controls ----------------------------------------------------------------------------


def _foreign_prefix(patch: pytest.MonkeyPatch) -> None:
    """Of several states saved at one place, another one is loaded."""
    load, last = Pool.load, dict[tuple[int, int], State]()

    def foreign(self: Pool, slot: int, start: int, n_tokens: int, state: State) -> int:
        other = last.get((start, state.size), state)
        last[start, state.size] = state
        return load(self, slot, start, n_tokens, other)

    patch.setattr(Pool, "load", foreign)


def _foreign_sharing(patch: pytest.MonkeyPatch) -> None:
    """The prefix is shared from whoever else has as many tokens."""
    share = Pool.share

    def foreign(self: Pool, source: int, target: int, n_tokens: int) -> int:
        others = (s for s in range(self._n_slots) if s not in (source, target))
        long = (s for s in others if self.length(s) >= n_tokens)
        return share(self, next(long, source), target, n_tokens)

    patch.setattr(Pool, "share", foreign)


def _hole(patch: pytest.MonkeyPatch) -> None:
    """Some cells of a shared prefix are missing; its length is as it should be."""
    share = Pool.share

    def holey(self: Pool, source: int, target: int, n_tokens: int) -> int:
        length = share(self, source, target, n_tokens)
        self._memory.remove(target, max(n_tokens - 30, 1), n_tokens - 2)
        return length

    patch.setattr(Pool, "share", holey)


def _dirty_copy(patch: pytest.MonkeyPatch) -> None:
    """The target of a shared prefix had cells of its own."""
    share = Pool.share

    def dirty(self: Pool, source: int, target: int, n_tokens: int) -> int:
        others = (s for s in range(self._n_slots) if s not in (source, target))
        for other in others:
            if self.length(other):
                self._memory.share(other, target, 0, n_tokens)
                break
        return share(self, source, target, n_tokens)

    patch.setattr(Pool, "share", dirty)


def _unapplied_shift(patch: pytest.MonkeyPatch) -> None:
    """Shifted cells are saved, and loaded again, before the decode that would apply the shift."""
    load_shifted = Pool.load_shifted

    def unapplied(self: Pool, slot: int, start: int, end: int, shift: int, state: State) -> int:
        length = load_shifted(self, slot, start, end, shift, state)
        assert isinstance(self._memory, Memory)
        self._memory.shifted.clear()  # or nothing could be saved
        early = self._memory.save(slot)
        assert early is not None
        self._memory.remove(slot)
        assert self._memory.load(slot, early)
        return length

    patch.setattr(Pool, "load_shifted", unapplied)


FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], int]] = {
    "foreign prefix": (_foreign_prefix, 40),
    "foreign sharing": (_foreign_sharing, 40),
    "hole": (_hole, 40),
    "dirty copy": (_dirty_copy, 40),
    "unapplied shift": (_unapplied_shift, 40),
    "unapplied shift, far back": (_unapplied_shift, 400),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_shows_as_a_wrong_token(
    fault: str, models: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, back = FAULTS[fault]
    work = Work(models[back], back, tmp_path, 7, monkeypatch)
    plant(monkeypatch)
    with pytest.raises(AssertionError, match="said what is not so"):
        work.run(3000)
    work.core.close()
    work.backend.model.close()

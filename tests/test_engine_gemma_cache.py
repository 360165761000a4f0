"""Gemma 3 through the whole cache: lane, host memory, disk, restart, trimmed histories.

Sliding windows make each of these its own case. Real logits cannot tell right from nearly right, so
what is held to account is what can be: the bits, where the cells lie the same, and the size of the
saved states, which counts the cells of the full and of the sliding layers.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from naiad.config import EngineConfig
from naiad.engine.base import CoreJob
from naiad.engine.choosing import CaughtUp, Said
from naiad.engine.llama import LlamaBackend, load
from naiad.engine.saving import save
from naiad.types import SamplingParams
from patience import PATIENCE_S

pytestmark = [pytest.mark.engine, pytest.mark.model, pytest.mark.soak]

GREEDY = SamplingParams(temperature=0)
N = 620  # longer than the window


class Gemma:
    """The model behind a core with everything switched on."""

    def __init__(self, path: Path, folder: Path) -> None:
        self._config = EngineConfig(
            model=str(path),
            parallel=3,
            ctx=1024,
            threads=2,
            lane=True,
            n_ubatch=128,
            host_cache_mib=128,
            disk_cache_dir=str(folder),
            check_integrity=True,
        )
        self._uid = 0
        self.open()

    def open(self) -> None:
        backend = load(self._config)(lambda _: None)
        assert isinstance(backend, LlamaBackend)
        self.backend, self.core = backend, backend.core
        assert self.core._lane is not None
        self.core._lane._threads = 1
        self.rows: dict[int, npt.NDArray[np.float32]] = {}
        choose = self.core._chooser.choose

        def noting(caught_up: list[CaughtUp]) -> list[Said]:
            for c in caught_up:
                row = self.core._executor.logits(c.run, len(c.draft))
                self.rows.setdefault(c.sequence.uid, row.copy())
            return choose(caught_up)

        self.core._chooser.choose = noting  # type: ignore[method-assign]

    def close(self) -> None:
        self.core.close()
        self.backend.model.close()

    def restart(self) -> None:
        save(self.backend, [], time.monotonic() + PATIENCE_S)
        assert self.backend.flush(PATIENCE_S)
        self.close()
        self.open()

    def ask(self, prompt: list[int], namespace: str = "") -> tuple[npt.NDArray[np.float32], int]:
        """The logits after the prompt, and how much of it was known; then the pool is empty."""
        self._uid += 1
        self.core.add(CoreJob(self._uid, tuple(prompt), 1, GREEDY, namespace))
        items = []
        while self.core._by_uid or self.core.has_work():
            if self.core.has_work():
                items += self.core.step()
            else:
                assert self.core._lane is not None
                assert self.core._lane._running is not None
                self.core._lane._running.result()
        while self.core.idle_slice():
            pass
        return self.rows[self._uid], items[0].n_cached


@pytest.fixture(scope="module")
def gemma_core(gemma: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gemma]:
    opened = Gemma(gemma, tmp_path_factory.mktemp("gemma"))
    yield opened
    opened.close()


def prompt_of(seed: int, n: int) -> list[int]:
    rng = random.Random(seed)
    return [2, *(rng.randrange(1000, 200_000) for _ in range(n - 1))]


def test_lane_host_memory_and_disk_after_a_restart_are_equal_to_the_bit(gemma_core: Gemma) -> None:
    prompt = prompt_of(1, N)
    anew, n_cached = gemma_core.ask(prompt)
    assert n_cached == 0
    from_memory, n_from_memory = gemma_core.ask(prompt)
    gemma_core.restart()
    from_disk, n_from_disk = gemma_core.ask(prompt)
    assert gemma_core.core._prefix.host.counts.n_from_disk > 0
    assert (n_from_memory, n_from_disk) == (N - 1, N - 1)
    assert np.array_equal(anew, from_memory)
    assert np.array_equal(anew, from_disk)


def test_a_branch_before_the_window_is_equal_to_the_bit(gemma_core: Gemma) -> None:
    """Computed on from what was loaded: the same chunks as when computed anew."""
    stem, tail = prompt_of(2, 384), prompt_of(3, 200)
    anew, _ = gemma_core.ask([*stem, *tail], "anew")
    gemma_core.ask([*stem, *prompt_of(4, 230)], "warm")
    branched, n_cached = gemma_core.ask([*stem, *tail], "warm")
    assert n_cached >= 384
    assert np.array_equal(anew, branched)


def test_a_trimmed_history_is_shifted_and_stays_near(gemma_core: Gemma) -> None:
    system, turns, new = prompt_of(5, 130), prompt_of(6, 600), prompt_of(7, 20)
    trimmed = [*system, *turns[150:], *new]
    anew, _ = gemma_core.ask(trimmed, "trimmed anew")
    gemma_core.ask([*system, *turns], "trimmed")
    shifted, n_cached = gemma_core.ask(trimmed, "trimmed")
    assert n_cached > len(trimmed) - len(new) - 130
    assert np.isfinite(shifted).all()
    assert float(np.corrcoef(anew, shifted)[0, 1]) > 0.9

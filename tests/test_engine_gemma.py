"""Sliding-window attention through every kind of reuse, on the real model that has it.

A real model's logits cannot tell right from nearly right, but the size of a saved state can: it
counts the cells of the full layers and, apart from them, those that the window can still see.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from naiad.engine.base import CoreJob
from naiad.engine.compaction import Compactor
from naiad.engine.executor import NativeExecutor, Run, State
from naiad.engine.host_cache import BLOCK, HostCache
from naiad.engine.pool import Pool
from naiad.engine.prefix import PrefixCache
from naiad.engine.sequence import Sequence
from naiad.native.context import Context, ContextParams, DecodeOutcome
from naiad.native.model import Model
from naiad.types import SamplingParams

pytestmark = [pytest.mark.engine, pytest.mark.model]

N_CELLS = 1536


class Bench:
    """A context of Gemma 3 with a pool, and sequences decoded by hand."""

    def __init__(self, path: Path) -> None:
        self.model = Model(path)
        params = ContextParams(n_ctx=N_CELLS, n_seq_max=6, threads=1, flash_attention=True)
        self.context = Context(self.model, params)
        self.executor = NativeExecutor(self.context)
        self.memory = self.context.memory
        self.window = self.model.n_swa
        self.pool = Pool(self.memory, 5, self.window)
        self.rng = random.Random(1)
        self._shape: tuple[int, int, int] | None = None

    def tokens(self, n: int) -> list[int]:
        return [self.model.vocab.bos, *(self.rng.randrange(1000, 200_000) for _ in range(n - 1))]

    def put(self, slot: int, tokens: list[int], start: int = 0) -> None:
        for at in range(start, len(tokens), 512):
            run = Run(slot, tokens[at : at + 512], at, n_logits=1)
            assert self.executor.decode([run]) is DecodeOutcome.DONE

    def size(self, slot: int) -> int:
        state = self.memory.save(slot)
        assert state is not None
        return state.size

    def measure(self) -> None:
        """Learn how large a state of n tokens is, from sequences that reused nothing."""
        slot = self.pool.allocate()
        empty, tokens = self.size(slot), self.tokens(self.window + 10)
        sizes = {}
        for start, n in ((0, 1), (1, 2), (2, self.window), (self.window, self.window + 10)):
            self.put(slot, tokens[:n], start)
            sizes[n] = self.size(slot)
        both = sizes[2] - sizes[1]
        header = sizes[1] - both
        full = (sizes[self.window + 10] - sizes[self.window]) // 10
        assert empty < header
        assert sizes[self.window] == header + both * self.window
        self._shape = header, full, both - full
        self.pool.free(slot)

    def is_exact(self, slot: int, n: int) -> bool:
        """Whether the slot holds n cells in the full layers and the window in the others."""
        assert self._shape is not None
        header, full, sliding = self._shape
        return self.size(slot) == header + n * full + min(n, self.window) * sliding


@pytest.fixture(scope="module")
def opened(gemma: Path) -> Iterator[Bench]:
    bench = Bench(gemma)
    bench.measure()
    yield bench
    bench.executor.close()
    bench.model.close()


@pytest.fixture
def bench(opened: Bench) -> Iterator[Bench]:
    yield opened
    for slot in range(5):
        if slot not in opened.pool._free:
            opened.pool.free(slot)
    opened.pool.check_integrity({})


def slide(bench: Bench, n: int) -> tuple[int, list[int]]:
    """A sequence whose oldest cells of the sliding layers were given to another."""
    below, slot, above = (bench.pool.allocate() for _ in range(3))
    bench.put(below, bench.tokens(60))
    tokens = bench.tokens(n)
    bench.put(slot, tokens)
    bench.pool.free(below)
    bench.put(above, bench.tokens(100))
    assert bench.memory.pos_min(slot) > 0, "this build keeps them; the test tests nothing"
    return slot, tokens


def test_a_window_that_slid_is_shared_whole_or_not_at_all_and_can_be_moved(bench: Bench) -> None:
    n = bench.window + 60
    slot, tokens = slide(bench, n)
    assert bench.pool.length(slot) == n
    assert bench.is_exact(slot, n)
    branch = bench.pool.allocate()
    first = bench.memory.pos_min(slot)
    for cut in (first // 2, first, n - 20):
        assert bench.pool.share(slot, branch, cut) == 0
        bench.put(branch, tokens[:9])
        assert bench.is_exact(branch, 9)  # nothing of the full layers was left behind
        assert bench.pool.cut(branch, 0) == 0
    assert bench.pool.share(slot, branch, n) == n
    bench.put(branch, [*tokens, 7, 8, 9], n)
    assert bench.is_exact(branch, n + 3)
    bench.pool.free(branch)
    assert bench.pool.save(slot, 0, BLOCK) is None
    for start in range(0, n, BLOCK):
        assert bench.pool.move(slot, start, min(start + BLOCK, n))
    assert bench.pool.length(slot) == n
    assert bench.is_exact(slot, n)


def test_a_branch_before_the_window_comes_whole_from_host_memory(bench: Bench) -> None:
    n = bench.window + 60
    cache = PrefixCache(bench.pool, HostCache[State](1 << 28))
    tokens = bench.tokens(n)
    first = Sequence(CoreJob(1, tuple(tokens), 1, SamplingParams()), slot=bench.pool.allocate())
    bench.put(first.slot, tokens)
    first.computed = n
    cache.park(first)
    while cache.save_slice():
        pass
    for cut in (150, n - 30, n):
        branch = Sequence(CoreJob(2, (*tokens[:cut], 5, 6), 1, SamplingParams()))
        branch.slot = bench.pool.allocate()
        cache.attach(branch, cache.resident(branch, []))
        assert branch.computed == cut
        assert bench.is_exact(branch.slot, cut)
        bench.put(branch.slot, branch.tokens, cut)
        assert bench.is_exact(branch.slot, cut + 2)
        bench.pool.free(branch.slot)


def test_sharing_a_running_one_and_cutting_back_are_exact(bench: Bench) -> None:
    n = bench.window + 40
    slot, branch = bench.pool.allocate(), bench.pool.allocate()
    tokens = bench.tokens(n)
    bench.put(slot, tokens)
    assert bench.pool.share(slot, branch, 300) == 300
    bench.put(branch, [*tokens[:300], *range(2000, 2020)], 300)
    assert bench.is_exact(branch, 320)
    assert bench.pool.cut(branch, 310) == 310
    assert bench.is_exact(branch, 310)
    assert bench.is_exact(slot, n)


def test_a_stranded_stream_comes_down_exactly(bench: Bench) -> None:
    compactor = Compactor(bench.pool)
    below, slot = bench.pool.allocate(), bench.pool.allocate()
    bench.put(below, bench.tokens(400))
    tokens = bench.tokens(200)
    sequence = Sequence(CoreJob(1, tuple(tokens), 9, SamplingParams()), slot=slot, computed=200)
    bench.put(slot, tokens)
    compactor.placed([sequence], 600)
    bench.pool.free(below)
    assert compactor.tidy([sequence], 200)
    while compactor.tidy([sequence], 200):
        pass
    assert sequence.computed == bench.pool.length(slot) == 200
    assert bench.is_exact(slot, 200)

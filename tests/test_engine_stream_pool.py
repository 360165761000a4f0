"""Streams apart: copies instead of sharing, over the real engine and the look-back model."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from naiad.engine.executor import NativeExecutor, Run
from naiad.engine.stream_pool import StreamPool
from naiad.native.context import Context, ContextParams, DecodeOutcome
from naiad.native.model import Model
from naiad.testing.exact_models import N_CHARACTERS, character
from naiad.testing.lookback import lookback_text

pytestmark = pytest.mark.engine

N_SLOTS = 4


@dataclass
class Streams:
    """A pool over a real context whose sequences have streams of their own."""

    context: Context
    executor: NativeExecutor
    pool: StreamPool

    def text(self, seed: int, n: int) -> str:
        rng = random.Random(seed)
        return "".join(character(rng.randrange(N_CHARACTERS)) for _ in range(n))

    def ids(self, text: str) -> list[int]:
        return self.context.model.vocab.encode(text, add_special=True, parse_special=True)

    def compute(self, slot: int, ids: list[int]) -> None:
        """Let a slot catch up with these tokens."""
        start = self.pool.length(slot)
        outcome = self.executor.decode([Run(slot, ids[start:], start, n_logits=1)])
        assert outcome is DecodeOutcome.DONE

    def go_on(self, slots: dict[int, list[int]], n: int) -> dict[int, str]:
        """Greedy tokens of several slots, whose last token is not computed yet."""
        ids = {slot: list(known) for slot, known in slots.items()}
        for _ in range(n):
            order = sorted(ids)
            runs = [
                Run(s, ids[s][self.pool.length(s) :], self.pool.length(s), n_logits=1)
                for s in order
            ]
            assert self.executor.decode(runs) is DecodeOutcome.DONE
            for i, slot in enumerate(order):
                ids[slot].append(int(np.argmax(self.executor.logits(i))))
        vocab = self.context.model.vocab
        return {
            s: vocab.decode(all_ids[len(slots[s]) :], special=False).decode()
            for s, all_ids in ids.items()
        }


@pytest.fixture(scope="module")
def model(lookback: Path) -> Iterator[Model]:
    model = Model(lookback)
    yield model
    model.close()


@pytest.fixture(params=[(True, "f16"), (True, "q8_0"), (False, "f16")], ids=str)
def streams(model: Model, request: pytest.FixtureRequest) -> Iterator[Streams]:
    flash, kv_type = request.param
    params = ContextParams(
        n_ctx=512 * N_SLOTS,
        n_seq_max=N_SLOTS,
        n_batch=512,
        n_ubatch=128,
        flash_attention=flash,
        kv_type=kv_type,
        kv_unified=False,
    )
    context = Context(model, params)
    executor = NativeExecutor(context)
    yield Streams(context, executor, StreamPool(executor.memory, N_SLOTS))
    context.close()


def test_slots_stay_together_and_come_back_empty(streams: Streams) -> None:
    pool = streams.pool
    assert [pool.allocate() for _ in range(N_SLOTS)] == [0, 1, 2, 3]
    with pytest.raises(IndexError):
        pool.allocate()
    streams.compute(1, streams.ids(streams.text(1, 50)))
    pool.free(3)
    pool.free(1)
    assert (pool.available, pool.length(1)) == (2, 0)
    assert pool.allocate() == 1
    pool.check_integrity({0: 0, 1: 0, 2: 0})
    with pytest.raises(AssertionError):
        pool.check_integrity({0: 0, 1: 5, 2: 0})


def test_a_copied_prefix_is_exact_whatever_becomes_of_its_source(streams: Streams) -> None:
    pool = streams.pool
    first, second = pool.allocate(), pool.allocate()
    base, own = streams.text(1, 150), streams.text(2, 60)
    streams.compute(first, streams.ids(base))
    assert pool.share(first, second, 91) == 91
    pool.free(first)  # and its cells are used again, before anything is decoded
    first = pool.allocate()
    streams.compute(first, streams.ids(streams.text(3, 150)))
    branch = base[:90] + own
    said = streams.go_on({second: streams.ids(branch)}, 30)
    assert said == {second: lookback_text(branch, 30)}
    assert not pool.is_sharing(second)


def test_a_prefix_longer_than_its_source_is_not_made_up(streams: Streams) -> None:
    pool = streams.pool
    first, second = pool.allocate(), pool.allocate()
    streams.compute(first, streams.ids(streams.text(1, 50)))
    assert pool.share(first, second, 90) == 0
    assert pool.length(second) == 0


def test_whole_sequences_are_saved_and_come_back_cut(streams: Streams) -> None:
    pool = streams.pool
    slot = pool.allocate()
    text = streams.text(4, 120)
    ids = streams.ids(text)
    streams.compute(slot, ids)
    assert pool.save(slot, 0, 64) is None
    assert pool.save(slot, 64, len(ids)) is None
    state = pool.save(slot, 0, len(ids))
    assert state is not None
    pool.free(slot)
    slot = pool.allocate()
    assert pool.load(slot, 64, 10, state) == 0  # it began at 0
    assert pool.load(slot, 0, 100, state) == 100
    assert pool.load(slot, 0, 110, state) == 100  # not empty any more
    branch = text[:99] + streams.text(5, 50)
    assert streams.go_on({slot: streams.ids(branch)}, 20) == {slot: lookback_text(branch, 20)}


def test_streams_side_by_side_do_not_meet(streams: Streams) -> None:
    pool = streams.pool
    texts = {pool.allocate(): streams.text(seed, 60 + 20 * seed) for seed in range(N_SLOTS)}
    for slot, text in texts.items():
        streams.compute(slot, streams.ids(text)[:-1])
    assert pool.move(0, 0, 20)
    said = streams.go_on({slot: streams.ids(text) for slot, text in texts.items()}, 25)
    assert said == {slot: lookback_text(text, 25) for slot, text in texts.items()}
    pool.check_integrity({slot: pool.length(slot) for slot in texts})


def test_a_partial_copy_does_not_end_the_process(streams: Streams) -> None:
    """The memory itself guards, whoever asks: the library would abort."""
    slot, other = streams.pool.allocate(), streams.pool.allocate()
    streams.compute(slot, streams.ids(streams.text(6, 100)))
    memory = streams.executor.memory
    memory.share(slot, other, 20, 60)
    assert (memory.pos_min(other), memory.pos_max(other)) == (20, 59)
    memory.share(2, other, 0, 10)  # nothing there
    assert memory.pos_max(other) == -1

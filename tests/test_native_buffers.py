"""Memory prepared in advance for saved states."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.native.buffers import LEAST, TouchedBuffers, bytes_held, rounded_up
from patience import PATIENCE_S

LIMIT = 4 << 20


@pytest.fixture
def buffers() -> Iterator[TouchedBuffers]:
    buffers = TouchedBuffers(LIMIT)
    yield buffers
    buffers.close()


def settled(buffers: TouchedBuffers) -> int:
    """Bytes in stock once all that was asked for is there."""
    assert buffers.settle(PATIENCE_S)
    return buffers.n_bytes


@pytest.mark.parametrize("size", [0, 1, LEAST - 1, LEAST, LEAST + 1, 3_000_001, LIMIT + 1])
def test_an_array_has_the_size_that_was_asked_for(buffers: TouchedBuffers, size: int) -> None:
    for _ in range(2):
        array = buffers.take(size)
        assert (array.nbytes, array.flags.writeable) == (size, True)
        settled(buffers)


def test_what_was_taken_is_replaced_in_advance(buffers: TouchedBuffers) -> None:
    buffers.take(1_000_000)
    assert settled(buffers) == rounded_up(1_000_000)
    assert not buffers.take(999_000).any()  # prepared, for another size near it
    assert settled(buffers) == rounded_up(1_000_000)


def test_what_was_taken_does_not_come_back(buffers: TouchedBuffers) -> None:
    buffers.take(1_000_000)
    settled(buffers)
    first = buffers.take(1_000_000)
    settled(buffers)
    second = buffers.take(1_000_000)
    first[:], second[:] = 1, 2
    assert first.max() == 1
    settled(buffers)
    del first
    assert not buffers.take(1_000_000).any()


def test_a_burst_leaves_as_many_as_it_took(buffers: TouchedBuffers) -> None:
    with buffers._changed:  # before its thread has made the first of them
        taken = [buffers.take(1 << 19) for _ in range(4)]
    assert settled(buffers) == sum(array.nbytes for array in taken)


def test_the_stock_is_bounded_and_keeps_what_was_asked_for_last(buffers: TouchedBuffers) -> None:
    for size in (1 << 20, 1 << 20, 3 << 20):
        buffers.take(size)
        settled(buffers)
    assert buffers.n_bytes == LIMIT
    buffers.take(2 << 20)
    assert settled(buffers) <= LIMIT
    buffers.take(2 << 20)
    assert settled(buffers) == 2 << 20  # one was there, and its successor
    buffers.take(LIMIT + 1)
    assert settled(buffers) == 2 << 20


def test_what_nobody_has_time_to_prepare_does_not_add_up() -> None:
    buffers = TouchedBuffers(LIMIT)
    buffers._keeper = threading.current_thread()  # one that never gets to it
    for _ in range(1000):
        buffers.take(1 << 20)
    assert list(buffers._wanted) == [1 << 20] * 4


def test_small_ones_are_not_kept(buffers: TouchedBuffers) -> None:
    buffers.take(LEAST - 1)
    assert settled(buffers) == 0


def test_after_the_end_there_is_only_new_memory() -> None:
    buffers = TouchedBuffers(LIMIT)
    buffers.take(1 << 20)
    buffers.close()
    buffers.close()
    assert buffers.take(1 << 20).nbytes == 1 << 20
    assert buffers.take(1 << 20).nbytes == 1 << 20


def test_what_an_array_keeps_is_known(buffers: TouchedBuffers) -> None:
    size = 1_100_000
    assert bytes_held(buffers.take(size)) == size  # new
    settled(buffers)
    prepared = buffers.take(size)
    assert (prepared.nbytes, bytes_held(prepared)) == (size, rounded_up(size))


def test_without_a_stock_no_thread_prepares_anything() -> None:
    buffers = TouchedBuffers(0)
    assert buffers.take(1 << 20).nbytes == 1 << 20
    assert buffers._keeper is None


@given(st.integers(4, 1 << 40))
def test_rounding_up_wastes_a_quarter_at_most(size: int) -> None:
    assert size <= rounded_up(size) <= size * 1.25
    assert rounded_up(rounded_up(size)) == rounded_up(size)

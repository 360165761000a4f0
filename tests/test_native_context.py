"""Batches, contexts and their memory, on tiny models in the real engine."""

from __future__ import annotations

import ctypes
import logging
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from naiad.engine.executor import NativeExecutor, Run
from naiad.errors import ModelFileError
from naiad.native import library
from naiad.native.batch import Batch
from naiad.native.context import AbortFlag, Context, ContextParams, DecodeOutcome
from naiad.native.model import Model
from naiad.testing.exact_models import FIRST_CHARACTER, N_CHARACTERS

pytestmark = pytest.mark.engine

BACK = 40


@pytest.fixture(scope="module")
def model(lookback: Path) -> Iterator[Model]:
    model = Model(lookback)
    yield model
    model.close()


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    context = Context(model, ContextParams(n_ctx=512, n_seq_max=4, n_batch=256, n_ubatch=64))
    yield context
    context.close()


def random_tokens(seed: int, n: int) -> list[int]:
    rng = random.Random(seed)
    return [FIRST_CHARACTER + rng.randrange(N_CHARACTERS) for _ in range(n)]


def decode(context: Context, seq: int, tokens: list[int], start: int = 0) -> int:
    """The likeliest token after these."""
    batch = Batch(len(tokens))
    last = batch.add(seq, tokens, start, n_logits=1)
    assert context.decode(batch) is DecodeOutcome.DONE
    return int(context.logits(last).argmax())


def after(tokens: list[int]) -> int:
    """The only right next token."""
    place = tokens[len(tokens) - 1 - BACK] - FIRST_CHARACTER
    return FIRST_CHARACTER + (place + 1) % N_CHARACTERS


# -- batches ----------------------------------------------------------------------------------


def test_a_batch_is_what_was_added() -> None:
    batch = Batch(10)
    assert batch.add(2, [7, 8, 9], 5, n_logits=1) == 2
    assert batch.add(1, [4], 0, n_logits=0) == 3
    native = batch.native()
    assert native.n_tokens == 4
    rows = [
        (native.token[i], native.pos[i], native.n_seq_id[i], native.seq_id[i][0], native.logits[i])
        for i in range(4)
    ]
    assert rows == [(7, 5, 1, 2, 0), (8, 6, 1, 2, 0), (9, 7, 1, 2, 1), (4, 0, 1, 1, 0)]


def test_a_cleared_batch_keeps_nothing_of_the_last() -> None:
    batch = Batch(4)
    batch.add(3, [1, 2, 3, 4], 9, n_logits=1)
    batch.clear()
    batch.add(0, [5, 6], 0, n_logits=0)
    native = batch.native()
    assert native.n_tokens == 2
    assert [native.logits[i] for i in range(2)] == [0, 0]
    assert [native.seq_id[i][0] for i in range(2)] == [0, 0]


def test_more_than_fits_is_an_error_and_not_a_write_beyond_the_end() -> None:
    with pytest.raises(ValueError, match="shape"):
        Batch(3).add(0, [1, 2, 3, 4], 0, n_logits=1)


# -- decoding ---------------------------------------------------------------------------------


def test_each_sequence_of_a_batch_gets_its_own_logits(context: Context) -> None:
    prompts = {seq: random_tokens(seq, 50 + seq) for seq in range(4)}
    batch = Batch(256)
    last = {seq: batch.add(seq, t, 0, n_logits=1) for seq, t in prompts.items()}
    assert context.decode(batch) is DecodeOutcome.DONE
    for seq, tokens in prompts.items():
        logits = context.logits(last[seq])
        assert logits.shape == (context.model.vocab.n_tokens,)
        assert int(logits.argmax()) == after(tokens)


def test_a_prompt_in_pieces_is_the_prompt(context: Context) -> None:
    tokens = random_tokens(9, 130)
    for start in range(0, 120, 30):
        decode(context, 0, tokens[start : start + 30], start)
    assert decode(context, 0, tokens[120:], 120) == after(tokens)


def test_a_gap_in_positions_is_fatal_and_not_an_answer(context: Context) -> None:
    decode(context, 0, random_tokens(1, 20))
    batch = Batch(4)
    batch.add(0, [FIRST_CHARACTER], 25, n_logits=1)
    assert context.decode(batch) is DecodeOutcome.FATAL


def test_an_interrupted_decode_keeps_whole_micro_batches(context: Context) -> None:
    context.abort.set()
    batch = Batch(256)
    tokens = random_tokens(2, 200)
    batch.add(0, tokens, 0, n_logits=1)
    assert context.decode(batch) is DecodeOutcome.ABORTED
    kept = context.memory.pos_max(0) + 1
    assert kept % context.params.n_ubatch == 0
    context.abort.clear()
    assert decode(context, 0, tokens[kept:], kept) == after(tokens)


def test_an_abort_flag_is_what_the_library_calls() -> None:
    flag = AbortFlag()
    assert not flag.callback(flag.data)
    other = threading.Thread(target=flag.set)
    other.start()
    other.join()
    assert flag.callback(flag.data)
    flag.clear()
    assert not flag.callback(flag.data)


def test_the_executor_refuses_a_step_that_would_end_the_process(model: Model) -> None:
    """llama.cpp asserts that a batch fits; and it cuts the batch size down to the cells."""
    context = Context(model, ContextParams(n_ctx=256, n_seq_max=2, n_batch=2048))
    executor = NativeExecutor(context)
    assert context.n_batch == 256
    big = [Run(s, random_tokens(s, 150), 0, n_logits=1) for s in (0, 1)]
    assert executor.decode(big) is DecodeOutcome.NO_ROOM
    assert executor.decode(big[:1]) is DecodeOutcome.DONE
    assert int(executor.logits(0).argmax()) == after(list(big[0].tokens))
    executor.close()
    executor.close()


def test_a_context_that_cannot_be_made_says_why(model: Model) -> None:
    with pytest.raises(ModelFileError, match="cannot make a context of 256 cells"):
        Context(model, ContextParams(n_ctx=256, n_seq_max=100_000))


# -- memory -----------------------------------------------------------------------------------


def test_positions_of_an_empty_sequence(context: Context) -> None:
    assert (context.memory.pos_min(0), context.memory.pos_max(0)) == (-1, -1)
    context.memory.remove(0)
    context.memory.share(0, 1, 0, 10)
    assert context.memory.pos_max(1) == -1


def test_removing_and_sharing_are_half_open(context: Context) -> None:
    tokens, memory = random_tokens(3, 60), context.memory
    decode(context, 0, tokens)
    memory.share(0, 1, 0, 50)
    assert (memory.pos_min(1), memory.pos_max(1)) == (0, 49)
    memory.remove(1, 45, -1)
    assert memory.pos_max(1) == 44
    memory.remove(1, 0, 10)
    assert memory.pos_min(1) == 10
    assert (memory.pos_min(0), memory.pos_max(0)) == (0, 59)
    memory.share(0, 2, 0, 55)
    assert decode(context, 2, tokens[55:], 55) == after(tokens)


def test_a_saved_sequence_comes_back_anywhere(context: Context) -> None:
    tokens, memory = random_tokens(4, 80), context.memory
    decode(context, 0, tokens[:70])
    state = memory.save(0)
    assert state is not None
    memory.remove(0)
    decode(context, 0, random_tokens(5, 30))
    assert memory.load(3, state)
    assert (memory.pos_min(3), memory.pos_max(3)) == (0, 69)
    assert decode(context, 3, tokens[70:], 70) == after(tokens)


def test_loading_replaces_what_was_there(context: Context) -> None:
    tokens, memory = random_tokens(6, 80), context.memory
    decode(context, 0, tokens[:70])
    state = memory.save(0)
    assert state is not None
    decode(context, 1, random_tokens(7, 100))
    assert memory.load(1, state)
    assert memory.pos_max(1) == 69
    assert decode(context, 1, tokens[70:], 70) == after(tokens)


class Heard:
    """Stands in for the module's logger: (level, line) of everything that is logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []

    def log(self, level: int, message: str, line: str) -> None:
        self.lines.append((level, message % line))


@pytest.mark.parametrize("expected", [True, False])
def test_lines_held_back_are_as_loud_as_their_outcome(
    monkeypatch: pytest.MonkeyPatch, expected: bool
) -> None:
    heard = Heard()
    monkeypatch.setattr(library, "logger", heard)
    relay = library.start()
    with relay.holding() as held:
        relay._take(logging.ERROR, "failed to find 250 cells")
        assert heard.lines == []
        held.is_expected = expected
    level = logging.DEBUG if expected else logging.ERROR
    assert heard.lines == [(level, "failed to find 250 cells")]


def test_no_room_for_a_state_is_no_alarm(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = context.memory
    decode(context, 0, random_tokens(8, 250))
    state = memory.save(0)
    assert state is not None
    decode(context, 1, random_tokens(9, 200))
    heard = Heard()
    monkeypatch.setattr(library, "logger", heard)
    assert not memory.load(2, state)
    assert memory.pos_max(2) == -1
    assert all(level == logging.DEBUG for level, _ in heard.lines)
    memory.remove(1)
    assert memory.load(2, state)


@pytest.mark.parametrize("changed", [{"flash_attention": False}, {"kv_type": "q8_0"}])
def test_a_state_of_other_settings_is_refused(
    context: Context, model: Model, changed: dict[str, object]
) -> None:
    decode(context, 0, random_tokens(1, 50))
    state = context.memory.save(0)
    assert state is not None
    settings = {"n_ctx": 512, "n_seq_max": 4, **changed}
    other = Context(model, ContextParams(**settings))  # type: ignore[arg-type]
    assert not other.memory.load(0, state)
    other.close()


@pytest.mark.parametrize("damage", ["empty", "short", "noise"])
def test_a_damaged_state_is_refused(context: Context, damage: str) -> None:
    decode(context, 0, random_tokens(1, 50))
    state = context.memory.save(0)
    assert state is not None
    broken = {
        "empty": state[:0],
        "short": state[: state.size // 2],
        "noise": np.full(4096, 255, np.uint8),
    }[damage]
    assert not context.memory.load(1, broken.copy())
    assert context.memory.pos_max(0) == 49


# -- the library ------------------------------------------------------------------------------


def emit(*parts: tuple[int, str]) -> None:
    relay = library.start()
    for level, text in parts:
        relay.callback(level, text.encode(), ctypes.c_void_p(0))


def test_fragments_are_joined_into_lines(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "naiad.native"):
        emit((3, "one "), (5, "line\ntwo"), (5, "\n"), (4, "three\n\n"))
    assert [(r.levelno, r.message) for r in caplog.records] == [
        (logging.WARNING, "one line"),
        (logging.WARNING, "two"),
        (logging.ERROR, "three"),
    ]
    assert library.recent_errors()[-1] == "three"


def test_a_false_alarm_is_not_passed_on_as_one(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "naiad.native"):
        emit((3, "n_ctx_seq (8192) > n_ctx_train (2048)\n"))
    assert [r.levelno for r in caplog.records] == [logging.DEBUG]


@pytest.mark.parametrize("as_debug", [True, False])
def test_lines_are_held_until_their_worth_is_known(
    caplog: pytest.LogCaptureFixture, as_debug: bool
) -> None:
    relay = library.start()
    with caplog.at_level(logging.DEBUG, "naiad.native"), relay.holding() as held:
        emit((4, "decode failed\n"))
        assert not caplog.records
        held.is_expected = as_debug
    assert [r.levelno for r in caplog.records] == [logging.DEBUG if as_debug else logging.ERROR]


def test_an_exception_does_not_swallow_the_lines_after_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    relay = library.start()
    with caplog.at_level(logging.DEBUG, "naiad.native"):
        with pytest.raises(ValueError), relay.holding():
            emit((4, "before\n"))
            raise ValueError
        emit((4, "after\n"))
    assert [r.getMessage() for r in caplog.records] == ["before", "after"]


def test_the_build_describes_itself() -> None:
    assert "=" in library.system_info()
    assert library.max_sequences() >= 64
    assert library.has_gpu() in (True, False)

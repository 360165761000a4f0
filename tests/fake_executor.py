"""A context in pure Python that computes the look-back rule from its own cells.

Every cell knows its token and position, so a wrong, missing, shifted or foreign cell shows as a
wrong next token, exactly as it does in the look-back model in the real engine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor as ThreadLike
from concurrent.futures import Future
from typing import Any

import numpy as np
import numpy.typing as npt

from naiad.engine.executor import DecodeOutcome, Run, State

N_VOCAB = 64
EOG = 63
BACK = 3


def successor(token: int) -> int:
    """Cycles through 0..62; the end-of-generation token is never a successor."""
    return (token + 1) % EOG


def answer(prompt: list[int], n: int, back: int = BACK) -> list[int]:
    """The only right continuation."""
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(successor(tokens[len(tokens) - 1 - back]))
    return tokens[len(prompt) :]


class FakeMemory:
    """seq -> position -> cell; a cell is a one-element list, so sharing is by identity."""

    def __init__(self, n_cells: int) -> None:
        self.n_cells = n_cells
        self.sequences: dict[int, dict[int, list[int]]] = {}
        self.unapplied: set[int] = set()

    def _cells(self, seq: int) -> dict[int, list[int]]:
        return self.sequences.setdefault(seq, {})

    @property
    def n_used(self) -> int:
        return len(set().union(*(map(id, cells.values()) for cells in self.sequences.values())))

    def pos_min(self, seq: int) -> int:
        return min(self._cells(seq), default=-1)

    def pos_max(self, seq: int) -> int:
        return max(self._cells(seq), default=-1)

    def remove(self, seq: int, start: int = -1, end: int = -1) -> None:
        stop = end if end >= 0 else 1 << 30
        cells = self._cells(seq)
        for pos in [p for p in cells if max(start, 0) <= p < stop]:
            del cells[pos]

    def share(self, source: int, target: int, start: int, end: int) -> None:
        wanted = {p: c for p, c in self._cells(source).items() if start <= p < end}
        assert not wanted.keys() & self._cells(target).keys(), "shared onto positions in use"
        self._cells(target).update(wanted)

    def shift(self, seq: int, start: int, end: int, delta: int) -> None:
        """Positions move at once, contents with the next decode, as in the real engine."""
        cells = self._cells(seq)
        moved = {p: cells.pop(p) for p in [p for p in cells if start <= p < end]}
        for position, cell in moved.items():
            cells[position + delta] = cell
            self.unapplied.add(id(cell))

    def spoil_unapplied(self) -> None:
        """An interrupted decode has moved some layers' contents only, and knows nothing of it."""
        for cells in self.sequences.values():
            for cell in cells.values():
                if id(cell) in self.unapplied:
                    cell[0] = -1

    def save(self, seq: int) -> State | None:
        cells = self._cells(seq)
        if not cells or self.unapplied & {id(c) for c in cells.values()}:
            return None
        flat = [x for pos in sorted(cells) for x in (pos, cells[pos][0])]
        return np.array(flat, np.int32).view(np.uint8)

    def load(self, seq: int, state: State) -> bool:
        flat = state.view(np.int32).tolist()
        self.remove(seq)
        if self.n_used + len(flat) // 2 > self.n_cells:
            return False
        for pos, token in zip(flat[::2], flat[1::2], strict=True):
            self.append(seq, pos, token)
        return True

    def append(self, seq: int, pos: int, token: int) -> None:
        cells = self._cells(seq)
        assert pos not in cells, "computed a position twice"
        cells[pos] = self._new_cell(token)

    def _new_cell(self, token: int) -> list[int]:
        return [token]


class NumberedMemory(FakeMemory):
    """Cells have places, and the lowest free one is taken first, as in the real pool."""

    def _new_cell(self, token: int) -> list[int]:
        taken = {cell[1] for cells in self.sequences.values() for cell in cells.values()}
        return [token, next(i for i in range(self.n_cells + 1) if i not in taken)]

    @property
    def highest(self) -> int:
        """What attention has to run over."""
        return max(
            (cell[1] for cells in self.sequences.values() for cell in cells.values()), default=-1
        )


class SlidingMemory(FakeMemory):
    """Full layers and sliding layers, each with their own cells, as llama.cpp keeps them.

    Lengths speak of the sliding cells only; a state holds what its own last position can look at.
    """

    def __init__(self, n_cells: int, window: int) -> None:
        super().__init__(n_cells)
        self.window = window
        self.sliding = FakeMemory(n_cells)

    def pos_min(self, seq: int) -> int:
        return self.sliding.pos_min(seq)

    def pos_max(self, seq: int) -> int:
        return self.sliding.pos_max(seq)

    def remove(self, seq: int, start: int = -1, end: int = -1) -> None:
        super().remove(seq, start, end)
        self.sliding.remove(seq, start, end)

    def share(self, source: int, target: int, start: int, end: int) -> None:
        super().share(source, target, start, end)
        self.sliding.share(source, target, start, end)

    def append(self, seq: int, pos: int, token: int) -> None:
        super().append(seq, pos, token)
        self.sliding.append(seq, pos, token)

    def shift(self, seq: int, start: int, end: int, delta: int) -> None:
        super().shift(seq, start, end, delta)
        self.sliding.shift(seq, start, end, delta)

    def save(self, seq: int) -> State | None:
        full = super().save(seq)
        if full is None:
            return None
        last = self.pos_max(seq)
        kept = [p for p in self.sliding._cells(seq) if last - p < self.window]
        return np.concatenate([full, np.array([*sorted(kept), len(kept)], np.int32).view(np.uint8)])

    def load(self, seq: int, state: State) -> bool:
        flat = state.view(np.int32)
        n_kept = int(flat[-1])
        if not super().load(seq, flat[: len(flat) - 1 - n_kept].view(np.uint8)):
            return False
        kept = set(flat[len(flat) - 1 - n_kept : -1].tolist())
        self.sliding.sequences[seq] = {
            p: c for p, c in self.sliding.sequences[seq].items() if p in kept
        }
        return True

    def forget(self, seq: int) -> None:
        """Give away the sliding cells of one owner that its next position cannot look at."""
        owners = Counter(
            id(cell) for cells in self.sliding.sequences.values() for cell in cells.values()
        )
        cells = self.sliding._cells(seq)
        gone = [
            p
            for p, cell in cells.items()
            if self.pos_max(seq) + 1 - p >= self.window and owners[id(cell)] == 1
        ]
        self.sliding.remove(seq, 0, max(gone, default=-1) + 1)


class FakeExecutor:
    """Decodes over FakeMemory.

    during: called inside each decode, e.g. to hint a cancel from "another thread".
    """

    def __init__(
        self, n_cells: int = 4096, back: int = BACK, memory: FakeMemory | None = None
    ) -> None:
        self.memory = memory or FakeMemory(n_cells)
        self.back = back
        self.decoded: list[list[Run]] = []
        self.interrupted = False
        self.is_closed = False
        self.force_nan = False
        self.n_threads = 1
        self.fatal = False
        self.during: Callable[[], None] = lambda: None
        self._rows: list[list[npt.NDArray[np.float32]]] = []

    def decode(self, runs: list[Run]) -> DecodeOutcome:
        n_new = sum(len(run.tokens) for run in runs)
        if self.fatal:
            return DecodeOutcome.FATAL
        if self.memory.n_used + n_new > self.memory.n_cells:
            return DecodeOutcome.NO_ROOM
        self.decoded.append(runs)
        self.during()
        if self.interrupted:
            self.memory.spoil_unapplied()
        self.memory.unapplied.clear()
        half = runs if not self.interrupted else runs[: len(runs) // 2]
        for run in half:
            self._append(run)
        if self.interrupted:
            return DecodeOutcome.ABORTED
        self._rows = [[self._row(run, back) for back in range(run.n_logits)] for run in runs]
        return DecodeOutcome.DONE

    def _append(self, run: Run) -> None:
        for offset, token in enumerate(run.tokens):
            self.memory.append(run.slot, run.start + offset, token)

    def _row(self, run: Run, back: int) -> npt.NDArray[np.float32]:
        row = np.zeros(N_VOCAB, np.float32)
        cells = self.memory.sequences[run.slot]
        last = max(cells)
        assert len(cells) == last + 1, "a hole in the sequence"
        if isinstance(self.memory, SlidingMemory):
            seen = set(range(max(0, last - self.memory.window + 1), last + 1))
            assert seen <= self.memory.sliding.sequences[run.slot].keys(), "the window has a hole"
        row[successor(cells[last - back - self.back][0])] = 30
        if self.force_nan:
            row[:] = np.nan
        return row

    def logits(self, run: int, back: int = 0) -> npt.NDArray[np.float32]:
        return self._rows[run][back]

    def set_threads(self, n_threads: int) -> None:
        self.n_threads = n_threads

    def interrupt(self) -> None:
        self.interrupted = True

    def clear_interrupt(self) -> None:
        self.interrupted = False

    def close(self) -> None:
        self.is_closed = True


class FakeVocab:
    """Tokens are bytes of their own number; 63 ends a generation."""

    n_tokens = N_VOCAB
    eog = frozenset({EOG})

    def piece(self, token: int, *, special: bool = False) -> bytes:
        return bytes([token])

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return list(text.encode())


class OnTheSpot(ThreadLike):
    """Computes where it is asked to."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


class Later(ThreadLike):
    """Computes when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append(lambda: future.set_result(fn(*args, **kwargs)))
        return future

    def compute(self) -> None:
        self.waiting.pop(0)()

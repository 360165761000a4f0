"""A context in pure Python that computes the look-back rule from its own cells.

Every cell knows its token and position, so a wrong, missing, shifted or foreign cell shows as a
wrong next token, exactly as it does in the look-back model in the real engine.
"""

from __future__ import annotations

from collections.abc import Callable

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

    def _cells(self, seq: int) -> dict[int, list[int]]:
        return self.sequences.setdefault(seq, {})

    @property
    def n_used(self) -> int:
        return len({id(cell) for cells in self.sequences.values() for cell in cells.values()})

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

    def save(self, seq: int) -> State | None:
        cells = self._cells(seq)
        if not cells:
            return None
        flat = [x for pos in sorted(cells) for x in (pos, cells[pos][0])]
        return np.array(flat, np.int32).view(np.uint8)

    def load(self, seq: int, state: State) -> bool:
        flat = state.view(np.int32).tolist()
        self.remove(seq)
        if self.n_used + len(flat) // 2 > self.n_cells:
            return False
        self.sequences[seq] = {p: [t] for p, t in zip(flat[::2], flat[1::2], strict=True)}
        return True


class FakeExecutor:
    """Decodes over FakeMemory.

    during: called inside each decode, e.g. to hint a cancel from "another thread".
    """

    def __init__(self, n_cells: int = 4096, back: int = BACK) -> None:
        self.memory = FakeMemory(n_cells)
        self.back = back
        self.decoded: list[list[Run]] = []
        self.interrupted = False
        self.is_closed = False
        self.force_nan = False
        self.fatal = False
        self.during: Callable[[], None] = lambda: None
        self._rows: list[npt.NDArray[np.float32]] = []

    def decode(self, runs: list[Run]) -> DecodeOutcome:
        n_new = sum(len(run.tokens) for run in runs)
        if self.fatal:
            return DecodeOutcome.FATAL
        if self.memory.n_used + n_new > self.memory.n_cells:
            return DecodeOutcome.NO_ROOM
        self.decoded.append(runs)
        self.during()
        half = runs if not self.interrupted else runs[: len(runs) // 2]
        for run in half:
            self._append(run)
        if self.interrupted:
            return DecodeOutcome.ABORTED
        self._rows = [self._row(run) for run in runs]
        return DecodeOutcome.DONE

    def _append(self, run: Run) -> None:
        cells = self.memory.sequences.setdefault(run.slot, {})
        for offset, token in enumerate(run.tokens):
            assert run.start + offset not in cells, "computed a position twice"
            cells[run.start + offset] = [token]

    def _row(self, run: Run) -> npt.NDArray[np.float32]:
        row = np.zeros(N_VOCAB, np.float32)
        if not run.wants_logits:
            return row
        cells = self.memory.sequences[run.slot]
        last = max(cells)
        assert sorted(cells) == list(range(last + 1)), "a hole in the sequence"
        row[successor(cells[last - self.back][0])] = 30
        if self.force_nan:
            row[:] = np.nan
        return row

    def logits(self, run: int) -> npt.NDArray[np.float32]:
        return self._rows[run]

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

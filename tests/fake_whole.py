"""Contexts in pure Python whose sequences are all or nothing, or have streams of their own."""

from __future__ import annotations

from fake_executor import FakeExecutor, FakeMemory
from naiad.engine.executor import DecodeOutcome, Run, State


class WholeMemory(FakeMemory):
    """A recurrent model's: one state for a sequence, which stands for all its tokens.

    Nothing of it can be dropped, and it says so no more than the real one does.
    """

    def pos_min(self, seq: int) -> int:
        return self.pos_max(seq)

    def remove(self, seq: int, start: int = -1, end: int = -1) -> None:
        if (start <= 0 and end < 0) or not self.sequences.get(seq):
            super().remove(seq)

    def share(self, source: int, target: int, start: int, end: int) -> None:
        raise AssertionError("a piece of a state was asked for")


class StreamMemory(FakeMemory):
    """Every sequence has cells of its own: n_cells in all, the same number each."""

    def __init__(self, n_cells: int, n_streams: int) -> None:
        super().__init__(n_cells)
        self.n_streams = n_streams

    def share(self, source: int, target: int, start: int, end: int) -> None:
        raise AssertionError("a partial copy between streams ends the process")

    def load(self, seq: int, state: State) -> bool:
        assert 0 <= seq < self.n_streams
        return super().load(seq, state)

    def append(self, seq: int, pos: int, token: int) -> None:
        assert 0 <= seq < self.n_streams, "there is no such stream"
        assert pos < self.n_cells // self.n_streams, "the stream is full"
        super().append(seq, pos, token)


class WholeExecutor(FakeExecutor):
    """After an interrupted decode the positions have moved, and the states stand for nothing."""

    def decode(self, runs: list[Run]) -> DecodeOutcome:
        outcome = super().decode(runs)
        if outcome is DecodeOutcome.ABORTED:
            for run in runs:
                cells = self.memory.sequences.setdefault(run.slot, {})
                n_done = run.start + len(run.tokens) // 2
                cells.update({pos: [0] for pos in range(max(n_done, len(cells)))})
        return outcome

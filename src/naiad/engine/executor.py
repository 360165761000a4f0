"""Running a plan on the native context."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from typing import Protocol

from naiad.native.batch import Batch
from naiad.native.context import Context, DecodeOutcome, Memory, State

import numpy as np  # isort: skip  (after llama_cpp)
import numpy.typing as npt  # isort: skip

__all__ = ["DecodeOutcome", "Executor", "NativeExecutor", "Run", "State"]


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive tokens of one slot at positions start, start + 1, ...

    n_logits: logits are wanted after this many of the last tokens.
    """

    slot: int
    tokens: Tokens[int]
    start: int
    n_logits: int


class MemoryLike(Protocol):
    """What the pool needs of the native memory; see `naiad.native.context.Memory`."""

    def pos_min(self, seq: int) -> int: ...
    def pos_max(self, seq: int) -> int: ...
    def remove(self, seq: int, start: int = -1, end: int = -1) -> None: ...
    def share(self, source: int, target: int, start: int, end: int) -> None: ...
    def shift(self, seq: int, start: int, end: int, delta: int) -> None: ...
    def save(self, seq: int) -> State | None: ...
    def load(self, seq: int, state: State) -> bool: ...


class Executor(Protocol):
    """A context that decodes; the core sees nothing else of the native side."""

    @property
    def memory(self) -> MemoryLike: ...

    def decode(self, runs: list[Run]) -> DecodeOutcome: ...

    def logits(self, run: int, back: int = 0) -> npt.NDArray[np.float32]:
        """Logits of the run with that index in the last decode, `back` before its last token."""
        ...

    def set_threads(self, n_threads: int) -> None:
        """Threads of the next decodes."""
        ...

    def interrupt(self) -> None:
        """Any thread: end the running decode early (ABORTED)."""
        ...

    def clear_interrupt(self) -> None: ...

    def close(self) -> None: ...


class NativeExecutor:
    """The real one. Single thread, but for `interrupt`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._batch = Batch(context.n_batch)
        self._last: list[int] = []
        self._n_threads = self._n_wanted = self._n_most = context.params.threads

    @property
    def memory(self) -> Memory:
        return self._context.memory

    def decode(self, runs: list[Run]) -> DecodeOutcome:
        batch = self._batch
        batch.clear()
        if sum(len(run.tokens) for run in runs) > batch.capacity:
            return DecodeOutcome.NO_ROOM  # the library would end the process
        self._last = [0] * len(runs)
        # Where sequences have streams of their own, a step computes together only those that come
        # with rising ids, and the others one after another.
        for i in sorted(range(len(runs)), key=lambda i: runs[i].slot):
            run = runs[i]
            self._last[i] = batch.add(run.slot, run.tokens, run.start, n_logits=run.n_logits)
        return self._context.decode(batch)

    def logits(self, run: int, back: int = 0) -> npt.NDArray[np.float32]:
        return self._context.logits(self._last[run] - back)

    def set_threads(self, n_threads: int) -> None:
        self._n_wanted = n_threads
        n_threads = min(n_threads, self._n_most)
        if n_threads != self._n_threads:
            self._n_threads = n_threads
            self._context.set_threads(n_threads)

    def limit_threads(self, n_most: int) -> None:
        """However many `set_threads` asks for, at most so many."""
        if n_most != self._n_most:
            self._n_most = n_most
            self.set_threads(self._n_wanted)

    def interrupt(self) -> None:
        self._context.abort.set()

    def clear_interrupt(self) -> None:
        self._context.abort.clear()

    def close(self) -> None:
        self._context.close()

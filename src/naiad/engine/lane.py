"""The prefill lane: a second context on the same weights that computes long prompts on the side.

Prefilling a long prompt in the pool makes every stream wait for each chunk, and each chunk attend
over everybody's cells. In a context of its own, with a thread of its own, the prompt attends to
itself only and the streams go on at their pace (measured on two cores with 2,048 tokens beside four
streams: their longest gap 46 ms and the prompt in 10 s, against 207 ms and 9.7 s in chunks of 32 in
the pool, 476 ms and 6.2 s in chunks of 128; alone it takes 5.2 s). When all but
the last token is computed, the cells move into the pool, a few milliseconds, and the sequence goes
on there like one that was put back.

What is computed is saved block by block. So the lane can leave a long prompt for a short one at
any chunk and lose nothing, and the prefix cache has the blocks without asking for them again.

A prompt that is an earlier one with turns dropped or inserted is computed here too: the pieces that
moved are loaded and shifted, and only what lies between them is computed (`naiad.engine.segments`).
Shifting rewrites a whole context, which is cheap in a small one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from naiad.engine.cost import StepCost
from naiad.engine.executor import DecodeOutcome, Executor, Run
from naiad.engine.host_cache import BLOCK
from naiad.engine.interrupts import Interrupts
from naiad.engine.pool import Pool
from naiad.engine.scheduler import urgency
from naiad.engine.sequence import Move, Sequence, Span
from naiad.errors import EngineFailed

#: Tokens of one chunk: alone in the machine, and beside running streams, where the next prompt
#: may be shorter and should not wait long. Multiples of BLOCK.
_CHUNK_ALONE = 4 * BLOCK
_CHUNK_BESIDE = BLOCK
#: Alone in the machine, a chunk that takes no longer is computed by the core's own thread, seconds.
#: A second thread has OpenMP threads of its own, and with more of those than processors libgomp
#: sleeps at its barriers (measured: 78 tokens behind 2,300 in 400 ms instead of 320). Who arrives
#: meanwhile waits as for any prompt's chunk in the pool.
_ON_THE_SPOT_S = 1.0


@dataclass(frozen=True, slots=True)
class _Work:
    """One chunk, complete in itself: the lane's thread reads nothing else.

    spans: to load into the emptied lane first; None to go on with what it holds. moves: loaded and
    shifted at `at`. Then `tokens` are computed, and the blocks from `save_from` on are saved.
    """

    uid: int
    spans: tuple[Span, ...] | None
    moves: tuple[Move, ...]
    at: int
    tokens: list[int]
    save_from: int
    is_last: bool

    @property
    def start(self) -> int:
        """Where computing begins."""
        return self.moves[-1].segment.end if self.moves else self.at

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True)
class _Done:
    """What became of a chunk. spans: newly saved; seconds: of the decode alone."""

    work: _Work
    outcome: DecodeOutcome
    spans: tuple[Span, ...]
    seconds: float


class ThreadLike(Protocol):
    """Where chunks are computed; a concurrent.futures.Executor is one."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]: ...
    def shutdown(self) -> None: ...


class _ThreadOfItsOwn:
    """A new thread for each call.

    OpenMP keeps a team of threads for each thread that ever computed, for as long as that lives.
    While there are more of them than processors, libgomp hardly spins at its barriers, and every
    step of the pool would be slower for what the lane did long ago.
    """

    def __init__(self) -> None:
        self._latest: threading.Thread | None = None

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(fn(*args))
            except BaseException as error:
                future.set_exception(error)

        self._latest = threading.Thread(target=run, name="naiad-lane", daemon=True)
        self._latest.start()
        return future

    def shutdown(self) -> None:
        if self._latest is not None:
            self._latest.join()


class _OnTheSpot:
    """Computes where it is called."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args))
        return future

    def shutdown(self) -> None:
        """Nothing runs."""


class Lane:
    """One prompt at a time, the most urgent first. Its context is touched by its thread only.

    executor: over a context of its own, equal to the pool's in flash attention, KV type and
        streams. n_cells: the longest prompt it takes. window: see Pool. threads: those of the
        machine; the lane takes half of them beside running streams, all of them alone. thread:
        where chunks are computed; tests compute them on the spot.
    wake, an attribute: called from the lane's thread when `collect` has something.
    """

    def __init__(
        self,
        executor: Executor,
        n_cells: int,
        *,
        window: int = 0,
        threads: int = 1,
        thread: ThreadLike | None = None,
    ) -> None:
        self._executor = executor
        self._pool = Pool(executor.memory, 1, window)
        self._slot = self._pool.allocate()
        self._interrupts = Interrupts(executor)
        self._thread = thread or _ThreadOfItsOwn()
        self._running: Future[_Done] | None = None
        self._runs_for = 0  # the uid of that chunk's request
        self._holds: Sequence | None = None  # whose cells the lane holds
        self._n_cells = n_cells
        self._threads = self._n_most_threads = threads
        self._longest = window // BLOCK * BLOCK or _CHUNK_ALONE  # the window's start stays whole
        self.members: list[Sequence] = []
        self.wake: Callable[[], None] = lambda: None

    @property
    def is_busy(self) -> bool:
        """True while a chunk is being computed or waits to be collected."""
        return self._running is not None

    @property
    def has_result(self) -> bool:
        return self._running is not None and self._running.done()

    @property
    def is_leaving(self) -> bool:
        """True while the chunk being computed is nobody's any more: it ends at once."""
        return self.is_busy and all(s.uid != self._runs_for for s in self.members)

    def takes(self, sequence: Sequence) -> bool:
        """Whether its prompt can be computed here."""
        return len(sequence.tokens) <= self._n_cells and not sequence.is_lane_shut

    def threads_left(self) -> int:
        """Threads for the pool's steps while the lane is as it is."""
        return max(1, self._threads - max(1, self._threads // 2)) if self.is_busy else self._threads

    def limit_threads(self, n_most: int) -> None:
        """Compute chunks with at most so many threads, from the next one on."""
        self._n_most_threads = n_most

    def add(self, sequence: Sequence) -> None:
        self.members.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """It is not wanted any more. A running chunk of it is interrupted and thrown away."""
        self.members.remove(sequence)
        if self._holds is sequence:
            self._holds = None
        if self.is_busy and self._runs_for == sequence.uid:
            self._interrupts.hint(sequence.uid)  # its thread may not have begun with it yet
        self.forget(sequence.uid)

    def forget(self, uid: int) -> None:
        """The abort itself has arrived; a chunk of it that still runs keeps its hint to the end."""
        if not (self.is_busy and self._runs_for == uid):
            self._interrupts.forget(uid)

    def hint(self, uid: int) -> None:
        """Any thread: see Core.cancel_hint."""
        self._interrupts.hint(uid)

    # -- the core's thread ---------------------------------------------------------------------

    def dispatch(self, cost: StepCost, *, is_alone: bool) -> None:
        """Give the idle lane its next chunk, if anybody is in it."""
        if self.is_busy or not self.members:
            return
        now = time.monotonic()
        sequence = min(self.members, key=lambda s: urgency(s, cost, now))
        is_fresh = self._holds is not sequence
        if is_fresh:
            self._leave_current()
            self._holds = sequence
            sequence.computed = sequence.n_held
        n_tokens = min(_CHUNK_ALONE if is_alone else _CHUNK_BESIDE, self._longest)
        work = self._next_work(sequence, n_tokens, is_fresh=is_fresh)
        n_threads = self._threads if is_alone else max(1, self._threads // 2)
        self._executor.set_threads(min(n_threads, self._n_most_threads))
        self._runs_for = sequence.uid
        seconds = cost.prefill_s(len(work.tokens), work.start)
        has_processors = 1 < self._threads == self._n_most_threads  # no job that runs apart
        is_soon = is_alone and has_processors and seconds <= _ON_THE_SPOT_S
        thread = _OnTheSpot() if is_soon else self._thread
        self._running = thread.submit(self._compute, work)
        self._running.add_done_callback(lambda _: self.wake())

    def _leave_current(self) -> None:
        """What the current prompt has beyond its saved blocks is given up: less than a block."""
        if self._holds is not None:
            self._holds.computed = self._holds.n_held

    def _next_work(self, sequence: Sequence, n_tokens: int, *, is_fresh: bool) -> _Work:
        goal = len(sequence.tokens) - 1
        at = sequence.computed
        moves: list[Move] = []
        start = at
        for move in sequence.moves:
            if move.segment.new == start:
                moves.append(move)
                start = move.segment.end
        ahead = (m.segment.new for m in sequence.moves if m.segment.new > start)
        aligned = (start + n_tokens) // BLOCK * BLOCK
        end = min(goal, max(aligned, start + 1), *ahead)
        return _Work(
            uid=sequence.uid,
            spans=tuple(sequence.spans) if is_fresh else None,
            moves=tuple(moves),
            at=at,
            tokens=sequence.tokens[start:end],
            save_from=_whole(sequence.spans),
            is_last=end == goal,
        )

    def collect(self, cost: StepCost) -> Sequence | None:
        """Take in a finished chunk. Returns its sequence, which has left the lane if it is done.

        None when nothing is finished or nobody wants it. Raises EngineFailed when the lane's
        context failed.
        """
        if self._running is None or not self._running.done():
            return None
        done = self._running.result()
        self._running = None
        if done.outcome is DecodeOutcome.FATAL:
            raise EngineFailed("the engine reported a fatal error while computing a prompt")
        sequence = next((s for s in self.members if s.uid == done.work.uid), None)
        if sequence is None:
            self._interrupts.forget(done.work.uid)
            self._holds = None
            return None
        if done.outcome is DecodeOutcome.DONE:
            middle = (done.work.start + done.work.end) // 2
            cost.saw_prefill(len(done.work.tokens), middle, done.seconds, beside=False)
        self._take(sequence, done)
        return sequence

    def _take(self, sequence: Sequence, done: _Done) -> None:
        work = done.work
        if done.outcome is DecodeOutcome.DONE:
            whole = [s for s in sequence.spans if s.end <= work.save_from]
            sequence.spans = [*whole, *done.spans]
            sequence.computed = work.end
        else:  # interrupted, or no room: what is saved is still good
            self._holds = None
            sequence.computed = sequence.n_held
        is_short = work.is_last and sequence.n_held < sequence.computed
        if done.outcome is DecodeOutcome.NO_ROOM or is_short:
            sequence.is_lane_shut = True  # it cannot be held in blocks here: the pool computes it
        is_done = work.is_last and done.outcome is DecodeOutcome.DONE
        if is_done or sequence.is_lane_shut:
            sequence.computed = sequence.n_held
            self.remove(sequence)

    def close(self) -> None:
        """Wait for the running chunk and free the context. Safe to call twice."""
        self._executor.interrupt()
        self._thread.shutdown()
        self._executor.close()

    # -- the lane's thread ---------------------------------------------------------------------

    def _compute(self, work: _Work) -> _Done:
        began = time.perf_counter()
        outcome = DecodeOutcome.ABORTED
        spans: tuple[Span, ...] = ()
        with self._interrupts.step({work.uid}) as is_wanted:
            if is_wanted:
                outcome = DecodeOutcome.NO_ROOM
            if is_wanted and self._load(work):
                began = time.perf_counter()
                outcome = self._executor.decode([Run(self._slot, work.tokens, work.start, 0)])
        seconds = time.perf_counter() - began
        if outcome is DecodeOutcome.DONE:
            self._pool.settle()
            spans = self._save(work)
        return _Done(work, outcome, spans, seconds)

    def _load(self, work: _Work) -> bool:
        if work.spans is not None:
            self._pool.cut(self._slot, 0)
            for span in work.spans:
                n = span.end - span.start
                if self._pool.load(self._slot, span.start, n, span.state) < span.end:
                    return False
        return all(self._load_move(move) for move in work.moves)

    def _load_move(self, move: Move) -> bool:
        segment = move.segment
        for span in move.spans:
            start, end = max(span.start, segment.old), min(span.end, segment.old + segment.n)
            length = self._pool.load_shifted(self._slot, start, end, segment.shift, span.state)
            if length < end + segment.shift:
                return False
        return True

    def _save(self, work: _Work) -> tuple[Span, ...]:
        """The blocks that are whole now, and the last one in part when the prompt is done."""
        end = work.end if work.is_last else work.end // BLOCK * BLOCK
        spans: list[Span] = []
        for start in range(work.save_from, end, BLOCK):
            stop = min(start + BLOCK, end)
            state = self._pool.save(self._slot, start, stop)
            if state is None:
                break
            spans.append(Span(start, stop, state))
        return tuple(spans)


def _whole(spans: list[Span]) -> int:
    """The end of the last whole block."""
    return spans[-1].end // BLOCK * BLOCK if spans else 0

"""The bare engine, timed: no server, no scheduler, the fewest lines between a clock and a decode.

Every piece of work begins with an empty pool, since cells that lie about would slow it, and returns
the seconds of its timed part only. What is computed once (a prefix) is kept as a saved state.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

from naiad.native import library
from naiad.native.batch import Batch
from naiad.native.context import Context, ContextParams, DecodeOutcome, State
from naiad.native.model import ALL_LAYERS, Model
from naiad.tune.candidate import Candidate, Scale, Workload
from naiad.tune.record import LaneResult


class Workloads:
    """One candidate's engine. Raises NaiadError when it cannot be made, RuntimeError when it
    computes nothing. A native fault ends the process, which is why this runs in a child.
    """

    def __init__(self, model: Path, candidate: Candidate, scale: Scale) -> None:
        layers = ALL_LAYERS if library.has_gpu() else 0
        self._scale = scale
        self._candidate = candidate
        self._model = Model(model, gpu_layers=layers, extra_buffers=candidate.extra_buffers)
        self._main = self._context(
            candidate.threads, scale.n_cells(kv_unified=candidate.kv_unified)
        )
        self._states: dict[int, State] = {}
        self._lane: _Engine | None = None
        self.run("decode_one")  # the first reads the weights from disk

    def _context(self, threads: int, n_cells: int) -> _Engine:
        one = self._candidate
        params = ContextParams(
            n_ctx=n_cells,
            n_seq_max=self._scale.n_streams + 1,
            n_batch=max(2048, one.n_ubatch),
            n_ubatch=one.n_ubatch,
            threads=threads,
            flash_attention=one.flash_attention,
            kv_type=one.kv_type,
            kv_unified=one.kv_unified,
        )
        return _Engine(Context(self._model, params))

    def run(self, workload: Workload) -> float:
        """Seconds that the workload's timed part took."""
        scale, main = self._scale, self._main
        everyone = range(scale.n_streams)
        match workload:
            case "decode_one":
                self._fill([0], scale.n_short)
                return main.decode_steps([0], scale.n_short, scale.n_decode)
            case "decode_many":
                self._fill(everyone, scale.n_short)
                return main.decode_steps(everyone, scale.n_short, scale.n_decode)
            case "shared":
                self._fill(everyone, scale.n_prefix)
                return main.decode_steps(everyone, scale.n_prefix, scale.n_decode)
            case "prefill":
                main.clear()
                return main.prefill(0, 0, scale.n_prompt)
            case "deep":
                self._fill([0], scale.n_prefix)
                return main.prefill(0, scale.n_prefix, scale.n_deep)

    def _fill(self, sequences: range | list[int], n_tokens: int) -> None:
        """Let all sequences hold the same n_tokens, in shared cells where there is one pool."""
        main = self._main
        main.clear()
        state = self._states.get(n_tokens)
        if state is None:
            main.prefill(0, 0, n_tokens)
            state = self._states[n_tokens] = main.save(0)
            main.clear()
        first, *others = sequences
        is_shared = self._candidate.kv_unified and n_tokens == self._scale.n_prefix
        main.load(first, state)
        for sequence in others:
            if is_shared:
                main.share(first, sequence, n_tokens)
            else:
                main.load(sequence, state)

    def compare_lane(self) -> LaneResult:
        """A newcomer beside running streams, computed in their steps and in a lane of its own."""
        scale = self._scale
        half = max(1, self._candidate.threads // 2)
        if self._lane is None:
            self._lane = self._context(half, -(-(scale.n_newcomer + 8) // 256) * 256)
        self._main.clear()
        alone = self._main.prefill(0, 0, scale.n_newcomer)
        gap_chunks, ttft_chunks = self._with_chunks()
        gap_lane, ttft_lane = self._with_lane(self._lane, half)
        return LaneResult(
            gap_lane_ms=1e3 * gap_lane,
            gap_chunks_ms=1e3 * gap_chunks,
            ttft_lane_ms=1e3 * ttft_lane,
            ttft_chunks_ms=1e3 * ttft_chunks,
            ttft_alone_ms=1e3 * alone,
        )

    def _with_chunks(self) -> tuple[float, float]:
        """Longest step and whole time when a chunk of the newcomer rides in every step."""
        scale, main = self._scale, self._main
        running = range(scale.n_streams)
        self._fill(running, scale.n_short)
        chunk = max(32, self._candidate.n_ubatch // 4)
        longest, begun = 0.0, time.perf_counter()
        for step, start in enumerate(range(0, scale.n_newcomer, chunk)):
            n = min(chunk, scale.n_newcomer - start)
            took = main.step(running, scale.n_short + step, beside=(scale.n_streams, start, n))
            longest = max(longest, took)
        return longest, time.perf_counter() - begun

    def _with_lane(self, lane: _Engine, threads: int) -> tuple[float, float]:
        """The same with the newcomer in a second context, and its state moved over at the end."""
        scale, main = self._scale, self._main
        running = range(scale.n_streams)
        self._fill(running, scale.n_short)
        lane.clear()
        taken: list[float] = []
        worker = threading.Thread(
            target=lambda: taken.append(lane.prefill(0, 0, scale.n_newcomer)), daemon=True
        )
        main.context.set_threads(threads)
        longest, step, begun = 0.0, 0, time.perf_counter()
        worker.start()
        while worker.is_alive():
            if step == scale.n_decode:  # full: go on from the same place, only the time matters
                main.cut(running, scale.n_short)
                step = 0
            longest = max(longest, main.step(running, scale.n_short + step))
            step += 1
        worker.join()
        moving = time.perf_counter()
        main.load(scale.n_streams, lane.save(0))
        longest = max(longest, time.perf_counter() - moving)
        main.context.set_threads(self._candidate.threads)
        if not taken:
            raise RuntimeError("the lane could not compute its prompt")
        return longest, time.perf_counter() - begun


class _Engine:
    """One context, with just what the workloads need."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._batch = Batch(context.n_batch)
        self._n_vocab = context.model.vocab.n_tokens

    def clear(self) -> None:
        for sequence in range(self.context.params.n_seq_max):
            self.context.memory.remove(sequence)

    def cut(self, sequences: range | list[int], n_tokens: int) -> None:
        for sequence in sequences:
            self.context.memory.remove(sequence, n_tokens, -1)

    def share(self, source: int, target: int, n_tokens: int) -> None:
        self.context.memory.share(source, target, 0, n_tokens)

    def save(self, sequence: int) -> State:
        state = self.context.memory.save(sequence)
        if state is None:
            raise RuntimeError("a sequence could not be saved")
        return state

    def load(self, sequence: int, state: State) -> None:
        if not self.context.memory.load(sequence, state):
            raise RuntimeError("a saved sequence could not be loaded")

    def prefill(self, sequence: int, start: int, n_tokens: int) -> float:
        """Seconds to compute n_tokens of a sequence from `start` on, in micro-batches."""
        chunk = self.context.params.n_ubatch
        begun = time.perf_counter()
        for at in range(start, start + n_tokens, chunk):
            n = min(chunk, start + n_tokens - at)
            self._batch.clear()
            self._batch.add(sequence, self._tokens(at, n), at, n_logits=at + n == start + n_tokens)
            self._decode()
        return time.perf_counter() - begun

    def decode_steps(self, sequences: range | list[int], start: int, n_steps: int) -> float:
        """Seconds of n_steps of one token for each sequence, after one that is not timed."""
        self.step(sequences, start)
        begun = time.perf_counter()
        for step in range(1, n_steps + 1):
            self.step(sequences, start + step)
        return time.perf_counter() - begun

    def step(
        self,
        sequences: range | list[int],
        position: int,
        beside: tuple[int, int, int] | None = None,
    ) -> float:
        """Seconds of one step. beside: sequence, start and length of a chunk that rides along."""
        begun = time.perf_counter()
        self._batch.clear()
        for sequence in sequences:
            self._batch.add(sequence, self._tokens(position, 1), position, n_logits=1)
        if beside is not None:
            sequence, start, n = beside
            self._batch.add(sequence, self._tokens(start, n), start, n_logits=0)
        self._decode()
        return time.perf_counter() - begun

    def _tokens(self, start: int, n_tokens: int) -> list[int]:
        return [(7919 * i + 13) % self._n_vocab for i in range(start, start + n_tokens)]

    def _decode(self) -> None:
        outcome = self.context.decode(self._batch)
        if outcome is not DecodeOutcome.DONE:
            raise RuntimeError(f"a decode ended with {outcome.name}")

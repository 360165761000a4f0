"""Random work over the real engine, on a model whose every answer token is known.

One seed is one history: prompts that are new, continued, branched, trimmed, with lore inserted, or
repeating themselves; aborts, hints, interrupted decodes, idle moments, restarts. The pool, the host
cache and the disk are far too small for it. Clock, costs and the lane's thread follow the seed too,
so a failure can be replayed.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fake_executor import Later
from naiad.config import EngineConfig
from naiad.engine import core as core_module
from naiad.engine import draft_model, fetching, memory_fit
from naiad.engine import intake as intake_module
from naiad.engine import lane as lane_module
from naiad.engine.base import CoreJob
from naiad.engine.blocks import BLOCK
from naiad.engine.executor import DecodeOutcome, NativeExecutor, Run
from naiad.engine.llama import LlamaBackend, load
from naiad.engine.saving import save
from naiad.engine.sequence import Sequence
from naiad.ipc.messages import StreamItem
from naiad.testing.exact_models import FIRST_CHARACTER, N_CHARACTERS
from naiad.types import FinishReason, SamplingParams
from patience import PATIENCE_S

GREEDY = SamplingParams(temperature=0)
N_CTX = 1024
_N_KNOWN = 24


def answer(prompt: list[int], n: int, back: int) -> list[int]:
    """The only right continuation of a prompt of at least back + 1 characters."""
    tokens = list(prompt)
    for _ in range(n):
        place = tokens[len(tokens) - 1 - back] - FIRST_CHARACTER
        tokens.append(FIRST_CHARACTER + (place + 1) % N_CHARACTERS)
    return tokens[len(prompt) :]


def answer_beyond(prompt: list[int], n: int, back: int, n_ctx: int) -> list[int]:
    """The same, where half of what follows the beginning is given up at the end of the context."""
    tokens, said = list(prompt), list[int]()
    keep = min(len(prompt), n_ctx // 4) // BLOCK * BLOCK
    while len(said) < n:
        said += answer(tokens, 1, back)
        tokens.append(said[-1])
        if len(tokens) >= n_ctx:
            del tokens[keep : keep + (len(tokens) - keep) // 2]
    return said


class Clock:
    """Time that passes when somebody looks."""

    def __init__(self) -> None:
        self._now = 1000.0

    def monotonic(self) -> float:
        self._now += 0.001
        return self._now

    perf_counter = monotonic


class Work:
    """One history. `run` raises AssertionError at the first thing that is not as it must be.

    has_thread: the lane computes in its own thread, so the seed does not decide the order.
    changes: of EngineConfig.
    """

    def __init__(
        self,
        model: Path,
        back: int,
        folder: Path,
        seed: int,
        patch: pytest.MonkeyPatch,
        *,
        has_thread: bool = False,
        pool_cells: int = 1536,
        **changes: Any,
    ) -> None:
        self.rng = random.Random(seed)
        self.back = back
        self.happened: Counter[str] = Counter()
        self._has_thread = has_thread
        self._clock = Clock()
        settings: dict[str, Any] = {
            "model": str(model),
            "parallel": 4,
            "ctx": N_CTX,
            "threads": 2,
            "lane": True,
            "n_ubatch": 64,
            "host_cache_mib": 1,
            "disk_cache_mib": 2,
            "disk_cache_dir": str(folder),
            "check_integrity": True,
        }
        self._config = EngineConfig(**settings | changes)
        self._can_shift = self._config.context_shift and self._config.prefix_cache
        for name, cells in (("ENOUGH", pool_cells), ("EACH", 0), ("MOST", pool_cells)):
            patch.setattr(memory_fit, f"POOL_{name}", cells)
        if not has_thread:
            patch.setattr(core_module, "time", self._clock)
            patch.setattr(intake_module, "time", self._clock)
            patch.setattr(lane_module, "time", self._clock)
            patch.setattr(draft_model, "time", self._clock)
            patch.setattr(fetching, "in_a_thread", lambda run: run())
        self._uid = 0
        self._rush = 0.2  # how often a request comes
        self._known: list[list[int]] = []
        self._want: dict[int, list[int]] = {}
        self._got: dict[int, list[int]] = {}
        self._prompts: dict[int, list[int]] = {}
        self._n_items: Counter[int] = Counter()
        self._n_dropped: Counter[int] = Counter()
        self._to_abort: set[int] = set()
        self._open()

    # -- the engine's life -----------------------------------------------------------------------

    def _open(self) -> None:
        backend = load(self._config)(lambda _: None)
        assert isinstance(backend, LlamaBackend)
        self.backend, self.core = backend, backend.core
        lane = self.core._lane
        assert lane is not None
        lane._threads = 1
        self._thread = Later()
        self._woken = threading.Event()
        self.core.set_waker(self._woken.set)
        if not self._has_thread:
            lane._thread.shutdown()
            lane._thread = self._thread
        cost = self.core._cost
        cost._decode_s = 0.04
        cost.saw_decode = lambda *_: None  # type: ignore[method-assign]
        cost.saw_prefill = lambda *_, **__: None  # type: ignore[method-assign]
        for owner, name in (
            (self.core._pool, "share"),
            (self.core._pool, "load"),
            (self.core._pool, "move"),
            (lane._pool, "load_shifted"),
            (self.core._intake, "put_back"),
        ):
            self._count(owner, name)
        for executor in (self.core._executor, lane._executor):
            assert isinstance(executor, NativeExecutor)
            self._watch(executor)

    def _count(self, owner: object, name: str) -> None:
        method = getattr(owner, name)

        def counted(*args: Any) -> Any:
            self.happened[name] += 1
            return method(*args)

        setattr(owner, name, counted)

    def _watch(self, executor: NativeExecutor) -> None:
        """Interrupt some decodes that somebody wants, and note what became of each."""
        decode = executor.decode

        def decode_or_not(runs: list[Run]) -> DecodeOutcome:
            if not self._has_thread and self.rng.random() < 0.01:
                executor.interrupt()
            outcome = decode(runs)
            self.happened[outcome.name] += 1
            return outcome

        executor.decode = decode_or_not  # type: ignore[method-assign]

    def _close(self, *, is_clean: bool) -> None:
        """As the worker does, or as if it had been killed once all that waits was written."""
        while self._thread.waiting:
            self._thread.compute()
        if is_clean:
            save(self.backend, list(self._want), time.monotonic() + PATIENCE_S)
        assert self.backend.flush(PATIENCE_S)
        counts = self.core._prefix.host.counts
        self.happened["from memory"] += counts.n_from_memory
        self.happened["from disk"] += counts.n_from_disk
        assert counts.n_lost == 0, "the disk cache lost a block that nobody took from it"
        self.core.close()
        self.backend.model.close()
        self._want.clear()
        self._to_abort.clear()

    def _restart(self) -> None:
        self.happened["restarts"] += 1
        self._close(is_clean=self.rng.random() < 0.7)
        self._open()

    # -- prompts ---------------------------------------------------------------------------------

    def _fresh(self, least: int, most: int) -> list[int]:
        n = self.rng.randrange(least, most)
        return [FIRST_CHARACTER + self.rng.randrange(N_CHARACTERS) for _ in range(n)]

    def _prompt(self) -> list[int]:
        shapes = (self._new, self._continued, self._branch, self._trimmed, self._lore, self._echo)
        shape = self.rng.choices(shapes, (2, 3, 3, 4, 3, 2))[0] if self._known else self._new
        prompt = shape()[: N_CTX - 70]
        if len(prompt) <= self.back:
            prompt = self._fresh(self.back + 1, self.back + 40)
        return prompt

    def _new(self) -> list[int]:
        return self._fresh(self.back + 1, max(self.back + 60, self.rng.choice((120, 500, 900))))

    def _old(self) -> tuple[list[int], int]:
        """A known text and a place in it."""
        old = self.rng.choice((self.rng.choice(self._known), self._known[-1]))
        return old, self.rng.randrange(len(old))

    def _continued(self) -> list[int]:
        return [*self._old()[0], *self._fresh(1, 60)]

    def _branch(self) -> list[int]:
        old, cut = self._old()
        return [*old[:cut], *self._fresh(1, 40)]

    def _trimmed(self) -> list[int]:
        """The beginning is kept, what follows it is dropped."""
        old, cut = self._old()
        kept = self.rng.randrange(max(1, min(cut, 200)))
        return [*old[:kept], *old[cut // 2 :], *self._fresh(1, 40)]

    def _lore(self) -> list[int]:
        old, place = self._old()
        drop = self.rng.choice((0, place // 3))
        return [*old[:drop], *old[2 * drop : place], *self._fresh(1, 90), *old[place:]]

    def _echo(self) -> list[int]:
        """The answer is in the prompt, so guesses will be right."""
        start = self._fresh(self.back + 1, self.back + 30)
        return [*start, *answer(start, 60, self.back), *start[-self.back - 1 :]]

    def _know(self, text: list[int]) -> None:
        self._known = [*self._known[-_N_KNOWN:], text]

    # -- events ----------------------------------------------------------------------------------

    def _submit(self) -> None:
        prompt, n = self._prompt(), self.rng.choice((self.rng.randrange(1, 28), 60))
        self._add(prompt, answer(prompt, n, self.back))

    def _submit_beyond(self) -> None:
        """One that outgrows its context and goes on."""
        prompt = (self._prompt() + self._fresh(N_CTX, N_CTX + 1))[
            : N_CTX - self.rng.randrange(2, 60)
        ]
        n = self.rng.randrange(40, 150)
        self._add(prompt, answer_beyond(prompt, n, self.back, N_CTX), shift_at_limit=True)

    def _add(self, prompt: list[int], want: list[int], *, shift_at_limit: bool = False) -> None:
        self._uid += 1
        self._prompts[self._uid] = prompt
        self._want[self._uid] = want
        self._got[self._uid] = []
        self._know(prompt)
        namespace = "other" if self.rng.random() < 0.1 else ""
        priority = self.rng.choice((0, 0, 1))
        job = CoreJob(
            self._uid,
            tuple(prompt),
            len(want),
            GREEDY,
            namespace,
            priority,
            shift_at_limit=shift_at_limit,
        )
        self.core.add(job)
        self.core._by_uid[self._uid].since = self._clock.monotonic()

    def _abort(self) -> None:
        self.core.abort(self.rng.choice(sorted(self._want)))

    def _hint(self) -> None:
        uid = self.rng.choice(sorted(self._want))
        self.core.cancel_hint(uid)
        self._to_abort.add(uid)

    def _hints_arrive(self) -> None:
        for uid in sorted(self._to_abort):
            self.core.abort(uid)
        self._to_abort.clear()

    def step(self) -> None:
        self.happened["steps"] += 1
        for item in self.core.step():
            self._check(item)
        for sequence in [s for s in self.core._running if s.n_dropped != self._n_dropped[s.uid]]:
            self._n_dropped[sequence.uid] = sequence.n_dropped
            self.happened["overflows"] += 1
            self._right_after_overflow(sequence)

    def _right_after_overflow(self, sequence: Sequence) -> None:
        """Before the decode that applies the shift: it is aborted, or somebody wants its cells."""
        chance = self.rng.random()
        if chance < 0.2:
            self.core.abort(sequence.uid)
        elif chance < 0.6:
            prompt = [*sequence.tokens, *self._fresh(1, 100)]
            self._add(prompt, answer(prompt, 20, self.back))

    def _check(self, item: StreamItem) -> None:
        assert item.uid in self._want, f"stream {item.uid} says something after its end"
        got, want = self._got[item.uid], self._want[item.uid]
        assert item.seq == self._n_items[item.uid], f"stream {item.uid}: an item is missing"
        self._n_items[item.uid] += 1
        got += item.tokens
        self.happened["drafted"] += max(len(item.tokens) - 1, 0)
        assert got == want[: len(got)], f"stream {item.uid} said what is not so"
        assert item.data == b"".join(self.backend.tokenizer.piece(t) for t in item.tokens)
        each = [len(self.backend.tokenizer.piece(t)) for t in item.tokens]
        assert item.sizes == (each if len(each) > 1 else None)
        if item.finish is not None:
            self._ended(item)

    def _ended(self, item: StreamItem) -> None:
        want = self._want.pop(item.uid)
        self.happened[item.finish.value if item.finish else ""] += 1
        self.happened["cached"] += item.n_cached
        if item.finish is not FinishReason.CANCELLED:
            assert (item.finish, self._got[item.uid]) == (FinishReason.LENGTH, want)
        self._know(self._prompts[item.uid] + self._got[item.uid])

    # -- the whole -------------------------------------------------------------------------------

    def run(self, n_steps: int) -> None:
        while self.happened["steps"] < n_steps:
            self._one_event()
            self.core.check_integrity()
        self._hints_arrive()
        self._drain()
        self._close(is_clean=True)

    def _one_event(self) -> None:
        events = (
            (self._rush, self._submit if len(self._want) < 9 else self._go_on),
            (0.1 * self._rush, self._submit_beyond if self._can_shift else self._go_on),
            (0.02, self._abort if self._want else self._go_on),
            (0.02, self._hint if self._want else self._go_on),
            (0.04, self._hints_arrive),
            (0.02, self._rush_changes),
            (0.002, self._restart),
            (0.7, self._go_on),
        )
        weights = [weight for weight, _ in events]
        self.rng.choices([event for _, event in events], weights)[0]()

    def _rush_changes(self) -> None:
        self._rush = self.rng.choice((0.0, 0.1, 0.4))

    def _go_on(self) -> None:
        if self._thread.waiting and self.rng.random() < 0.5:
            self._thread.compute()
        if self.core.has_work():
            for _ in range(self.rng.randrange(1, 4)):
                self.step()
        elif not self._thread.waiting:
            self.core.idle_slice()

    def _drain(self) -> None:
        for _ in range(20_000):
            if self._thread.waiting:
                self._thread.compute()
            if not self._want:
                break
            self._await_lane()
            self.step()
        assert not self._want, "a livelock"
        while self.core.idle_slice():
            self.happened["saved when idle"] += 1
        assert not self.core._prefix.parked

    def _await_lane(self) -> None:
        """As the worker does: while only the lane's own thread has work, wait for its word."""
        while self._has_thread and not self.core.has_work():
            assert self._woken.wait(PATIENCE_S), "the lane never woke the core"
            self._woken.clear()

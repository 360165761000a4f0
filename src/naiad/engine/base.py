"""What the worker runs: the llama engine and the scripted engine both look like this.

Two threads meet here. The inbox thread reads commands, tokenises, and answers Accepted or Refused;
it never waits for a step. The main thread owns the core: add, abort, step, idle_slice. The only
calls the inbox thread may make are those of `Tokenizer`, `limits` and `Core.cancel_hint`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from naiad.engine.grammar.follower import Follower
from naiad.ipc.messages import ProgressItem, StreamItem
from naiad.types import CacheCounts, Grammar, ModelInfo, ReasoningLimit, SamplingParams


@dataclass(frozen=True, slots=True)
class CoreJob:
    """An accepted request as the core sees it: token ids only.

    max_tokens: at least 1, already cut to what the context leaves.
    priority: lower starts first. caller: whose turn it uses up, see `naiad.engine.queueing`.
    shift_at_limit: when the context is full, give up the oldest tokens and go on.
    wants_progress: its place in the line and how far its prompt is shall be reported.
    follower: at the beginning of the grammar that the answer follows; this job's own.
    shown: control tokens that show as text; None: all of them.
    reasoning: how long the reasoning before the answer may be. is_deterministic: see
    naiad.engine.solo.
    """

    uid: int
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams
    namespace: str = ""
    priority: int = 0
    caller: str = ""
    wants_progress: bool = False
    shift_at_limit: bool = False
    follower: Follower | None = None
    shown: frozenset[int] | None = frozenset()
    reasoning: ReasoningLimit | None = None
    is_deterministic: bool = False


class Tokenizer(Protocol):
    """Text to ids and back. Thread-safe."""

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids. With add_special, BOS comes first exactly once when the model wants one."""
        ...

    def decode(self, ids: list[int], *, special: bool) -> bytes:
        """The ids' bytes. special: control tokens show as text. Raises InvalidRequest."""
        ...


class Core(Protocol):
    """The engine proper. Main thread only, but for cancel_hint."""

    def add(self, job: CoreJob) -> None:
        """Queue a job. Never refuses: limits were checked before it was accepted."""
        ...

    def abort(self, uid: int) -> None:
        """Drop a job wherever it is; the next step() reports its end as CANCELLED, once.

        Unknown or finished uids are ignored.
        """
        ...

    def cancel_hint(self, uid: int) -> None:
        """Any thread: uid is about to be aborted; interrupt the running step if all that is left
        in it belongs to hinted uids."""
        ...

    def has_work(self) -> bool:
        """True while step() has something to do or to report."""
        ...

    def step(self) -> list[StreamItem]:
        """Run one step and return what it did for each stream (may be empty)."""
        ...

    def idle_slice(self) -> bool:
        """A few milliseconds of background work (saving finished sequences). True: there is more.

        Called only while has_work() is False and no command waits.
        """
        ...

    def close(self) -> None:
        """Free everything. Safe to call twice."""
        ...


@runtime_checkable
class Wakes(Protocol):
    """A core that also computes in a thread of its own."""

    def set_waker(self, wake: Callable[[], None]) -> None:
        """`wake` will be called, from that thread, when has_work() may have become True."""
        ...


@runtime_checkable
class ReportsProgress(Protocol):
    """A core that can tell how far its jobs are. Main thread only."""

    def progress(self) -> list[ProgressItem]:
        """One for each job that has `wants_progress` and has not had an item yet.

        Called after a step, and only while there is such a job. It must cost little: whoever
        else has a token in the next step waits for it.
        """
        ...


@runtime_checkable
class CountsCache(Protocol):
    """A core that keeps what it has computed. Main thread only."""

    def cache_counts(self) -> CacheCounts: ...


class EngineBackend(Protocol):
    """A loaded engine."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def core(self) -> Core: ...

    def check(self, prompt: list[int], max_tokens: int | None) -> int:
        """The max_tokens to run with (at least 1). Any thread.

        Raises ContextExceeded (n_prompt_tokens, n_ctx) or InvalidRequest.
        """
        ...


@runtime_checkable
class Prepares(Protocol):
    """A backend that can do beforehand what the first request of some kind would wait for."""

    def prepare(self) -> bool:
        """A slice of it; False when nothing is left. Main thread."""
        ...


@runtime_checkable
class CompilesGrammars(Protocol):
    """A backend whose answers can be held to a grammar. Any thread."""

    def cached_grammar(self, grammar: Grammar) -> Follower | None:
        """At its beginning, at once; None when it has to be compiled first."""
        ...

    def compile_grammar(self, grammar: Grammar) -> Follower:
        """At its beginning, after up to some seconds. Raises InvalidRequest."""
        ...

    def close_grammars(self) -> None:
        """End what compiles. Safe to call twice."""
        ...


@runtime_checkable
class Embeds(Protocol):
    """A backend that makes embeddings. One thread at a time, beside all others."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    def embed(self, tokens: list[int]) -> bytes:
        """The vector of these tokens: 32-bit floats, little-endian, of length 1.

        Raises ContextExceeded, InvalidRequest, Unsupported, EngineUnavailable.
        """
        ...

    def close_embedder(self) -> None:
        """Free what it took. Safe to call twice."""
        ...


@runtime_checkable
class ChecksRoom(Protocol):
    """A backend some of whose jobs need memory of their own. Any thread."""

    def check_room(self, job: CoreJob) -> None:
        """Raises EngineUnavailable (retry_after) where it lacks now what this job needs."""
        ...


#: Loads an engine; the callback takes the progress, 0 to 1. Raises ModelFileError.
Loader = Callable[[Callable[[float], None]], EngineBackend]

"""The seam between the front and an engine: what every engine client can do.

Replicas and other engines plug in here. Nothing outside `client/` knows whether the engine is a
process, a thread or a script.
"""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from naiad.errors import NaiadError
from naiad.types import (
    CacheCounts,
    EmbeddedText,
    FinishReason,
    Grammar,
    ModelInfo,
    Progress,
    ReasoningLimit,
    SamplingParams,
    TokenLogprob,
    Trim,
)


class EngineState(enum.StrEnum):
    """Where an engine is in its life."""

    STARTING = "starting"  # process starting or model loading, for the first time
    READY = "ready"
    RESTARTING = "restarting"  # died; a new worker is on its way
    UNLOADED = "unloaded"  # no worker, no memory used; `load` brings the model back
    FAILED = "failed"  # given up: bad model, or too many deaths
    STOPPED = "stopped"  # closed on purpose


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """A snapshot for /health. `progress` is the model load, 0 to 1; `reason` says why not ready."""

    state: EngineState
    reason: str = ""
    progress: float = 0.0
    restarts: int = 0
    integrity_violations: int = 0
    model: ModelInfo | None = None
    cache: CacheCounts = field(default_factory=CacheCounts)


@dataclass(frozen=True, slots=True)
class Job:
    """What an engine is asked to run; the prompt is text or token ids, templates are applied.

    priority: lower starts first. caller: whose turn it takes among those of the same priority.
    shift_at_limit: when the context is full, give up the oldest tokens and go on.
    wants_progress: batches that tell of its progress may come before those with tokens.
    grammar: what the answer must follow.
    trim: a prompt (as text) that is too long is cut instead of refused.
    shown: ids of control tokens that show as text; None: all of them.
    reasoning: how long the reasoning before it may be.
    is_deterministic: computed apart from all others; see naiad.engine.solo.
    """

    prompt: str | tuple[int, ...]
    max_tokens: int | None
    sampling: SamplingParams
    namespace: str = ""
    priority: int = 0
    caller: str = ""
    wants_progress: bool = False
    shift_at_limit: bool = False
    grammar: Grammar | None = None
    trim: Trim | None = None
    shown: tuple[int, ...] | None = ()
    reasoning: ReasoningLimit | None = None
    is_deterministic: bool = False


class TokenBatch(msgspec.Struct, frozen=True):  # a struct, since one is made for every token
    """What one step brought for one stream; several steps, in order, for a reader far behind.

    finish is set on the last batch only, and then `error` too when finish is ERROR. A batch with
    `progress` holds nothing else, and none comes after the first with tokens.
    logprobs: one for each of the tokens, if the job asks for them.
    sizes: bytes of each of the tokens, where there are several.
    """

    tokens: tuple[int, ...]
    data: bytes
    n_cached: int = 0
    finish: FinishReason | None = None
    error: NaiadError | None = None
    progress: Progress | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    sizes: tuple[int, ...] = ()


class TokenStream(Protocol):
    """One accepted request's tokens. One reader."""

    @property
    def uid(self) -> int: ...

    @property
    def n_prompt(self) -> int:
        """Tokens in the prompt, as the engine counts them."""
        ...

    @property
    def n_dropped(self) -> int:
        """Tokens that were left out of a prompt that was too long, or given up since, so far."""
        ...

    async def get(self) -> TokenBatch:
        """Wait for news. After a batch with `finish` set nothing more comes; do not call again."""
        ...


class EngineClient(Protocol):
    """A few verbs and a status."""

    @property
    def status(self) -> EngineStatus: ...

    async def start(self) -> None:
        """Start the engine and return at once; `wait_ready` waits for the model."""
        ...

    async def wait_ready(self) -> ModelInfo:
        """Wait until the model is loaded. Raises ModelFileError or EngineUnavailable."""
        ...

    async def submit(self, job: Job) -> TokenStream:
        """Hand a job over and wait for the engine's yes.

        Raises the engine's refusal (ContextExceeded, InvalidRequest, ...), EngineUnavailable when
        there is no engine. If the caller is cancelled while waiting, the job is aborted.
        """
        ...

    def abort(self, uid: int) -> None:
        """Stop work for a stream; unknown or finished uids are no error. Never waits."""
        ...

    async def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Token ids of a text. Never waits for a generation."""
        ...

    async def detokenize(self, ids: list[int], *, special: bool = True) -> bytes:
        """The bytes of token ids. Raises InvalidRequest for an id outside the vocabulary."""
        ...

    async def embed(self, prompt: str | tuple[int, ...]) -> EmbeddedText:
        """The embedding of a text or of token ids; streams go on meanwhile.

        Raises ContextExceeded, InvalidRequest, Unsupported, EngineUnavailable.
        """
        ...

    def unload(self) -> None:
        """End the worker of a ready engine, which frees the model's memory; streams end with an
        error. In any other state nothing is done. Never waits; the state is UNLOADED at once."""
        ...

    def load(self) -> None:
        """Start a worker again after `unload`; in any other state nothing is done. Never waits."""
        ...

    def next_change(self) -> asyncio.Event:
        """Set when state or load progress next change. Take it first, then look at the status."""
        ...

    async def close(self) -> None:
        """End every stream with an error, stop the worker, free everything. Safe to call twice."""
        ...

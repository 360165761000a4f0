"""Commands and events between the front and the worker: the only words the two processes share.

Commands go front -> worker and are imperative; events come back and are past tense or nouns. Every
event carries the worker's epoch; every event of a stream carries its uid, and every StreamItem its
place in that stream. The front accepts only the current epoch, a known uid and the next number.

For one uid the worker sends exactly: one Accepted and then items seq 0, 1, 2, ... of which the
last, and only the last, has `finish` set; or one Refused and nothing else. After Abort, items
already under way may still come; the last of them has finish "cancelled" (or what it ended with
before the abort arrived), so the front knows when the uid is truly gone.
"""

from __future__ import annotations

from typing import Any

import msgspec

from naiad.types import (
    CacheCounts,
    FinishReason,
    Grammar,
    ModelInfo,
    ReasoningLimit,
    SamplingParams,
    TokenLogprob,
    Trim,
)


class Command(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of what the front says."""


class Submit(Command, frozen=True, tag=True, array_like=True):
    """Run a request.

    prompt: text (tokenised by the worker; BOS added once as the model wants) or token ids.
    namespace: whose cache the prompt may share; sequences of other namespaces are invisible to it.
    max_tokens: None for as many as the context holds.
    priority: lower starts first. caller: whose turn it takes among those of the same priority.
    shift_at_limit: when the context is full, give up the oldest tokens and go on.
    wants_progress: Progressed shall tell of it until its first item.
    grammar: compiled before the answer to this; one that cannot be is Refused.
    trim: a prompt (as text) that is too long is cut instead of refused.
    shown: control tokens that show as text; None: all of them.
    reasoning: how long the reasoning before it may be.
    is_deterministic: computed apart from all others; see naiad.engine.solo.
    """

    uid: int
    prompt: str | list[int]
    max_tokens: int | None
    sampling: SamplingParams
    namespace: str = ""
    priority: int = 0
    caller: str = ""
    wants_progress: bool = False
    shift_at_limit: bool = False
    grammar: Grammar | None = None
    trim: Trim | None = None
    shown: list[int] | None = []
    reasoning: ReasoningLimit | None = None
    is_deterministic: bool = False


class Abort(Command, frozen=True, tag=True, array_like=True):
    """Stop work for a uid. Unknown or finished uids are no error."""

    uid: int


class Tokenize(Command, frozen=True, tag=True, array_like=True):
    """Ask for token ids; answered by Tokenized with the same call number."""

    call: int
    text: str
    add_special: bool = True
    parse_special: bool = True


class Detokenize(Command, frozen=True, tag=True, array_like=True):
    """Ask for the bytes of token ids; answered by Detokenized with the same call number."""

    call: int
    ids: list[int]
    special: bool = True


class Embed(Command, frozen=True, tag=True, array_like=True):
    """Ask for the embedding of a text or of token ids; answered by Embedded or CallFailed."""

    call: int
    prompt: str | list[int]


class Shutdown(Command, frozen=True, tag=True, array_like=True):
    """Finish nothing, free everything, exit 0."""


class Event(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of what the worker says."""

    epoch: int


class Loading(Event, frozen=True, tag=True, array_like=True):
    """Model load progress, 0 to 1."""

    progress: float


class Ready(Event, frozen=True, tag=True, array_like=True):
    """The model is loaded and has passed its self-test."""

    model: ModelInfo


class LoadFailed(Event, frozen=True, tag=True, array_like=True):
    """The model cannot be loaded; the worker exits after this. code: see naiad.errors."""

    code: str
    message: str


class Accepted(Event, frozen=True, tag=True, array_like=True):
    """The request is valid and queued or running.

    n_dropped: tokens that were cut from its prompt, which was too long.
    """

    uid: int
    n_prompt: int
    n_dropped: int = 0


class Refused(Event, frozen=True, tag=True, array_like=True):
    """The request cannot run; nothing else will come for this uid."""

    uid: int
    code: str
    message: str
    details: dict[str, Any] = {}


class StreamItem(msgspec.Struct, frozen=True, array_like=True):
    """What one engine step did for one stream.

    seq: 0, 1, 2, ... within the uid, no gaps.
    tokens: ids that are settled with this step, usually one, none in a bare end; data: their
        bytes, joined (an end-of-generation token is counted in tokens but has no bytes). A step
        that settles none, because they may yet be taken back, has no item.
    finish: set on the last item only; n_cached: prompt tokens reused, meaningful from seq 0 on.
    error: (code, message) when finish is "error".
    logprobs: one for each of the tokens, in streams that ask for them.
    n_dropped: tokens that were given up so far to stay within the context.
    sizes: bytes of each of the tokens, where there are several.
    """

    uid: int
    seq: int
    tokens: list[int]
    data: bytes
    finish: FinishReason | None = None
    n_cached: int = 0
    error: tuple[str, str] | None = None
    logprobs: list[TokenLogprob] | None = None
    n_dropped: int = 0
    sizes: list[int] | None = None


class StepDone(Event, frozen=True, tag=True, array_like=True):
    """Everything one engine step produced: one frame per step, not per token.

    step: the worker's step counter (a heartbeat); items: one per stream that got something.
    """

    step: int
    items: list[StreamItem]


class ProgressItem(msgspec.Struct, frozen=True, array_like=True):
    """How far a request without a token is.

    position: how many start before it; None once it has started.
    n_done: tokens of its prompt that are computed, of n_total; n_cached of them were reused.
    """

    uid: int
    position: int | None
    n_done: int
    n_total: int
    n_cached: int = 0


class Progressed(Event, frozen=True, tag=True, array_like=True):
    """News of requests that asked for it and have no token yet; a later one replaces an earlier.

    It has no place in the streams: one that comes too late or not at all does no harm.
    """

    items: list[ProgressItem]


class CacheTold(Event, frozen=True, tag=True, array_like=True):
    """What became of the prefix cache: sent when a stream has ended, and before the worker rests,
    if it has changed.
    """

    counts: CacheCounts


class Tokenized(Event, frozen=True, tag=True, array_like=True):
    """Answer to Tokenize."""

    call: int
    ids: list[int]


class Detokenized(Event, frozen=True, tag=True, array_like=True):
    """Answer to Detokenize: raw bytes, possibly not valid UTF-8."""

    call: int
    data: bytes


class Embedded(Event, frozen=True, tag=True, array_like=True):
    """Answer to Embed. vector: 32-bit floats, little-endian, of length 1; n_tokens: of the text."""

    call: int
    vector: bytes
    n_tokens: int


class CallFailed(Event, frozen=True, tag=True, array_like=True):
    """Answer to a call that could not be done. code: see naiad.errors; details: its figures."""

    call: int
    code: str
    message: str
    details: dict[str, Any] = {}


class LogLine(Event, frozen=True, tag=True, array_like=True):
    """A line of the worker's or the native library's log. level: debug, info, warning, error."""

    level: str
    logger: str
    text: str


AnyCommand = Submit | Abort | Tokenize | Detokenize | Embed | Shutdown
AnyEvent = (
    Loading
    | Ready
    | LoadFailed
    | Accepted
    | Refused
    | StepDone
    | Progressed
    | CacheTold
    | Tokenized
    | Detokenized
    | Embedded
    | CallFailed
    | LogLine
)

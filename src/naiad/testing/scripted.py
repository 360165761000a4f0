"""An engine without a model, whose every token can be checked, and which can misbehave on demand.

Token i of a request is a word chosen by a keyed hash of (prompt, i): one foreign, stale, lost,
repeated or reordered token shows at once, and the text still reads like words. `expected_text`
says what must come.

A prompt that contains the JSON object {"script": [[verb, argument], ...]} is acted out instead;
the verbs are the methods of `actor.Actor` whose names begin with "do_". `EngineConfig.model` may
hold such an object too, for the load; see `_act_load`.

NAIAD_SCRIPTED_RATE: tokens per second of each stream, default 50; 0 is as fast as possible.
"""

from __future__ import annotations

import heapq
import logging
import math
import os
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

from naiad.config import EngineConfig
from naiad.engine.base import CoreJob, Loader
from naiad.engine.queueing import WaitingLine
from naiad.engine.sequence import Sequence
from naiad.errors import ContextExceeded, InvalidRequest, from_code
from naiad.ipc.channel import WorkerChannel
from naiad.ipc.messages import ProgressItem, StreamItem
from naiad.testing.actor import Actor, Wire, script_in, script_of
from naiad.testing.words import (
    EOS,
    N_VOCAB,
    decode_token,
    encode,
    expected_text,
    expected_tokens,
    key_of,
    natural_length,
)
from naiad.types import EngineSettings, FinishReason, ModelInfo

__all__ = [
    "ScriptedBackend",
    "ScriptedCore",
    "encode",
    "expected_text",
    "expected_tokens",
    "load",
    "natural_length",
]

logger = logging.getLogger(__name__)

RATE_VARIABLE = "NAIAD_SCRIPTED_RATE"
DEFAULT_RATE = 50.0
DEFAULT_CTX = 8192
N_EMBD = 8

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

#: Seconds that a paced step takes.
STEP_S = 0.004


class ScriptedTokenizer:
    """Bytes as ids; words only come out. See engine.base.Tokenizer."""

    def encode(
        self,
        text: str,
        *,
        add_special: bool,  # noqa: ARG002 - there are no special tokens to add
        parse_special: bool,  # noqa: ARG002 - or to find
    ) -> list[int]:
        return encode(text)

    def decode(self, ids: list[int], *, special: bool) -> bytes:
        _check_ids(ids)
        return b"".join(decode_token(token, special=special) for token in ids)


class ScriptedBackend:
    """See engine.base.EngineBackend."""

    def __init__(self, config: EngineConfig) -> None:
        self._n_ctx = config.ctx or DEFAULT_CTX
        self.tokenizer = ScriptedTokenizer()
        self.core = ScriptedCore(config.parallel, _rate())
        self.info = ModelInfo(
            name="scripted",
            description="scripted answers, no model",
            architecture="scripted",
            n_ctx_train=self._n_ctx,
            n_vocab=N_VOCAB,
            n_embd=N_EMBD,
            chat_template=TEMPLATE,
            eos_token=decode_token(EOS, special=True).decode(),
            engine=EngineSettings(
                n_ctx=self._n_ctx,
                pool_cells=self._n_ctx * config.parallel,
                parallel=config.parallel,
                extra_buffers=config.extra_buffers is not False,
            ),
        )

    def check(self, prompt: list[int], max_tokens: int | None) -> int:
        """See engine.base.EngineBackend."""
        _check_ids(prompt)
        script_of(prompt)
        room = self._n_ctx - len(prompt)
        if room < 1:
            raise ContextExceeded(
                f"the prompt has {len(prompt)} tokens, and the context holds {self._n_ctx}, "
                "one of them for the answer",
                n_prompt_tokens=len(prompt),
                n_ctx=self._n_ctx,
            )
        if max_tokens is not None and max_tokens < 1:
            raise InvalidRequest(f"max_tokens must be at least 1, not {max_tokens}")
        return room if max_tokens is None else min(room, max_tokens)

    def embed(self, tokens: list[int]) -> bytes:
        """See engine.base.Embeds: eight numbers that depend on all of the tokens."""
        _check_ids(tokens)
        if not tokens:
            raise InvalidRequest("the prompt is empty: at least one token is needed")
        numbers = [byte - 127.5 for byte in key_of(tokens)[:N_EMBD]]
        length = math.hypot(*numbers)
        return struct.pack(f"<{N_EMBD}f", *(number / length for number in numbers))

    def close_embedder(self) -> None:
        """There is nothing to free."""

    def attach(self, channel: WorkerChannel, epoch: int) -> None:
        """Take the raw channel, to break its rules when a script says so."""
        self.core.wire = Wire(channel, epoch)


class ScriptedCore:
    """Plays up to `parallel` actors, each at `rate` tokens per second. See engine.base.Core.

    Like an engine's, its steps take time and serve whoever is due by their end: a step for each
    token of a thousand streams would measure the waking of threads and nothing else.
    """

    def __init__(self, parallel: int, rate: float) -> None:
        self.wire: Wire | None = None
        self._parallel = parallel
        self._interval = 1 / rate if rate else 0.0
        self._line = WaitingLine()
        self._waiting: dict[int, tuple[Sequence, Actor]] = {}
        self._running: dict[int, Actor] = {}
        self._sequences: dict[int, Sequence] = {}  # of the running ones
        self._schedule: list[tuple[float, int]] = []  # a heap of (due, uid); may hold stale pairs
        self._next_step = 0.0
        self._ended: list[StreamItem] = []

    def add(self, job: CoreJob) -> None:
        sequence = Sequence(job)
        self._line.add(sequence)
        self._waiting[job.uid] = sequence, Actor(job, self.wire)

    def abort(self, uid: int) -> None:
        actor = self._running.get(uid)
        if actor is not None and not actor.is_cancelled:
            actor.is_cancelled = True
            self._enter(actor, 0.0)
        if uid in self._waiting:
            self._line.remove(self._waiting.pop(uid)[0])
            self._ended.append(StreamItem(uid, 0, [], b"", FinishReason.CANCELLED))

    def cancel_hint(self, uid: int) -> None:
        """Steps are short; there is nothing to interrupt."""

    def has_work(self) -> bool:
        return bool(self._running or self._waiting or self._ended)

    def next_due(self) -> float | None:
        """When the next token is due, on time.monotonic(); None: now."""
        if self._ended or not self._interval or self._can_admit():
            return None
        return max(self._schedule[0][0], self._next_step)

    def step(self) -> list[StreamItem]:
        now = time.monotonic()
        self._next_step = now + STEP_S
        if self._can_admit():
            self._admit(now)
        items, self._ended = self._ended, []
        for actor in self._take_due(now):
            item = actor.play(self._interval)
            if item is not None:
                items.append(item)
            if item is not None and item.finish is not None:
                self._leave(actor, item.seq + 1)
            else:
                heapq.heappush(self._schedule, (actor.due, actor.uid))
        return items

    def progress(self) -> list[ProgressItem]:
        """See engine.base.ReportsProgress."""
        waiting = [
            actor.progress(self._line.position(sequence))
            for sequence, actor in self._waiting.values()
            if actor.wants_progress
        ]
        running = self._running.values()
        return waiting + [a.progress(None) for a in running if a.wants_progress and a.is_silent]

    def _admit(self, now: float) -> None:
        for sequence in self._line.ordered()[: self._parallel - len(self._running)]:
            _, actor = self._waiting.pop(sequence.uid)
            self._line.started(sequence)
            self._running[actor.uid] = actor
            self._sequences[actor.uid] = sequence
            self._enter(actor, now)

    def _leave(self, actor: Actor, n_items: int) -> None:
        del self._running[actor.uid]
        self._line.ended(self._sequences.pop(actor.uid), actor.n_prompt + n_items)

    def _enter(self, actor: Actor, due: float) -> None:
        actor.due = due
        heapq.heappush(self._schedule, (due, actor.uid))

    def _take_due(self, now: float) -> list[Actor]:
        """Whoever is due, once each; an actor's pair is stale when its `due` says otherwise."""
        due: list[Actor] = []
        while self._schedule and self._schedule[0][0] <= now:
            at, uid = heapq.heappop(self._schedule)
            actor = self._running.get(uid)
            if actor is not None and actor.due == at:
                due.append(actor)
        return due

    def idle_slice(self) -> bool:
        return False

    def close(self) -> None:
        self._waiting.clear()
        self._running.clear()
        self._schedule.clear()

    def _can_admit(self) -> bool:
        return bool(self._waiting) and len(self._running) < self._parallel


def load(config: EngineConfig) -> Loader:
    """The scripted engine's Loader; see naiad.engine.worker.ENGINES."""

    def load_scripted(progress: Callable[[float], None]) -> ScriptedBackend:
        for verb, *arguments in script_in(config.model.encode()) or []:
            _act_load(config, verb, arguments)
        progress(1.0)
        return ScriptedBackend(config)

    return load_scripted


def _act_load(config: EngineConfig, verb: str, arguments: list[Any]) -> None:
    """One verb of a load script: fail CODE MESSAGE, die SIGNAL, pause SECONDS, log LEVEL TEXT,
    print TEXT. With "_unless_safe" behind its name, only when extra_buffers are on.
    """
    if verb.endswith("_unless_safe") and config.extra_buffers is False:
        return
    match verb.removesuffix("_unless_safe"), arguments:
        case "fail", [code, message]:
            error = from_code(code, message)
            # A code that only a loader knows must reach the front as it is.
            raise type("LoadError", (type(error),), {"code": code})(message)
        case "die", [number]:
            os.kill(os.getpid(), number)
        case "pause", [seconds]:
            time.sleep(seconds)
        case "log", [level, text]:
            logger.log(logging.getLevelNamesMapping()[level.upper()], text)
        case "print", [text]:
            sys.stderr.write(f"{text}\n")
        case _:
            raise InvalidRequest(f"the scripted engine cannot {verb} {arguments}")


def _check_ids(ids: list[int]) -> None:
    for token in ids:
        if not 0 <= token < N_VOCAB:
            raise InvalidRequest(f"token id {token} is outside the vocabulary, 0 to {N_VOCAB - 1}")


def _rate() -> float:
    return float(os.environ.get(RATE_VARIABLE) or DEFAULT_RATE)

"""An engine without a model, whose every token can be checked, and which can misbehave on demand.

Token i of a request is a word chosen by a keyed hash of (prompt, i): one foreign, stale, lost,
repeated or reordered token shows at once, and the text still reads like words. `expected_text`
says what must come.

A prompt that contains the JSON object {"script": [[verb, argument], ...]} is acted out instead;
the verbs are the methods of `_Actor` whose names begin with "do_". `EngineConfig.model` may hold
such an object too, for the load; see `_act_load`.

NAIAD_SCRIPTED_RATE: tokens per second of each stream, default 50; 0 is as fast as possible.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Annotated, Any, NoReturn

import msgspec

from naiad.config import EngineConfig
from naiad.engine.base import CoreJob, Loader
from naiad.errors import ContextExceeded, EngineFailed, InvalidRequest, from_code
from naiad.ipc.channel import HEADER, MAX_FRAME_BYTES, WorkerChannel
from naiad.ipc.messages import StepDone, StreamItem
from naiad.testing.words import BYTES, EOS, N_VOCAB, decode_token, word_id
from naiad.types import EngineSettings, FinishReason, ModelInfo

logger = logging.getLogger(__name__)

RATE_VARIABLE = "NAIAD_SCRIPTED_RATE"
DEFAULT_RATE = 50.0
DEFAULT_CTX = 8192

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

#: What one moment of a script yields: token ids with their bytes, or seconds to pass.
Piece = tuple[list[int], bytes]
Moment = Piece | float
#: [[verb, argument, ...], ...]
Script = list[Annotated[list[Any], msgspec.Meta(min_length=1)]]


# --- what must come


def expected_tokens(prompt: str | Sequence[int], n: int) -> list[int]:
    """The first n token ids of the answer to a prompt without a script, however long it is."""
    key = _key(encode(prompt) if isinstance(prompt, str) else prompt)
    return [_word(key, i) for i in range(n)]


def expected_text(prompt: str | Sequence[int], n: int) -> str:
    """The text of `expected_tokens`."""
    return b"".join(decode_token(token) for token in expected_tokens(prompt, n)).decode()


def natural_length(prompt: str | Sequence[int]) -> int:
    """Words before the answer's own end, 20 to 200; the end token comes after them."""
    return _length(_key(encode(prompt) if isinstance(prompt, str) else prompt))


def encode(text: str) -> list[int]:
    """One id per UTF-8 byte."""
    return list(text.encode())


def _key(prompt: Sequence[int]) -> bytes:
    return blake2b(b"".join(token.to_bytes(4, "little") for token in prompt)).digest()[:32]


def _word(key: bytes, place: int) -> int:
    digest = blake2b(place.to_bytes(8, "little"), key=key, digest_size=2).digest()
    return word_id(int.from_bytes(digest, "little"))


def _length(key: bytes) -> int:
    return 20 + int.from_bytes(key[:4], "little") % 181


# --- the engine


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
            chat_template=TEMPLATE,
            eos_token=decode_token(EOS, special=True).decode(),
            engine=EngineSettings(
                n_ctx=self._n_ctx,
                pool_cells=self._n_ctx * config.parallel,
                parallel=config.parallel,
                extra_buffers=config.extra_buffers,
            ),
        )

    def check(self, prompt: list[int], max_tokens: int | None) -> int:
        """See engine.base.EngineBackend."""
        _check_ids(prompt)
        _script_of(prompt)
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

    def attach(self, channel: WorkerChannel, epoch: int) -> None:
        """Take the raw channel, to break its rules when a script says so."""
        self.core.wire = Wire(channel, epoch)


class ScriptedCore:
    """Plays up to `parallel` actors, each at `rate` tokens per second. See engine.base.Core."""

    def __init__(self, parallel: int, rate: float) -> None:
        self.wire: Wire | None = None
        self._parallel = parallel
        self._interval = 1 / rate if rate else 0.0
        self._waiting: deque[_Actor] = deque()
        self._running: dict[int, _Actor] = {}
        self._ended: list[StreamItem] = []

    def add(self, job: CoreJob) -> None:
        self._waiting.append(_Actor(job, self.wire))

    def abort(self, uid: int) -> None:
        actor = self._running.get(uid)
        if actor is not None:
            actor.is_cancelled = True
            actor.due = 0
        for waiting in [actor for actor in self._waiting if actor.uid == uid]:
            self._waiting.remove(waiting)
            self._ended.append(StreamItem(uid, 0, [], b"", FinishReason.CANCELLED))

    def cancel_hint(self, uid: int) -> None:
        """Steps are short; there is nothing to interrupt."""

    def has_work(self) -> bool:
        return bool(self._running or self._waiting or self._ended)

    def next_due(self) -> float | None:
        """When the next token is due, on time.monotonic(); None: now."""
        if self._ended or not self._interval or self._can_admit():
            return None
        return min(actor.due for actor in self._running.values())

    def step(self) -> list[StreamItem]:
        now = time.monotonic()
        while self._can_admit():
            actor = self._waiting.popleft()
            actor.due = now
            self._running[actor.uid] = actor
        items, self._ended = self._ended, []
        for actor in [actor for actor in self._running.values() if actor.due <= now]:
            item = actor.play(self._interval)
            if item is not None:
                items.append(item)
                if item.finish is not None:
                    del self._running[actor.uid]
        return items

    def idle_slice(self) -> bool:
        return False

    def close(self) -> None:
        self._waiting.clear()
        self._running.clear()

    def _can_admit(self) -> bool:
        return bool(self._waiting) and len(self._running) < self._parallel


class Wire:
    """The raw channel to the front, for what no engine may send."""

    def __init__(self, channel: WorkerChannel, epoch: int) -> None:
        self._channel = channel
        self._epoch = epoch

    def item(self, item: StreamItem, *, epochs_ago: int = 0) -> None:
        """A frame of its own with one item, as of an earlier worker."""
        self._channel.send(StepDone(self._epoch - epochs_ago, 0, [item]))

    def raw(self, data: bytes) -> None:
        """Bytes that are no frame."""
        self._channel.send_bytes(data)

    def hang_up(self) -> None:
        """Send nothing any more."""
        self._channel.shut()


class _Actor:
    """One stream: plays its script, or speaks until its length."""

    def __init__(self, job: CoreJob, wire: Wire | None) -> None:
        self.uid = job.uid
        self.due = 0.0
        self.is_cancelled = False
        self._wire = wire
        self._key = _key(job.prompt)
        self._seq = 0
        self._place = 0  # of the next word
        self._left = job.max_tokens
        self._babble = 0  # items still to come after an abort
        self._error: tuple[str, str] | None = None
        script = _script_of(job.prompt)
        limit = job.max_tokens if job.sampling.ignore_eos else _length(self._key)
        self._moments = self._speak(limit) if script is None else self._act(script)

    def play(self, interval: float) -> StreamItem | None:
        """The next item, or None when the script only lets time pass."""
        if self.is_cancelled:
            return self._play_cancelled()
        moment = next(self._moments, None)
        if isinstance(moment, float):
            self.due += moment
            return None
        self.due += interval
        if self._error is not None:
            return self._item([], b"", FinishReason.ERROR, self._error)
        if moment is None:
            return self._item([EOS], b"", FinishReason.STOP)
        tokens, data = moment
        self._left -= len(tokens)
        return self._item(tokens, data, FinishReason.LENGTH if self._left <= 0 else None)

    def _play_cancelled(self) -> StreamItem:
        if self._babble == 0:
            return self._item([], b"", FinishReason.CANCELLED)
        self._babble -= 1
        return self._item(*self._next_word())

    def _item(
        self,
        tokens: list[int],
        data: bytes,
        finish: FinishReason | None = None,
        error: tuple[str, str] | None = None,
    ) -> StreamItem:
        item = StreamItem(self.uid, self._seq, tokens, data, finish, 0, error)
        self._seq += 1
        return item

    def _next_word(self) -> Piece:
        token = _word(self._key, self._place)
        self._place += 1
        return [token], decode_token(token)

    def _speak(self, n: int) -> Iterator[Moment]:
        return (self._next_word() for _ in range(n))

    def _act(self, script: Script) -> Iterator[Moment]:
        for verb, *arguments in script:
            yield from getattr(self, f"do_{verb}")(*arguments) or ()

    # --- verbs that any engine could do

    def do_emit(self, n: int) -> Iterator[Moment]:
        """The next n words."""
        return self._speak(n)

    def do_bytes(self, hexadecimal: str) -> Iterator[Moment]:
        """One token for each of these bytes, whole characters or not."""
        for byte in bytes.fromhex(hexadecimal):
            yield [byte], bytes([byte])

    def do_invalid_utf8(self) -> Iterator[Moment]:
        return self.do_bytes("ff")

    def do_half_emoji(self) -> Iterator[Moment]:
        return self.do_bytes("f09f")

    def do_pause(self, seconds: float) -> Iterator[Moment]:
        yield float(seconds)

    def do_finish_error(self, message: str = "a scripted failure") -> Iterator[Moment]:
        self._error = (EngineFailed.code, message)
        yield [], b""

    def do_nan(self) -> Iterator[Moment]:
        return self.do_finish_error("the model computed numbers that are no numbers (NaN)")

    # --- verbs that break something

    def do_die(self, number: int = signal.SIGKILL) -> NoReturn:
        """End the worker by a signal; a worker in a thread fails with an exception instead."""
        if threading.current_thread() is threading.main_thread():
            os.kill(os.getpid(), number)
        raise RuntimeError(f"scripted death by signal {number}")

    def do_hang(self) -> NoReturn:
        """Never return from this step. Only for a worker that can be killed."""
        while True:
            threading.Event().wait()

    def do_dup_seq(self) -> Iterator[Moment]:
        """The last item's number again."""
        self._seq -= 1
        return self._speak(1)

    def do_skip_seq(self) -> Iterator[Moment]:
        """One number is left out."""
        self._seq += 1
        return self._speak(1)

    def do_old_epoch(self) -> None:
        """A well-made item of this stream, but of the worker before this one."""
        tokens, data = self._next_word()
        self._raw().item(StreamItem(self.uid, self._seq, tokens, data), epochs_ago=1)

    def do_unknown_uid(self) -> None:
        """A well-made item of a stream that nobody asked for."""
        self._raw().item(StreamItem(self.uid + 1_000_000, 0, *self._next_word()))

    def do_oversize(self) -> None:
        self._raw().raw(HEADER.pack(MAX_FRAME_BYTES + 1))

    def do_garbage(self) -> None:
        """A frame by its length, but no message."""
        self._raw().raw(HEADER.pack(16) + b"GGML_ASSERT(0)!!")

    def do_half_frame_eof(self) -> None:
        self._raw().raw(HEADER.pack(100) + b"half")
        self._raw().hang_up()

    def do_babble_after_cancel(self, n: int) -> None:
        """Let n more items come after the abort, before the end."""
        self._babble = n

    def _raw(self) -> Wire:
        if self._wire is None:
            raise RuntimeError("this verb needs a worker's channel")
        return self._wire


# --- loading


def load(config: EngineConfig) -> Loader:
    """The scripted engine's Loader; see naiad.engine.worker.ENGINES."""

    def load_scripted(progress: Callable[[float], None]) -> ScriptedBackend:
        for verb, *arguments in _script_in(config.model.encode()) or []:
            _act_load(config, verb, arguments)
        progress(1.0)
        return ScriptedBackend(config)

    return load_scripted


def _act_load(config: EngineConfig, verb: str, arguments: list[Any]) -> None:
    """One verb of a load script: fail CODE MESSAGE, die SIGNAL, pause SECONDS, log LEVEL TEXT,
    print TEXT. With "_unless_safe" behind its name, only when extra_buffers are on.
    """
    if verb.endswith("_unless_safe") and not config.extra_buffers:
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


def _script_of(prompt: Sequence[int]) -> Script | None:
    """The script in a prompt. Raises InvalidRequest for one that cannot be acted out."""
    script = _script_in(bytes(token for token in prompt if token < BYTES))
    for verb, *_ in script or []:
        if not hasattr(_Actor, f"do_{verb}"):
            raise InvalidRequest(f"the scripted engine has no verb {verb!r}")
    return script


def _script_in(data: bytes) -> Script | None:
    """The script within a text, wherever a template has put it. Raises InvalidRequest."""
    start = data.find(b'{"script"')
    if start < 0:
        return None
    try:
        found, _ = json.JSONDecoder().raw_decode(data[start:].decode(errors="replace"))
        return msgspec.convert(found["script"], Script)
    except ValueError as error:
        raise InvalidRequest(f"the script cannot be read: {error}") from None


def _check_ids(ids: list[int]) -> None:
    for token in ids:
        if not 0 <= token < N_VOCAB:
            raise InvalidRequest(f"token id {token} is outside the vocabulary, 0 to {N_VOCAB - 1}")


def _rate() -> float:
    return float(os.environ.get(RATE_VARIABLE, DEFAULT_RATE))

"""One stream of the scripted engine: it speaks its words, or acts out the script in its prompt."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NoReturn

import msgspec

from naiad.engine.base import CoreJob
from naiad.errors import EngineFailed, InvalidRequest
from naiad.ipc.channel import HEADER, MAX_FRAME_BYTES, WorkerChannel
from naiad.ipc.messages import ProgressItem, StepDone, StreamItem
from naiad.testing.words import BYTES, EOS, N_VOCAB, decode_token, key_of, length_of, word_at
from naiad.types import FinishReason, Likely, TokenLogprob

#: What one moment of a script yields: token ids with their bytes, or seconds to pass.
Piece = tuple[list[int], bytes]
Moment = Piece | float
#: [[verb, argument, ...], ...]
Script = list[Annotated[list[Any], msgspec.Meta(min_length=1)]]
#: An object behind the name is no script: agents describe tools that have such a parameter.
_SCRIPT = re.compile(rb'\{"script"(?!\s*:\s*\{)')


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


class Actor:
    """One stream: plays its script, or speaks until its length."""

    def __init__(self, job: CoreJob, wire: Wire | None) -> None:
        self.uid = job.uid
        self.due = 0.0
        self.is_cancelled = False
        self.wants_progress = job.wants_progress
        self.n_prompt = self.n_done = len(job.prompt)
        self._wire = wire
        self._key = key_of(job.prompt)
        self._seq = 0
        self._place = 0  # of the next word
        self._left = job.max_tokens
        self._n_logprobs = job.sampling.n_logprobs
        self._babble = 0  # items still to come after an abort
        self._error: tuple[str, str] | None = None
        script = script_of(job.prompt)
        limit = job.max_tokens if job.sampling.ignore_eos else length_of(self._key)
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

    def progress(self, position: int | None) -> ProgressItem:
        """How far it is: at `position` in the line, or in the pretended work on its prompt."""
        n_done = self.n_done if position is None else 0
        return ProgressItem(self.uid, position, n_done, self.n_prompt)

    @property
    def is_silent(self) -> bool:
        """True when no item of it was made yet."""
        return self._seq == 0

    def _item(
        self,
        tokens: list[int],
        data: bytes,
        finish: FinishReason | None = None,
        error: tuple[str, str] | None = None,
    ) -> StreamItem:
        told = [self._likely(token) for token in tokens] if self._n_logprobs >= 0 else None
        item = StreamItem(self.uid, self._seq, tokens, data, finish, 0, error, told)
        self._seq += 1
        return item

    def _likely(self, token: int) -> TokenLogprob:
        """Every token has half of the probability, the next of the vocabulary a quarter, ..."""
        others = [(token + i) % N_VOCAB for i in range(self._n_logprobs)]
        top = tuple(
            Likely(one, decode_token(one, special=True), math.log(2) * -(i + 1))
            for i, one in enumerate(others)
        )
        return TokenLogprob(token, decode_token(token), -math.log(2), top)

    def _next_word(self) -> Piece:
        token = word_at(self._key, self._place)
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

    def do_prefill(self, n_steps: int, seconds: float = 0.0) -> Iterator[Moment]:
        """Pretend to work on the prompt in so many steps of so many seconds."""
        for step in range(n_steps):
            self.n_done = self.n_prompt * (step + 1) // n_steps
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


def script_of(prompt: Sequence[int]) -> Script | None:
    """The script in a prompt. Raises InvalidRequest for one that cannot be acted out."""
    script = script_in(bytes(token for token in prompt if token < BYTES))
    for verb, *_ in script or []:
        if not hasattr(Actor, f"do_{verb}"):
            raise InvalidRequest(f"the scripted engine has no verb {verb!r}")
    return script


def script_in(data: bytes) -> Script | None:
    """The script within a text, wherever a template has put it. Raises InvalidRequest."""
    start = _SCRIPT.search(data)
    if start is None:
        return None
    try:
        found, _ = json.JSONDecoder().raw_decode(data[start.start() :].decode(errors="replace"))
        return msgspec.convert(found["script"], Script)
    except ValueError as error:
        raise InvalidRequest(f"the script cannot be read: {error}") from None

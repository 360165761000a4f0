"""Texts to be embedded wait here for their turn, in a thread beside the steps of the streams."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from naiad.engine.base import Embeds, EngineBackend
from naiad.errors import Unsupported
from naiad.ipc.messages import CallFailed, Embed, Embedded


class Embedding:
    """Answers Embed, one after another.

    Args:
        backend: the loaded engine. Raises EngineUnavailable while there is none.
        send: takes each answer; called from a thread of this object's own.
        fail: makes the answer of a call that failed.
    """

    def __init__(
        self,
        epoch: int,
        backend: Callable[[], EngineBackend],
        send: Callable[[Embedded | CallFailed], None],
        fail: Callable[[int, Exception], CallFailed],
    ) -> None:
        self._epoch = epoch
        self._backend = backend
        self._send = send
        self._fail = fail
        self._thread = ThreadPoolExecutor(1, "naiad-embedding")

    def put(self, command: Embed) -> None:
        """Take it in; returns at once."""
        self._thread.submit(self._run, command)

    def _run(self, command: Embed) -> None:
        try:
            answer: Embedded | CallFailed = self._embed(command)
        except Exception as error:  # whatever it is, somebody waits for an answer
            answer = self._fail(command.call, error)
        try:
            self._send(answer)
        except OSError:
            return  # the front is gone, and with it soon this process

    def _embed(self, command: Embed) -> Embedded:
        backend = self._backend()
        if not isinstance(backend, Embeds):
            raise Unsupported("this engine makes no embeddings")
        tokens = command.prompt
        if isinstance(tokens, str):
            tokens = backend.tokenizer.encode(tokens, add_special=True, parse_special=False)
        return Embedded(self._epoch, command.call, backend.embed(tokens), len(tokens))

    def close(self) -> None:
        """Take nothing more in, and wait for what is being computed. Safe to call twice."""
        self._thread.shutdown(wait=True, cancel_futures=True)

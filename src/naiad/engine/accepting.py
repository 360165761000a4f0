"""The yes or no to a request, and the job that it becomes. Inbox thread, but for compiling."""

from __future__ import annotations

import logging
from collections.abc import Callable

from naiad.engine.base import ChecksRoom, CompilesGrammars, CoreJob, EngineBackend
from naiad.engine.compiling import Compiling
from naiad.engine.grammar.follower import Follower
from naiad.engine.phrases import automaton
from naiad.engine.text_bias import with_text_biases
from naiad.errors import InternalError, NaiadError, Unsupported
from naiad.ipc.channel import FrameRefused, WorkerChannel
from naiad.ipc.messages import Accepted, Refused, Submit

logger = logging.getLogger("naiad.engine.worker")


class Accepting:
    """Answers requests.

    Args:
        backend: the loaded engine. Raises EngineUnavailable while there is none.
        enqueue: takes each accepted job; its Accepted was sent before.
    """

    def __init__(
        self,
        channel: WorkerChannel,
        epoch: int,
        backend: Callable[[], EngineBackend],
        enqueue: Callable[[CoreJob], None],
    ) -> None:
        self._channel = channel
        self._epoch = epoch
        self._backend = backend
        self._enqueue = enqueue
        self._compiling = Compiling(self._compile, self._answer)

    def submit(self, submit: Submit) -> None:
        """Answer it; or soon, from another thread, where a grammar has to be compiled."""
        try:
            follower = self._follower(submit)
        except Exception as error:
            self._answer(submit, error)
            return
        if submit.grammar is not None and follower is None:
            self._compiling.put(submit)
        else:
            self._answer(submit, follower)

    def abort(self, uid: int) -> bool:
        """True when that request had no answer yet; it has been told that it was cancelled."""
        return self._compiling.abort(uid)

    def close(self) -> None:
        """Answer nobody any longer. Safe to call twice."""
        self._compiling.close()

    def _follower(self, submit: Submit) -> Follower | None:
        if submit.grammar is None:
            return None
        return self._grammars(submit).cached_grammar(submit.grammar)

    def _compile(self, submit: Submit) -> Follower:
        """In a thread of its own; see naiad.engine.compiling."""
        assert submit.grammar is not None
        try:
            return self._grammars(submit).compile_grammar(submit.grammar)
        except NaiadError as error:
            error.param = submit.grammar.field or None
            raise

    def _grammars(self, submit: Submit) -> CompilesGrammars:
        backend = self._backend()
        if isinstance(backend, CompilesGrammars):
            return backend
        field = submit.grammar.field if submit.grammar else ""
        raise Unsupported("this engine cannot follow a grammar", param=field or None)

    def _answer(self, submit: Submit, follower: Follower | Exception | None) -> None:
        try:
            if isinstance(follower, Exception):
                raise follower
            job, n_dropped = self._check(submit, follower)
            backend = self._backend()
            if isinstance(backend, ChecksRoom):
                backend.check_room(job)
            accepted = Accepted(self._epoch, submit.uid, len(job.prompt), n_dropped)
        except Exception as error:
            refusal = deliberate(error)
            details = refusal.details | ({"param": refusal.param} if refusal.param else {})
            refused = Refused(self._epoch, submit.uid, refusal.code, refusal.message, details)
            self._channel.send(refused)
            return
        self._channel.send(accepted)
        self._enqueue(job)

    def _check(self, submit: Submit, follower: Follower | None) -> tuple[CoreJob, int]:
        """The job, and how many tokens of its prompt were left out."""
        backend = self._backend()
        ids, n_dropped = _tokens_of(submit, backend)
        max_tokens = backend.check(ids, submit.max_tokens)
        if submit.shift_at_limit and submit.max_tokens is not None:
            max_tokens = submit.max_tokens  # the context is no bound
        sampling = with_text_biases(
            submit.sampling,
            lambda text: backend.tokenizer.encode(text, add_special=False, parse_special=False),
        )
        automaton(sampling.banned_phrases)  # made here, not between two tokens
        job = CoreJob(
            submit.uid,
            tuple(ids),
            max_tokens,
            sampling,
            submit.namespace,
            submit.priority,
            submit.caller,
            submit.wants_progress,
            submit.shift_at_limit,
            follower,
            None if submit.shown is None else frozenset(submit.shown),
            submit.reasoning,
            submit.is_deterministic,
        )
        return job, n_dropped


def _tokens_of(submit: Submit, backend: EngineBackend) -> tuple[list[int], int]:
    """The prompt's tokens, and how many were left out of one that is too long and may be cut.

    What stays of the beginning stays whole. If it alone is too long, the prompt is not cut.
    """
    if not isinstance(submit.prompt, str):
        return submit.prompt, 0
    encode, text = backend.tokenizer.encode, submit.prompt
    ids = encode(text, add_special=True, parse_special=True)
    if submit.trim is None:
        return ids, 0
    n_ctx = backend.info.engine.n_ctx
    n_total = min(submit.trim.n_total or n_ctx, n_ctx)
    room = n_total - max(1, min(submit.max_tokens or 1, n_total // 2))
    if len(ids) <= room:
        return ids, 0
    n_kept = submit.trim.n_kept_chars
    kept = encode(text[:n_kept], add_special=True, parse_special=True)
    rest = encode(text[n_kept:], add_special=False, parse_special=True)
    n_rest = room - len(kept)
    return (kept + rest[-n_rest:], len(rest) - n_rest) if 0 < n_rest < len(rest) else (ids, 0)


def deliberate(error: Exception) -> NaiadError:
    """The error as the front may show it; a defect goes to the log and keeps its cause there."""
    if isinstance(error, NaiadError):
        return error
    if isinstance(error, FrameRefused):
        return InternalError(f"the answer cannot be sent: {error}")
    logger.error("a command failed", exc_info=error)
    return InternalError("the engine could not take this request; the log has the cause")

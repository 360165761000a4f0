"""Requests with a new grammar wait here until it is compiled, so that no other command does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from naiad.engine.grammar.compiler import N_AT_ONCE
from naiad.engine.grammar.follower import Follower
from naiad.errors import Cancelled, NaiadError
from naiad.ipc.messages import Submit

#: Compiles; raises whatever the request is then refused with.
Compile = Callable[[Submit], Follower]
#: Goes on with a request and its grammar, or with the reason why there is none.
GoOn = Callable[[Submit, Follower | Exception], None]


class Compiling:
    """The threads that compile, and the requests that wait for them.

    go_on is called exactly once for each request: from one of those threads, or from the one that
    aborts it.
    """

    def __init__(self, compile_one: Compile, go_on: GoOn) -> None:
        self._compile = compile_one
        self._go_on = go_on
        self._lock = threading.Lock()
        self._waiting: dict[int, Submit] = {}
        self._threads = ThreadPoolExecutor(N_AT_ONCE, "naiad-grammar")
        self._is_closed = False

    def put(self, submit: Submit) -> None:
        """Take a request in; returns at once."""
        with self._lock:
            if self._is_closed:
                return
            self._waiting[submit.uid] = submit
        self._threads.submit(self._run, submit)

    def abort(self, uid: int) -> bool:
        """True when that request waited here; it has been refused as cancelled.

        A compile that is under way goes on: it is bounded, and the grammar may come again.
        """
        with self._lock:
            submit = self._waiting.pop(uid, None)
            if submit is not None and not self._is_closed:
                self._go_on(submit, _cancelled())
            return submit is not None

    def _run(self, submit: Submit) -> None:
        with self._lock:
            if submit.uid not in self._waiting:
                return
        outcome = self._outcome(submit)
        # Held until it is handed on: an abort then either finds it here, or comes behind it.
        with self._lock:
            if self._waiting.pop(submit.uid, None) is not None and not self._is_closed:
                self._go_on(submit, outcome)

    def _outcome(self, submit: Submit) -> Follower | Exception:
        try:
            return self._compile(submit)
        except Exception as error:  # whatever it is, somebody waits for an answer
            return error

    def close(self) -> None:
        """Take nothing more in and answer nobody; does not wait. Safe to call twice."""
        with self._lock:
            self._is_closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)


def _cancelled() -> NaiadError:
    return Cancelled("the request was cancelled before its grammar was compiled")

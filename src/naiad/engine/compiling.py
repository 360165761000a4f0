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

    go_on is called from one of them, exactly once for each request.
    """

    def __init__(self, compile_one: Compile, go_on: GoOn) -> None:
        self._compile = compile_one
        self._go_on = go_on
        self._lock = threading.Lock()
        self._waiting: dict[int, bool] = {}  # uid -> whether it is still wanted
        self._threads = ThreadPoolExecutor(N_AT_ONCE, "naiad-grammar")
        self._is_closed = False

    def put(self, submit: Submit) -> None:
        """Take a request in; returns at once."""
        with self._lock:
            if self._is_closed:
                return
            self._waiting[submit.uid] = True
        self._threads.submit(self._run, submit)

    def abort(self, uid: int) -> bool:
        """True when that request waited here; it is then refused as cancelled."""
        with self._lock:
            is_here = uid in self._waiting
            if is_here:
                self._waiting[uid] = False
            return is_here

    def _run(self, submit: Submit) -> None:
        with self._lock:
            is_wanted = self._waiting[submit.uid]
        outcome = self._outcome(submit) if is_wanted else _cancelled()
        # Held until it is handed on: an abort then either finds it here, or comes behind it.
        with self._lock:
            is_wanted = self._waiting.pop(submit.uid)
            if not self._is_closed:
                self._go_on(submit, outcome if is_wanted else _cancelled())

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

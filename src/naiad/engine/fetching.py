"""Reading saved states from disk while streams go on: in a thread, asked for before they are used.

A state that is read and checked by the thread that steps makes every stream wait for it, a whole
conversation's for a tenth of a second and more.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

K = TypeVar("K")
S = TypeVar("S")


def in_a_thread(run: Callable[[], None]) -> None:
    """Raises RuntimeError when there can be no more threads."""
    threading.Thread(target=run, name="naiad-fetch", daemon=True).start()


class Fetcher(Generic[K, S]):
    """Reads what is asked for, one after another. read: of any thread; None for what is lost.

    All methods are for one thread. Something asked for is coming until it is taken.
    """

    def __init__(self, read: Callable[[K], S | None]) -> None:
        self._read = read
        self._lock = threading.Lock()  # over the next two
        self._jobs: deque[K] = deque()
        self._is_running = False
        self._found: deque[tuple[K, S | None]] = deque()
        self._coming: set[K] = set()

    def ask(self, keys: Iterable[K]) -> None:
        new = [key for key in keys if key not in self._coming]
        self._coming.update(new)
        with self._lock:
            self._jobs += new
            if not self._jobs or self._is_running:
                return
            self._is_running = True
        try:
            in_a_thread(self._run)
        except RuntimeError:  # no more threads: whoever needs them reads them
            self._is_running = False
            self._coming.difference_update(self._jobs)
            self._jobs.clear()

    def drop(self, keys: Iterable[object]) -> None:
        """Nobody wants these any more. What is being read just now comes all the same."""
        unwanted = set(keys)
        with self._lock:
            dropped = [key for key in self._jobs if key in unwanted]
            self._jobs = deque(key for key in self._jobs if key not in unwanted)
        self._coming.difference_update(dropped)

    def is_coming(self, keys: Iterable[object]) -> bool:
        """Whether any of these is still to be taken."""
        return not self._coming.isdisjoint(keys)

    def take(self) -> list[tuple[K, S | None]]:
        """What was read since the last time."""
        taken = []
        while self._found:
            taken.append(self._found.popleft())
            self._coming.discard(taken[-1][0])
        return taken

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._is_running = False
                    return
                key = self._jobs.popleft()
            self._found.append((key, self._read_one(key)))

    def _read_one(self, key: K) -> S | None:
        """Whatever goes wrong is a loss: what nobody answers for would be waited for for ever."""
        try:
            return self._read(key)
        except Exception as error:  # for lack of memory, say
            logger.warning("a saved state cannot be read: %s", str(error) or type(error).__name__)
            return None

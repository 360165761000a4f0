"""Generations in flight: who owns them, and which one an abort means.

Clients such as SillyTavern press Stop with two signals at once on two connections: they hang up,
and they send an abort that names no generation. Either can come first, and the next generation may
already be there when the later one arrives. Two rules keep that abort from hitting a bystander:

1. An abort without a handle cancels only the oldest generation without a handle of that caller.
2. A hang-up that cancelled such a generation pays for one abort in the next two seconds: that abort
   is the other half of the same Stop, and is swallowed.

A hang-up after the end, or after an abort had done its work, pays for nothing.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from naiad.types import Caller, Progress, Running, TokenLogprob

CREDIT_S = 2.0


class Entry:
    """One generation from admission to its end."""

    __slots__ = (
        "_stop", "caller", "handle", "id", "is_aborted", "is_finished", "logprobs", "pieces",
        "progress", "running",
    )  # fmt: skip

    def __init__(self, caller: Caller, handle: str | None) -> None:
        self.id = secrets.token_hex(16)  # ours, unguessable; a client's own id is never a key
        self.caller = caller
        self.handle = handle
        self.is_aborted = False
        self.is_finished = False
        self.pieces: list[str] = []  # the text so far; bounded by the context
        self.logprobs: list[TokenLogprob] | None = None  # where to note them, if anywhere
        self.progress: Progress | None = None  # the newest, until there is text
        self.running: Callable[[], Running] | None = None  # once the engine has accepted it
        self._stop: Callable[[], None] | None = None

    def attach(self, stop: Callable[[], None]) -> None:
        """Say how to stop the work; an abort that came before is carried out now."""
        self._stop = stop
        if self.is_aborted:
            stop()

    def abort(self) -> None:
        """Stop the work, or remember to as soon as there is some. The engine reports the end."""
        self.is_aborted = True
        if self._stop is not None:
            self._stop()

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self.pieces)


class Registry:
    """All generations in flight, oldest first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: dict[str, Entry] = {}
        self._credits: dict[str, deque[float]] = {}  # per caller, when each hang-up happened

    def __len__(self) -> int:
        return len(self._entries)

    @contextmanager
    def enter(self, caller: Caller, handle: str | None) -> Iterator[Entry]:
        """Register a generation for as long as the context lasts."""
        entry = Entry(caller, handle)
        self._entries[entry.id] = entry
        try:
            yield entry
        except Exception:  # refused or failed: the caller did not hang up
            entry.is_finished = True
            raise
        finally:
            del self._entries[entry.id]
            if not entry.is_finished and not entry.is_aborted and handle is None:
                self._grant(caller.identity)

    def abort(self, caller: Caller, handle: str | None) -> bool:
        """Cancel the generation that is meant. True when one was, or when the abort was swallowed.

        Several generations of one caller under one handle are all cancelled.
        """
        if handle is None and self._spend(caller.identity):
            return True
        meant = self._of(caller, handle)
        if handle is None:
            meant = meant[:1]
        for entry in meant:
            entry.abort()
        return bool(meant)

    def partial_text(self, caller: Caller, handle: str | None) -> str:
        """Text so far of the caller's oldest generation under that handle (or without one)."""
        found = self._of(caller, handle)
        return found[0].text if found else ""

    def progress(self, caller: Caller, handle: str | None) -> Progress | None:
        """How far that same generation is; None when it has text or did not ask."""
        found = self._of(caller, handle)
        return found[0].progress if found else None

    def running(self, caller: Caller) -> list[Running]:
        """The caller's own requests that the engine has accepted, oldest first."""
        return [
            entry.running()
            for entry in self._entries.values()
            if entry.caller.identity == caller.identity and entry.running and not entry.is_finished
        ]

    def _of(self, caller: Caller, handle: str | None) -> list[Entry]:
        return [
            entry
            for entry in self._entries.values()
            if entry.caller.identity == caller.identity
            and entry.handle == handle
            and not entry.is_aborted
            and not entry.is_finished
        ]

    def _grant(self, identity: str) -> None:
        self._forget_old()
        self._credits.setdefault(identity, deque()).append(self._clock())

    def _spend(self, identity: str) -> bool:
        self._forget_old()
        granted = self._credits.get(identity)
        if not granted:
            return False
        granted.popleft()
        return True

    def _forget_old(self) -> None:
        oldest = self._clock() - CREDIT_S
        for identity, granted in list(self._credits.items()):
            while granted and granted[0] < oldest:
                granted.popleft()
            if not granted:
                del self._credits[identity]

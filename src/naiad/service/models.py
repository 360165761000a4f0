"""The model in memory: how long it stays there without work, and how it comes back.

Whoever works with the model holds it. When the last one lets go, one timer of the event loop is
set; when it ends, the worker process ends, and with it goes all that the model held in memory. The
next one who needs the model loads it again, and is told how far that is.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from naiad.client.base import EngineClient, EngineState
from naiad.errors import EngineUnavailable
from naiad.types import Residency

#: Awaited with the share of the model that is loaded, 0 to 1, each time that it changes.
Tell = Callable[[float], Awaitable[None]]

_LOADING = {EngineState.STARTING, EngineState.RESTARTING}
_LATER_S = 10  # when to try again after a load that failed


class Models:
    """Loads and unloads the model of one engine.

    idle_s: seconds without work after which the model is unloaded; math.inf for never.
    """

    def __init__(self, engine: EngineClient, idle_s: float = math.inf) -> None:
        self._engine = engine
        self._idle_s = idle_s
        self._keep_s = idle_s  # what was last asked for, while the model stays loaded
        self._n_holders = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def residency(self) -> Residency:
        """Whether the model is in memory, and for how long."""
        if self._engine.status.state is not EngineState.READY:
            return Residency(is_loaded=False, expires_in_s=None)
        left_s = self._keep_s
        if self._timer is not None:
            left_s = max(0.0, self._timer.when() - asyncio.get_running_loop().time())
        return Residency(is_loaded=True, expires_in_s=None if left_s == math.inf else left_s)

    def start_counting(self) -> None:
        """Begin to count the time without work, if nobody holds the model."""
        if not self._n_holders and self._keep_s < math.inf:
            self._disarm()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, self._keep_s), self._expire)

    @contextmanager
    def hold(self, keep_s: float | None = None) -> Iterator[None]:
        """Keep the model from being unloaded for as long as the context lasts.

        keep_s: seconds that it shall stay loaded afterwards, from now on; 0 or less for not at
            all, math.inf for ever, None for as long as was said before.
        """
        self._n_holders += 1
        self._disarm()
        try:
            yield
        finally:
            self._n_holders -= 1
            if keep_s is not None:
                self._keep_s = keep_s
            if not self._n_holders and self._keep_s <= 0:
                self.unload()
            self.start_counting()

    async def ready(self, tell: Tell | None = None) -> None:
        """Load the model if it is not; returns when it is. Hold it first.

        Raises EngineUnavailable when it cannot be loaded.
        """
        engine = self._engine
        if engine.status.state is EngineState.UNLOADED:
            self._keep_s = self._idle_s
            engine.load()
        changed = engine.next_change()
        while engine.status.state in _LOADING:
            if tell is not None:
                await tell(engine.status.progress)
            await changed.wait()
            changed = engine.next_change()
        if engine.status.state is not EngineState.READY:
            raise EngineUnavailable(
                "The model could not be loaded; the server's log says why.", retry_after=_LATER_S
            )

    def unload(self) -> None:
        """Unload the model, whoever uses it."""
        self._disarm()
        self._keep_s = self._idle_s
        self._engine.unload()

    def close(self) -> None:
        """Count no longer."""
        self._disarm()

    def _expire(self) -> None:
        self._timer = None
        if self._engine.status.state is EngineState.READY:
            self.unload()
        else:
            self.start_counting()  # it took longer to load than it may be idle

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

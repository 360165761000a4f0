"""What the worker tells beside the streams, and only when it has changed: progress, the cache."""

from __future__ import annotations

from naiad.engine.base import Core, CoreJob, CountsCache, ReportsProgress
from naiad.ipc.messages import ProgressItem, StreamItem
from naiad.types import CacheCounts


class CacheReporter:
    """Looks at a core's cache when asked to. A core that keeps nothing: costs nothing."""

    def __init__(self, core: Core) -> None:
        self._core = core if isinstance(core, CountsCache) else None
        self._told = CacheCounts()

    def news(self) -> CacheCounts | None:
        """The counts, if they are not those that were told last."""
        if self._core is None:
            return None
        last, self._told = self._told, self._core.cache_counts()
        return None if self._told == last else self._told


class ProgressReporter:
    """Of requests that asked for it, until their first item.

    Looks at a core after each step. Nobody asked, or a core that cannot tell: costs nothing."""

    def __init__(self, core: Core) -> None:
        self._core = core if isinstance(core, ReportsProgress) else None
        self._told: dict[int, ProgressItem | None] = {}  # uid -> what was said last

    def watch(self, job: CoreJob) -> None:
        """A job that was given to the core."""
        if job.wants_progress and self._core is not None:
            self._told[job.uid] = None

    def news(self, items: list[StreamItem]) -> list[ProgressItem]:
        """What there is to tell after a step that made these items."""
        if not self._told or self._core is None:
            return []
        for item in items:
            self._told.pop(item.uid, None)
        if not self._told:
            return []
        news = [item for item in self._core.progress() if self._is_news(item)]
        self._told.update((item.uid, item) for item in news)
        return news

    def _is_news(self, item: ProgressItem) -> bool:
        return item.uid in self._told and self._told[item.uid] != item

"""Builds an engine from its configuration: the one place that picks how its workers run."""

from __future__ import annotations

from naiad.client.engine import SocketEngine
from naiad.client.restart import RestartLimits
from naiad.client.spawn import launch_process, launch_thread
from naiad.config import EngineConfig


def engine_from(config: EngineConfig, *, limits: RestartLimits | None = None) -> SocketEngine:
    """An engine whose workers are child processes, as `naiad serve` runs it."""
    return SocketEngine(config, launch_process, limits=limits)


def in_thread(config: EngineConfig, *, limits: RestartLimits | None = None) -> SocketEngine:
    """The same, with each worker in a thread of this process: for tests, it cannot be killed."""
    return SocketEngine(config, launch_thread, limits=limits)

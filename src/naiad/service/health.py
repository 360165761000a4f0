"""What /health says: alive, ready, and if not, why not."""

from __future__ import annotations

from typing import Any

import msgspec

from naiad import __version__
from naiad.client.base import EngineState, EngineStatus
from naiad.types import EngineSettings

_WORDS = {
    EngineState.STARTING: "loading",
    EngineState.READY: "ok",
    EngineState.UNLOADED: "unloaded",
    EngineState.RESTARTING: "restarting",
    EngineState.FAILED: "failed",
    EngineState.STOPPED: "failed",
}


def is_ready(status: EngineStatus) -> bool:
    """True when a request sent now would be run; an unloaded model is loaded for it."""
    return status.state in {EngineState.READY, EngineState.UNLOADED}


def report(status: EngineStatus, n_in_flight: int, n_waiting_tokens: int) -> dict[str, Any]:
    """The body of /health.

    `engine` holds the fields of EngineSettings, defaults until known; `cache` those of CacheCounts.
    waiting_tokens: of prompts whose answers have no text yet, about.
    """
    model = status.model
    ready = is_ready(status)
    return {
        "status": _WORDS[status.state],
        "live": True,
        "ready": ready,
        "reason": status.reason,
        "progress": 1.0 if status.state is EngineState.READY else status.progress,
        "model": model.name if model else None,
        "engine": msgspec.to_builtins(model.engine if model else EngineSettings()),
        "restarts": status.restarts,
        "integrity_violations": status.integrity_violations,
        "in_flight": n_in_flight,
        "waiting_tokens": n_waiting_tokens,
        "cache": msgspec.to_builtins(status.cache),
        "version": __version__,
    }

"""Progress as clients read it; llama-server's names where it has any."""

from __future__ import annotations

from typing import Any

from naiad.types import Progress


def loading_of(loaded: float) -> dict[str, Any]:
    """`model_load` while the model is being loaded for the request: LM Studio's name.

    loaded: the share that is loaded, 0 to 1; sent with two decimals.
    """
    return {"model_load": {"progress": round(loaded, 2)}}


def progress_of(progress: Progress) -> dict[str, Any]:
    """`queue` while the request waits, `prompt_progress` once its prompt is in work.

    position: 1 for the next to start. eta_s: seconds, one decimal, null when nothing is known yet.
    processed: prompt tokens that are ready, of total, the cached ones included. time_ms: since the
    work on the prompt began.
    """
    if progress.position is not None:
        eta_s = None if progress.eta_s is None else round(progress.eta_s, 1)
        return {"queue": {"status": "queued", "position": progress.position + 1, "eta_s": eta_s}}
    return {
        "prompt_progress": {
            "total": progress.n_total,
            "cache": progress.n_cached,
            "processed": progress.n_done,
            "time_ms": round(1000 * progress.prompt_s),
        }
    }

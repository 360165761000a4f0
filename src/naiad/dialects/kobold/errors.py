"""KoboldAI's error envelope."""

from __future__ import annotations

from typing import Any

from naiad.errors import NaiadError

_TYPES = {
    401: "unauthorized",
    403: "unauthorized",
    429: "service_unavailable",
    503: "service_unavailable",
}
_TYPE_BY_FAULT = {"client": "bad_input", "server": "generation_error"}


def error_body(error: NaiadError) -> Any:
    """{"detail": {msg, type}}."""
    return {"detail": detail_of(error)}


def detail_of(error: NaiadError) -> dict[str, str]:
    """What stands under `detail`, here and in the last event of a failed stream."""
    kind = _TYPES.get(error.status) or _TYPE_BY_FAULT[error.fault]
    return {"msg": error.message, "type": kind}

"""OpenAI's error envelope."""

from __future__ import annotations

from typing import Any

from naiad.errors import ContextExceeded, NaiadError

#: By status; what is not here follows from whose fault it was.
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable",
}
_TYPE_BY_FAULT = {"client": "invalid_request_error", "server": "server_error"}


def error_body(error: NaiadError) -> Any:
    """{"error": {message, type, param, code}} and the error's own figures beside them."""
    return {
        "error": {
            "message": error.message,
            "type": _type(error),
            "param": error.param,
            "code": error.code,
            **error.details,
        }
    }


def _type(error: NaiadError) -> str:
    if isinstance(error, ContextExceeded):
        return "exceed_context_size_error"  # the word that clients of llama-server look for
    return _TYPES.get(error.status) or _TYPE_BY_FAULT[error.fault]

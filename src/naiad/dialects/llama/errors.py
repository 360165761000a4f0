"""llama-server's error envelope: the HTTP status stands in it as `code`."""

from __future__ import annotations

from typing import Any

from naiad.errors import ContextExceeded, NaiadError, Unsupported

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    503: "unavailable_error",
}
_TYPE_BY_FAULT = {"client": "invalid_request_error", "server": "server_error"}


def error_body(error: NaiadError) -> Any:
    """{"error": {code, message, type, param}} and the error's own figures beside them."""
    told = {"code": error.status, "message": error.message, "type": _type(error)}
    field = {} if error.param is None else {"param": error.param}
    return {"error": {**told, **field, **error.details}}


def _type(error: NaiadError) -> str:
    if isinstance(error, ContextExceeded):
        return "exceed_context_size_error"
    if isinstance(error, Unsupported):
        return "not_supported_error"
    return _TYPES.get(error.status) or _TYPE_BY_FAULT[error.fault]

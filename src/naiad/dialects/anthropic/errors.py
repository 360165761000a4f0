"""Anthropic's error envelope and its status for a server that has no room."""

from __future__ import annotations

from typing import Any

from naiad.errors import ContextExceeded, NaiadError

OVERLOADED = 529

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_TYPE_BY_FAULT = {"client": "invalid_request_error", "server": "api_error"}


def error_body(error: NaiadError) -> Any:
    """{"type": "error", "error": {type, message}}."""
    kind = _TYPES.get(error.status) or _TYPE_BY_FAULT[error.fault]
    return {"type": "error", "error": {"type": kind, "message": _message(error)}}


def error_status(error: NaiadError) -> int:
    """529 where others say 503."""
    return OVERLOADED if error.status == 503 else error.status


def _message(error: NaiadError) -> str:
    figures = error.details
    if isinstance(error, ContextExceeded) and {"n_prompt_tokens", "n_ctx"} <= figures.keys():
        # Agents look for these words, and then shorten the conversation.
        n_tokens, n_ctx = figures["n_prompt_tokens"], figures["n_ctx"]
        return f"prompt is too long: {n_tokens} tokens > {n_ctx} maximum"
    return error.message

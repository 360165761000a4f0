"""Every deliberate failure: a stable code, an HTTP status, and whose fault it is.

A dialect shapes only the *body* of an error; what went wrong and its status are decided here, so
that all dialects refuse the same things. `code` is part of the public API and never changes.
Errors cross the process border as (code, message, details); `from_code` rebuilds the type.
"""

from __future__ import annotations

from typing import Any, ClassVar


class NaiadError(Exception):
    """Base of every deliberate error.

    Args:
        message: one sentence for the person who made the request. Never contains a prompt, a key
            or a file path that the caller did not send.
        param: the caller's own name of the offending field, when there is one.
        details: figures that go with the message (JSON values), e.g. `n_prompt_tokens`, `n_ctx`.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    #: "client" when the request was at fault, "server" when we were.
    fault: ClassVar[str] = "server"

    def __init__(self, message: str, *, param: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.details = details


class InternalError(NaiadError):
    """A defect of naiad itself; the message is fixed and the cause goes to the log only."""


class InvalidRequest(NaiadError):
    """A field is missing, has the wrong type, or is out of its range."""

    code = "invalid_request"
    status = 400
    fault = "client"


class InvalidJson(InvalidRequest):
    """The body is not a JSON object."""

    code = "invalid_json"


class ContextExceeded(InvalidRequest):
    """The prompt does not fit the context. Details: `n_prompt_tokens`, `n_ctx`."""

    code = "context_length_exceeded"


class Unsupported(InvalidRequest):
    """A request for something that this model or this version cannot do."""

    code = "unsupported"


class Unauthorized(NaiadError):
    """The key is missing or wrong."""

    code = "invalid_api_key"
    status = 401
    fault = "client"


class Forbidden(NaiadError):
    """The Host or Origin of the request is not allowed."""

    code = "forbidden"
    status = 403
    fault = "client"


class AdminRequired(Forbidden):
    """Only an administrator may ask for this."""

    code = "admin_required"


class NotFound(NaiadError):
    """No such route or object."""

    code = "not_found"
    status = 404
    fault = "client"


class ModelNotFound(NotFound):
    """The named model is not the one that is loaded."""

    code = "model_not_found"


class MethodNotAllowed(NaiadError):
    """The route exists, the method does not. Detail: `allow`."""

    code = "method_not_allowed"
    status = 405
    fault = "client"


class PayloadTooLarge(NaiadError):
    """The body is over a limit. Detail: `limit_bytes`, where that is one of bytes."""

    code = "payload_too_large"
    status = 413
    fault = "client"


class RequestTimeout(NaiadError):
    """The body did not arrive in time."""

    code = "request_timeout"
    status = 408
    fault = "client"


class Overloaded(NaiadError):
    """The queue is full. Detail: `retry_after` in seconds (becomes the Retry-After header)."""

    code = "overloaded"
    status = 503


class RateLimited(NaiadError):
    """One key asks for more than it may. Details: `retry_after` in seconds, `limit_requests`."""

    code = "rate_limited"
    status = 429
    fault = "client"


class EngineUnavailable(NaiadError):
    """No engine to run the request now: loading, restarting or given up. Detail: `retry_after`."""

    code = "engine_unavailable"
    status = 503


class EngineFailed(NaiadError):
    """The engine died or failed while it worked on this request."""

    code = "engine_failed"


class IntegrityViolation(NaiadError):
    """A frame of the wrong epoch, stream or place arrived: this stream is failed, loudly."""

    code = "stream_integrity"


class Cancelled(NaiadError):
    """The request was cancelled before it produced an answer."""

    code = "cancelled"
    status = 499
    fault = "client"


class ConfigError(NaiadError):
    """A flag, environment variable or settings file holds a bad value."""

    code = "config"
    fault = "client"


class ModelFileError(NaiadError):
    """The model file is missing, is no GGUF, is damaged, or cannot be loaded."""

    code = "model_file"
    fault = "client"


class SelfTestFailed(NaiadError):
    """The freshly loaded model does not compute: NaN or no logits in the worker's own test."""

    code = "engine_selftest"


def _walk(cls: type[NaiadError]) -> list[type[NaiadError]]:
    return [cls, *(t for sub in cls.__subclasses__() for t in _walk(sub))]


def from_code(code: str, message: str, details: dict[str, Any] | None = None) -> NaiadError:
    """Rebuild an error that crossed the process border; an unknown code is an InternalError."""
    kinds = {cls.code: cls for cls in _walk(NaiadError) if cls is not NaiadError}
    return kinds.get(code, InternalError)(message, **(details or {}))

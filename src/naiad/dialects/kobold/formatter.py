"""What KoboldAI's clients read: `event: message` with a token each, or one object.

The last event has an empty token and the reason; there is no end marker. A failed stream's last
event says "error" and carries the same `detail` as an error body. Cancelled streams end with
"stop": whoever hung up does not read it, and one that was aborted has simply ended.
"""

from __future__ import annotations

from typing import Any

from naiad.dialects.base import Formatter, Media
from naiad.dialects.framing import SSE_PING, Template, sse, to_line
from naiad.dialects.kobold.errors import detail_of
from naiad.dialects.kobold.logprobs import KoboldLogprobs
from naiad.dialects.progress import loading_of, progress_of
from naiad.errors import InternalError
from naiad.types import Completion, Finished, FinishReason, Progress, Started, TextDelta

_EVENT = "message"
_FINISH = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.CANCELLED: "stop",
    FinishReason.ERROR: "error",
}
# Nothing in an event depends on the request, so one template serves all streams.
_TOKEN = Template({"token": Template.HOLE, "finish_reason": None}, _EVENT)


class KoboldFormatter(Formatter):
    """One answer."""

    media = Media.SSE

    def __init__(self) -> None:
        self._shaper = KoboldLogprobs()

    def open(self, started: Started) -> bytes:  # noqa: ARG002 - the protocol's signature
        """Nothing: the first event is the first token."""
        return b""

    def progress(self, progress: Progress) -> bytes:
        """An event of its own name, with no token in case a client reads it nevertheless."""
        return _silent(progress_of(progress))

    def loading(self, loaded: float) -> bytes:
        """The same event."""
        return _silent(loading_of(loaded))

    def delta(self, delta: TextDelta) -> bytes:
        """One token event; with logprobs, if they were asked for."""
        if not delta.logprobs:
            return _TOKEN.fill(delta.text)
        told = {"logprobs": self._shaper.shape(delta.logprobs)}
        return sse(to_line({"token": delta.text, "finish_reason": None, **told}), _EVENT)

    def close(self, finished: Finished) -> bytes:
        """The last event."""
        last: dict[str, Any] = {"token": "", "finish_reason": _FINISH[finished.reason]}
        last |= _dropped(finished)
        if finished.reason is FinishReason.ERROR:
            last["detail"] = detail_of(finished.error or InternalError("The answer failed."))
        return sse(to_line(last), _EVENT)

    def heartbeat(self) -> bytes:
        """A comment."""
        return SSE_PING

    def whole(self, completion: Completion) -> Any:
        """The object of an answer that is not streamed."""
        usage = completion.finished.usage
        result: dict[str, Any] = {
            "text": completion.text,
            "tool_calls": [],
            "finish_reason": _FINISH[completion.finished.reason],
            "logprobs": self._shaper.shape(told) if (told := completion.logprobs) else None,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            **_dropped(completion.finished),
        }
        return {"results": [result]}


class BasicFormatter(KoboldFormatter):
    """/request: KoboldAI's first API."""

    def whole(self, completion: Completion) -> Any:
        """The text alone."""
        return {"data": {"seqs": [completion.text]}}


def _dropped(finished: Finished) -> dict[str, int]:
    """How much of the oldest text was given up to stay in the context; nothing if all fitted."""
    n_dropped = finished.usage.dropped_tokens
    return {"dropped_tokens": n_dropped} if n_dropped else {}


def _silent(told: dict[str, Any]) -> bytes:
    return sse(to_line({"token": "", "finish_reason": None, **told}), "progress")

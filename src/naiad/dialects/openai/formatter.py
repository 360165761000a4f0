"""What OpenAI's clients read: chunks of a stream, or one object.

Cancelled streams end with "stop": whoever hung up does not read it, and one that was stopped by an
abort from elsewhere has simply ended. A failure after the first byte is an error frame (the SDK
raises at it) and then the end marker, for clients that wait for that.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from naiad.dialects.base import Media
from naiad.dialects.framing import SSE_DONE, SSE_PING, Template, sse, to_line
from naiad.dialects.openai.errors import error_body
from naiad.dialects.progress import progress_of
from naiad.errors import InternalError
from naiad.types import (
    Completion,
    Finished,
    FinishReason,
    Progress,
    Started,
    TextDelta,
    Usage,
)

_FINISH = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.CANCELLED: "stop",
}


@dataclass(frozen=True, slots=True)
class Head:
    """What every chunk of one answer repeats."""

    model: str
    id: str
    created: int = field(default_factory=lambda: int(time.time()))

    @staticmethod
    def new(model: str, kind: str) -> Head:
        """A head with an id that nobody can guess, e.g. chatcmpl-5f0c..."""
        return Head(model=model, id=f"{kind}-{secrets.token_hex(16)}")


class OpenAIFormatter:
    """Shared by both forms of completion; a form says what a choice looks like."""

    media = Media.SSE
    chunk_object: str
    whole_object: str

    def __init__(self, head: Head, *, include_usage: bool = False) -> None:
        self._head = head
        self._include_usage = include_usage
        self._delta = Template(self._chunk([self._choice(Template.HOLE, None)]))

    def open(self, started: Started) -> bytes:  # noqa: ARG002 - the protocol's signature
        """Nothing, unless the form has a first chunk of its own."""
        return b""

    def progress(self, progress: Progress) -> bytes:
        """A chunk without text; its figures stand beside the choices."""
        chunk = self._chunk([self._silent_choice()])
        return sse(to_line({**chunk, **progress_of(progress)}))

    def delta(self, delta: TextDelta) -> bytes:
        """One chunk of text."""
        return self._delta.fill(delta.text)

    def close(self, finished: Finished) -> bytes:
        """The last chunk (or the error frame), the usage if it was asked for, the end marker."""
        if finished.reason is FinishReason.ERROR:
            error = finished.error or InternalError("The answer failed.")
            return sse(to_line(error_body(error))) + SSE_DONE
        last = self._chunk([self._choice("", _FINISH[finished.reason])])
        frames = sse(to_line(last))
        if self._include_usage:
            frames += sse(to_line(self._chunk([], usage_of(finished.usage))))
        return frames + SSE_DONE

    def heartbeat(self) -> bytes:
        """A comment."""
        return SSE_PING

    def whole(self, completion: Completion) -> Any:
        """The object of an answer that is not streamed."""
        finish = _FINISH[completion.finished.reason]
        return {
            **self._object(self.whole_object),
            "choices": [self._whole_choice(completion.text, finish)],
            "usage": usage_of(completion.finished.usage),
        }

    def _object(self, kind: str) -> dict[str, Any]:
        head = self._head
        return {"id": head.id, "object": kind, "created": head.created, "model": head.model}

    def _chunk(self, choices: list[Any], usage: Any = None) -> dict[str, Any]:
        chunk = {**self._object(self.chunk_object), "choices": choices}
        return {**chunk, "usage": usage} if self._include_usage else chunk

    def _choice(self, text: str, finish: str | None) -> dict[str, Any]:
        raise NotImplementedError

    def _silent_choice(self) -> dict[str, Any]:
        return self._choice("", None)

    def _whole_choice(self, text: str, finish: str) -> dict[str, Any]:
        raise NotImplementedError


class ChatFormatter(OpenAIFormatter):
    """/v1/chat/completions: the first chunk names the role, the last has an empty delta."""

    chunk_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def open(self, started: Started) -> bytes:  # noqa: ARG002 - the protocol's signature
        """The role."""
        return sse(to_line(self._chunk([_chat_choice({"role": "assistant", "content": ""}, None)])))

    def _choice(self, text: str, finish: str | None) -> dict[str, Any]:
        return _chat_choice({"content": text} if finish is None else {}, finish)

    def _silent_choice(self) -> dict[str, Any]:
        return _chat_choice({"content": None}, None)  # as llama-server sends it

    def _whole_choice(self, text: str, finish: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}


class TextFormatter(OpenAIFormatter):
    """/v1/completions: every chunk has text; that of the last is empty."""

    chunk_object = "text_completion"
    whole_object = "text_completion"

    def _choice(self, text: str, finish: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}

    def _whole_choice(self, text: str, finish: str) -> dict[str, Any]:
        return self._choice(text, finish)


def usage_of(usage: Usage) -> dict[str, Any]:
    """OpenAI's token counts; cached_tokens are those of the prompt that were not computed anew."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _chat_choice(delta: dict[str, str | None], finish: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}

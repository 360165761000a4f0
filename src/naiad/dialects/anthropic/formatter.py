"""What Anthropic's clients read: a message in blocks, and the events that build it.

A block begins when the first event of its kind comes and ends when one of another kind does. The
prompt's reused tokens are known at the end only, so the last usage is the one that counts.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

import msgspec

from naiad.dialects.anthropic.errors import error_body
from naiad.dialects.base import Formatter, Media
from naiad.dialects.framing import Template, sse, to_line
from naiad.errors import InternalError
from naiad.types import (
    Completion,
    Finished,
    FinishReason,
    Progress,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
)

_PING = sse(b'{"type":"ping"}', "ping")
_MOST_PINGS_S = 240.0

#: What a message and its usage must have by their schemas, and which has no meaning here.
_NO_DETAILS = {"stop_details": None, "container": None}
_NO_USAGE = dict.fromkeys(
    (
        "cache_creation",
        "inference_geo",
        "output_tokens_details",
        "server_tool_use",
        "service_tier",
    )
)


class MessageFormatter(Formatter):
    """/v1/messages.

    model: the name to answer under. message_id: of the answer. thinks: its first block is likely
    to be a thinking one. clock: tells seconds.
    """

    media = Media.SSE

    def __init__(
        self,
        model: str,
        message_id: str,
        *,
        thinks: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._id = message_id
        self._thinks = thinks
        self._clock = clock
        self._index = -1  # of the newest block
        self._kind = ""  # of the open block; "" when none is
        self._text: Template | None = None  # of the open text block
        self._told_at: float | None = None  # the newest event that is no ping

    @staticmethod
    def new(model: str, *, thinks: bool = False) -> MessageFormatter:
        """A formatter whose message has an id that nobody can guess."""
        return MessageFormatter(model, f"msg_{secrets.token_hex(12)}", thinks=thinks)

    def open(self, started: Started) -> bytes:
        """The message without content."""
        usage = usage_of(Usage(prompt_tokens=started.n_prompt))
        message = self._message([], None, None, usage)
        self._told_at = self._clock()
        return _event("message_start", message=message) + _PING

    def progress(self, progress: Progress) -> bytes:  # noqa: ARG002 - the protocol's signature
        """A sign of life: this API has no name for it."""
        return _PING

    def delta(self, delta: TextDelta) -> bytes:
        """Text of a text block."""
        self._told_at = self._clock()
        begin = b""
        if self._kind != "text" or self._text is None:
            begin = self._begin("text", _text(""))
            piece = {"type": "text_delta", "text": Template.HOLE}
            event = {"type": "content_block_delta", "index": self._index, "delta": piece}
            self._text = Template(event, "content_block_delta")
        return begin + self._text.fill(delta.text)

    def reasoning(self, delta: ReasoningDelta) -> bytes:
        """Text of a thinking block."""
        self._told_at = self._clock()
        begin = b""
        if self._kind != "thinking":
            begin = self._begin("thinking", _thinking(""))
        return begin + self._piece({"type": "thinking_delta", "thinking": delta.text})

    def tool_call(self, delta: ToolCallDelta) -> bytes:
        """A tool_use block, its input as pieces of JSON."""
        self._told_at = self._clock()
        frames = b""
        if delta.is_first:
            frames = self._begin("tool_use", _tool_use(delta.id, delta.name, {}))
        if delta.arguments:
            frames += self._piece({"type": "input_json_delta", "partial_json": delta.arguments})
        return frames

    def close(self, finished: Finished) -> bytes:
        """The end of the last block and of the message, or an error."""
        if finished.reason is FinishReason.ERROR:
            error = finished.error or InternalError("The answer failed.")
            return sse(to_line(error_body(error)), "error")
        reason, stop = _stop_of(finished)
        last = _event(
            "message_delta",
            delta={"stop_reason": reason, "stop_sequence": stop, **_NO_DETAILS},
            usage=usage_of(finished.usage),
        )
        return self._end() + last + _event("message_stop")

    def heartbeat(self) -> bytes:
        """A ping; after four minutes of nothing else, a piece of a block that adds nothing to it.

        Claude Code gives up a stream in which no event but pings came for five minutes, and a long
        prompt takes longer on a small machine. A block that begins for this is where the answer's
        text or thinking goes later, whichever is likely to come first.
        """
        if self._told_at is None or self._clock() - self._told_at < _MOST_PINGS_S:
            return _PING
        if self._kind == "tool_use":
            self._told_at = self._clock()
            return self._piece({"type": "input_json_delta", "partial_json": ""})
        if self._kind == "thinking" or (not self._kind and self._thinks):
            return self.reasoning(ReasoningDelta("", 0))
        return self.delta(TextDelta("", 0))

    def whole(self, completion: Completion) -> Any:
        """The whole message."""
        blocks: list[Any] = []
        if completion.reasoning:
            blocks.append(_thinking(completion.reasoning))
        if completion.text:
            blocks.append(_text(completion.text))
        blocks += [_whole_call(call) for call in completion.tool_calls]
        reason, stop = _stop_of(completion.finished)
        return self._message(blocks, reason, stop, usage_of(completion.finished.usage))

    def _message(
        self, content: list[Any], reason: str | None, stop: str | None, usage: dict[str, Any]
    ) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": stop,
            **_NO_DETAILS,
            "usage": usage,
        }

    def _begin(self, kind: str, block: dict[str, Any]) -> bytes:
        end = self._end()
        self._kind = kind
        self._index += 1
        return end + _event("content_block_start", index=self._index, content_block=block)

    def _end(self) -> bytes:
        if not self._kind:
            return b""
        # Clients send thinking back with its signature, and want one; ours proves nothing.
        signed = {"type": "signature_delta", "signature": ""}
        signature = self._piece(signed) if self._kind == "thinking" else b""
        self._kind = ""
        return signature + _event("content_block_stop", index=self._index)

    def _piece(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)


def usage_of(usage: Usage) -> dict[str, Any]:
    """Anthropic's token counts: what was reused is not part of the input."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        **_NO_USAGE,
    }


def _event(kind: str, **fields: Any) -> bytes:
    return sse(to_line({"type": kind, **fields}), kind)


def _stop_of(finished: Finished) -> tuple[str, str | None]:
    if finished.reason is FinishReason.LENGTH:
        return "max_tokens", None
    if finished.matched_stop is not None:
        return "stop_sequence", finished.matched_stop
    return ("tool_use" if finished.n_tool_calls else "end_turn"), None


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "citations": []}


def _thinking(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, "signature": ""}


def _tool_use(call_id: str, name: str, arguments: Any) -> dict[str, Any]:
    return {
        "type": "tool_use",
        "id": f"toolu_{call_id}",
        "name": name,
        "input": arguments,
        "caller": {"type": "direct"},
    }


def _whole_call(call: ToolCall) -> dict[str, Any]:
    """A block; arguments that are no object (cut off, say) stay readable under one name."""
    try:
        arguments: Any = msgspec.json.decode(call.arguments or "{}", type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        arguments = {"incomplete_json": call.arguments}
    return _tool_use(call.id, call.name, arguments)

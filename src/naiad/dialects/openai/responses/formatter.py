"""What clients of the Responses API read: its event stream, or the response object.

The object is built as the events are told, so that both are the same answer. Every event has its
number; those about an item have its id and its place.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from naiad.dialects.base import Formatter, Media
from naiad.dialects.framing import SSE_DONE, SSE_PING, sse, to_json, to_line
from naiad.dialects.openai.customs import InputText
from naiad.dialects.openai.logprobs import chat_logprobs
from naiad.dialects.progress import progress_of
from naiad.errors import InternalError
from naiad.types import (
    Completion,
    Finished,
    FinishReason,
    Progress,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)

#: What a response object says of things that are not there.
_NOTHING: dict[str, Any] = {
    "completed_at": None,
    "error": None,
    "incomplete_details": None,
    "max_tool_calls": None,
    "prompt_cache_key": None,
    "safety_identifier": None,
    "service_tier": "default",
    "truncation": "disabled",
    "usage": None,
}


def new_id() -> str:
    """The id of a response, which nobody can guess."""
    return f"resp_{secrets.token_hex(24)}"


def item_id(prefix: str, response_id: str, place: int) -> str:
    """The id of an output item: it tells the response that it is of, so a reference finds both."""
    return f"{prefix}_{response_id.removeprefix('resp_')}{place:04x}"


def response_of(item: str) -> str:
    """The id of the response that an output item with this id would be of."""
    return f"resp_{item.partition('_')[2][:-4]}"


class ResponsesFormatter(Formatter):
    """One response.

    Args:
        shown: what the object repeats of its request.
        has_logprobs: the answer's logprobs were asked for.

    Attributes:
        response: the object so far; complete after `close`.
    """

    media = Media.SSE

    def __init__(
        self,
        model: str,
        shown: Mapping[str, Any],
        *,
        response_id: str | None = None,
        created_at: int | None = None,
        has_logprobs: bool = False,
    ) -> None:
        self.response: dict[str, Any] = {
            "id": response_id or new_id(),
            "object": "response",
            "created_at": int(time.time()) if created_at is None else created_at,
            "status": "in_progress",
            "model": model,
            "output": [],
            **_NOTHING,
            **shown,
        }
        self.items: list[dict[str, Any]] = []  # of the request's own input
        self.log: list[bytes] | None = None  # of all events, by number, if they are to be kept
        self._has_logprobs = has_logprobs
        self._n_events = 0
        self._n_beats = 0
        self._is_over = False
        self._n_reasoning = 0
        tools = shown.get("tools", ())
        self._custom = {tool["name"] for tool in tools if tool["type"] == "custom"}
        self._input = InputText()  # of a custom tool's call that is being said
        self._kind = ""  # of the item that is being said; "" for none

    # -- events ----------------------------------------------------------------------------------

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = {"type": f"response.{kind}", "sequence_number": self._n_events, **fields}
        self._n_events += 1
        frame = sse(to_line(event), event["type"])
        if self.log is not None:
            self.log.append(frame)
        return frame

    def _of_item(self, kind: str, **fields: Any) -> bytes:
        return self._event(
            kind, item_id=self._item["id"], output_index=len(self._output) - 1, **fields
        )

    @property
    def _output(self) -> list[dict[str, Any]]:
        output: list[dict[str, Any]] = self.response["output"]
        return output

    @property
    def _item(self) -> dict[str, Any]:
        return self._output[-1]

    def snapshot(self) -> Any:
        """The object as it is now, though it goes on changing."""
        return msgspec.json.decode(to_json(self.response))

    def open(self, started: Started) -> bytes:  # noqa: ARG002 - the protocol's signature
        """The response, which has no output yet."""
        return self._event("created", response=self.response) + self._event(
            "in_progress", response=self.response
        )

    def progress(self, progress: Progress) -> bytes:
        """The response again, with the figures beside it."""
        return self._event("in_progress", response=self.response, **progress_of(progress))

    def heartbeat(self) -> bytes:
        """A comment; from the second on, until there is any output, the response as it is.

        Codex gives up a stream that had no event for five minutes, and comments are none.
        """
        self._n_beats += self._n_events > 0
        if self._n_beats < 2 or self._output or self._is_over:
            return SSE_PING
        return self._event("in_progress", response=self.response)

    def delta(self, delta: TextDelta) -> bytes:
        """Text of a message, which begins with its first."""
        data = b""
        if self._kind != "message":
            data = self._begin("message", _message(self._new_id("msg")))
        told = self._logprobs(delta)
        part = self._item["content"][0]
        part["text"] += delta.text
        part["logprobs"] += told
        return data + self._of_item(
            "output_text.delta", content_index=0, delta=delta.text, logprobs=told
        )

    def _logprobs(self, delta: TextDelta) -> list[Any]:
        found: list[Any] = chat_logprobs(delta.logprobs)["content"] if self._has_logprobs else []
        return found

    def reasoning(self, delta: ReasoningDelta) -> bytes:
        """Text of the reasoning, an item of its own."""
        data = b""
        if self._kind != "reasoning":
            data = self._begin("reasoning", _reasoning(self._new_id("rs")))
        self._n_reasoning += delta.n_tokens
        self._item["content"][0]["text"] += delta.text
        return data + self._of_item("reasoning_text.delta", content_index=0, delta=delta.text)

    def tool_call(self, delta: ToolCallDelta) -> bytes:
        """A call: an item whose arguments form."""
        kind = "custom_tool_call" if delta.name in self._custom else "function_call"
        is_custom = kind != "function_call"
        data = b""
        if delta.is_first:
            self._input = InputText()
            make, prefix = (_custom_call, "ctc") if is_custom else (_call, "fc")
            data = self._begin(kind, make(self._new_id(prefix), delta))
        event, field = _ARGUMENTS[kind]
        said = delta.arguments
        if is_custom:
            said = self._input.feed(said, is_last=delta.is_last)
        if said:
            self._item[field] += said
            data += self._of_item(f"{event}.delta", delta=said)
        return data + (self._end_item() if delta.is_last else b"")

    def _new_id(self, prefix: str) -> str:
        return item_id(prefix, self.response["id"], len(self._output))

    def _begin(self, kind: str, item: dict[str, Any]) -> bytes:
        data = self._end_item()
        self._kind = kind
        parts = item.get("content", [])
        bare = {**item, "content": []} if parts else item
        self._output.append(item)
        data += self._event("output_item.added", output_index=len(self._output) - 1, item=bare)
        if parts:
            data += self._of_item("content_part.added", content_index=0, part=parts[0])
        return data

    def _end_item(self, status: str = "completed") -> bytes:
        if not self._kind:
            return b""
        kind, self._kind = self._kind, ""
        item = self._item
        item["status"] = status
        if kind in _ARGUMENTS:
            event, field = _ARGUMENTS[kind]
            named = {"name": item["name"]} if kind == "function_call" else {}
            data = self._of_item(f"{event}.done", **{field: item[field]}, **named)
        else:
            data = self._end_part(kind, item["content"][0])
        return data + self._event("output_item.done", output_index=len(self._output) - 1, item=item)

    def _end_part(self, kind: str, part: dict[str, Any]) -> bytes:
        if kind == "message":
            more = {"text": part["text"], "logprobs": part["logprobs"]}
            data = self._of_item("output_text.done", content_index=0, **more)
        else:
            data = self._of_item("reasoning_text.done", content_index=0, text=part["text"])
        return data + self._of_item("content_part.done", content_index=0, part=part)

    # -- the end ---------------------------------------------------------------------------------

    def close(self, finished: Finished) -> bytes:
        """The last item, then the response as it ended, then the end marker."""
        status = _STATUS[finished.reason]
        self._is_over = True
        data = b""
        if not self._output and status in ("completed", "incomplete"):
            # an empty answer is one, too
            data = self._begin("message", _message(self._new_id("msg")))
        data += self._end_item("completed" if status == "completed" else "incomplete")
        self.response["status"] = status
        self.response["usage"] = self._usage(finished.usage)
        if status == "completed":
            self.response["completed_at"] = int(time.time())
        elif status == "incomplete":
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        elif status == "failed":
            error = finished.error or InternalError("The answer failed.")
            self.response["error"] = {"code": "server_error", "message": error.message}
        data += self._event(_LAST[status], response=self.response)
        if self.log is not None:
            self.log.append(SSE_DONE)
        return data + SSE_DONE

    def _usage(self, usage: Usage) -> dict[str, Any]:
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self._n_reasoning},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }

    def whole(self, completion: Completion) -> Any:
        """The object of an answer that is not streamed."""
        if completion.reasoning:
            self.reasoning(ReasoningDelta(completion.reasoning, completion.n_reasoning))
        if completion.text or completion.logprobs:
            self.delta(TextDelta(completion.text, 0, completion.logprobs))
        for index, call in enumerate(completion.tool_calls):
            told = (index, call.id, call.name, call.arguments)
            self.tool_call(ToolCallDelta(*told, is_first=True, is_last=True))
        self.close(completion.finished)
        return self.response


_STATUS = {
    FinishReason.STOP: "completed",
    FinishReason.LENGTH: "incomplete",
    FinishReason.CANCELLED: "cancelled",
    FinishReason.ERROR: "failed",
}
#: kind of a call's item -> its events, and the field that they fill
_ARGUMENTS = {
    "function_call": ("function_call_arguments", "arguments"),
    "custom_tool_call": ("custom_tool_call_input", "input"),
}
#: A cancelled response has no event of its own name.
_LAST = {
    "completed": "completed",
    "incomplete": "incomplete",
    "failed": "failed",
    "cancelled": "incomplete",
}


def _message(item_id: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    head = {"id": item_id, "type": "message", "status": "in_progress"}
    return {**head, "role": "assistant", "content": [part]}


def _reasoning(item_id: str) -> dict[str, Any]:
    head = {"id": item_id, "type": "reasoning", "status": "in_progress"}
    return {**head, "summary": [], "content": [{"type": "reasoning_text", "text": ""}]}


def _call(item_id: str, delta: ToolCallDelta) -> dict[str, Any]:
    return {
        "id": item_id,
        "type": "function_call",
        "status": "in_progress",
        "call_id": f"call_{delta.id}",
        "name": delta.name,
        "arguments": "",
    }


def _custom_call(item_id: str, delta: ToolCallDelta) -> dict[str, Any]:
    head = {"id": item_id, "type": "custom_tool_call", "status": "in_progress"}
    return {**head, "call_id": f"call_{delta.id}", "name": delta.name, "input": ""}

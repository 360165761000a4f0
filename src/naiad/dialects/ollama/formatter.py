"""What Ollama's clients read: JSON objects, one a line, or a single one.

The last line says "done" and carries counts and durations in nanoseconds. A failure after the first
byte is a line with "error". Blank lines break Ollama's own package, so heartbeats are objects
without content. Tool calls come whole, as Ollama sends them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from naiad.dialects.base import Formatter, Media
from naiad.dialects.framing import Template, ndjson, to_line
from naiad.dialects.logprobs import entries
from naiad.dialects.ollama.errors import error_body
from naiad.dialects.progress import loading_of, progress_of
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
)

_FINISH = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.CANCELLED: "stop",
}
_NS = 1_000_000_000


def rfc3339(when: datetime) -> str:
    """A time as Ollama writes it."""
    return when.astimezone(UTC).isoformat().replace("+00:00", "Z")


class OllamaFormatter(Formatter):
    """Shared by both forms; a form says where the text stands.

    model: the name to answer under. created_at: of all lines of one answer. clock: nanoseconds.
    """

    media = Media.NDJSON

    def __init__(
        self,
        model: str,
        created_at: str | None = None,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._head = {"model": model, "created_at": created_at or rfc3339(datetime.now(UTC))}
        self._clock = clock
        self._began = clock()
        self._delta = Template(self._object(self._part(Template.HOLE)), is_bare_line=True)
        self._call = ToolCall("", "", "")

    def open(self, started: Started) -> bytes:  # noqa: ARG002 - the protocol's signature
        """Nothing: the first line is the first text."""
        return b""

    def progress(self, progress: Progress) -> bytes:
        """A line without text; its figures stand beside it."""
        return self._line({**self._object(self._part("")), **progress_of(progress)})

    def loading(self, loaded: float) -> bytes:
        """The same, before anything else."""
        return self._line({**self._object(self._part("")), **loading_of(loaded)})

    def delta(self, delta: TextDelta) -> bytes:
        """A line of text, and beside it the logprobs of its tokens."""
        if not delta.logprobs:
            return self._delta.fill(delta.text)
        told = {"logprobs": entries(delta.logprobs)}
        return self._line({**self._object(self._part(delta.text)), **told})

    def reasoning(self, delta: ReasoningDelta) -> bytes:
        """A line of thinking."""
        return self._line(self._object(self._part("", delta.text)))

    def tool_call(self, delta: ToolCallDelta) -> bytes:
        """Nothing until the call is complete, then a line with it."""
        if delta.is_first:
            self._call = ToolCall(delta.id, delta.name, "")
        before = self._call.arguments
        self._call = ToolCall(delta.id, delta.name, before + delta.arguments)
        if not delta.is_last:
            return b""
        text, calls = _told((self._call,))
        return self._line(self._object(self._part(text, calls=calls)))

    def close(self, finished: Finished) -> bytes:
        """The last line."""
        if finished.reason is FinishReason.ERROR:
            return self._line(error_body(finished.error or InternalError("The answer failed.")))
        return self._line({**self._object(self._part("")), **self._end(finished)})

    def heartbeat(self) -> bytes:
        """A line without text."""
        return self._delta.fill("")

    def whole(self, completion: Completion) -> Any:
        """The object of an answer that is not streamed."""
        text, calls = _told(completion.tool_calls)
        part = self._part(completion.text + text, completion.reasoning, calls)
        told = {"logprobs": entries(completion.logprobs)} if completion.logprobs else {}
        return {**self._object(part), **self._end(completion.finished), **told}

    def _object(self, part: dict[str, Any]) -> dict[str, Any]:
        return {**self._head, **part, "done": False}

    def _end(self, finished: Finished) -> dict[str, Any]:
        usage, timings = finished.usage, finished.timings
        prompt_ns, text_ns = round(timings.prompt_s * _NS), round(timings.text_s * _NS)
        total_ns = max(self._clock() - self._began, prompt_ns + text_ns)
        return {
            "done": True,
            "done_reason": _FINISH[finished.reason],
            "total_duration": total_ns,
            "load_duration": total_ns - prompt_ns - text_ns,  # all that came before the engine
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": prompt_ns,
            "eval_count": usage.completion_tokens,
            "eval_duration": text_ns,
        }

    def _line(self, value: object) -> bytes:
        return ndjson(to_line(value))

    def _part(self, text: str, thinking: str = "", calls: list[Any] = []) -> dict[str, Any]:  # noqa: B006
        raise NotImplementedError


class ChatFormatter(OllamaFormatter):
    """/api/chat: the text stands in a message."""

    def _part(self, text: str, thinking: str = "", calls: list[Any] = []) -> dict[str, Any]:  # noqa: B006
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thinking:
            message["thinking"] = thinking
        if calls:
            message["tool_calls"] = calls
        return {"message": message}


class GenerateFormatter(OllamaFormatter):
    """/api/generate: the text is the response; there are no tools, and the end has the tokens."""

    def _end(self, finished: Finished) -> dict[str, Any]:
        told = super()._end(finished)
        return {**told, "context": list(finished.context)} if finished.context else told

    def _part(self, text: str, thinking: str = "", calls: list[Any] = []) -> dict[str, Any]:  # noqa: ARG002, B006
        return {"response": text, "thinking": thinking} if thinking else {"response": text}


def _told(calls: tuple[ToolCall, ...]) -> tuple[str, list[Any]]:
    """Calls as objects; those whose arguments are no object (cut off, say) as text."""
    text = ""
    told: list[Any] = []
    for call in calls:
        try:
            arguments = msgspec.json.decode(call.arguments or "{}", type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError):
            text += f"{call.name}({call.arguments}"
            continue
        function = {"index": len(told), "name": call.name, "arguments": arguments}
        told.append({"id": f"call_{call.id}", "function": function})
    return text, told

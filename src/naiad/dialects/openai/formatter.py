"""What OpenAI's clients read: chunks of a stream, or one object.

Cancelled streams end with "stop": whoever hung up does not read it, and one that was stopped by an
abort from elsewhere has simply ended. A failure after the first byte is an error frame (the SDK
raises at it) and then the end marker, for clients that wait for that.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from naiad.dialects.base import ManyFormatter, Media
from naiad.dialects.framing import SSE_DONE, SSE_PING, Template, sse, to_line
from naiad.dialects.openai.calls import CallForms, Calls
from naiad.dialects.openai.errors import error_body
from naiad.dialects.openai.logprobs import TextLogprobs, chat_logprobs
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
    TokenLogprob,
    ToolCallDelta,
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


class OpenAIFormatter(ManyFormatter):
    """Shared by both forms of completion; a form says what a choice looks like.

    Args:
        include_usage: the stream ends with a chunk of token counts.
        has_logprobs: the answer's logprobs were asked for.
        n_per_prompt: choices of each prompt, one after another in the list of choices.
        index: of the choice that this one writes.
        is_part: others are written beside it, so its end is not the answer's.
    """

    media = Media.SSE
    chunk_object: str
    whole_object: str

    def __init__(
        self,
        head: Head,
        *,
        include_usage: bool = False,
        has_logprobs: bool = False,
        n_per_prompt: int = 1,
        index: int = 0,
        is_part: bool = False,
    ) -> None:
        self._head = head
        self._include_usage = include_usage
        self._has_logprobs = has_logprobs
        self._n_per_prompt = n_per_prompt
        self._index = index
        self._is_part = is_part
        self._delta = Template(self._chunk([self._choice(Template.HOLE, None)]))

    def open(self, started: Started) -> bytes:  # noqa: ARG002 - the protocol's signature
        """Nothing, unless the form has a first chunk of its own."""
        return b""

    def progress(self, progress: Progress) -> bytes:
        """A chunk without text; its figures stand beside the choices."""
        return self._silent(progress_of(progress))

    def loading(self, loaded: float) -> bytes:
        """The same, before anything else."""
        return self._silent(loading_of(loaded))

    def delta(self, delta: TextDelta) -> bytes:
        """One chunk of text."""
        if not self._has_logprobs:
            return self._delta.fill(delta.text)
        choice = self._choice(delta.text, None) | {"logprobs": self._logprobs(delta.logprobs)}
        return sse(to_line(self._chunk([choice])))

    def close(self, finished: Finished) -> bytes:
        """The last chunk (or the error frame), the usage if it was asked for, the end marker."""
        if finished.reason is FinishReason.ERROR:
            error = finished.error or InternalError("The answer failed.")
            return sse(to_line(error_body(error))) + SSE_DONE
        last = self._chunk([self._choice("", self._finish_of(finished))])
        frames = sse(to_line(last))
        return frames if self._is_part else frames + self.close_all([finished])

    def heartbeat(self) -> bytes:
        """A comment."""
        return SSE_PING

    def whole(self, completion: Completion) -> Any:
        """The object of an answer that is not streamed."""
        return self.whole_all([completion])

    # -- several choices -------------------------------------------------------------------------

    def part(self, index: int) -> Self:
        """The formatter of that choice."""
        return type(self)(
            self._head,
            include_usage=self._include_usage,
            has_logprobs=self._has_logprobs,
            index=index,
            is_part=True,
        )

    def close_all(self, ends: Sequence[Finished]) -> bytes:
        """The usage, if it was asked for, and the end marker."""
        if not self._include_usage:
            return SSE_DONE
        return sse(to_line(self._chunk([], usage_of(self._sum(ends))))) + SSE_DONE

    def whole_all(self, completions: Sequence[Completion]) -> Any:
        """The object of an answer with these choices."""
        parts = [self.part(index) for index in range(len(completions))]
        return {
            **self._object(self.whole_object),
            "choices": [
                part._whole_choice(completion, part._finish_of(completion.finished))
                for part, completion in zip(parts, completions, strict=True)
            ],
            "usage": usage_of(self._sum([completion.finished for completion in completions])),
        }

    def _sum(self, ends: Sequence[Finished]) -> Usage:
        """A prompt counts once, however many choices share it."""
        prompts = [end.usage for end in ends[:: self._n_per_prompt]]
        return Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in prompts),
            completion_tokens=sum(end.usage.completion_tokens for end in ends),
            cached_tokens=sum(usage.cached_tokens for usage in prompts),
        )

    # -- chunks ----------------------------------------------------------------------------------

    def _object(self, kind: str) -> dict[str, Any]:
        head = self._head
        return {"id": head.id, "object": kind, "created": head.created, "model": head.model}

    def _chunk(self, choices: list[Any], usage: Any = None) -> dict[str, Any]:
        chunk = {**self._object(self.chunk_object), "choices": choices}
        return {**chunk, "usage": usage} if self._include_usage else chunk

    def _silent(self, told: dict[str, Any]) -> bytes:
        return sse(to_line({**self._chunk([self._silent_choice()]), **told}))

    def _choice(self, text: str, finish: str | None) -> dict[str, Any]:
        raise NotImplementedError

    def _silent_choice(self) -> dict[str, Any]:
        return self._choice("", None)

    def _finish_of(self, finished: Finished) -> str:
        return finish_of(finished)

    def _whole_choice(self, completion: Completion, finish: str) -> dict[str, Any]:
        raise NotImplementedError

    def _logprobs(self, told: Sequence[TokenLogprob]) -> Any:
        raise NotImplementedError


class ChatFormatter(OpenAIFormatter):
    """/v1/chat/completions: the first chunk names the role, the last has an empty delta."""

    chunk_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def __init__(self, *args: Any, forms: CallForms | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._forms = forms or CallForms()
        self._calls = Calls(self._forms)

    def part(self, index: int) -> Self:
        """The formatter of that choice."""
        part = super().part(index)
        part._forms, part._calls = self._forms, Calls(self._forms)
        return part

    def open(self, started: Started) -> bytes:  # noqa: ARG002 - the protocol's signature
        """The role."""
        return self._told({"role": "assistant", "content": ""})

    def reasoning(self, delta: ReasoningDelta) -> bytes:
        """A chunk of reasoning; the name is that of DeepSeek's API."""
        return self._told({"reasoning_content": delta.text})

    def tool_call(self, delta: ToolCallDelta) -> bytes:
        """The id and the name once, then arguments as they form."""
        told = self._calls.piece(delta)
        return b"" if told is None else self._told(told)

    def _told(self, delta: dict[str, Any]) -> bytes:
        return sse(to_line(self._chunk([self._chat_choice(delta, None)])))

    def _choice(self, text: str, finish: str | None) -> dict[str, Any]:
        return self._chat_choice({"content": text} if finish is None else {}, finish)

    def _chat_choice(self, delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
        return {"index": self._index, "delta": delta, "logprobs": None, "finish_reason": finish}

    def _silent_choice(self) -> dict[str, Any]:
        return self._chat_choice({"content": None}, None)  # as llama-server sends it

    def _whole_choice(self, completion: Completion, finish: str) -> dict[str, Any]:
        calls = self._calls.whole(completion.tool_calls)
        content = completion.text or (None if calls else "")
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if completion.reasoning:
            message["reasoning_content"] = completion.reasoning
        message.update(calls)
        told = self._logprobs(completion.logprobs) if self._has_logprobs else None
        return {
            "index": self._index,
            "message": message,
            "logprobs": told,
            "finish_reason": finish,
        }

    def _finish_of(self, finished: Finished) -> str:
        return self._calls.finish(finish_of(finished))

    def _logprobs(self, told: Sequence[TokenLogprob]) -> Any:
        return chat_logprobs(told)


class TextFormatter(OpenAIFormatter):
    """/v1/completions: every chunk has text; that of the last is empty."""

    chunk_object = "text_completion"
    whole_object = "text_completion"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._shaper = TextLogprobs()

    def open(self, started: Started) -> bytes:
        """The prompt, if it is to be echoed."""
        return self._delta.fill(started.echo) if started.echo else b""

    def _choice(self, text: str, finish: str | None) -> dict[str, Any]:
        return {"index": self._index, "text": text, "logprobs": None, "finish_reason": finish}

    def _whole_choice(self, completion: Completion, finish: str) -> dict[str, Any]:
        told = self._logprobs(completion.logprobs) if self._has_logprobs else None
        return self._choice(completion.echo + completion.text, finish) | {"logprobs": told}

    def _logprobs(self, told: Sequence[TokenLogprob]) -> Any:
        return self._shaper.shape(told)


def usage_of(usage: Usage) -> dict[str, Any]:
    """OpenAI's token counts; cached_tokens are those of the prompt that were not computed anew."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def finish_of(finished: Finished) -> str:
    """Why an answer ended; a model that has called tools waits for their results."""
    if finished.n_tool_calls and finished.reason is FinishReason.STOP:
        return "tool_calls"
    return _FINISH[finished.reason]

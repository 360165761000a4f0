"""What llama-server's clients read: events with `content`, the last of them with all figures.

There is no end marker: the last event has `stop`. A failure is an event with `error`.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

from naiad.dialects.base import Formatter, Media
from naiad.dialects.framing import SSE_PING, Template, sse, to_line
from naiad.dialects.llama.errors import error_body
from naiad.dialects.llama.probabilities import probabilities
from naiad.dialects.progress import loading_of, progress_of
from naiad.errors import InternalError
from naiad.types import (
    Completion,
    Finished,
    FinishReason,
    Progress,
    Started,
    TextDelta,
    Timings,
    TokenLogprob,
    Usage,
)


class Probs(enum.Enum):
    """Which probabilities a client wants to see."""

    NONE = enum.auto()
    BEFORE = enum.auto()  # the model's own, whatever the samplers do
    AFTER = enum.auto()  # of what the samplers left


_PIECE: dict[str, Any] = {"index": 0, "content": "", "tokens": [], "stop": False}
# Nothing in an event depends on the request, so one template serves all streams.
_DELTA = Template({**_PIECE, "content": Template.HOLE})
_STOP_TYPES = {FinishReason.LENGTH: "limit", FinishReason.CANCELLED: "none"}


class LlamaFormatter(Formatter):
    """One answer.

    Args:
        prompt: as text; "" when it came as token ids.
        settings: what it runs with, as `settings_of` tells it.
        n_ctx: tokens that prompt and answer may take.
        is_silent: no text was asked for.
        probs: whether probabilities were asked for, and if so, whether after the samplers.
        only: names of fields of the last event or whole answer that the client wants to see, with a
            slash before what stands inside another; () for all.
    """

    media = Media.SSE

    def __init__(
        self,
        model: str,
        *,
        prompt: str = "",
        settings: dict[str, Any] | None = None,
        n_ctx: int = 0,
        is_silent: bool = False,
        probs: Probs = Probs.NONE,
        only: Sequence[str] = (),
    ) -> None:
        self._model = model
        self._prompt = prompt
        self._settings = settings or {}
        self._n_ctx = n_ctx
        self._is_silent = is_silent
        self._probs = probs
        self._only = only
        self._has_new_line = False

    def open(self, started: Started) -> bytes:  # noqa: ARG002 - the protocol's signature
        """Nothing."""
        return b""

    def progress(self, progress: Progress) -> bytes:
        """An event without text."""
        return sse(to_line({**_PIECE, **progress_of(progress)}))

    def loading(self, loaded: float) -> bytes:
        """The same, before anything else."""
        return sse(to_line({**_PIECE, **loading_of(loaded)}))

    def delta(self, delta: TextDelta) -> bytes:
        """One event of text."""
        self._has_new_line |= "\n" in delta.text
        if self._is_silent:
            return b""
        if self._probs is Probs.NONE:
            return _DELTA.fill(delta.text)
        return sse(to_line({**_PIECE, "content": delta.text, **self._told(delta.logprobs)}))

    def close(self, finished: Finished) -> bytes:
        """The last event: the figures, or the error."""
        if finished.reason is FinishReason.ERROR:
            error = finished.error or InternalError("The answer failed.")
            return sse(to_line(error_body(error)))
        return sse(to_line(self._chosen(self._last("", finished))))

    def heartbeat(self) -> bytes:
        """A comment."""
        return SSE_PING

    def whole(self, completion: Completion) -> Any:
        """The object of an answer that is not streamed."""
        self._has_new_line = "\n" in completion.text
        if self._is_silent:
            return self._chosen(self._last("", completion.finished))
        told = self._told(completion.logprobs)
        return self._chosen(self._last(completion.text, completion.finished) | told)

    def _told(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        if self._probs is Probs.NONE or not logprobs:
            return {}
        is_after = self._probs is Probs.AFTER
        return {"completion_probabilities": probabilities(logprobs, is_after=is_after)}

    def _last(self, content: str, finished: Finished) -> dict[str, Any]:
        usage = finished.usage
        n_predicted = 0 if self._is_silent else usage.completion_tokens
        is_cut = finished.reason is FinishReason.LENGTH
        n_all = usage.prompt_tokens + usage.completion_tokens
        return {
            **_PIECE,
            "content": content,
            "id_slot": -1,
            "stop": True,
            "model": self._model,
            "tokens_predicted": n_predicted,
            "tokens_evaluated": usage.prompt_tokens,
            "tokens_cached": usage.cached_tokens,
            "generation_settings": self._settings,
            "prompt": self._prompt,
            "has_new_line": self._has_new_line and not self._is_silent,
            "truncated": usage.dropped_tokens > 0 or (is_cut and 0 < self._n_ctx <= n_all),
            **_stop_of(finished),
            "timings": timings_of(usage, finished.timings),
        }

    def _chosen(self, answer: dict[str, Any]) -> dict[str, Any]:
        if not self._only:
            return answer
        chosen: dict[str, Any] = {}
        for name in self._only:
            value: Any = answer
            for part in name.split("/"):
                value = value.get(part) if isinstance(value, dict) else None
            if value is not None:
                chosen[name.rpartition("/")[2]] = value
        return chosen


def _stop_of(finished: Finished) -> dict[str, str]:
    if finished.matched_stop is not None:
        return {"stop_type": "word", "stopping_word": finished.matched_stop}
    return {"stop_type": _STOP_TYPES.get(finished.reason, "eos"), "stopping_word": ""}


def timings_of(usage: Usage, timings: Timings) -> dict[str, Any]:
    """llama-server's figures of speed; times in milliseconds.

    prompt_n counts the prompt's tokens that were computed, cache_n those that were reused. The
    prompt's time ends with the first text, and the time that the request waited is part of it.
    """
    n_prompt = usage.prompt_tokens - usage.cached_tokens
    n_predicted = usage.completion_tokens
    prompt_ms, predicted_ms = 1000 * timings.prompt_s, 1000 * timings.text_s
    return {
        "cache_n": usage.cached_tokens,
        "prompt_n": n_prompt,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": _ratio(prompt_ms, n_prompt),
        "prompt_per_second": _ratio(n_prompt, timings.prompt_s),
        "predicted_n": n_predicted,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": _ratio(predicted_ms, n_predicted),
        "predicted_per_second": _ratio(n_predicted, timings.text_s),
    }


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else 0.0

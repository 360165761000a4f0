"""What a request asks of the engine, once its prompt is rendered, and how its text is read."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from naiad.chat.budget import limit_for
from naiad.chat.channels import Channels, can_reason, channels_for, marks_of, reasoning_of
from naiad.chat.tools import forced_call
from naiad.client.base import Job
from naiad.errors import Unsupported
from naiad.service.controls import Controls, may_be_control
from naiad.types import (
    Caller,
    ChatPrompt,
    GenerateRequest,
    Grammar,
    ModelInfo,
    Prompt,
    TextPrompt,
)

Rendered = str | tuple[int, ...]


class Asked:
    """One request. shown: ids of the control tokens that its reading needs, by their text."""

    def __init__(
        self, request: GenerateRequest, rendered: Rendered, model: ModelInfo, shown: dict[str, int]
    ) -> None:
        """rendered: the prompt as text or token ids."""
        self._request = request
        self._rendered = rendered
        self._model = model
        self._shown = shown

    @classmethod
    async def make(
        cls, request: GenerateRequest, rendered: Rendered, model: ModelInfo, controls: Controls
    ) -> Asked:
        """Looks up which marks and stop strings are control tokens of the loaded model."""
        # A stop string that is a control token has to show to be found; it never gets further.
        stops = [stop for stop in request.stop if may_be_control(stop)]
        marks = _marks(request.prompt, model)
        return cls(request, rendered, model, await controls.ids([*marks, *stops], model))

    def job(self, prompt: Rendered, namespace: str, caller: Caller) -> Job:
        """For the engine. prompt: what was rendered, perhaps behind an earlier exchange."""
        request = self._request
        grammar = _behind_reasoning(request, self._rendered, self._model)
        return Job(
            prompt=prompt,
            max_tokens=request.max_tokens,
            sampling=request.sampling,
            namespace=namespace,
            priority=request.priority,
            caller=caller.identity,
            wants_progress=request.wants_progress,
            grammar=grammar,
            reasoning=limit_for(
                request.thinking_budget,
                request.prompt,
                self._model.chat_template,
                self._rendered,
                has_grammar=grammar is not None,
            ),
            is_deterministic=request.is_deterministic,
            shift_at_limit=request.shift_at_limit,
            trim=request.trim if isinstance(request.prompt, TextPrompt) else None,
            shown=None if request.shows_controls else tuple(self._shown.values()),
        )

    def channels(self) -> Channels | None:
        """What tells reasoning and calls from the answer; None for what is no chat."""
        marks = self._shown.keys() & set(_marks(self._request.prompt, self._model))
        return _channels(self._request.prompt, self._rendered, self._model, marks)


def check_thinking(prompt: Prompt, model: ModelInfo) -> None:
    wants = isinstance(prompt, ChatPrompt) and prompt.thinking is True
    if wants and not can_reason(model.chat_template):
        raise Unsupported(
            f"{model.name!r} does not support thinking: its chat template shows no reasoning.",
            param="think",
        )


def _marks(prompt: Prompt, model: ModelInfo) -> tuple[str, ...]:
    return marks_of(prompt, model.chat_template) if isinstance(prompt, ChatPrompt) else ()


def _channels(
    prompt: Prompt,
    rendered: str | tuple[int, ...],
    model: ModelInfo,
    controls: Collection[str],
) -> Channels | None:
    if not isinstance(prompt, ChatPrompt) or not isinstance(rendered, str):
        return None
    return channels_for(prompt, model.chat_template, rendered, controls)


def _behind_reasoning(
    request: GenerateRequest, rendered: str | tuple[int, ...], model: ModelInfo
) -> Grammar | None:
    """The request's grammar; where the model reasons first, it holds for what follows that."""
    grammar, prompt = request.grammar, request.prompt
    if isinstance(prompt, ChatPrompt):
        grammar = forced_call(prompt) or grammar
    if grammar is None or not isinstance(prompt, ChatPrompt) or not isinstance(rendered, str):
        return grammar
    tags, is_inside = reasoning_of(prompt, model.chat_template, rendered)
    if tags is None:
        return grammar
    opening = None if is_inside else tags.opening
    return msgspec.structs.replace(grammar, after=tags.closing, opening=opening)

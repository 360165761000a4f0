"""The service: what a validated request goes through, whatever dialect it came in.

`generate` is the only path to the engine. Everything that can refuse a request refuses it while
the context is entered; leaving the context, by whatever way, ends the engine's work for it.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

import msgspec

from naiad.chat.channels import Channels, channels_for, reasoning_of, tags_of
from naiad.chat.tools import forced_call
from naiad.client.base import EngineClient, EngineState, EngineStatus, Job
from naiad.config import Config
from naiad.errors import AdminRequired, EngineUnavailable, ModelNotFound, Unsupported
from naiad.service import health
from naiad.service.admission import Admission, tokens_in
from naiad.service.generate import Generation
from naiad.service.limits import KeyLimits
from naiad.service.models import Models, Tell
from naiad.service.perf import Perf
from naiad.service.registry import Registry
from naiad.types import (
    Caller,
    ChatPrompt,
    GenerateRequest,
    Grammar,
    ModelInfo,
    Progress,
    Prompt,
    Residency,
    TextPrompt,
)


class TemplateRenderer(Protocol):
    """Renders chat templates; see service.renderer."""

    async def start(self) -> None: ...

    async def render(self, template: str | None, prompt: ChatPrompt, model: ModelInfo) -> str: ...

    async def close(self) -> None: ...


class Service:
    """Everything the dialects can ask for; implements dialects.base.Backend.

    is_installed: tells whether a model of that name is in the models directory, so that asking for
        it is refused with a reason; by default none is.
    """

    def __init__(
        self,
        engine: EngineClient,
        config: Config,
        renderer: TemplateRenderer,
        is_installed: Callable[[str], bool] = lambda _name: False,
    ) -> None:
        self._engine = engine
        self._config = config
        self._renderer = renderer
        self._is_installed = is_installed
        self._models = Models(engine, config.idle_unload_s or math.inf)
        self._admission = Admission(config.max_queue, config.max_queue_tokens)
        self._limits = KeyLimits(config.max_per_key, config.requests_per_minute)
        self._registry = Registry()
        self._perf = Perf()

    async def start(self) -> None:
        """Start the helpers and the engine; returns before the model is loaded."""
        await self._renderer.start()
        await self._engine.start()
        self._models.start_counting()

    async def close(self) -> None:
        """End every stream with an error, stop the engine and the helpers. Safe to call twice."""
        self._models.close()
        await self._engine.close()
        await self._renderer.close()

    @property
    def is_ready(self) -> bool:
        """True when a request sent now would be run."""
        return health.is_ready(self._engine.status)

    def health(self) -> dict[str, Any]:
        """The state of everything, as service.health describes it."""
        return health.report(self._engine.status, self._admission.n_in_flight)

    @property
    def n_in_flight(self) -> int:
        """Requests admitted and not yet ended."""
        return self._admission.n_in_flight

    @property
    def model(self) -> ModelInfo:
        """The model, loaded or not. Raises EngineUnavailable until it was loaded once."""
        status = self._engine.status
        if status.model is None:
            raise _unavailable(status)
        return status.model

    @property
    def is_protected(self) -> bool:
        """True when callers need a key."""
        return self._config.api_key is not None

    @property
    def residency(self) -> Residency:
        """Whether the model is in memory now, and for how long."""
        return self._models.residency

    async def load(self, name: str | None, keep_alive_s: float | None, caller: Caller) -> None:
        """Load the model, or unload it when keep_alive_s is 0 or less and nobody uses it.

        name, keep_alive_s: as in GenerateRequest. Raises ModelNotFound, EngineUnavailable, and
        AdminRequired for a wish to unload, which concerns everybody.
        """
        self._check_name(name, self._known_model())
        if keep_alive_s is None or keep_alive_s > 0:
            with self._models.hold(_kept(keep_alive_s, caller)):
                await self._models.ready()
            return
        if not caller.is_admin:
            raise AdminRequired(
                "Only the administrator may unload the model: others may be using it.",
                param="keep_alive",
            )
        with self._models.hold(keep_alive_s):
            pass

    def check_room(self, caller: Caller) -> None:
        """Raises Overloaded when no generation can come in, not even with a prompt of one token,
        and RateLimited when none of this caller can."""
        self._limits.check(caller)
        self._admission.check(self._parallel(self._engine.status.model), 1)

    @asynccontextmanager
    async def generate(
        self, request: GenerateRequest, caller: Caller, tell: Tell | None = None
    ) -> AsyncIterator[Generation]:
        """Run a request; the context yields its Generation once the engine has accepted it.

        tell: awaited with how much of the model is loaded (0 to 1), each time that this changes,
            if it has to be loaded for this request.

        Raises, while it is entered: ModelNotFound, EngineUnavailable, AdminRequired, RateLimited,
        Overloaded, and what template or engine refuse (InvalidRequest, ContextExceeded, ...).
        """
        model = self._known_model()
        self._check_name(request.model, model)
        _check_priority(request.priority, caller)
        with (
            self._limits.enter(caller),
            self._models.hold(_kept(request.keep_alive_s, caller)),
            self._admission.admit(self._parallel(model), tokens_in(request.prompt)) as place,
            self._registry.enter(caller, request.handle) as entry,
        ):
            _check_thinking(request.prompt, model)
            prompt = await self._prompt(request.prompt, model)
            await self._models.ready(tell)
            job = Job(
                prompt=await self._behind(request.context, prompt, model),
                max_tokens=request.max_tokens,
                sampling=request.sampling,
                namespace="" if self._config.share_cache else caller.namespace,
                priority=request.priority,
                caller=caller.identity,
                wants_progress=request.wants_progress,
                grammar=_behind_reasoning(request, prompt, model),
                shift_at_limit=request.shift_at_limit,
            )
            stream = await self._engine.submit(job)
            place.counted(stream.n_prompt)
            channels = _channels(request.prompt, prompt, model)
            prompt_ids = await self._ids_of(job.prompt) if request.wants_context else None
            generation = Generation(
                stream, request.stop, entry, place, self._engine.abort, channels, prompt_ids
            )
            try:
                yield generation
            finally:
                generation.close()
                self._record(generation, request.sampling.seed)

    async def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Token ids of a text."""
        with self._models.hold():
            await self._models.ready()
            return await self._engine.tokenize(
                text, add_special=add_special, parse_special=parse_special
            )

    async def detokenize(self, ids: list[int], *, special: bool = True) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD."""
        with self._models.hold():
            await self._models.ready()
            data = await self._engine.detokenize(ids, special=special)
        return data.decode("utf-8", errors="replace")

    @property
    def has_reasoning(self) -> bool:
        """True when the model's chat template shows how it marks its reasoning."""
        return tags_of(self.model.chat_template) is not None

    async def render_chat(self, request: GenerateRequest) -> str:
        """The prompt text that the chat template makes of a ChatPrompt; other text as it is."""
        prompt = await self._prompt(request.prompt, self.model)
        return prompt if isinstance(prompt, str) else await self.detokenize(list(prompt))

    def abort(self, caller: Caller, handle: str | None) -> bool:
        """Cancel a generation of this caller; the rule is in service.registry."""
        return self._registry.abort(caller, handle)

    def partial_text(self, caller: Caller, handle: str | None) -> str:
        """The text so far of a running generation of this caller; "" when there is none."""
        return self._registry.partial_text(caller, handle)

    def progress(self, caller: Caller, handle: str | None) -> Progress | None:
        """How far that generation is; None when it has text or did not ask."""
        return self._registry.progress(caller, handle)

    def perf(self) -> Mapping[str, Any]:
        """Counters; service.perf names them."""
        n_queued = self._admission.n_queued(self._parallel(self._engine.status.model))
        return self._perf.snapshot(self._admission.n_in_flight, n_queued)

    def _known_model(self) -> ModelInfo:
        """The model, if it is loaded or can be. Raises EngineUnavailable."""
        if self._engine.status.state not in _CAN_RUN:
            raise _unavailable(self._engine.status)
        return self.model

    def _check_name(self, name: str | None, model: ModelInfo) -> None:
        # Clients send "gpt-3.5-turbo" to whatever runs, so a foreign name is no error by itself.
        if name is None or name.casefold() == model.name.casefold():
            return
        if self._is_installed(name):
            raise ModelNotFound(
                f"The model {name!r} is installed but not loaded; this server runs "
                f"{model.name!r}. Restart it with the other model to use that one.",
                param="model",
            )
        if self._config.strict_model:
            raise ModelNotFound(
                f"The model {name!r} does not exist here; this server runs {model.name!r}.",
                param="model",
            )

    async def _prompt(self, prompt: Prompt, model: ModelInfo) -> str | tuple[int, ...]:
        if isinstance(prompt, TextPrompt):
            return prompt.text
        if isinstance(prompt, ChatPrompt):
            return await self._renderer.render(model.chat_template, prompt, model)
        return prompt.ids

    async def _behind(
        self, context: tuple[int, ...], prompt: str | tuple[int, ...], model: ModelInfo
    ) -> str | tuple[int, ...]:
        """The prompt behind the tokens of an earlier exchange."""
        if not context:
            return prompt
        if not isinstance(prompt, str):
            return (*context, *prompt)
        text = prompt.removeprefix(model.bos_token)  # the context begins with one
        return (*context, *await self._engine.tokenize(text, add_special=False))

    async def _ids_of(self, prompt: str | tuple[int, ...]) -> tuple[int, ...]:
        return tuple(await self._engine.tokenize(prompt)) if isinstance(prompt, str) else prompt

    def _parallel(self, model: ModelInfo | None) -> int:
        known = model.engine.parallel if model is not None else 0
        return known or self._config.engine.parallel

    def _record(self, generation: Generation, seed: int) -> None:
        self._perf.record(generation.outcome(), seed, *generation.seconds)


def _kept(keep_alive_s: float | None, caller: Caller) -> float | None:
    """How long the model stays concerns everybody, so only an administrator's wish counts."""
    return keep_alive_s if caller.is_admin else None


def _check_priority(priority: int, caller: Caller) -> None:
    if priority < 0 and not caller.is_admin:
        raise AdminRequired(
            f"'priority' {priority} is for the administrator: without the admin key it must be "
            "from 0 to 100.",
            param="priority",
        )


def _check_thinking(prompt: Prompt, model: ModelInfo) -> None:
    wants = isinstance(prompt, ChatPrompt) and prompt.thinking is True
    if wants and tags_of(model.chat_template) is None:
        raise Unsupported(
            f"{model.name!r} does not support thinking: its chat template shows no reasoning.",
            param="think",
        )


def _channels(prompt: Prompt, rendered: str | tuple[int, ...], model: ModelInfo) -> Channels | None:
    if not isinstance(prompt, ChatPrompt) or not isinstance(rendered, str):
        return None
    return channels_for(prompt, model.chat_template, rendered)


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


def _unavailable(status: EngineStatus) -> EngineUnavailable:
    message, retry_after = _WHY_NOT.get(status.state, _WHY_NOT[EngineState.STARTING])
    return EngineUnavailable(
        message.format(percent=round(100 * status.progress)), retry_after=retry_after
    )


#: A model that is being loaded is waited for, if it is known from an earlier time.
_CAN_RUN = {EngineState.READY, EngineState.UNLOADED, EngineState.STARTING}

#: What to tell a client, and after how many seconds it may try again.
_WHY_NOT = {
    EngineState.STARTING: ("The model is still being loaded ({percent} %).", 2),
    EngineState.READY: ("The model is not known yet.", 1),
    EngineState.RESTARTING: ("The engine stopped and is being restarted.", 2),
    EngineState.FAILED: ("The engine could not be started; the server's log says why.", 60),
    EngineState.STOPPED: ("The server is shutting down.", 10),
}

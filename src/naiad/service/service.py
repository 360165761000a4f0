"""The service: what a validated request goes through, whatever dialect it came in.

`generate` is the only path to the engine. Everything that can refuse a request refuses it while
the context is entered; leaving the context, by whatever way, ends the engine's work for it.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

from naiad.chat.channels import can_reason
from naiad.client.base import EngineClient, EngineState, EngineStatus
from naiad.config import Config
from naiad.errors import AdminRequired, EngineUnavailable, ModelNotFound
from naiad.service import health
from naiad.service.admission import Admission, tokens_in
from naiad.service.apart import Apart, Work
from naiad.service.controls import Controls
from naiad.service.documents import Documents
from naiad.service.embedding import embed_all
from naiad.service.generate import Generation
from naiad.service.jobs import Asked, check_thinking
from naiad.service.limits import KeyLimits
from naiad.service.models import Models, Tell
from naiad.service.perf import Perf
from naiad.service.recent import RecentLogprobs
from naiad.service.registry import Registry
from naiad.service.stories import Stories
from naiad.types import (
    Caller,
    ChatPrompt,
    EmbeddedText,
    GenerateRequest,
    ModelInfo,
    Progress,
    Prompt,
    Residency,
    Running,
    StreamEvent,
    TextPrompt,
    TokenLogprob,
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
    documents: where what callers leave is kept; by default in memory.
    """

    def __init__(
        self,
        engine: EngineClient,
        config: Config,
        renderer: TemplateRenderer,
        is_installed: Callable[[str], bool] = lambda _name: False,
        documents: Documents | None = None,
    ) -> None:
        """Raises ConfigError when the story to open at first cannot be read."""
        self._engine = engine
        self._config = config
        self._renderer = renderer
        self._is_installed = is_installed
        self._models = Models(engine, config.idle_unload_s or math.inf)
        self._admission = Admission(config.max_queue, config.max_queue_tokens)
        self._limits = KeyLimits(config.max_per_key, config.requests_per_minute)
        self._registry = Registry()
        self._controls = Controls(engine)
        self._recent = RecentLogprobs()
        self._perf = Perf()
        self._apart = Apart(self.generate)
        self._documents = documents or Documents()
        self.stories = Stories(config.saves_dir, config.preload_story, is_shared=config.multiplayer)

    async def start(self) -> None:
        """Start the helpers and the engine; returns before the model is loaded."""
        await self._renderer.start()
        await self._engine.start()
        self._models.start_counting()

    async def close(self) -> None:
        """End every stream with an error, stop the engine and the helpers. Safe to call twice."""
        await self._apart.close()
        self._models.close()
        await self._engine.close()
        await self._renderer.close()
        await self._documents.close()

    @property
    def is_ready(self) -> bool:
        """True when a request sent now would be run."""
        return health.is_ready(self._engine.status)

    def health(self) -> dict[str, Any]:
        """The state of everything, as service.health describes it."""
        waits = self._admission
        return health.report(self._engine.status, waits.n_in_flight, waits.n_tokens)

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
        with self._limits.enter(caller):
            async with self._generate(request, caller, tell) as generation:
                yield generation

    @asynccontextmanager
    async def _generate(
        self, request: GenerateRequest, caller: Caller, tell: Tell | None
    ) -> AsyncIterator[Generation]:
        """The same, of a caller whose limits have been seen to."""
        model = self._known_model()
        self._check_name(request.model, model)
        _check_priority(request.priority, caller)
        with (
            self._models.hold(_kept(request.keep_alive_s, caller)),
            self._admission.admit(self._parallel(model), tokens_in(request.prompt)) as place,
            self._registry.enter(caller, request.handle) as entry,
        ):
            check_thinking(request.prompt, model)
            prompt = await self._prompt(request.prompt, model)
            await self._models.ready(tell)
            asked = await Asked.make(request, prompt, model, self._controls)
            namespace = "" if self._config.share_cache else caller.namespace
            job = asked.job(await self._behind(request.context, prompt, model), namespace, caller)
            stream = await self._engine.submit(job)
            place.counted(stream.n_prompt)
            generation = Generation(
                stream,
                request.stop,
                entry,
                place,
                self._engine.abort,
                asked.channels(),
                keeps_stop=request.keeps_stop,
                has_logprobs=request.sampling.n_logprobs >= 0,
                echo=await self._text_of(prompt) if request.has_echo else "",
                n_unstopped=request.sampling.min_tokens,
                prompt_ids=await self._ids_of(job.prompt) if request.wants_context else None,
            )
            if request.recalls_logprobs:
                entry.logprobs = self._recent.begin(
                    caller, request.handle, is_told=request.sampling.n_logprobs >= 0
                )
            entry.running = lambda: Running(request, generation.usage)
            try:
                yield generation
            finally:
                generation.close()
                self._record(generation, request.sampling.seed)

    @asynccontextmanager
    async def generate_all(
        self, requests: Sequence[GenerateRequest], caller: Caller, tell: Tell | None = None
    ) -> AsyncIterator[list[Generation]]:
        """As generate, for several that belong together: all of them run, or none is left behind.

        Those with one prompt compute it once: the engine lets the later ones wait for it. They came
        as one request, so they count once against the limits of the caller's key.
        """
        with self._limits.enter(caller):
            async with AsyncExitStack() as stack:
                yield [
                    await stack.enter_async_context(self._generate(request, caller, tell))
                    for request in requests
                ]

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
    def documents(self) -> Documents:
        """What callers leave with the server."""
        return self._documents

    async def start_apart(
        self,
        key: str,
        subject: Any,
        request: GenerateRequest,
        caller: Caller,
        take: Callable[[StreamEvent], None],
        done: Callable[[], Awaitable[None]],
    ) -> Work:
        """Run a request whether or not anybody waits for it; see service.apart."""
        return await self._apart.start(key, subject, request, caller, take, done)

    def find_apart(self, caller: Caller, key: str) -> Work | None:
        """The work of that key of this caller, while it runs."""
        return self._apart.find(caller, key)

    async def cancel_apart(self, caller: Caller, key: str) -> bool:
        """End it and wait until it is done; False when it does not run."""
        return await self._apart.cancel(caller, key)

    async def embed(
        self,
        inputs: Sequence[str | tuple[int, ...]],
        model: str | None = None,
        *,
        truncate: bool = False,
        keep_alive_s: float | None = None,
        caller: Caller | None = None,
    ) -> list[EmbeddedText]:
        """The embedding of each input. Chats keep their cache and go on meanwhile.

        Raises ModelNotFound, EngineUnavailable, and what the engine refuses of any of them.
        """
        self._check_name(model, self._known_model())
        with self._models.hold(_kept(keep_alive_s, caller) if caller else None):
            await self._models.ready()
            return await embed_all(self._engine, inputs, truncate=truncate)

    @property
    def has_reasoning(self) -> bool:
        """True when the model's chat template shows how it marks its reasoning."""
        return can_reason(self.model.chat_template)

    async def render_chat(self, request: GenerateRequest) -> str:
        """The prompt text that the chat template makes of a ChatPrompt; other text as it is."""
        prompt = await self._prompt(request.prompt, self.model)
        return await self._text_of(prompt)

    async def _text_of(self, prompt: str | tuple[int, ...]) -> str:
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

    def last_logprobs(self, caller: Caller, handle: str | None) -> Sequence[TokenLogprob]:
        """Those of this caller's newest generation under that handle; see service.recent."""
        return self._recent.find(caller, handle)

    def running(self, caller: Caller) -> list[Running]:
        """This caller's own requests that the engine has accepted, oldest first."""
        return self._registry.running(caller)

    async def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each token id, control tokens as text."""
        with self._models.hold():
            await self._models.ready()
            known = {one: await self._engine.detokenize([one]) for one in dict.fromkeys(ids)}
        return [known[one] for one in ids]

    def perf(self) -> Mapping[str, Any]:
        """Counters; service.perf names them."""
        n_queued = self._admission.n_queued(self._parallel(self._engine.status.model))
        waits, cache = self._admission, self._engine.status.cache
        return self._perf.snapshot(waits.n_in_flight, n_queued, waits.n_tokens, cache)

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

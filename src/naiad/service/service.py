"""The service: what a validated request goes through, whatever dialect it came in.

`generate` is the only path to the engine. Everything that can refuse a request refuses it while
the context is entered; leaving the context, by whatever way, ends the engine's work for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

import msgspec

from naiad.chat.budget import limit_for
from naiad.chat.channels import Channels, can_reason, channels_for, marks_of, reasoning_of
from naiad.chat.tools import forced_call
from naiad.client.base import EngineClient, EngineState, EngineStatus, Job
from naiad.config import Config
from naiad.errors import AdminRequired, EngineUnavailable, ModelNotFound, Unsupported
from naiad.service import health
from naiad.service.admission import Admission, tokens_in
from naiad.service.apart import Apart, Work
from naiad.service.controls import Controls, may_be_control
from naiad.service.documents import Documents
from naiad.service.generate import Generation
from naiad.service.perf import Perf
from naiad.service.registry import Registry
from naiad.service.stories import Stories
from naiad.types import (
    Caller,
    ChatPrompt,
    EmbeddedText,
    GenerateRequest,
    Grammar,
    ModelInfo,
    Progress,
    Prompt,
    Running,
    StreamEvent,
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
        self._admission = Admission(config.max_queue, config.max_queue_tokens)
        self._registry = Registry()
        self._controls = Controls(engine)
        self._perf = Perf()
        self._apart = Apart(self.generate)
        self._documents = documents or Documents()
        self.stories = Stories(config.saves_dir, config.preload_story, is_shared=config.multiplayer)

    async def start(self) -> None:
        """Start the helpers and the engine; returns before the model is loaded."""
        await self._renderer.start()
        await self._engine.start()

    async def close(self) -> None:
        """End every stream with an error, stop the engine and the helpers. Safe to call twice."""
        await self._apart.close()
        await self._engine.close()
        await self._renderer.close()
        await self._documents.close()

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
        """The loaded model. Raises EngineUnavailable while there is none."""
        status = self._engine.status
        if status.model is None:
            raise _unavailable(status)
        return status.model

    @property
    def is_protected(self) -> bool:
        """True when callers need a key."""
        return self._config.api_key is not None

    def check_room(self) -> None:
        """Raises Overloaded when no generation can come in, not even with a prompt of one token."""
        self._admission.check(self._parallel(self._engine.status.model), 1)

    @asynccontextmanager
    async def generate(self, request: GenerateRequest, caller: Caller) -> AsyncIterator[Generation]:
        """Run a request; the context yields its Generation once the engine has accepted it.

        Raises, while it is entered: ModelNotFound, EngineUnavailable, AdminRequired, Overloaded,
        and what the template or the engine refuses (InvalidRequest, ContextExceeded, ...).
        """
        model = self._ready_model()
        self._check_name(request.model, model)
        _check_priority(request.priority, caller)
        with (
            self._admission.admit(self._parallel(model), tokens_in(request.prompt)) as place,
            self._registry.enter(caller, request.handle) as entry,
        ):
            _check_thinking(request.prompt, model)
            prompt = await self._prompt(request.prompt, model)
            grammar = _behind_reasoning(request, prompt, model)
            marks = _marks(request.prompt, model)
            # A stop string that is a control token has to show to be found; it never gets further.
            stops = [stop for stop in request.stop if may_be_control(stop)]
            shown = await self._controls.ids([*marks, *stops], model)
            job = Job(
                prompt=prompt,
                max_tokens=request.max_tokens,
                sampling=request.sampling,
                namespace="" if self._config.share_cache else caller.namespace,
                priority=request.priority,
                caller=caller.identity,
                wants_progress=request.wants_progress,
                grammar=grammar,
                reasoning=limit_for(
                    request.thinking_budget,
                    request.prompt,
                    model.chat_template,
                    prompt,
                    has_grammar=grammar is not None,
                ),
                is_deterministic=request.is_deterministic,
                shift_at_limit=request.shift_at_limit,
                trim=request.trim if isinstance(request.prompt, TextPrompt) else None,
                shown=None if request.shows_controls else tuple(shown.values()),
            )
            stream = await self._engine.submit(job)
            place.counted(stream.n_prompt)
            channels = _channels(request.prompt, prompt, model, shown.keys() & set(marks))
            generation = Generation(
                stream,
                request.stop,
                entry,
                place,
                self._engine.abort,
                channels,
                keeps_stop=request.keeps_stop,
                has_logprobs=request.sampling.n_logprobs >= 0,
                echo=await self._text_of(prompt) if request.has_echo else "",
                n_unstopped=request.sampling.min_tokens,
            )
            entry.running = lambda: Running(request, generation.usage)
            try:
                yield generation
            finally:
                generation.close()
                self._record(generation, request.sampling.seed)

    @asynccontextmanager
    async def generate_all(
        self, requests: Sequence[GenerateRequest], caller: Caller
    ) -> AsyncIterator[list[Generation]]:
        """As generate, for several that belong together: all of them run, or none is left behind.

        Those with one prompt compute it once: the engine lets the later ones wait for it.
        """
        async with AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(self.generate(request, caller))
                for request in requests
            ]

    async def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Token ids of a text."""
        return await self._engine.tokenize(
            text, add_special=add_special, parse_special=parse_special
        )

    async def detokenize(self, ids: list[int], *, special: bool = True) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD."""
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
        self, inputs: Sequence[str | tuple[int, ...]], model: str | None = None
    ) -> list[EmbeddedText]:
        """The embedding of each input. Chats keep their cache and go on meanwhile.

        Raises ModelNotFound, EngineUnavailable, and what the engine refuses of any of them.
        """
        self._check_name(model, self._ready_model())
        return [await self._engine.embed(one) for one in inputs]

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

    def running(self, caller: Caller) -> list[Running]:
        """This caller's own requests that the engine has accepted, oldest first."""
        return self._registry.running(caller)

    async def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each token id, control tokens as text."""
        known = {one: await self._engine.detokenize([one]) for one in dict.fromkeys(ids)}
        return [known[one] for one in ids]

    def perf(self) -> Mapping[str, Any]:
        """Counters; service.perf names them."""
        n_queued = self._admission.n_queued(self._parallel(self._engine.status.model))
        return self._perf.snapshot(self._admission.n_in_flight, n_queued)

    def _ready_model(self) -> ModelInfo:
        if self._engine.status.state is not EngineState.READY:
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

    def _parallel(self, model: ModelInfo | None) -> int:
        known = model.engine.parallel if model is not None else 0
        return known or self._config.engine.parallel

    def _record(self, generation: Generation, seed: int) -> None:
        self._perf.record(generation.outcome(), seed, *generation.seconds)


def _check_priority(priority: int, caller: Caller) -> None:
    if priority < 0 and not caller.is_admin:
        raise AdminRequired(
            f"'priority' {priority} is for the administrator: without the admin key it must be "
            "from 0 to 100.",
            param="priority",
        )


def _check_thinking(prompt: Prompt, model: ModelInfo) -> None:
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


def _unavailable(status: EngineStatus) -> EngineUnavailable:
    message, retry_after = _WHY_NOT.get(status.state, _WHY_NOT[EngineState.STARTING])
    return EngineUnavailable(
        message.format(percent=round(100 * status.progress)), retry_after=retry_after
    )


#: What to tell a client, and after how many seconds it may try again.
_WHY_NOT = {
    EngineState.STARTING: ("The model is still being loaded ({percent} %).", 2),
    EngineState.READY: ("The model is not known yet.", 1),
    EngineState.RESTARTING: ("The engine stopped and is being restarted.", 2),
    EngineState.FAILED: ("The engine could not be started; the server's log says why.", 60),
    EngineState.STOPPED: ("The server is shutting down.", 10),
}

"""The whole server over a real socket, with an engine that says given texts: for real clients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from fakes import FakeEngine, FakeRenderer, FakeStream
from http_client import serving
from naiad.chat.tools import tools_for, turns_for
from naiad.config import Config
from naiad.errors import EngineFailed
from naiad.http.app import build_app
from naiad.service.service import Service
from naiad.types import ChatPrompt, EngineSettings, FinishReason, ModelInfo

if TYPE_CHECKING:
    import openai

#: A template that shows reasoning tags and calls as Hermes writes them.
TEMPLATE = "{{ tools }}{{ messages }}<think></think><tool_call></tool_call>"
MODEL = ModelInfo(
    name="tiny.Q4_1",
    architecture="llama",
    n_vocab=256,
    n_params=134_515_008,
    size_bytes=98_000_000,
    n_ctx_train=8192,
    chat_template=TEMPLATE,
    engine=EngineSettings(n_ctx=4096, parallel=4),
)
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Köln 😀"}}</tool_call>'


class JsonRenderer(FakeRenderer):
    """Renders a conversation as JSON, so that a test sees what a template would have got."""

    async def render(self, template: str | None, prompt: ChatPrompt, model: ModelInfo) -> str:
        turns = turns_for(template or "", prompt)
        tools = tools_for(template or "", prompt.tools)
        told = {"turns": turns, "tools": tools, "thinking": prompt.thinking}
        told["open"] = prompt.continue_final
        return msgspec.json.encode(told).decode()


def saying(*pieces: str, reason: FinishReason = FinishReason.STOP) -> Callable[[FakeStream], None]:
    """A script of an engine whose every answer is these pieces."""

    def script(stream: FakeStream) -> None:
        for piece in pieces:
            stream.put(piece)
        stream.end(reason)

    return script


def failing(stream: FakeStream) -> None:
    """Says something, then breaks."""
    stream.put("Hel")
    stream.end(FinishReason.ERROR, EngineFailed("The engine died."))


class House:
    """A running server: its engine, its port, and what it was asked."""

    def __init__(self, engine: FakeEngine, service: Service, port: int) -> None:
        self.engine = engine
        self.service = service
        self.url = f"http://127.0.0.1:{port}"
        self.closing = AsyncExitStack()

    @property
    def prompt(self) -> str:
        """The newest prompt, as the engine got it."""
        return str(self.job.prompt)

    @property
    def job(self) -> Any:
        return self.engine.streams[max(self.engine.streams)].job

    def sdk(self) -> openai.AsyncOpenAI:
        """A client of the `openai` package, closed with the server."""
        import openai  # here, since it takes longer to load than most tests to run

        made = openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="-", max_retries=0)
        self.closing.push_async_callback(made.close)
        return made

    @property
    def asked(self) -> Any:
        """The newest conversation, as a template would have got it."""
        return msgspec.json.decode(self.prompt)


@asynccontextmanager
async def house(
    script: Callable[[FakeStream], None], template: str | None = TEMPLATE, **config: Any
) -> AsyncIterator[House]:
    """A server whose engine follows the script."""
    engine = FakeEngine(script)
    engine.model = msgspec.structs.replace(MODEL, chat_template=template)
    settings = Config(max_queue=2, **config)
    service = Service(engine, settings, JsonRenderer())
    async with serving(build_app(service, settings), service) as port:
        running = House(engine, service, port)
        async with running.closing:
            yield running
        await service.close()

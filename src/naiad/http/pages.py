"""Pages that belong to no dialect: what this server is, and how it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.types import Receive, Scope, Send

from naiad import __version__
from naiad.dialects.base import Access, Dialect
from naiad.http.exchange import Exchange, answering_errors, header
from naiad.http.static import STATIC, show_file
from naiad.service.service import Service
from naiad.ui import StaticFile

Show = Callable[[Service, Exchange], Awaitable[None]]


class Page:
    """One page; GET and HEAD."""

    def __init__(self, service: Service, dialect: Dialect, show: Show) -> None:
        self._service = service
        self._dialect = dialect
        self._show = show

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._dialect)
        async with answering_errors(exchange):
            await self._show(self._service, exchange)


async def show_front(_service: Service, exchange: Exchange) -> None:
    """To browsers the chat page; to people at a terminal what this server is and where its APIs
    are; to all others the words by which clients of Ollama know that it is there."""
    if b"text/html" in (header(exchange.scope, b"accept") or b""):
        await show_file(STATIC["index.html"], exchange, [(b"vary", b"accept")])
        return
    headers = [(b"vary", b"accept, user-agent")]
    agent = (header(exchange.scope, b"user-agent") or b"").lower()
    text = _FRONT if agent.startswith(_TERMINALS) else _FOR_OLLAMAS_CLIENTS
    await exchange.answer(200, "text/plain; charset=utf-8", text.encode(), headers)


def _file_page(file: StaticFile) -> tuple[Access, Show]:
    async def show(_service: Service, exchange: Exchange) -> None:
        await show_file(file, exchange)

    return Access.PUBLIC, show


async def show_health(service: Service, exchange: Exchange) -> None:
    """Everything about the server's state; 200 only when it can generate."""
    await exchange.answer_json(service.health(), 200 if service.is_ready else 503)


async def show_ready(service: Service, exchange: Exchange) -> None:
    """200 when the server can generate, else 503."""
    await exchange.answer_json({"ready": service.is_ready}, 200 if service.is_ready else 503)


async def show_live(_service: Service, exchange: Exchange) -> None:
    """200 as long as the front answers at all."""
    await exchange.answer_json({"live": True})


#: path -> who may see it, what it shows
PAGES: dict[str, tuple[Access, Show]] = {
    "/": (Access.PUBLIC, show_front),
    "/health": (Access.PUBLIC, show_health),
    "/v1/health": (Access.PUBLIC, show_health),  # llama-server's other name
    "/livez": (Access.PUBLIC, show_live),
    "/readyz": (Access.PUBLIC, show_ready),
    "/ping": (Access.PUBLIC, show_live),
    **{f"/ui/{name}": _file_page(file) for name, file in STATIC.items() if name != "index.html"},
}

_TERMINALS = (b"curl/", b"wget/", b"httpie/")
_FOR_OLLAMAS_CLIENTS = "Ollama is running"  # some compare every letter

_FRONT = f"""naiad {__version__}: a local language model server.

  Web page      /  (in a browser)
  OpenAI API    /v1/chat/completions, /v1/completions, /v1/models
  KoboldAI API  /api/v1/generate, /api/extra/generate/stream, /api/v1/model
  Ollama API    /api/chat, /api/generate, /api/tags
  Anthropic     /v1/messages, /v1/messages/count_tokens
  llama-server  /completion, /infill, /tokenize, /apply-template, /props, /slots, /metrics
  Reference     /docs (in a browser), /openapi.json
  Health        /health, /livez, /readyz

Point a client's base URL at /v1 (OpenAI) or at / (all others).
"""

"""/docs and /openapi.json: the reference of the dialects that this server speaks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from hashlib import blake2b

import msgspec

from naiad.dialects.base import Access, Dialect
from naiad.dialects.reference import chapters
from naiad.dialects.reference.html import as_html
from naiad.dialects.reference.openapi import as_openapi
from naiad.http.exchange import Exchange
from naiad.http.pages import Show
from naiad.http.static import show_file
from naiad.service.service import Service
from naiad.ui import StaticFile


def reference_pages(dialects: Sequence[Dialect]) -> dict[str, tuple[Access, Show]]:
    """path -> who may see it, what it shows."""
    shelf = _Shelf(dialects)
    return {
        "/docs": (Access.PUBLIC, shelf.show("docs")),
        "/openapi.json": (Access.PUBLIC, shelf.show("openapi")),
    }


class _Shelf:
    """Both forms, made beside the event loop by the first who asks: it takes tenths of a second."""

    def __init__(self, dialects: Sequence[Dialect]) -> None:
        self._dialects = dialects
        self._made: dict[str, StaticFile] = {}
        self._making = asyncio.Lock()

    def show(self, name: str) -> Show:
        """What sends this form."""

        async def show(_service: Service, exchange: Exchange) -> None:
            async with self._making:
                if not self._made:
                    self._made = await asyncio.to_thread(_make, self._dialects)
            await show_file(self._made[name], exchange)

        return show


def _make(dialects: Sequence[Dialect]) -> dict[str, StaticFile]:
    told = chapters(dialects)
    return {
        "docs": _file("text/html; charset=utf-8", as_html(told).encode()),
        "openapi": _file("application/json", msgspec.json.encode(as_openapi(told))),
    }


def _file(media: str, body: bytes) -> StaticFile:
    return StaticFile(media, body, b'"' + blake2b(body, digest_size=12).hexdigest().encode() + b'"')

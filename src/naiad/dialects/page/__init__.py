"""What the web page asks for beyond the other APIs: rendered Markdown, and the sampler table."""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

from naiad.dialects.base import Access, Backend, Call, Dialect, Operation
from naiad.dialects.fields import Fields, array, text
from naiad.dialects.openai.errors import error_body
from naiad.dialects.page.samplers import sampler_table
from naiad.errors import InvalidRequest
from naiad.ui.helper import MarkdownHelper

MAX_TEXTS = 64
MAX_CHARS = 400_000


async def show_samplers(_backend: Backend, _call: Call) -> Any:
    """GET /api/naiad/samplers: every sampling parameter, its range, default and meaning."""
    return {"samplers": sampler_table()}


async def render_markdown(_backend: Backend, call: Call) -> Any:
    """POST /api/naiad/render: `texts`, up to 64 of 400,000 characters in all, to `html`.

    An entry of `html` is null for a text that takes too long to render.
    """
    texts = _read_texts(Fields(call.body))
    return {"html": await asyncio.get_running_loop().run_in_executor(*_renderer(), texts)}


def _read_texts(fields: Fields) -> list[str]:
    name, _ = fields.find("texts")
    texts = [text(f"{name}[{i}]", one) for i, one in enumerate(fields.need(array, name))]
    if len(texts) > MAX_TEXTS:
        raise InvalidRequest(
            f"'{name}' may hold at most {MAX_TEXTS} texts, not {len(texts)}.", param=name
        )
    n_chars = sum(map(len, texts))
    if n_chars > MAX_CHARS:
        raise InvalidRequest(
            f"'{name}' may hold at most {MAX_CHARS} characters in all, not {n_chars}.", param=name
        )
    return texts


@lru_cache(maxsize=1)
def _renderer() -> tuple[ThreadPoolExecutor, Callable[[list[str]], list[str | None]]]:
    """One thread, so that jobs come one after another; and what it does."""
    helper = MarkdownHelper()
    atexit.register(helper.close)
    return ThreadPoolExecutor(1, thread_name_prefix="markdown"), helper.render


DIALECT = Dialect(
    name="page",
    operations=(
        Operation("GET", "/api/naiad/samplers", Access.USER, handle=show_samplers),
        Operation("POST", "/api/naiad/render", Access.USER, handle=render_markdown),
    ),
    error_body=error_body,
    prefixes=("/api/naiad",),
)

"""Texts to vectors: one after another, and cut only for those who asked for that."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from naiad.client.base import EngineClient
from naiad.errors import ContextExceeded
from naiad.types import EmbeddedText


async def embed_all(
    engine: EngineClient, inputs: Sequence[str | tuple[int, ...]], *, truncate: bool
) -> list[EmbeddedText]:
    """The embedding of each. truncate: of one that is too long, its beginning is embedded.

    Raises ContextExceeded without `truncate`, and whatever else the engine refuses.
    """
    return [await _timed(engine, one, truncate=truncate) for one in inputs]


async def _timed(
    engine: EngineClient, one: str | tuple[int, ...], *, truncate: bool
) -> EmbeddedText:
    began = time.monotonic()
    try:
        found = await engine.embed(one)
    except ContextExceeded as error:
        if not truncate or "n_ctx" not in error.details:
            raise
        found = await _embed_beginning(engine, one, error.details["n_ctx"])
    return replace(found, seconds=time.monotonic() - began)


async def _embed_beginning(
    engine: EngineClient, one: str | tuple[int, ...], n_ctx: int
) -> EmbeddedText:
    ids, n_tail = (one, 0) if isinstance(one, tuple) else await _tokens_of(engine, one)
    kept = (*ids[: n_ctx - n_tail], *ids[len(ids) - n_tail :])
    return replace(await engine.embed(kept), n_dropped=len(ids) - len(kept))


async def _tokens_of(engine: EngineClient, text: str) -> tuple[tuple[int, ...], int]:
    """A text's tokens as the engine embeds them, and how many at the end the model's kind asks for
    (those of BERT end with one); these stay when the text is cut."""
    whole = await engine.tokenize(text, add_special=True, parse_special=False)
    plain = await engine.tokenize(text, add_special=False, parse_special=False)
    n_added = len(whole) - len(plain)
    n_head = next((n for n in range(n_added + 1) if whole[n : n + len(plain)] == plain), n_added)
    return tuple(whole), n_added - n_head

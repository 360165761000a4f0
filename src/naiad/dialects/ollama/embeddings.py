"""Ollama's two ways to ask for embeddings."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from naiad.dialects.base import Backend, Call
from naiad.dialects.fields import Fields, boolean, integer, short_text, text, wrong_kind
from naiad.dialects.ollama.durations import duration
from naiad.dialects.ollama.requests import MAX_MODEL_CHARS, plain_name
from naiad.dialects.openai.embeddings import MAX_INPUTS, about, dropped, numbers_of, shortened
from naiad.dialects.sampling import read_object
from naiad.errors import InvalidRequest
from naiad.types import EmbeddedText

_NS = 1_000_000_000


async def embed(backend: Backend, call: Call) -> Any:
    """The vectors of `input`, a text or a list of them; of long ones only the beginning's.

    With "truncate": false these are refused. Without a text it asks that the model be loaded.
    """
    began = time.perf_counter_ns()
    fields = Fields(call.body)
    texts = _texts(fields)
    size = fields.get(integer(0), "dimensions") or None  # Ollama ignores 0, and what is too many
    truncate = fields.get(boolean, "truncate") is not False
    name = fields.get(short_text(MAX_MODEL_CHARS), "model", "name") or backend.model.name
    found = await _embedded(backend, call, fields, texts, truncate=truncate)
    vectors = [_cut(one.vector, size) for one in found]
    total_ns = time.perf_counter_ns() - began
    work_ns = round(sum(one.seconds for one in found) * _NS)
    return {
        "model": name,
        "embeddings": [numbers_of(vector) for vector in vectors],
        "total_duration": total_ns,
        "load_duration": max(0, total_ns - work_ns),  # all that came before the engine
        "prompt_eval_count": sum(one.n_tokens for one in found),
        **dropped(found),
    }


async def embed_one(backend: Backend, call: Call) -> Any:
    """The vector of `prompt`: the older way. A text that is too long is refused."""
    fields = Fields(call.body)
    prompt = fields.get(text, "prompt") or ""
    truncate = fields.get(boolean, "truncate") or False
    texts = [prompt] if prompt else []
    found = await _embedded(backend, call, fields, texts, truncate=truncate, field="prompt")
    return {"embedding": numbers_of(found[0].vector) if found else [], **dropped(found)}


async def _embedded(
    backend: Backend,
    call: Call,
    fields: Fields,
    texts: Sequence[str],
    *,
    truncate: bool,
    field: str = "input",
) -> list[EmbeddedText]:
    name = fields.get(short_text(MAX_MODEL_CHARS), "model", "name") or ""
    read_object(fields, "options")  # about the machine and about sampling: nothing here
    keep_alive_s = fields.get(duration, "keep_alive")
    with about(field):
        return await backend.embed(
            texts,
            plain_name(name) or None,
            truncate=truncate,
            keep_alive_s=keep_alive_s,
            caller=call.caller,
        )


def _texts(fields: Fields) -> list[str]:
    name, value = fields.find("input")
    if value is None or value == "":
        return []
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise wrong_kind(name, "a string or a list of strings", value)
    if len(texts) > MAX_INPUTS:
        raise InvalidRequest(
            f"'{name}' must hold at most {MAX_INPUTS} texts, not {len(texts)}.", param=name
        )
    found = [text(f"{name}[{place}]", one) for place, one in enumerate(texts)]
    if "" in found:
        place = f"{name}[{found.index('')}]"
        raise InvalidRequest(f"'{place}' is empty; there is nothing to embed.", param=place)
    return found


def _cut(vector: bytes, size: int | None) -> bytes:
    return vector if size is None or 4 * size >= len(vector) else shortened(vector, size)

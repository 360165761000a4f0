"""OpenAI's embeddings, and reranking, which is refused with the reason."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from naiad.dialects.base import Backend, Call
from naiad.dialects.fields import (
    Fields,
    boolean,
    integer,
    short_text,
    text,
    token_ids,
    wrong_kind,
)
from naiad.errors import InvalidRequest, Unsupported
from naiad.types import EmbeddedText, ModelInfo

MAX_INPUTS = 2048
MAX_MODEL_CHARS = 512


async def embed(backend: Backend, call: Call) -> Any:
    """POST /v1/embeddings: a text, a list of them, token ids, or lists of those."""
    return await embeddings_of(backend, call, truncates=False)


async def embeddings_of(backend: Backend, call: Call, *, truncates: bool) -> Any:
    """OpenAI's answer. truncates: whether what is too long is cut if the body does not say so."""
    model = backend.model
    fields = Fields(call.body)
    inputs = read_inputs(fields, model)
    encoding = fields.get(short_text(16), "encoding_format") or "float"
    if encoding not in {"float", "base64"}:
        raise InvalidRequest("'encoding_format' must be float or base64.", param="encoding_format")
    size = fields.get(integer(1, model.n_embd or None), "dimensions")
    name = fields.get(short_text(MAX_MODEL_CHARS), "model")
    wish = fields.get(boolean, "truncate")
    truncate = truncates if wish is None else wish
    with about("input"):
        found = await backend.embed(inputs, name, truncate=truncate)
    n_tokens = sum(one.n_tokens for one in found)
    vectors = [one.vector if size is None else shortened(one.vector, size) for one in found]
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _encoded(vector, encoding)}
            for index, vector in enumerate(vectors)
        ],
        "model": model.name,
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        **dropped(found),
    }


def dropped(found: Sequence[EmbeddedText]) -> dict[str, int]:
    """How many tokens were left out, if any were."""
    n_dropped = sum(one.n_dropped for one in found)
    return {"dropped_tokens": n_dropped} if n_dropped else {}


@contextmanager
def about(name: str) -> Iterator[None]:
    """What the engine refuses of a text is about this field."""
    try:
        yield
    except InvalidRequest as error:
        error.param = error.param or name
        raise


def read_inputs(fields: Fields, model: ModelInfo) -> list[str | tuple[int, ...]]:
    """`input` (llama-server's clients say `content`): 1 to 2048 texts or lists of token ids."""
    name, value = fields.find("input", "content")
    if value is None:
        raise InvalidRequest(f"'{name}' is missing.", param=name)
    is_one = isinstance(value, str) or (isinstance(value, list) and value and _is_id(value[0]))
    inputs = [value] if is_one else value
    if not isinstance(inputs, list):
        raise wrong_kind(name, "a string, a list of strings or token ids", value)
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise InvalidRequest(
            f"'{name}' must hold 1 to {MAX_INPUTS} inputs, not {len(inputs)}.", param=name
        )
    return [_one(name if is_one else f"{name}[{i}]", one, model) for i, one in enumerate(inputs)]


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _one(name: str, value: Any, model: ModelInfo) -> str | tuple[int, ...]:
    if not isinstance(value, str | list):
        raise wrong_kind(name, "a string or a list of token ids", value)
    if not value:
        raise InvalidRequest(f"'{name}' is empty; there is nothing to embed.", param="input")
    if isinstance(value, str):
        return text(name, value)
    return tuple(token_ids(model.n_vocab)(name, value))


def shortened(vector: bytes, size: int) -> bytes:
    """The first `size` numbers, made to length 1 again; all of them if there are no more."""
    size = min(size, len(vector) // 4)
    numbers = struct.unpack_from(f"<{size}f", vector)
    length = math.hypot(*numbers) or 1.0
    return struct.pack(f"<{size}f", *(number / length for number in numbers))


def _encoded(vector: bytes, encoding: str) -> str | list[float]:
    return base64.b64encode(vector).decode() if encoding == "base64" else numbers_of(vector)


def numbers_of(vector: bytes) -> list[float]:
    """A vector as JSON tells it."""
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))


async def rerank(backend: Backend, _call: Call) -> Any:
    """POST /v1/rerank: needs a model made for it, which none here is."""
    model = backend.model
    if model.pooling == "rank":
        raise Unsupported("Reranking is not supported by this version.", param="model")
    stated = f"its file says {model.pooling!r}" if model.pooling else "its file names none"
    raise Unsupported(
        f"{model.name!a} cannot rank documents: that needs a model with rank pooling, and "
        f"{stated}. /v1/embeddings gives vectors to compare.",
        param="model",
    )

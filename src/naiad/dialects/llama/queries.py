"""llama-server's questions that start no generation."""

from __future__ import annotations

from typing import Any

import naiad
from naiad.dialects.base import Backend, Call
from naiad.dialects.fields import Fields, boolean, text, token_ids
from naiad.dialects.llama.settings import settings_of
from naiad.dialects.openai.requests import DEFAULTS, parse_chat
from naiad.errors import InvalidRequest, Overloaded, Unsupported
from naiad.types import Running

#: Each kind of token costs a question to the engine.
MAX_PIECES = 16_384


async def tokenize(backend: Backend, call: Call) -> Any:
    """Token ids of `content`, with their pieces if asked."""
    fields = Fields(call.body)
    content = fields.need(text, "content")
    ids = await backend.tokenize(
        content,
        add_special=fields.get(boolean, "add_special") or False,
        parse_special=fields.get(boolean, "parse_special") is not False,
    )
    if not fields.get(boolean, "with_pieces"):
        return {"tokens": ids}
    if len(ids) > MAX_PIECES:
        raise InvalidRequest(
            f"'with_pieces' is for texts of at most {MAX_PIECES} tokens; this one has {len(ids)}.",
            param="with_pieces",
        )
    pieces = await backend.pieces(ids)
    return {"tokens": [_with_piece(*one) for one in zip(ids, pieces, strict=True)]}


def _with_piece(token: int, data: bytes) -> dict[str, Any]:
    try:
        piece: Any = data.decode()
    except UnicodeDecodeError:
        piece = list(data)  # a part of a character
    return {"id": token, "piece": piece}


async def detokenize(backend: Backend, call: Call) -> Any:
    """The text of token ids."""
    ids = Fields(call.body).need(token_ids(backend.model.n_vocab), "tokens")
    return {"content": await backend.detokenize(ids)}


async def apply_template(backend: Backend, call: Call) -> Any:
    """The prompt that the chat template makes of a chat."""
    return {"prompt": await backend.render_chat(parse_chat(call.body, backend.model).request)}


async def show_props(backend: Backend, _call: Call) -> Any:
    """What is loaded and with which defaults."""
    model = backend.model
    return {
        "default_generation_settings": {
            "n_ctx": model.engine.n_ctx,
            "params": settings_of(DEFAULTS),
        },
        "total_slots": model.engine.parallel,
        "model_alias": model.name,
        "model_path": model.name,  # the name only: paths are nobody's business
        "chat_template": model.chat_template or "",
        "bos_token": model.bos_token,
        "eos_token": model.eos_token,
        "modalities": {"vision": False, "audio": False},
        "build_info": f"naiad {naiad.__version__}",
        "is_sleeping": False,
    }


async def change_props(_backend: Backend, _call: Call) -> Any:
    """Nothing here can be changed while the server runs."""
    raise Unsupported("The server's properties cannot be changed while it runs.")


async def list_slots(backend: Backend, call: Call) -> Any:
    """The caller's own requests that are at work: what others do is nobody's business.

    `?fail_on_no_slot=1` refuses when a new request would have to wait.
    """
    model = backend.model
    n_free = model.engine.parallel - backend.perf()["n_in_flight"]
    if call.query.get("fail_on_no_slot") == "1" and n_free <= 0:
        raise Overloaded("No slot is free; a new request would wait.", retry_after=1)
    own = backend.running(call.caller)
    return [_slot(place, one, model.engine.n_ctx) for place, one in enumerate(own)]


def _slot(place: int, running: Running, n_ctx: int) -> dict[str, Any]:
    request, n_decoded = running.request, running.usage.completion_tokens
    limit = request.max_tokens
    return {
        "id": place,
        "id_task": place,
        "n_ctx": n_ctx,
        "speculative": False,
        "is_processing": True,
        "params": settings_of(
            request.sampling, n_predict=limit, stop=request.stop, stream=request.stream
        ),
        "n_prompt_tokens": running.usage.prompt_tokens,
        "next_token": {
            "has_next_token": True,
            "n_remain": -1 if limit is None else max(0, limit - n_decoded),
            "n_decoded": n_decoded,
        },
    }


async def list_adapters(_backend: Backend, _call: Call) -> Any:
    """There are none."""
    return []

"""OpenAI's API: models, completions, chat completions; with and without the /v1 prefix."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Any

from naiad.dialects.base import Access, Backend, Call, Dialect, Operation
from naiad.dialects.openai.embeddings import embed, rerank
from naiad.dialects.openai.errors import error_body
from naiad.dialects.openai.requests import parse_chat, parse_completion
from naiad.dialects.openai.responses.routes import (
    cancel,
    compact,
    count_input,
    create,
    delete,
    list_input,
    retrieve,
)
from naiad.errors import ModelNotFound
from naiad.types import ModelInfo

_QUANTISATION = re.compile(
    r"(?:^|[^A-Za-z0-9])(I?Q[1-8](?:_[A-Za-z0-9]+)*|T?Q\d_\d|MXFP4|B?F16|F32)(?![A-Za-z0-9])", re.I
)
_STARTED_AT = int(time.time())  # a model has no creation date that clients could use


async def list_models(backend: Backend, _call: Call) -> Any:
    """GET /v1/models: the loaded model. Anthropic's clients ask here too; theirs is the page."""
    model = backend.model
    page = {"has_more": False, "first_id": model.name, "last_id": model.name}
    return {"object": "list", "data": [_model_object(model)], **page}


async def show_model(backend: Backend, call: Call) -> Any:
    """GET /v1/models/{id}."""
    asked = call.path_params["model_id"]
    model = backend.model
    if asked.casefold() != model.name.casefold():  # as in requests
        raise ModelNotFound(f"The model {asked!a} is not loaded here.", param="model")
    return _model_object(model)


def quantisation_of(model: ModelInfo) -> str | None:
    """The type of its weights, e.g. Q4_K_M, as its name or llama.cpp's description of it says."""
    for text in (model.name, model.description):
        if found := _QUANTISATION.search(text):
            return found[1].upper()
    return None


def _model_object(model: ModelInfo) -> dict[str, Any]:
    n_ctx = model.engine.n_ctx
    return {
        "id": model.name,
        "object": "model",
        "created": _STARTED_AT,
        "owned_by": "naiad",
        "type": "model",  # and the next two: Anthropic's names
        "display_name": model.name,
        "created_at": datetime.fromtimestamp(_STARTED_AT, UTC).isoformat(),
        "max_model_len": n_ctx,  # vLLM's name
        "meta": {  # llama-server's names
            "n_vocab": model.n_vocab,
            "n_ctx": n_ctx,
            "n_ctx_train": model.n_ctx_train,
            "n_params": model.n_params,
            "size": model.size_bytes,
            "n_embd": model.n_embd,
            "architecture": model.architecture,
            "quantization": quantisation_of(model),
            "description": model.description,
            "slots": model.engine.parallel,
        },
    }


def _operations(prefix: str) -> tuple[Operation, ...]:
    user = Access.USER
    return (
        Operation("GET", f"{prefix}/models", user, handle=list_models),
        Operation("GET", f"{prefix}/models/{{model_id:path}}", user, handle=show_model),
        Operation("POST", f"{prefix}/completions", user, parse=parse_completion),
        Operation("POST", f"{prefix}/chat/completions", user, parse=parse_chat),
        Operation("POST", f"{prefix}/embeddings", user, handle=embed, is_long=True),
        Operation("POST", f"{prefix}/responses", user, plan=create),
        # before the ids, which these are not
        Operation("POST", f"{prefix}/responses/input_tokens", user, handle=count_input),
        Operation("POST", f"{prefix}/responses/compact", user, handle=compact, has_body=False),
        Operation("GET", f"{prefix}/responses/{{response_id}}", user, plan=retrieve),
        Operation("DELETE", f"{prefix}/responses/{{response_id}}", user, handle=delete),
        Operation("POST", f"{prefix}/responses/{{response_id}}/cancel", user, handle=cancel),
        Operation(
            "GET", f"{prefix}/responses/{{response_id}}/input_items", user, handle=list_input
        ),
        Operation("POST", f"{prefix}/rerank", user, handle=rerank),
        Operation("POST", f"{prefix}/reranking", user, handle=rerank),
    )


DIALECT = Dialect(
    name="openai",
    operations=_operations("/v1") + _operations(""),
    error_body=error_body,
    prefixes=("/", "/completions"),
)

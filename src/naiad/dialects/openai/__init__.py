"""OpenAI's API: models, completions, chat completions; with and without the /v1 prefix."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from naiad.dialects.base import Access, Backend, Call, Dialect, Operation
from naiad.dialects.openai.errors import error_body
from naiad.dialects.openai.requests import parse_chat, parse_completion
from naiad.errors import ModelNotFound
from naiad.types import ModelInfo

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
    if asked != model.name:
        raise ModelNotFound(f"The model {asked!a} is not loaded here.", param="model")
    return _model_object(model)


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
        },
    }


def _operations(prefix: str) -> tuple[Operation, ...]:
    user = Access.USER
    return (
        Operation("GET", f"{prefix}/models", user, handle=list_models),
        Operation("GET", f"{prefix}/models/{{model_id:path}}", user, handle=show_model),
        Operation("POST", f"{prefix}/completions", user, parse=parse_completion),
        Operation("POST", f"{prefix}/chat/completions", user, parse=parse_chat),
    )


DIALECT = Dialect(
    name="openai",
    operations=_operations("/v1") + _operations(""),
    error_body=error_body,
    prefixes=("/", "/completions"),
)

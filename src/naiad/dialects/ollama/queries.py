"""What Ollama's clients ask about models, and what this server does not do."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime, timedelta
from typing import Any

from naiad import __version__
from naiad.dialects.base import Backend, Call, Handle
from naiad.dialects.fields import Fields, short_text
from naiad.dialects.ollama.formatter import rfc3339
from naiad.dialects.ollama.requests import MAX_MODEL_CHARS, plain_name
from naiad.errors import ModelNotFound, Unsupported
from naiad.types import ModelInfo

#: The release of Ollama whose API this one follows; clients compare it with what they need.
API_VERSION = "0.13.0"

_STARTED_AT = datetime.now(UTC)
_FOR_EVER_S = 100 * 365 * 86400.0  # of a model that stays loaded until the server ends
_QUANTISATION = re.compile(r"(?:^|[.\-_])(I?Q\d\w*|BF16|F16|F32|MXFP4)$", re.IGNORECASE)

_NO_MODELS = (
    "This server runs the model it was started with and keeps no library: "
    "manage files with 'naiad pull', 'naiad list' and 'naiad rm'."
)
REFUSED = {
    ("POST", "/api/pull"): _NO_MODELS,
    ("POST", "/api/push"): _NO_MODELS,
    ("POST", "/api/copy"): _NO_MODELS,
    ("POST", "/api/create"): _NO_MODELS,
    ("DELETE", "/api/delete"): _NO_MODELS,
    ("HEAD", "/api/blobs/{digest}"): _NO_MODELS,
    ("POST", "/api/blobs/{digest}"): _NO_MODELS,
}


def refuse(reason: str) -> Handle:
    """A handler that always refuses with this reason."""

    async def handle(_backend: Backend, _call: Call) -> Any:
        raise Unsupported(reason)

    handle.__doc__ = f"Refused: {reason[0].lower()}{reason[1:]}"
    return handle


async def list_models(backend: Backend, _call: Call) -> Any:
    """GET /api/tags: the model that this server runs, in memory or not."""
    return {"models": [_entry(backend.model)]}


async def list_running(backend: Backend, _call: Call) -> Any:
    """GET /api/ps: the model, if it is in memory, and when it leaves if nobody uses it."""
    model, residency = backend.model, backend.residency
    if not residency.is_loaded:
        return {"models": []}
    left_s = _FOR_EVER_S if residency.expires_in_s is None else residency.expires_in_s
    running = {
        "expires_at": rfc3339(datetime.now(UTC) + timedelta(seconds=left_s)),
        "size_vram": model.size_bytes if model.engine.gpu_layers else 0,
        "context_length": model.engine.n_ctx,
    }
    return {"models": [{**_entry(model), **running}]}


async def show_model(backend: Backend, call: Call) -> Any:
    """POST /api/show."""
    name = Fields(call.body).need(short_text(MAX_MODEL_CHARS), "model", "name")
    model = backend.model
    if plain_name(name).casefold() != model.name.casefold():
        raise ModelNotFound(f"model '{ascii(name)[1:-1]}' not found", param="model")
    thinking = ["thinking"] if backend.has_reasoning else []
    return {
        "modelfile": f"FROM {model.name}\n",
        "parameters": f"num_ctx {model.engine.n_ctx}",
        "template": model.chat_template or "",
        "details": _details(model),
        "model_info": _facts(model),
        "capabilities": ["completion", "tools", *thinking],
        "modified_at": rfc3339(_STARTED_AT),
    }


async def show_version(_backend: Backend, _call: Call) -> Any:
    """GET /api/version."""
    return {"version": API_VERSION, "naiad": __version__}


def _entry(model: ModelInfo) -> dict[str, Any]:
    name = f"{model.name}:latest"
    return {
        "name": name,
        "model": name,
        "modified_at": rfc3339(_STARTED_AT),
        "size": model.size_bytes,
        "digest": _digest(model),
        "details": _details(model),
    }


def _digest(model: ModelInfo) -> str:
    """Tells models apart; not the hash of the file, which would take long to compute."""
    known = f"{model.name}\n{model.size_bytes}\n{model.n_params}"
    return hashlib.sha256(known.encode()).hexdigest()


def _details(model: ModelInfo) -> dict[str, Any]:
    found = _QUANTISATION.search(model.name)
    return {
        "parent_model": "",
        "format": "gguf",
        "family": model.architecture,
        "families": [model.architecture],
        "parameter_size": _short(model.n_params),
        "quantization_level": found[1].upper() if found else "unknown",
    }


def _facts(model: ModelInfo) -> dict[str, Any]:
    family = model.architecture or "unknown"
    return {
        "general.architecture": family,
        "general.basename": model.name,
        "general.parameter_count": model.n_params,
        f"{family}.context_length": model.n_ctx_train,
        f"{family}.vocab_size": model.n_vocab,
    }


def _short(n_params: int) -> str:
    """A number of parameters as Ollama shows it, e.g. 1.2B or 134.5M."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if n_params >= size:
            return f"{n_params / size:.4g}{letter}"
    return str(n_params)

"""KoboldAI's and KoboldCpp's questions that start no generation."""

from __future__ import annotations

from typing import Any

import msgspec

import naiad
from naiad.dialects.base import Backend, Call, Raw
from naiad.dialects.fields import Fields, boolean, text, token_ids
from naiad.dialects.kobold.gbnf import to_gbnf
from naiad.dialects.kobold.logprobs import KoboldLogprobs
from naiad.dialects.kobold.requests import DEFAULT_MAX_LENGTH
from naiad.dialects.openai.embeddings import embeddings_of
from naiad.dialects.progress import progress_of
from naiad.dialects.prompts import read_messages
from naiad.dialects.sampling import read_handle
from naiad.errors import InvalidRequest
from naiad.types import ChatPrompt, GenerateRequest

#: Level of the KoboldAI API, and the KoboldCpp release whose text API is answered here: clients
#: compare these with the release that brought a feature.
API_VERSION = "1.2.5"
KOBOLDCPP_VERSION = "1.122.1"

#: What KoboldCpp can and this server cannot.
_ABSENT = (
    "txt2img",
    "vision",
    "audio",
    "transcribe",
    "websearch",
    "tts",
    "music",
    "musicllm",
    "router",
    "guidance",
    "mcp",
)

_STOP_REASONS = {"length": 0, "cancelled": 0, "stop": 1}  # KoboldCpp's numbers; -1: none


async def show_model(backend: Backend, _call: Call) -> Any:
    """The model's name, with the prefix by which clients know whom they talk to."""
    return {"result": f"koboldcpp/{backend.model.name}"}


async def show_api_version(_backend: Backend, _call: Call) -> Any:
    """The level of the KoboldAI API."""
    return {"result": API_VERSION}


async def show_version(backend: Backend, _call: Call) -> Any:
    """What this server can do; false wherever it cannot."""
    return {
        "result": "KoboldCpp",
        "version": KOBOLDCPP_VERSION,
        "naiad": naiad.__version__,
        "protected": backend.is_protected,
        "llm": True,
        **dict.fromkeys(_ABSENT, False),
        "embeddings": True,
        "multiplayer": backend.stories.shared is not None,
        "savedata": True,
        "admin": 0,
        "jinja": True,
    }


async def show_service(_backend: Backend, _call: Call) -> Any:
    """What runs here and which APIs it has, for clients that find servers by themselves."""
    return {
        "version": 0.2,  # of this document's form
        "software": {"name": "naiad", "version": naiad.__version__},
        "api": {
            "koboldai": {"name": "KoboldAI API", "rel_url": "/api", "version": API_VERSION},
            "openai": {"name": "OpenAI API", "rel_url": "/v1"},
            "ollama": {"name": "Ollama API", "rel_url": "/api"},
            "anthropic": {"name": "Anthropic API", "rel_url": "/v1"},
        },
    }


async def show_max_length(backend: Backend, _call: Call) -> Any:
    """How long an answer is when the request does not say."""
    n_ctx = backend.model.engine.n_ctx
    return {"value": min(DEFAULT_MAX_LENGTH, n_ctx) if n_ctx else DEFAULT_MAX_LENGTH}


async def show_context_length(backend: Backend, _call: Call) -> Any:
    """Tokens that one request may use."""
    return {"value": backend.model.engine.n_ctx}


async def show_soft_prompt(_backend: Backend, _call: Call) -> Any:
    """There are none."""
    return {"value": ""}


async def list_soft_prompts(_backend: Backend, _call: Call) -> Any:
    """There are none."""
    return {"values": []}


async def check_generation(backend: Backend, call: Call) -> Any:
    """The text so far of the caller's running generation; before that, how far it is if it asked.

    A generation asks with `return_progress`.
    """
    handle = read_handle(Fields({**call.query, **call.body}))
    result: dict[str, Any] = {"text": backend.partial_text(call.caller, handle)}
    if progress := backend.progress(call.caller, handle):
        result |= progress_of(progress)
    return {"results": [result]}


async def show_logprobs(backend: Backend, call: Call) -> Any:
    """Logprobs of the caller's newest generation under that `genkey`, if it asked for them."""
    handle = read_handle(Fields({**call.query, **call.body}))
    told = backend.last_logprobs(call.caller, handle)
    return {"logprobs": KoboldLogprobs().shape(told) if told else None}


async def abort_generation(backend: Backend, call: Call) -> Any:
    """Stop a generation of this caller. The answers are strings."""
    found = backend.abort(call.caller, read_handle(Fields(call.body)))
    return {"success": "true" if found else "false", "done": "true"}


async def count_tokens(backend: Backend, call: Call) -> Any:
    """Token ids of `prompt`, or of the prompt that the chat template makes of `messages`."""
    fields = Fields(call.body)
    add_special = fields.get(boolean, "special")
    if fields.find("messages")[1] is None:
        prompt = fields.get(text, "prompt") or ""
    else:
        messages, _ = read_messages(fields)
        prompt = await backend.render_chat(GenerateRequest(prompt=ChatPrompt(messages)))
    ids = await backend.tokenize(prompt, add_special=add_special is not False)
    rendered = {} if fields.find("messages")[1] is None else {"prompt": prompt}
    return {"value": len(ids), "ids": ids, **rendered}


async def detokenize(backend: Backend, call: Call) -> Any:
    """The text of token ids."""
    fields = Fields(call.body)
    special = fields.get(boolean, "special")
    ids = fields.need(token_ids(backend.model.n_vocab), "ids")
    return {"result": await backend.detokenize(ids, special=special is not False), "success": True}


async def embed(backend: Backend, call: Call) -> Any:
    """Embeddings as OpenAI's API gives them; of a text that is too long, its beginning's."""
    return await embeddings_of(backend, call, truncates=True)


async def convert_schema(_backend: Backend, call: Call) -> Any:
    """The GBNF of a JSON schema, which is `schema` or the body itself."""
    try:
        grammar = to_gbnf(call.body.get("schema") or dict(call.body))
    except InvalidRequest as error:
        told = {"result": "", "success": False, "error": error.message}
        return Raw(msgspec.json.encode(told), status=error.status)
    return {"result": grammar, "success": True}


async def show_perf(backend: Backend, _call: Call) -> Any:
    """Counters of the last generation and of the server; times in seconds, speeds in tokens/s."""
    perf = backend.perf()
    n_computed = perf["last_prompt_tokens"] - perf["last_cached_tokens"]
    process_s, eval_s = perf["last_prompt_s"], perf["last_decode_s"]
    return {
        "last_process": process_s,
        "last_eval": eval_s,
        "last_process_time": process_s,
        "last_eval_time": eval_s,
        "last_process_speed": _speed(n_computed, process_s),
        "last_eval_speed": _speed(perf["last_completion_tokens"], eval_s),
        "last_token_count": perf["last_completion_tokens"],
        "last_input_count": perf["last_prompt_tokens"],
        "last_seed": perf["last_seed"],
        "total_gens": perf["n_generations"],
        "stop_reason": _STOP_REASONS.get(perf["last_finish_reason"], -1),
        "queue": perf["n_queued"],
        "idle": int(perf["n_in_flight"] == 0),
        "uptime": perf["uptime_s"],
        "idletime": perf["idle_s"],
        "quiet": True,  # prompts are never logged
    }


def _speed(n_tokens: int, seconds: float) -> float:
    return n_tokens / seconds if seconds > 0 else 0.0

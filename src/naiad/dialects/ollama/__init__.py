"""Ollama's API, as its own clients, litellm, LangChain and many front ends use it."""

from __future__ import annotations

from naiad.dialects.base import Access, Dialect, Handle, Operation
from naiad.dialects.ollama import embeddings, queries
from naiad.dialects.ollama.errors import error_body
from naiad.dialects.ollama.requests import parse_chat, parse_generate


def _query(method: str, path: str, handle: Handle, access: Access = Access.USER) -> Operation:
    return Operation(method, path, access, handle=handle)


_OPERATIONS = (
    Operation("POST", "/api/generate", Access.USER, parse=parse_generate),
    Operation("POST", "/api/chat", Access.USER, parse=parse_chat),
    Operation("POST", "/api/embed", Access.USER, handle=embeddings.embed, is_long=True),
    Operation("POST", "/api/embeddings", Access.USER, handle=embeddings.embed_one, is_long=True),
    _query("GET", "/api/tags", queries.list_models),
    _query("GET", "/api/ps", queries.list_running),
    _query("POST", "/api/show", queries.show_model),
    _query("GET", "/api/version", queries.show_version, Access.PUBLIC),
    *(
        Operation(method, path, Access.USER, handle=queries.refuse(reason), has_body=False)
        for (method, path), reason in queries.REFUSED.items()
    ),
)

DIALECT = Dialect(
    name="ollama",
    operations=_OPERATIONS,
    error_body=error_body,
    prefixes=tuple(operation.path.partition("{")[0] for operation in _OPERATIONS),
)

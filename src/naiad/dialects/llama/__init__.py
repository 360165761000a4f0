"""llama-server's own API beside OpenAI's, as its clients and scripts use it.

Its OpenAI routes are those of naiad.dialects.openai. The forms are those of the README of
llama.cpp's tools/server.
"""

from __future__ import annotations

from naiad.dialects.base import Access, Dialect, Handle, Operation, Parse
from naiad.dialects.llama import queries
from naiad.dialects.llama.errors import error_body
from naiad.dialects.llama.metrics import show_metrics
from naiad.dialects.llama.requests import parse_completion, parse_infill


def _generate(path: str, parse: Parse) -> Operation:
    return Operation("POST", path, Access.USER, parse=parse)


def _query(method: str, path: str, handle: Handle) -> Operation:
    return Operation(method, path, Access.USER, handle=handle)


_OPERATIONS = (
    _generate("/completion", parse_completion),
    _generate("/infill", parse_infill),
    _query("POST", "/tokenize", queries.tokenize),
    _query("POST", "/detokenize", queries.detokenize),
    _query("POST", "/apply-template", queries.apply_template),
    _query("GET", "/props", queries.show_props),
    _query("POST", "/props", queries.change_props),
    _query("GET", "/slots", queries.list_slots),
    _query("GET", "/lora-adapters", queries.list_adapters),
    _query("GET", "/metrics", show_metrics),
)

DIALECT = Dialect(
    name="llama",
    operations=_OPERATIONS,
    error_body=error_body,
    prefixes=tuple(dict.fromkeys(operation.path for operation in _OPERATIONS)),
)

"""A model's own chat template: messages in, prompt text out. Pure.

Templates come out of model files, so they are hostile until proven otherwise: they run in Jinja's
immutable sandbox, what they write is capped, and the caller runs them in a process of its own with
a time limit (a template may loop for ever) and a memory limit (`"x" * 10**10` is one expression).

The dialect is the one that model authors write for: trim_blocks and lstrip_blocks, `tojson` that
keeps Unicode, `raise_exception`, `strftime_now`, break and continue, and `generation` blocks, which
mark text for training and mean nothing here.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from naiad.errors import InvalidRequest, Unsupported

_BASE_OUTPUT_CHARS = 1024 * 1024
_QUOTED_CHARS = 200  # of a message that the template raised


class _RaisedByTemplate(Exception):
    """The template called raise_exception."""


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}`: the body, nothing else."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def render(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos: str = "",
    eos: str = "",
    kwargs: Mapping[str, Any] | None = None,
    continue_final: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """The prompt text.

    Args:
        source: the template, as the model file holds it.
        messages: `role`, `content` and what else each turn has, oldest first.
        bos, eos: text of the model's first and last token, as the template may write them.
        kwargs: further variables for the template; those that are set here are not replaced.
        continue_final: leave the last turn open: the prompt ends right after its content, to the
            last space, so that the model goes on with it.
        tools: functions that the model may call, as the template reads them; None: there are none.

    Raises:
        InvalidRequest: the template refused these messages, with its own words; or it failed on
            them; or it wrote more than 1 MiB and four times what the messages hold.
        Unsupported: the template itself is broken, or cannot leave the last turn open.
    """
    turns = [dict(message) for message in messages]
    mark = _unused_mark(turns)
    if continue_final:
        if not turns:
            raise InvalidRequest("There is no message to continue.", param="messages")
        turns[-1]["content"] += mark
    variables = {
        **(kwargs or {}),
        "messages": turns,
        "add_generation_prompt": not continue_final,
        "bos_token": bos,
        "eos_token": eos,
        "tools": tools,
        "documents": None,
    }
    text = _run(_compile(source), variables, _limit([*turns, *(tools or ())]))
    return _cut_at(text, mark) if continue_final else text


def _cut_at(text: str, mark: str) -> str:
    # A mark behind the content finds its end even when the content is empty, is repeated in the
    # prompt, or is trimmed by the template; looking for the content itself does not.
    before, found, _ = text.rpartition(mark)
    if not found:
        raise Unsupported(
            "The model's chat template does not show the last message as it is, so it cannot be "
            "continued.",
            param="messages",
        )
    return before


def _unused_mark(turns: Sequence[Mapping[str, Any]]) -> str:
    mark = "\ue000continue\ue001"
    while any(mark in str(turn.get("content", "")) for turn in turns):
        mark += "\ue001"
    return mark


def _limit(given: Sequence[Mapping[str, Any]]) -> int:
    return _BASE_OUTPUT_CHARS + 4 * sum(len(str(value)) for one in given for value in one.values())


def _run(template: jinja2.Template, variables: Mapping[str, Any], limit: int) -> str:
    parts: list[str] = []
    left = limit
    try:
        for part in template.generate(variables):
            left -= len(part)
            if left < 0:
                raise InvalidRequest(
                    f"The model's chat template wrote more than {limit} characters.",
                    param="messages",
                )
            parts.append(part)
    except (InvalidRequest, MemoryError):
        raise
    except _RaisedByTemplate as error:
        raise InvalidRequest(
            f"The model's chat template refused the messages: {_short(error)}", param="messages"
        ) from None
    except Exception as error:  # a template can raise anything that its expressions can
        raise InvalidRequest(
            f"The model's chat template failed on these messages ({type(error).__name__}).",
            param="messages",
        ) from error
    return "".join(parts)


@functools.lru_cache(maxsize=4)
def _compile(source: str) -> jinja2.Template:
    try:
        return _environment().from_string(source)
    except (jinja2.TemplateError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        where = f" (line {line})" if line else ""
        raise Unsupported(
            f"The model's chat template is not valid{where}: {_short(error)}. "
            "Use a completion with a finished prompt instead."
        ) from error


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _raise_exception(message: object) -> NoReturn:
    raise _RaisedByTemplate(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which no model was trained on.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _short(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text if len(text) <= _QUOTED_CHARS else text[: _QUOTED_CHARS - 3] + "..."

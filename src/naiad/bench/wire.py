"""What is sent to a server and how its stream is read: one table row for each dialect. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec


@dataclass(frozen=True, slots=True)
class Turn:
    """What has been said in a conversation. role: user or assistant."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Ask:
    """One question, free of any dialect. Answers are greedy, so that runs can be compared.

    ignore_eos: ask for exactly max_tokens tokens, where the server knows how.
    history: the turns before this question; () for a conversation's first, None for a question
        that belongs to no conversation.
    priority: sent as it is; lower is served first. None: not sent.
    """

    text: str
    max_tokens: int
    system: str = ""
    ignore_eos: bool = True
    history: tuple[Turn, ...] | None = None
    priority: int | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """What one event of a stream says."""

    text: str = ""
    finish: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Wire:
    """How one dialect is spoken.

    needs_finish: a stream without a finish reason counts as cut off.
    """

    path: str
    body: Callable[[Ask, str], dict[str, Any]]
    read: Callable[[Mapping[str, Any]], Piece]
    needs_finish: bool = True


def _openai_options(ask: Ask, model: str) -> dict[str, Any]:
    options: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": ask.max_tokens,
        "temperature": 0,
        "seed": 1,
    }
    bans = {"ignore_eos": True} if ask.ignore_eos else {}
    return options | bans | _priority(ask)


def _priority(ask: Ask) -> dict[str, Any]:
    return {} if ask.priority is None else {"priority": ask.priority}


def _chat_body(ask: Ask, model: str) -> dict[str, Any]:
    system = [Turn("system", ask.system)] if ask.system else []
    turns = [*system, *(ask.history or ()), Turn("user", ask.text)]
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    return _openai_options(ask, model) | {"messages": messages}


def _plain_prompt(ask: Ask) -> str:
    """The prompt of a text completion; a conversation is written as SillyTavern writes it."""
    if ask.history is None:
        return f"{ask.system}\n\n{ask.text}" if ask.system else ask.text
    said = [*ask.history, Turn("user", ask.text)]
    lines = [f"{turn.role.capitalize()}: {turn.text}" for turn in said]
    return "\n".join([*([ask.system] if ask.system else []), *lines, "Assistant:"])


def _completion_body(ask: Ask, model: str) -> dict[str, Any]:
    return _openai_options(ask, model) | {"prompt": _plain_prompt(ask)}


def _kobold_body(ask: Ask, _model: str) -> dict[str, Any]:
    body: dict[str, Any] = {
        "prompt": _plain_prompt(ask),
        "max_length": ask.max_tokens,
        "temperature": 0,
        "top_k": 1,
        "rep_pen": 1.0,
        "sampler_seed": 1,
    }
    bans = {"use_default_badwordsids": True, "ban_eos_token": True} if ask.ignore_eos else {}
    return body | bans | _priority(ask)


def _error_of(event: Mapping[str, Any]) -> str | None:
    error = event.get("error")
    if error is None:
        return None
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


def _detail_of(event: Mapping[str, Any]) -> str:
    """KoboldCpp's envelope, else the whole event."""
    detail = event.get("detail", event)
    return str(detail.get("msg", detail)) if isinstance(detail, dict) else str(detail)


def _read_openai(event: Mapping[str, Any]) -> Piece:
    choice = (event.get("choices") or [{}])[0]
    delta = choice.get("delta") or {}
    usage = event.get("usage") or {}
    details = usage.get("prompt_tokens_details") or {}
    return Piece(
        text=delta.get("content") or delta.get("reasoning_content") or choice.get("text") or "",
        finish=choice.get("finish_reason") or None,
        prompt_tokens=usage.get("prompt_tokens"),
        completion_tokens=usage.get("completion_tokens"),
        cached_tokens=details.get("cached_tokens"),
        error=_error_of(event),
    )


def _read_kobold(event: Mapping[str, Any]) -> Piece:
    finish = event.get("finish_reason")
    failure = _detail_of(event) if finish == "error" else None
    return Piece(
        text=event.get("token") or "",
        finish=None if finish in {None, "", "null"} else str(finish),
        error=_error_of(event) or failure,
    )


#: KoboldCpp sends a finish reason in newer versions only.
DIALECTS: dict[str, Wire] = {
    "openai": Wire("/v1/chat/completions", _chat_body, _read_openai),
    "completions": Wire("/v1/completions", _completion_body, _read_openai),
    "kobold": Wire("/api/extra/generate/stream", _kobold_body, _read_kobold, needs_finish=False),
}


def read_line(wire: Wire, line: bytes) -> Piece | None:
    """The piece that one line of a server-sent event stream carries; None for any other line.

    A data line that is not JSON, and not the end marker, is an error of the server's.
    """
    if not line.startswith(b"data:"):
        return None
    data = line[5:].strip()
    if data == b"[DONE]":
        return None
    try:
        event = msgspec.json.decode(data)
        return wire.read(event)
    except (msgspec.DecodeError, AttributeError, TypeError, IndexError, KeyError):
        return Piece(error=f"not an event: {data[:80]!r}")


def error_message(body: bytes) -> str:
    """What a refusal's body says, in one line of at most 200 characters."""
    try:
        event = msgspec.json.decode(body)
        text = _error_of(event) or _detail_of(event)
    except (msgspec.DecodeError, AttributeError):
        text = body.decode("utf-8", "replace")
    return " ".join(text.split())[:200]

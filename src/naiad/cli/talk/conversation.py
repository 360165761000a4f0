"""A conversation as values: turns, settings of the requests, and how both become a request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from naiad.errors import ConfigError

Message = dict[str, str]


@dataclass(slots=True)
class Conversation:
    """Turns in order, the last of them the one to be answered or its answer.

    system: said before all turns; "" for nothing. options: further fields of each request.
    """

    system: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)

    def body(self, model: str) -> dict[str, Any]:
        """The request for the next answer, in the words of the OpenAI API."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return {**self.options, "model": model or "default", "messages": [*system, *self.messages]}

    def ask(self, text: str) -> None:
        """Add the user's turn."""
        self.messages.append({"role": "user", "content": text})

    def answered(self, text: str) -> None:
        """Add the model's turn, whole or as far as it came."""
        if text:
            self.messages.append({"role": "assistant", "content": text})

    def unanswer(self) -> bool:
        """Take the last answer back, so that another can be given; False when there is none."""
        if len(self.messages) > 1 and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        return bool(self.messages)

    def undo(self) -> str | None:
        """Take the last question and what followed back; the question; None when none is left."""
        while self.messages:
            message = self.messages.pop()
            if message["role"] == "user":
                return message["content"]
        return None

    def save(self, path: Path) -> None:
        """Write it as JSON. Raises OSError."""
        told = {"system": self.system, "options": self.options, "messages": self.messages}
        path.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load(path: Path) -> Conversation:
    """Read what `save` wrote. Raises ConfigError when the file is none such."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        messages = [{"role": m["role"], "content": m["content"]} for m in told["messages"]]
        if not all(isinstance(v, str) for message in messages for v in message.values()):
            raise ValueError("turns must be texts")
        return Conversation(str(told.get("system", "")), dict(told.get("options", {})), messages)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} is no conversation that can be read: {error}") from None


def option(text: str) -> tuple[str, Any]:
    """NAME=VALUE as a field of requests; the value is JSON where it can be read so, else a text.

    Raises ConfigError when there is no name or no value.
    """
    name, equals, value = text.partition("=")
    if not (name.strip() and equals and value.strip()):
        raise ConfigError(f"{text!r} must be NAME=VALUE, as in top_k=40.", source="flag")
    return name.strip().replace("-", "_"), read_value(value)


def read_value(text: str) -> Any:
    """JSON where the text can be read so, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text.strip()


def sampling(flags: Mapping[str, Any], more: tuple[str, ...]) -> dict[str, Any]:
    """Fields of requests from flags (None: not given) and from NAME=VALUE texts, which win."""
    given = {name: value for name, value in flags.items() if value is not None}
    return {**given, **dict(map(option, more))}

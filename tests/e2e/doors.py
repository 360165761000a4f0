"""Each way into the server that generates text, with one body's words put into its own."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dialect_folds import Said, read
from e2e.client import DEADLINE_S

Body = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """What came back: the status, the bytes, and how they are read."""

    status: int
    body: bytes
    kind: str
    is_streamed: bool

    @property
    def said(self) -> Said:
        assert self.status == 200, self.body
        return read(self.kind, self.body, is_streamed=self.is_streamed)[0]

    @property
    def message(self) -> str:
        """An error's text, in whatever shape the dialect gives it."""
        told = json.loads(self.body)
        inner = told.get("error", told.get("detail", told))
        return str(inner if isinstance(inner, str) else inner.get("message", inner.get("msg")))


@dataclass(frozen=True)
class Door:
    """kind: of dialect_folds. make: (prompt, tokens, other fields) -> body."""

    kind: str
    path: str
    make: Callable[[str, int, Mapping[str, Any]], Body]
    stream_path: str = ""
    is_chat: bool = False

    def post(self, url: str, prompt: str, n: int, *, is_streamed: bool, **fields: Any) -> Reply:
        request = self._request(url, prompt, n, is_streamed, fields)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
                return Reply(answer.status, answer.read(), self.kind, is_streamed)
        except urllib.error.HTTPError as error:
            with error:
                return Reply(error.code, error.read(), self.kind, is_streamed)

    def lines(self, url: str, prompt: str, n: int, **fields: Any) -> Iterator[bytes]:
        """The lines of a stream as they come; who leaves off reading hangs up."""
        request = self._request(url, prompt, n, True, fields)
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
            yield from answer

    def _request(
        self, url: str, prompt: str, n: int, is_streamed: bool, fields: Mapping[str, Any]
    ) -> urllib.request.Request:
        body = {**self.make(prompt, n, fields), "stream": is_streamed}
        path = (self.stream_path or self.path) if is_streamed else self.path
        headers = {"Content-Type": "application/json"}
        return urllib.request.Request(url + path, json.dumps(body).encode(), headers)


def _turns(prompt: str) -> list[Body]:
    return [{"role": "user", "content": prompt}]


def _options(n: int, fields: Mapping[str, Any], *beside: str) -> Body:
    """Ollama's: what samples stands in an object of its own, a few fields beside it."""
    inner = {name: value for name, value in fields.items() if name not in beside}
    outer = {name: value for name, value in fields.items() if name in beside}
    return {**outer, "options": {"num_predict": n, **inner}}


_BESIDE = (
    *("format", "logprobs", "top_logprobs", "post_sampling_probs"),
    *("tools", "think", "raw", "keep_alive"),
)

DOORS: dict[str, Door] = {
    door.kind: door
    for door in (
        Door(
            "openai-chat",
            "/v1/chat/completions",
            lambda prompt, n, more: {"messages": _turns(prompt), "max_tokens": n, **more},
            is_chat=True,
        ),
        Door(
            "openai-completions",
            "/v1/completions",
            lambda prompt, n, more: {"prompt": prompt, "max_tokens": n, **more},
        ),
        Door(
            "openai-responses",
            "/v1/responses",
            lambda prompt, n, more: {
                "input": prompt,
                "max_output_tokens": n,
                "store": False,
                **more,
            },
            is_chat=True,
        ),
        Door(
            "anthropic",
            "/v1/messages",
            lambda prompt, n, more: {"messages": _turns(prompt), "max_tokens": n, **more},
            is_chat=True,
        ),
        Door(
            "ollama-chat",
            "/api/chat",
            lambda prompt, n, more: {"messages": _turns(prompt), **_options(n, more, *_BESIDE)},
            is_chat=True,
        ),
        Door(
            "ollama-generate",
            "/api/generate",
            lambda prompt, n, more: {"prompt": prompt, **_options(n, more, *_BESIDE)},
            is_chat=True,
        ),
        Door(
            "kobold",
            "/api/v1/generate",
            lambda prompt, n, more: {"prompt": prompt, "max_length": n, **more},
            "/api/extra/generate/stream",
        ),
        Door(
            "llama",
            "/completion",
            lambda prompt, n, more: {"prompt": prompt, "n_predict": n, **more},
        ),
    )
}

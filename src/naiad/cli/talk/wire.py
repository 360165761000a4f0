"""The public API as `naiad run` and `chat` use it: plain http.client, one request at a time.

Blocking on purpose: Ctrl-C then interrupts the read itself, the connection closes, and the server
drops the work within a step.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

from naiad.errors import ConfigError, EngineUnavailable, NaiadError, NotFound, Unauthorized

CONNECT_TIMEOUT_S = 10.0
#: Servers send a heartbeat every ten seconds; one that is silent for so long is gone.
SILENCE_S = 600.0


class ServerLost(EngineUnavailable):
    """The server cannot be reached, or went away in the middle of an answer."""


@dataclass(frozen=True, slots=True)
class Text:
    """New text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """New text of the model's reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class Wait:
    """What happens before the first text, in words for the person who waits."""

    told: str


@dataclass(frozen=True, slots=True)
class Done:
    """The end. finish: stop, length, ... usage: OpenAI's token counts. Seconds as seen here."""

    finish: str
    usage: dict[str, Any] = field(default_factory=dict)
    first_s: float = 0.0
    text_s: float = 0.0

    @property
    def n_tokens(self) -> int:
        return int(self.usage.get("completion_tokens") or 0)

    @property
    def tokens_per_s(self) -> float:
        """Speed after the first token; 0 when there were fewer than two."""
        return (self.n_tokens - 1) / self.text_s if self.n_tokens > 1 and self.text_s > 0 else 0.0


Event = Text | Thought | Wait | Done


@dataclass(frozen=True, slots=True)
class Api:
    """A server's public API. url: without a path at its end. key: None for none."""

    url: str
    key: str | None = None

    def get(self, path: str, timeout_s: float = CONNECT_TIMEOUT_S) -> Any:
        """The JSON of a page, whatever its status. Raises ServerLost when there is no answer."""
        connection = self._connect(timeout_s)
        try:
            connection.request("GET", path, headers=self._headers())
            return json.loads(connection.getresponse().read())
        except ValueError:
            raise ServerLost(f"What answers at {self.url} is no server that naiad knows.") from None
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(error) from error
        finally:
            connection.close()

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[Event]:
        """Post a request of the OpenAI API and give its answer as it comes; ends with a Done.

        Raises:
            NaiadError: the server refused it; the message is the server's own.
            ServerLost: it cannot be reached, or went away before the end.
        """
        asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
        data = json.dumps({**asked, "return_progress": True}).encode()
        connection = self._connect(CONNECT_TIMEOUT_S)
        try:
            started = time.monotonic()
            connection.request("POST", path, data, self._headers())
            if connection.sock is not None:
                connection.sock.settimeout(SILENCE_S)
            response = connection.getresponse()
            if response.status != 200:
                raise refusal(response.status, response.read())
            yield from events(response, started)
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(error) from error
        finally:
            connection.close()

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        port = _port(parts)
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ConfigError(
                f"{self.url!r} is no address of a server; it must begin with http://, as http://127.0.0.1:5001"
            )
        if parts.scheme == "https":
            return http.client.HTTPSConnection(parts.hostname, port, timeout=timeout_s)
        return http.client.HTTPConnection(parts.hostname, port, timeout=timeout_s)

    def _headers(self) -> dict[str, str]:
        key = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return {"Content-Type": "application/json", **key}

    def _lost(self, error: Exception) -> ServerLost:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return ServerLost(
            f"The server at {self.url} does not answer: {why}. (Those that run: naiad ps)"
        )


def _port(parts: SplitResult) -> int | None:
    """None for the scheme's own; 0 when it is no port at all."""
    try:
        return parts.port
    except ValueError:
        return 0


def refusal(status: int, body: bytes) -> NaiadError:
    """The server's own words as an error."""
    try:
        told = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        told = f"The server answered {status}."
    if status == 401:
        told = f"{told} Here: --api-key KEY, or NAIAD_API_KEY; the server printed it at its start."
    kinds: dict[int, type[NaiadError]] = {401: Unauthorized, 404: NotFound, 503: EngineUnavailable}
    return kinds.get(status, NaiadError)(str(told), status=status)


def events(response: http.client.HTTPResponse, started: float) -> Iterator[Event]:
    """The events of an open stream. started: time.monotonic() of the request."""
    finish, first = "", 0.0
    usage: dict[str, Any] = {}
    for chunk in _chunks(response):
        if told := waiting(chunk):
            yield Wait(told)
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices") or []:
            finish = choice.get("finish_reason") or finish
            delta = choice.get("delta") or {"content": choice.get("text")}
            thought, text = delta.get("reasoning_content"), delta.get("content")
            if thought or text:
                first = first or time.monotonic()
            if thought:
                yield Thought(thought)
            if text:
                yield Text(text)
    ended = time.monotonic()
    yield Done(finish, usage, (first or ended) - started, ended - (first or ended))


def waiting(chunk: dict[str, Any]) -> str:
    """What a chunk says of the time before the first text, in words; "" when nothing."""
    if queue := chunk.get("queue"):
        eta = f", about {queue['eta_s']:.0f} s" if queue.get("eta_s") else ""
        return f"waiting, number {queue['position']} in the queue{eta}"
    if progress := chunk.get("prompt_progress"):
        total = max(progress["total"], 1)
        return f"reading the prompt, {100 * progress['processed'] // total} % of {total:,} tokens"
    return ""


def _chunks(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON of each event. Raises ServerLost when the stream breaks off before its end."""
    while line := response.readline():
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        chunk = json.loads(data)
        if error := chunk.get("error"):
            raise NaiadError(str(error.get("message", error)))
        yield chunk
    raise ServerLost("The server went away in the middle of the answer.")

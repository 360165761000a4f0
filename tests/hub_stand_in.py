"""A Hugging Face hub in miniature: its API, its redirects, and connections that break on demand."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "someone/Tiny-GGUF"


@dataclass
class Hub:
    """files: of the one repository, by name. cut_after: bytes that each answer brings at most.

    lies: files whose bytes are not those of their digest. gated, down: how it refuses.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cut_after: int | None = None
    lies: set[str] = field(default_factory=set)
    gated: bool = False
    down: bool = False
    ignores_ranges: bool = False
    version: str = '"v1"'
    url: str = ""
    ranges: list[str] = field(default_factory=list)
    authorizations: list[tuple[str, str]] = field(default_factory=list)

    def digest(self, name: str) -> str:
        return hashlib.sha256(self.files[name]).hexdigest()

    def content(self, name: str) -> bytes:
        data = self.files[name]
        return bytes(byte ^ 1 for byte in data) if name in self.lies else data


@contextmanager
def hub(**how: Any) -> Iterator[Hub]:
    """A hub that listens on this machine until the block ends."""
    state = Hub(**how)
    handler = type("Handler", (_Handler,), {"hub": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Tests need no log."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        given = self.headers.get("Authorization", "")
        self.hub.authorizations.append((path, given))
        if self.hub.down:
            self._send(500, b"")
        elif path.startswith("/api/models/"):
            self._repository(path.removeprefix("/api/models/"))
        elif "/resolve/" in path:
            self._resolve(path)
        elif path.startswith("/store/"):
            self._file(path.rpartition("/")[2], with_body=with_body)
        else:
            self._send(404, b"")

    def _refuses(self, repo: str) -> bool:
        if self.hub.gated:
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        elif not repo.startswith(REPO):
            code = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            self._send(401, b"{}", code)
        else:
            return False
        return True

    def _repository(self, repo: str) -> None:
        if self._refuses(repo):
            return
        siblings = [
            {
                "rfilename": name,
                "size": len(data),
                "lfs": {"size": len(data), "sha256": self.hub.digest(name), "pointerSize": 1},
            }
            for name, data in self.hub.files.items()
        ]
        told = {"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings, "tags": []}
        self._send(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

    def _resolve(self, path: str) -> None:
        if self._refuses(path.strip("/")):
            return
        name = path.rpartition("/")[2]
        if name not in self.hub.files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        headers = {
            "X-Repo-Commit": COMMIT,
            "X-Linked-Etag": f'"{self.hub.digest(name)}"',
            "X-Linked-Size": str(len(self.hub.files[name])),
            # As with the real one, the bytes come from another host.
            "Location": f"{self.hub.url.replace('127.0.0.1', 'localhost')}/store/{name}",
        }
        self._send(302, b"", headers)

    def _file(self, name: str, *, with_body: bool) -> None:
        """A file or a range of it; the connection breaks after `cut_after` bytes."""
        data = self.hub.content(name)
        asked = self.headers.get("Range", "")
        self.hub.ranges.append(asked)
        start = 0
        is_current = self.headers.get("If-Range") in (None, self.hub.version)
        if asked and is_current and not self.hub.ignores_ranges:
            start = int(asked.removeprefix("bytes=").partition("-")[0])
        if start >= len(data):
            self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        body = data[start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", self.hub.version)
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if with_body:
            self.wfile.write(body[: self.hub.cut_after])
        if self.hub.cut_after is not None:
            self.close_connection = True

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

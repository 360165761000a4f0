"""The web page: its files, as they are served, and the rendering of Markdown for it."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

_FOLDER = Path(__file__).parent / "static"
_MEDIA = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class StaticFile:
    """One file of the page, held in memory. etag: of its content, with its quotes."""

    media: str
    body: bytes
    etag: bytes


def static_files() -> dict[str, StaticFile]:
    """The files of the page by name, e.g. "main.js"; no other file can ever be asked for."""
    return {path.name: _read(path) for path in sorted(_FOLDER.iterdir()) if path.suffix in _MEDIA}


def _read(path: Path) -> StaticFile:
    body = path.read_bytes()
    etag = b'"' + blake2b(body, digest_size=12).hexdigest().encode() + b'"'
    return StaticFile(_MEDIA[path.suffix], body, etag)

"""Paths as clients put them together, and as the routes are written.

A base URL that ends in a slash, before a path that begins with one, makes `//v1/models`; others
leave a slash at the end. Both mean the route, and get its answer: a redirect would lose the body of
a POST. This happens before anything looks at the path, so no check can see another one than the
routes do.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

_SLASHES = re.compile("/{2,}")
_MOST_LEFT_OUT = 4  # segments before what may have been meant


class PlainPaths:
    """Wraps the whole app, which then sees no doubled slash and none at the end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path")
        if path is not None and (plain := plain_path(path)) != path:
            scope = {**scope, "path": plain}
        await self._app(scope, receive, send)


def plain_path(path: str) -> str:
    """The path with single slashes, and none at its end unless it is nothing else."""
    if len(path) > 1 and ("//" in path or path[-1] == "/"):
        return _SLASHES.sub("/", path).rstrip("/") or "/"
    return path


def meant_by(path: str, routes: Collection[str]) -> str | None:
    """The route that ends such a path, if its beginning is one too many: /v1/v1/models."""
    rest = path
    for _ in range(_MOST_LEFT_OUT):
        _, slash, rest = rest[1:].partition("/")
        rest = slash + rest
        if rest in routes:
            return rest
    return None

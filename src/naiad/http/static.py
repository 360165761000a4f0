"""The files of the web page, and the headers that keep everything else out of it."""

from __future__ import annotations

from naiad.http.exchange import Exchange, HeaderList, header
from naiad.ui import StaticFile, static_files

#: Read once: the page is small, and what is served never depends on a path somebody sent.
STATIC = static_files()

#: Nothing but this server's own files and answers; no inline script or style, no frame, no form.
#: Only the page's own policy may turn text into elements, where browsers know trusted types.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types naiad",
    )
)
_HEADERS: HeaderList = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-cache"),  # asked for each time, sent only when it changed
]


async def show_file(file: StaticFile, exchange: Exchange, headers: HeaderList = []) -> None:  # noqa: B006
    """Send a file, or 304 when the browser has it."""
    sent = [*_HEADERS, (b"etag", file.etag), *headers]
    if file.etag in (header(exchange.scope, b"if-none-match") or b""):
        await exchange.answer(304, file.media, b"", sent)
        return
    await exchange.answer(200, file.media, file.body, sent)

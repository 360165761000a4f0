"""Request bodies: read within limits, decoded to one JSON object."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import Any

import msgspec
from starlette.types import Receive, Scope

from naiad.errors import InvalidJson, InvalidRequest, PayloadTooLarge, RequestTimeout
from naiad.http.exchange import ClientGone, header
from naiad.http.structure import StructureCount

RECEIPT_S = 30.0  # a body must be here this long after its headers
LARGE_BYTES = 256 * 1024  # larger bodies are decoded off the event loop
#: Objects, arrays and strings that a large body may hold; see naiad.http.structure. So many are
#: decoded in some ten milliseconds, in which no other thread runs; long chats have a tenth of them.
MOST_PARTS = 100_000

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")

#: A field with what some encoders write for no number, or with more digits than are ever read.
_MISFIT = re.compile(
    rb'"([^"\\\x00-\x1f]{1,64})"\s*:\s*'
    rb"(?:(-?NaN|-?Infinity)|(-?\d{4000,}|-?\d[\d.]*[eE]\+?\d{3,}))"
)


async def read_object(
    scope: Scope, receive: Receive, limit: int, receipt_s: float = RECEIPT_S
) -> dict[str, Any]:
    """The body as a JSON object; {} when there is no body.

    limit: bytes, 1 or more.

    Raises PayloadTooLarge, RequestTimeout, InvalidJson, InvalidRequest for a compressed body, and
    ClientGone when the client hung up before the end of its body.
    """
    _refuse_compressed(scope)
    data = await read_body(scope, receive, limit, receipt_s)
    if len(data) > LARGE_BYTES:
        return await asyncio.to_thread(decode_object, data)
    return decode_object(data)


async def read_body(scope: Scope, receive: Receive, limit: int, receipt_s: float) -> bytes:
    """All bytes of a body of at most `limit` bytes."""
    if _declared_length(scope) > limit:
        raise _too_large(limit)
    data, count, n_counted = bytearray(), StructureCount(), 0
    try:
        async with asyncio.timeout(receipt_s):
            while await _read_piece(receive, data):
                if len(data) > limit:
                    raise _too_large(limit)
                if len(data) > LARGE_BYTES:
                    n_counted = _check_parts(count, data, n_counted)
    except TimeoutError:
        raise RequestTimeout(
            f"The request body did not arrive within {receipt_s:g} seconds."
        ) from None
    if len(data) > limit:
        raise _too_large(limit)
    if len(data) > LARGE_BYTES:
        _check_parts(count, data, n_counted)
    return bytes(data)


def _check_parts(count: StructureCount, data: bytearray, n_counted: int) -> int:
    """Count what is new of the data; how much of it is counted then."""
    count.feed(bytes(memoryview(data)[n_counted:]))
    if count.n_parts > MOST_PARTS:
        raise PayloadTooLarge(
            f"The body holds more than {MOST_PARTS} objects, arrays and strings "
            "(sixteen numbers count as one)."
        )
    return len(data)


def decode_object(data: bytes) -> dict[str, Any]:
    """Decode a JSON object; {} for no bytes. Raises InvalidJson."""
    data = data.removeprefix(b"\xef\xbb\xbf")  # which programs on Windows put first
    if not data:
        return {}
    if data[:2] in _UTF_16:
        raise InvalidJson("The body is in UTF-16: send it in UTF-8.")
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _misfit(data, str(error)) or InvalidJson(
            f"The body is not valid JSON: {_reason(data, error)}."
        ) from None
    except RecursionError:
        raise InvalidJson("The body is nested too deeply.") from None
    if not isinstance(value, dict):
        raise InvalidJson(f"The body must be a JSON object, not {_KINDS[type(value)]}.")
    return value


def _misfit(data: bytes, refusal: str) -> InvalidJson | None:
    """The refusal of a field that holds what is no number, or none that can be read."""
    is_range = "out of range" in refusal
    found = _first_misfit(data, is_range=is_range) if len(data) <= LARGE_BYTES else None
    if found is None:
        return None  # the decoder stumbled over something else
    name = found[1].decode("utf-8", "replace")
    if is_range:
        return InvalidJson(f"'{name}' is a number too large to be read.", param=name)
    return InvalidJson(
        f"'{name}' is {found[2].decode()}, which JSON does not know: send a number, or leave the "
        "field out.",
        param=name,
    )


def _first_misfit(data: bytes, *, is_range: bool) -> re.Match[bytes] | None:
    """The first number that is infinite when read; or the first that is none, if that is all."""
    if is_range:
        return next((m for m in _MISFIT.finditer(data) if m[3] and _is_infinite(m[3])), None)
    found = next((m for m in _MISFIT.finditer(data) if m[2]), None)
    if found is not None:
        try:
            json.loads(data)  # which knows NaN
        except (ValueError, RecursionError):
            return None
    return found


def _is_infinite(number: bytes) -> bool:
    try:
        return math.isinf(float(number))
    except ValueError:
        return False  # 1.2.3e456


def _reason(data: bytes, refusal: Exception) -> str:
    """Why it is no JSON; clients that cut texts at 16-bit units send half an emoji, and are told.

    The decoder calls that a truncated body.
    """
    if len(data) <= LARGE_BYTES:
        try:
            json.dumps(json.loads(data), ensure_ascii=False).encode()
        except UnicodeEncodeError as lone:
            half = ord(lone.object[lone.start])
            return f"\\u{half:04x} is half a character, and its other half is missing"
        except (ValueError, RecursionError):
            return str(refusal).rstrip(".")
    return str(refusal).rstrip(".")


async def _read_piece(receive: Receive, data: bytearray) -> bool:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    data += message.get("body", b"")
    return bool(message.get("more_body", False))


def _declared_length(scope: Scope) -> int:
    value = header(scope, b"content-length")
    if value is None:
        return 0
    if not value.isdigit():
        raise InvalidRequest("The Content-Length header must be a whole number.")
    return int(value)


def _refuse_compressed(scope: Scope) -> None:
    """What is small on the wire may be any size unpacked; no client of these APIs compresses."""
    coding = (header(scope, b"content-encoding") or b"identity").strip().lower()
    if coding != b"identity":
        shown = ascii(coding[:20].decode("latin-1"))
        raise InvalidRequest(
            f"The body is compressed (Content-Encoding: {shown}): send it as it is."
        )


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body is larger than {limit} bytes.", limit_bytes=limit)


_KINDS = {
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}

"""Who is asking: the access level of the route, the key, and the identity made of both."""

from __future__ import annotations

import hashlib
import hmac

from starlette.types import Scope

from naiad.dialects.base import Access
from naiad.errors import ConfigError, Unauthorized
from naiad.http.exchange import headers_named
from naiad.types import Caller

_KEY_HEADERS = (b"x-api-key", b"api-key")
_ID_LENGTH = 16  # hex digits of the key's hash: tells keys apart, tells nothing about them


class Door:
    """Checks keys. Levels come from the route table, never from the text of a path.

    api_key: the key that user and admin routes need; None when the server has none.

    Raises ConfigError for an empty key, which would be no key at all.
    """

    def __init__(self, api_key: str | None) -> None:
        if api_key is not None and not api_key.strip():
            raise ConfigError("The API key must not be empty.", param="api_key")
        self._digest = None if api_key is None else _digest(api_key.strip().encode())

    def admit(self, scope: Scope, access: Access) -> Caller:
        """The caller of a request. Raises Unauthorized when the route's level asks for a key."""
        peer = (scope.get("client") or ("local", 0))[0]
        if self._digest is None:
            return Caller(identity=f"anyone@{peer}")
        if self._has_key(scope):
            key_id = self._digest.hex()[:_ID_LENGTH]
            return Caller(identity=f"{key_id}@{peer}", namespace=key_id)
        if access is Access.PUBLIC:
            return Caller(identity=f"anyone@{peer}")
        raise Unauthorized(
            "This server needs an API key: send it as 'Authorization: Bearer KEY' or 'x-api-key'."
        )

    def _has_key(self, scope: Scope) -> bool:
        expected = self._digest or b""
        return any(hmac.compare_digest(_digest(key), expected) for key in _presented(scope))


def _presented(scope: Scope) -> list[bytes]:
    keys = [key for name in _KEY_HEADERS for key in headers_named(scope, name)]
    for value in headers_named(scope, b"authorization"):
        scheme, _, key = value.partition(b" ")
        if scheme.lower() == b"bearer":
            keys.append(key)
    return [key.strip() for key in keys]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()

"""Who is asking: the access level of the route, the key, and the identity made of both."""

from __future__ import annotations

import hashlib
import hmac

from starlette.types import Scope

from naiad.dialects.base import Access
from naiad.errors import AdminRequired, ConfigError, Unauthorized
from naiad.http.exchange import headers_named
from naiad.http.origin import is_loopback
from naiad.types import Caller

_KEY_HEADERS = (b"x-api-key", b"api-key")
_ID_LENGTH = 16  # hex digits of the key's hash: tells keys apart, tells nothing about them


class Door:
    """Checks keys. Levels come from the route table, never from the text of a path.

    An administrator is who shows the admin key; on a server without any key, whoever calls from
    the server's own machine, since nobody but its owner is there. Of a server with an API key but
    no admin key nobody is: those who share the key are equals.

    api_key: the key that user routes need; None when they need none.
    admin_key: opens everything; None when the server has none.

    Raises ConfigError for an empty key, which would be no key at all.
    """

    def __init__(self, api_key: str | None, admin_key: str | None = None) -> None:
        self._user = _checked_digest(api_key, "api_key")
        self._admin = _checked_digest(admin_key, "admin_key")

    def admit(self, scope: Scope, access: Access) -> Caller:
        """The caller of a request.

        Raises Unauthorized when the route's level asks for a key and none that is known is shown,
        AdminRequired when the one shown is not the administrator's.
        """
        caller = self._identify(scope)
        if access is Access.PUBLIC or caller.is_admin:
            return caller
        is_keyed = bool(caller.namespace)
        if not is_keyed and self._needs_key(access):
            raise Unauthorized(
                "This server needs an API key: send it as 'Authorization: Bearer KEY' or "
                "'x-api-key'."
            )
        if access is Access.ADMIN:
            raise AdminRequired("This is for the administrator only: send the admin key.")
        return caller

    def _identify(self, scope: Scope) -> Caller:
        peer = (scope.get("client") or ("local", 0))[0]
        shown = [_digest(key) for key in _presented(scope)]
        for known in (self._admin, self._user):
            if known is not None and any(hmac.compare_digest(one, known) for one in shown):
                key_id = known.hex()[:_ID_LENGTH]
                return Caller(f"{key_id}@{peer}", key_id, is_admin=known is self._admin)
        is_open = self._user is None and self._admin is None
        return Caller(f"anyone@{peer}", is_admin=is_open and _is_this_machine(peer))

    def _needs_key(self, access: Access) -> bool:
        if access is Access.ADMIN:
            return self._user is not None or self._admin is not None
        return self._user is not None


def _is_this_machine(peer: str) -> bool:
    return peer == "local" or is_loopback(peer.removeprefix("::ffff:"))


def _checked_digest(key: str | None, name: str) -> bytes | None:
    if key is not None and not key.strip():
        raise ConfigError(f"The {name.replace('_', ' ')} must not be empty.", param=name)
    return None if key is None else _digest(key.strip().encode())


def _presented(scope: Scope) -> list[bytes]:
    keys = [key for name in _KEY_HEADERS for key in headers_named(scope, name)]
    for value in headers_named(scope, b"authorization"):
        scheme, _, key = value.partition(b" ")
        if scheme.lower() == b"bearer":
            keys.append(key)
    return [key.strip() for key in keys]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()

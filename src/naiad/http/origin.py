"""The guard at the door: a web page that somebody visits cannot use this server.

A browser sends its user's requests to any address a page names, so loopback alone protects
nothing. Three checks, before anything else looks at the request: the Host header must be a name of
ours (else a rebound DNS name is at work), the Origin must be our own or allowed by the operator,
and what changes state must have a content type that makes browsers ask first.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from naiad.dialects.base import Dialect
from naiad.errors import ConfigError, Forbidden
from naiad.http.exchange import Exchange, HeaderList, header, headers_named

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::(?P<port>[0-9]{1,5}))?")
_ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[^/?#@\s*]+)")
_TOKENS = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~, -]{0,1000}")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_LOOPBACK_4 = ipaddress.ip_network("127.0.0.0/8")
_LOOPBACK_6 = ipaddress.ip_address("::1")


@dataclass(frozen=True, slots=True)
class HostRule:
    """Which names this server answers to.

    names: exact names besides the loopback ones, lower case. any_address: IP literals too.
    """

    names: frozenset[str]
    any_address: bool

    def allows(self, name: str) -> bool:
        """name: a host as `split_host` returns it."""
        if is_loopback(name) or name in self.names:
            return True
        return self.any_address and _address(name) is not None


def host_rule(bound_host: str, allow_host: Iterable[str]) -> HostRule:
    """The rule for a server bound to that host.

    Raises ConfigError for an entry of allow_host that is no host name.
    """
    names = {_checked_host(entry) for entry in allow_host}
    if is_loopback(bound_host.lower().strip("[]")):
        return HostRule(frozenset(names), any_address=False)
    own = {socket.gethostname().lower(), socket.getfqdn().lower(), bound_host.lower()}
    return HostRule(frozenset(names | own), any_address=True)


def split_host(value: str) -> tuple[str, str] | None:
    """(name without brackets, port or "") of a Host header; None when it is no sound one."""
    found = _HOST.fullmatch(value.lower())
    if found is None:
        return None
    return found["name"].strip("[]"), found["port"] or ""


def is_loopback(name: str) -> bool:
    """True for localhost, *.localhost, 127.0.0.0/8 and ::1; names are compared as a whole."""
    if name == "localhost" or re.fullmatch(r"([a-z0-9_-]+\.)+localhost", name):
        return True
    address = _address(name)
    if isinstance(address, ipaddress.IPv4Address):
        return address in _LOOPBACK_4
    return address == _LOOPBACK_6


def check_origins(origins: Iterable[str]) -> frozenset[str]:
    """The origins as browsers send them. Raises ConfigError for one that is not scheme://host."""
    checked = set()
    for origin in origins:
        if _ORIGIN.fullmatch(origin.lower().rstrip("/")) is None:
            raise ConfigError(
                f"{origin!r} is no origin: write scheme://host or scheme://host:port, one exact "
                "origin at a time.",
                param="allow_origin",
            )
        checked.add(origin.lower().rstrip("/"))
    return frozenset(checked)


class OriginGuard:
    """Wraps the whole app; refuses with 403 in the shape of the dialect that was asked.

    for_path: the dialect that answers errors under a path.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: HostRule,
        origins: frozenset[str],
        for_path: Callable[[str], Dialect],
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = origins
        self._for_path = for_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origin = _text(header(scope, b"origin"))
        is_named = origin is not None and origin.lower() in self._origins
        refusal = self._refusal(scope, origin, is_named)
        if refusal is not None:
            exchange = Exchange(scope, receive, send, self._for_path(scope["path"]))
            await exchange.answer_error(Forbidden(refusal))
        elif origin is not None and is_named:
            await self._with_cors(scope, receive, send, origin)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope, origin: str | None, is_named: bool) -> str | None:
        """Why the request is refused, in the order in which it is looked at."""
        hosts = headers_named(scope, b"host")
        own = split_host(_text(hosts[0]) or "") if len(hosts) == 1 else None
        if own is None or not self._hosts.allows(own[0]):
            return "The Host header names no address of this server; see --allow-host."
        if not is_named and (_is_foreign(origin, own) or _is_cross_site(scope)):
            return "Pages of other sites may not use this server; see --allow-origin."
        is_bare = is_named and header(scope, b"content-type") is None  # an abort or a cancel
        if not is_bare and not _has_safe_type(scope):
            return "Requests from a browser must have the Content-Type application/json."
        return None

    async def _with_cors(self, scope: Scope, receive: Receive, send: Send, origin: str) -> None:
        extra = _cors_headers(origin)
        if _is_preflight(scope):
            head = [*extra, *_preflight_headers(scope)]
            await send({"type": "http.response.start", "status": 204, "headers": head})
            await send({"type": "http.response.body", "body": b""})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _is_foreign(origin: str | None, own: tuple[str, str]) -> bool:
    if origin is None:
        return False
    found = _ORIGIN.fullmatch(origin.lower())
    theirs = split_host(found["host"]) if found else None
    if found is None or theirs is None or found["scheme"] not in _DEFAULT_PORTS:
        return True
    default = _DEFAULT_PORTS[found["scheme"]]
    return (theirs[0], theirs[1] or default) != (own[0], own[1] or default)


def _is_cross_site(scope: Scope) -> bool:
    return b"cross-site" in [v.lower() for v in headers_named(scope, b"sec-fetch-site")]


def _has_safe_type(scope: Scope) -> bool:
    """False for what a browser may send to a stranger without asking first."""
    is_browser = (
        header(scope, b"origin") is not None or header(scope, b"sec-fetch-site") is not None
    )
    if not is_browser or scope["method"] in _SAFE_METHODS:
        return True
    media = (header(scope, b"content-type") or b"").partition(b";")[0]
    return media.strip().lower() == b"application/json"


def _is_preflight(scope: Scope) -> bool:
    return (
        scope["method"] == "OPTIONS" and header(scope, b"access-control-request-method") is not None
    )


def _cors_headers(origin: str) -> HeaderList:
    return [
        (b"access-control-allow-origin", origin.encode()),
        (b"access-control-expose-headers", b"X-Request-Id, Retry-After"),
        (b"vary", b"Origin"),
    ]


def _preflight_headers(scope: Scope) -> HeaderList:
    asked = header(scope, b"access-control-request-headers") or b""
    return [
        (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, DELETE"),
        (b"access-control-allow-headers", asked if _TOKENS.fullmatch(asked) else b""),
        (b"access-control-max-age", b"600"),
    ]


def _checked_host(entry: str) -> str:
    parts = split_host(entry)
    if parts is None:
        raise ConfigError(f"{entry!r} is no host name.", param="allow_host")
    return parts[0]


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")

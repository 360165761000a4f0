"""What a server that listens beyond this machine needs: a key, and names to be called by."""

from __future__ import annotations

import ipaddress
import secrets

from naiad.config import Config

#: An address that means all of this machine's -> the one by which it reaches itself.
_BY_LOOPBACK = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "[::1]"}


def is_loopback(host: str) -> bool:
    """True when only this machine can reach the host."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def key_for(config: Config) -> str | None:
    """A new key when the server is to listen beyond this machine and nobody has decided on one."""
    if config.api_key or config.no_auth or is_loopback(config.host):
        return None
    return secrets.token_urlsafe(32)


def is_any_address(host: str) -> bool:
    """True when the host stands for all addresses of this machine."""
    return host in _BY_LOOPBACK


def base_url(host: str, port: int) -> str:
    """Where this machine reaches a server bound to the host: an any-address by loopback."""
    name = _BY_LOOPBACK.get(host)
    return f"http://{name or (f'[{host}]' if ':' in host else host)}:{port}"

"""Models from an address: https://, into the models folder."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from naiad.errors import ModelFileError
from naiad.models.download import OnProgress, Remote, download
from naiad.models.gguf import read_header


def filename_of(url: str) -> str:
    """The file name that an address ends with. Raises ModelFileError when it is no GGUF file's."""
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    if not re.fullmatch(r"[\w][\w .+()\[\]-]*\.gguf", name, re.IGNORECASE):
        raise ModelFileError(f"{url} must be the address of a GGUF file, ending with .gguf.")
    return name


def require_safe(url: str, sha256: str) -> None:
    """Refuse what could be changed on its way: http:// from elsewhere, unless a digest is given."""
    parts = urlsplit(url)
    if parts.scheme == "https" or sha256:
        return
    if parts.scheme == "http" and _is_here(parts.hostname or ""):
        return
    raise ModelFileError(
        f"{url} could be changed on its way; use https://, or give the file's digest: --sha256"
    )


def fetch(url: str, folder: Path, sha256: str, on_progress: OnProgress) -> Path:
    """Bring the file into the folder under its own name; one that is there is left as it is.

    Raises ModelFileError; see `naiad.models.download.download`.
    """
    require_safe(url, sha256)
    target = folder / filename_of(url)
    if not target.exists():
        download(Remote(url, sha256=sha256), target, on_progress, check=read_header)
    return target


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"

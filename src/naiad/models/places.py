"""Folders of other programs in which models lie: they are read where they are, never written.

Layouts: LM Studio keeps MODELS/OWNER/REPO/FILE.gguf; the Hugging Face cache keeps
models--OWNER--REPO/snapshots/COMMIT/FILE, links to blobs (huggingface_hub's documentation, "Manage
your cache").
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HUB = "Hugging Face cache"
LM_STUDIO = "LM Studio"
#: Deeper folders than LM Studio's own are not searched.
MAX_DEPTH = 3
_REPO = "models--"


@dataclass(frozen=True, slots=True)
class Place:
    """A folder with models. title: whose it is; "" for one that the user named."""

    folder: Path
    title: str = ""


def places(
    more: Sequence[str] = (), *, foreign: bool = True, env: Mapping[str, str] = os.environ
) -> tuple[Place, ...]:
    """The folders that the user named, then those of other programs that exist."""
    named = [Place(Path(folder).expanduser().absolute()) for folder in more]
    return (*named, *(_foreign(env) if foreign else ()))


def hub_cache(env: Mapping[str, str] = os.environ) -> Path:
    """The Hugging Face cache: HF_HUB_CACHE, else `hub` in HF_HOME or the user's caches."""
    if named := env.get("HF_HUB_CACHE"):
        return Path(named).expanduser()
    caches = env.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(env.get("HF_HOME") or Path(caches, "huggingface")).expanduser() / "hub"


def _foreign(env: Mapping[str, str]) -> Iterator[Place]:
    home = Path(env.get("HOME") or Path.home())
    for folder in (home / ".lmstudio" / "models", home / ".cache" / "lm-studio" / "models"):
        if folder.is_dir():
            yield Place(folder, LM_STUDIO)
    if (cache := hub_cache(env)).is_dir():
        yield Place(cache, HUB)


def model_files(place: Place, depth: int = MAX_DEPTH) -> Iterator[tuple[Path, str]]:
    """The GGUF files of a place, so many folders deep, and OWNER/REPO of each where it tells."""
    if place.title == HUB:
        yield from _in_hub(place.folder)
        return
    for path in _walk(place.folder, depth):
        folders = path.relative_to(place.folder).parts[:-1]
        yield path, "/".join(folders[-2:]) if len(folders) >= 2 else ""


def _in_hub(cache: Path) -> Iterator[tuple[Path, str]]:
    for repo in sorted(cache.glob(f"{_REPO}*")):
        name = repo.name.removeprefix(_REPO).replace("--", "/")
        seen: set[str] = set()
        for snapshot in sorted(_folders(repo / "snapshots"), key=_age):
            for path in _walk(snapshot, MAX_DEPTH):
                inside = str(path.relative_to(snapshot))
                if inside not in seen:
                    seen.add(inside)
                    yield path, name


def _folders(parent: Path) -> Iterable[Path]:
    return (path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else ()


def _age(folder: Path) -> float:
    """Sorts the newest first."""
    return -folder.stat().st_mtime


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError:  # not there, or not ours to read: then it holds nothing for us
        return
    for path in entries:
        if path.name.startswith("."):
            continue
        if path.suffix.lower() == ".gguf":
            yield path
        elif depth > 1 and path.is_dir():
            yield from _walk(path, depth - 1)

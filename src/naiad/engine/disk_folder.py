"""The cache folder: a folder for each fingerprint, in it a file for each block.

Only what is named like naiad's own files is ever counted or deleted here, so a folder that somebody
pointed to by mistake is safe. Other servers may work in it at the same time: any file may be gone
from one moment to the next.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

DIR_ENV = "NAIAD_DISK_CACHE_DIR"
ABOUT = "about.json"
#: A draft that old was left behind by a process that died; younger ones may be another server's.
DRAFT_S = 60.0
_HEX = r"[0-9a-f]{32}"
_FOLDER = re.compile(_HEX)
_BLOCK = re.compile(rf"({_HEX})\.kv")
_DRAFT = re.compile(rf"\.({_HEX}|about)\.\d+\.tmp")


def cache_dir(override: str | None = None, env: Mapping[str, str] = os.environ) -> Path:
    """The cache folder: the override, else NAIAD_DISK_CACHE_DIR, else in the user's own."""
    chosen = override or env.get(DIR_ENV)
    if chosen:
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("naiad")) / "prefixes"


def block_name(key: bytes) -> str:
    return f"{key.hex()}.kv"


def draft_name(stem: str) -> str:
    """Of the file that becomes another one when it is complete: this thread's, for two may be at it
    where one got no processor in the middle of it.
    """
    return f".{stem}.{threading.get_native_id()}.tmp"


def key_named(name: str) -> bytes | None:
    """The key of the block in a file of this name; None when it is no block's."""
    match = _BLOCK.fullmatch(name)
    return bytes.fromhex(match[1]) if match else None


def is_left_behind(name: str, changed_at: float) -> bool:
    """True for the draft of a process that died. changed_at: seconds since 1970."""
    return bool(_DRAFT.fullmatch(name)) and time.time() - changed_at > DRAFT_S


def make_private(folder: Path) -> None:
    """Make the folder, for this user alone.

    Raises OSError when it cannot be made, or is another user's: what lies there is not to be
    trusted.
    """
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise PermissionError(f"{folder} is no folder of this user")
    if status.st_mode & 0o077:
        folder.chmod(0o700)


@contextlib.contextmanager
def drafting(target: Path) -> Iterator[int]:
    """A file descriptor for what becomes `target` in one piece, mode 0600, unless this fails.

    Not synced: what a power cut leaves half written, checksums find.
    """
    draft = target.with_name(draft_name(target.stem))
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    descriptor = os.open(draft, flags, 0o600)
    try:
        try:
            yield descriptor
        finally:
            os.close(descriptor)
        draft.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def write_about(folder: Path, about: Mapping[str, str]) -> None:
    """Say for people what the folder belongs to. Raises OSError."""
    with drafting(folder / ABOUT) as descriptor:
        os.write(descriptor, json.dumps(dict(about), indent=2).encode() + b"\n")


def folders(root: Path) -> list[Path]:
    """The fingerprints' folders; none when there is no cache folder or it cannot be read."""
    try:
        found = [path for path in root.iterdir() if _FOLDER.fullmatch(path.name)]
        return sorted(path for path in found if path.is_dir() and not path.is_symlink())
    except OSError:
        return []


def files(folder: Path) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    """The regular files in a folder, as far as they are still there."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_file(follow_symlinks=False):
                    yield entry, entry.stat(follow_symlinks=False)


@dataclass(frozen=True, slots=True)
class Summary:
    """A fingerprint's folder. model: "" when it is not known. used_at: seconds since 1970, or 0."""

    path: Path
    model: str
    n_blocks: int
    n_bytes: int
    used_at: float


def summaries(root: Path) -> list[Summary]:
    """All fingerprints' folders, the one used last first."""
    return sorted(map(_summary, folders(root)), key=lambda summary: -summary.used_at)


def _summary(folder: Path) -> Summary:
    blocks = [status for entry, status in files(folder) if key_named(entry.name)]
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        model = str(about["model"])
    except (OSError, ValueError, LookupError, TypeError):
        model = ""
    used_at = max((status.st_mtime for status in blocks), default=0.0)
    return Summary(folder, model, len(blocks), sum(b.st_size for b in blocks), used_at)


def clear(root: Path) -> int:
    """Delete every block, of every fingerprint. Returns how many bytes they had.

    Safe while servers run: to them what is gone is not cached. Raises OSError when one cannot be
    deleted.
    """
    n_bytes = 0
    for folder in folders(root):
        for entry, status in files(folder):
            if key_named(entry.name) or _DRAFT.fullmatch(entry.name):
                Path(entry.path).unlink(missing_ok=True)
                n_bytes += status.st_size
        _remove_if_empty(folder)
    return n_bytes


def free(root: Path, own: Path, is_known: Callable[[bytes], bool], n_allowed: int) -> int:
    """Bring the blocks that a server does not know down to n_allowed bytes; the bytes that remain.

    They are those of other models and builds, and in its own folder those of another server. The
    folder that was not used for longest comes first, in it the oldest blocks.
    """
    unknown: list[tuple[float, float, int, Path]] = []
    for folder in folders(root):
        found = [
            (status.st_mtime, status.st_size, Path(entry.path))
            for entry, status in files(folder)
            if not _is_kept(entry.name, status.st_mtime, is_known if folder == own else None)
        ]
        used_at = max((at for at, _, _ in found), default=0.0)
        unknown += [(used_at, *file) for file in found]
    n_bytes = sum(size for _, _, size, _ in unknown)
    for _, changed_at, size, path in sorted(unknown):
        if n_bytes <= n_allowed and not is_left_behind(path.name, changed_at):
            continue
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            n_bytes -= size
    for folder in folders(root):
        if folder != own:
            _remove_if_empty(folder)
    return n_bytes


def _is_kept(name: str, changed_at: float, is_known: Callable[[bytes], bool] | None) -> bool:
    key = key_named(name)
    if key is None:
        return not is_left_behind(name, changed_at)
    return is_known is not None and is_known(key)


def _remove_if_empty(folder: Path) -> None:
    if not any(key_named(entry.name) for entry, _ in files(folder)):
        with contextlib.suppress(OSError):
            (folder / ABOUT).unlink(missing_ok=True)
            folder.rmdir()

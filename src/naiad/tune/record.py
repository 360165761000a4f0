"""What was measured, kept per model and per build of the engine on this machine.

One JSON file for each in the user's data folder. A file that another version wrote, or that is no
such file at all, is ignored with a note: tuning is a help, never a condition.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
from importlib.util import find_spec
from pathlib import Path

import msgspec

from naiad.config import Profile, Tuning

log = logging.getLogger(__name__)

#: Changes whenever older results no longer mean the same.
VERSION = 1
_SAMPLE = 1 << 20


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One comparison. ratio: time over that of the best before it; below 1 is faster.

    detail: the ratio of each piece of work; crashed: why there is no ratio.
    """

    profile: str
    what: str
    ratio: float | None = None
    detail: dict[str, float] = {}
    won: bool = False
    crashed: str | None = None


class LaneResult(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt beside running streams, by a lane and by chunks: longest gaps and its own time."""

    gap_lane_ms: float
    gap_chunks_ms: float
    ttft_lane_ms: float
    ttft_chunks_ms: float
    ttft_alone_ms: float


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a run of `naiad tune`. measured_at: ISO 8601, UTC."""

    version: int
    model: str
    model_fingerprint: str
    build_fingerprint: str
    measured_at: str
    is_quick: bool
    was_busy: bool = False  # other programs ran meanwhile, so the figures may mislead
    seconds: float
    profiles: dict[Profile, Tuning]
    measured: list[Measured]
    lane: LaneResult | None = None
    notes: list[str] = []


def model_fingerprint(path: Path) -> str:
    """32 hex digits over a model file's size, its first and its last mebibyte.

    Raises OSError. Enough to tell models apart; reading all of one would take longer than loading.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_SAMPLE))
        file.seek(max(0, size - _SAMPLE))
        digest.update(file.read(_SAMPLE))
    return digest.hexdigest()[:32]


def build_fingerprint() -> str:
    """32 hex digits over the engine's installed library files and the processors it may use."""
    digest = hashlib.sha256(f"{_processor()} x {_usable_processors()}".encode())
    spec = find_spec("llama_cpp")
    folder = Path(spec.origin).parent / "lib" if spec and spec.origin else None
    files = sorted(folder.iterdir()) if folder and folder.is_dir() else []
    for path in files:
        stat = path.stat()  # their contents are too much to read at every start
        digest.update(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()}"


def _usable_processors() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return usable or os.cpu_count() or 1


def folder() -> Path:
    """Where the results lie."""
    import platformdirs

    return Path(platformdirs.user_data_dir("naiad")) / "tuning"


def path_of(model: str, build: str, within: Path) -> Path:
    """The file of a model's result; both arguments are fingerprints."""
    return within / f"{model[:16]}-{build[:16]}.json"


def save(record: Record, within: Path | None = None) -> Path:
    """Write the result in one piece. Raises OSError."""
    target = path_of(record.model_fingerprint, record.build_fingerprint, within or folder())
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
    draft.replace(target)
    return target


def load(model: str, build: str, within: Path | None = None) -> Record | None:
    """The result for these fingerprints; None when there is none that can be used."""
    path = path_of(model, build, within or folder())
    try:
        record = msgspec.json.decode(path.read_bytes(), type=Record)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:  # ValidationError is one of them
        log.warning("the tuning result %s is ignored: %s", path, error)
        return None
    if record.version != VERSION:
        log.info("the tuning result %s is of another version and is ignored", path)
        return None
    is_same = (record.model_fingerprint, record.build_fingerprint) == (model, build)
    return record if is_same else None


def find(model: Path, starter: Path | None, within: Path | None = None) -> Record | None:
    """The result for a model: its own, else that of the starter model; None for neither."""
    build = build_fingerprint()
    for path in filter(None, (model, starter)):
        try:
            record = load(model_fingerprint(path), build, within)
        except OSError:
            continue  # a model that is not there has no result
        if record is not None:
            return record
    return None

"""Which build is installed: a JSON file beside the interpreter, checked against the libraries."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from naiad.setup.plan import BuildPlan

RECORD_NAME = "naiad-engine.json"


@dataclass(frozen=True, slots=True)
class BuildRecord:
    """The build that was installed. libraries_sha256: over every library file of the package.

    built_at: ISO 8601, UTC.
    """

    fingerprint: str
    version: str
    compiler: str
    compiler_banner: str
    cxx_flags: str
    cmake_args: tuple[str, ...]
    gpu: str
    cpu: str
    cpu_features: tuple[str, ...]
    libraries_sha256: str
    built_at: str

    @classmethod
    def of(cls, plan: BuildPlan, libraries_sha256: str, built_at: str) -> BuildRecord:
        told = {k: v for k, v in asdict(plan).items() if k in cls.__dataclass_fields__}
        return cls(
            **told,
            fingerprint=plan.fingerprint,
            libraries_sha256=libraries_sha256,
            built_at=built_at,
        )


def record_path() -> Path:
    """Where the record lies: in the virtual environment that the engine is installed in."""
    return Path(sys.prefix) / RECORD_NAME


def load_record(path: Path | None = None) -> BuildRecord | None:
    """The record, or None when there is none that this version can read."""
    try:
        data: dict[str, Any] = json.loads((path or record_path()).read_text(encoding="utf-8"))
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
        }
        return BuildRecord(**values)
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def save_record(record: BuildRecord, path: Path | None = None) -> None:
    """Write the record in one piece, so that a reader never sees half of it."""
    target = path or record_path()
    draft = target.with_suffix(".part")
    draft.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
    draft.replace(target)


def libraries_digest() -> str:
    """SHA-256 over the installed engine's library files, without loading them; "" for none."""
    importlib.invalidate_caches()  # pip may have just put it there
    spec = find_spec("llama_cpp")
    folder = Path(spec.origin).parent / "lib" if spec and spec.origin else None
    return folder_digest(folder) if folder and folder.is_dir() else ""


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of the files in a folder, in order."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def is_current(record: BuildRecord | None, plan: BuildPlan) -> bool:
    """True when what is installed is this very build, untouched since."""
    if record is None or record.fingerprint != plan.fingerprint:
        return False
    return record.libraries_sha256 == libraries_digest()

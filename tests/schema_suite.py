"""The JSON Schema Test Suite, fetched for the tests, and part of nothing else.

Its own packages hold no files, or old ones; the source package of jsonschema, which we validate
with anyway, brings the whole suite. `python tests/schema_suite.py` fetches it; without the package
index it says so and succeeds, and the tests that need it are skipped.
"""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from environments import FOLDER, Unavailable, run

PACKAGE = "jsonschema==4.26.0"
FILES = FOLDER / "json-schema-suite" / PACKAGE
#: Drafts that llguidance reads; files of older ones are refused, and newer there are none.
DRAFTS = ("draft4", "draft6", "draft7", "draft2019-09", "draft2020-12")


@dataclass(frozen=True)
class Case:
    """One schema and its instances. name: draft/file: description; tests: description, instance and
    whether it is valid."""

    draft: str
    file: str
    description: str
    schema: Any
    tests: tuple[tuple[str, Any, bool], ...]

    @property
    def name(self) -> str:
        return f"{self.draft}/{self.file}: {self.description}"


def cases() -> Iterator[Case]:
    """All of them, optional ones too."""
    for draft in DRAFTS:
        for path in sorted((FILES / draft).rglob("*.json")):
            file = path.relative_to(FILES / draft).with_suffix("").as_posix()
            for case in json.loads(path.read_text(encoding="utf-8")):
                tests = ((one["description"], one["data"], one["valid"]) for one in case["tests"])
                yield Case(draft, file, case["description"], case["schema"], tuple(tests))


def fetch() -> int:
    """Fetch it where the package index is; 0 either way, for it is a help and no condition."""
    if FILES.is_dir():
        return 0
    print(f"fetching the JSON Schema Test Suite, in {PACKAGE}", file=sys.stderr, flush=True)
    FILES.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FILES.parent) as folder:
        try:
            quiet = ("--quiet", "--disable-pip-version-check", "--no-deps")
            source = ("--no-binary", "jsonschema", "--dest", folder)
            run([sys.executable, "-m", "pip", "download", *quiet, *source, PACKAGE])
        except Unavailable as missing:
            print(f"It is not there, so fewer schemas will be tried: {missing}.", file=sys.stderr)
            return 0
        [archive] = Path(folder).glob("*.tar.gz")
        _unpack(archive, Path(folder))
    return 0


def _unpack(archive: Path, folder: Path) -> None:
    name = archive.name.removesuffix(".tar.gz")
    with tarfile.open(archive) as tar:
        inside = [one for one in tar if one.name.startswith(f"{name}/json/tests/")]
        tar.extractall(folder, inside, filter="data")
    (folder / name / "json" / "tests").rename(FILES)


if __name__ == "__main__":
    sys.exit(fetch())

"""`make unit`: the files that it does not even import have no test that it would run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def marks() -> str:
    """What the Makefile's chore leaves out."""
    found = re.search(r"^QUICK := (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


def collected(expression: str) -> list[str]:
    """The tests that `-m` keeps."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider"]
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [*command, "-m", expression, "tests"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if line.startswith("tests/")]


def test_no_test_is_lost_with_a_file_that_is_not_imported() -> None:
    quick = collected(marks())
    assert quick == collected(f"({marks()})"), "with brackets, every file is imported"
    assert len(quick) > 40

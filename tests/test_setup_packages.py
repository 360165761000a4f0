"""pip's many lines become one that is redrawn, or one at the end; a failure stays in its words."""

from __future__ import annotations

from pathlib import Path

import pytest

from naiad.setup import packages

SAID = """Obtaining file:///home/me/naiad
  Installing build dependencies: finished with status 'done'
WARNING: something that nobody need know
Collecting click>=8.1 (from naiad==0.1.0)
  Downloading click-8.3.1-py3-none-any.whl (126 kB)
Requirement already satisfied: numpy>=2 in ./lib (from naiad==0.1.0)
Processing /wheels/markdown_it_py-4.0.0-py3-none-any.whl (from naiad==0.1.0)
Installing collected packages: click, markdown-it-py, naiad
Successfully installed click-8.3.1 markdown-it-py-4.0.0 naiad-0.1.0
"""


def shown(said: str, *, is_terminal: bool, has_failed: bool = False) -> str:
    written: list[str] = []
    seconds = iter(range(61, 1000))
    one = packages.Shown(written.append, is_terminal, lambda: next(seconds))
    one.follow(said.splitlines(keepends=True))
    one.end(has_failed=has_failed)
    return "".join(written)


def test_a_terminal_sees_one_line_that_is_redrawn() -> None:
    lines = shown(SAID, is_terminal=True).split("\r\x1b[K")
    assert lines == [
        "  asking pip",
        "  1 found: click  0:01",
        "  1 found: click (126 kB)  0:02",
        "  2 found: markdown-it-py  0:03",
        "  putting 3 into place  0:04",
        "  3 packages in 0:05.\n",
    ]


def test_long_names_do_not_wrap() -> None:
    line = shown(f"Collecting {'x' * 300}\n", is_terminal=True).split("\r\x1b[K")[1]
    assert len(line) < 80


def test_elsewhere_one_line_at_the_end_or_none_when_nothing_was_missing() -> None:
    assert shown(SAID, is_terminal=False) == "  3 packages in 0:01.\n"
    assert shown("Requirement already satisfied: x\n", is_terminal=False) == ""


def test_a_failure_is_told_in_pips_last_words() -> None:
    said = "old\n" * 30 + "ERROR: No matching distribution found for click\n"
    for is_terminal in (True, False):
        told = shown(said, is_terminal=is_terminal, has_failed=True)
        assert told.endswith("ERROR: No matching distribution found for click\n")
        assert told.count("\n") == packages.LAST_LINES


@pytest.mark.parametrize("status", [0, 1])
def test_pip_is_run_and_its_status_returned(
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    body = "import sys\nprint('Successfully installed a-1')\nprint(sys.argv[1:], file=sys.stderr)\n"
    (tmp_path / "pip.py").write_text(f"{body}sys.exit({status})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert packages.main([".[dev]"]) == status
    told = capsys.readouterr().out
    assert ("'-e', '.[dev]'" in told) == bool(status)
    assert ("1 package in" in told) == (not status)

"""Writes docs/api.md anew, from the source tree's root."""

from __future__ import annotations

from pathlib import Path

from naiad.dialects.reference import chapters
from naiad.dialects.reference.markdown import as_markdown
from naiad.dialects.registry import DIALECTS

if __name__ == "__main__":
    Path("docs/api.md").write_text(as_markdown(chapters(DIALECTS)), encoding="utf-8")

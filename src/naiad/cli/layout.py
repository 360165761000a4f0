"""Lines that fit the terminal."""

from __future__ import annotations

import shutil
import sys
import textwrap

#: In a narrower terminal lines break anywhere; more indenting would not help.
_LEAST = 40


def wrapped(label: str, text: str, *, indent: int | None = None) -> str:
    """A text behind its label, in as many lines as the terminal makes of it.

    Elsewhere, as in a pipe, one line. indent: of the further lines; None for the label's width.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 1 << 16
    return textwrap.fill(
        text,
        max(width, _LEAST),
        initial_indent=label,
        subsequent_indent=" " * (len(label) if indent is None else indent),
        break_long_words=False,
        break_on_hyphens=False,
    )

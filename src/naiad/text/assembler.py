"""Bytes to text, incrementally: tokens may end in the middle of a character.

However the bytes are cut, the text is what `bytes.decode("utf-8", "replace")` makes of the whole.
An unfinished character (at most 3 bytes) waits for its rest; bytes that can no longer become one
are U+FFFD at once.
"""

from __future__ import annotations

import codecs

_new_decoder = codecs.getincrementaldecoder("utf-8")


class Assembler:
    """One stream's decoder. Not shared between streams."""

    __slots__ = ("_decode",)

    def __init__(self) -> None:
        self._decode = _new_decoder(errors="replace").decode

    def feed(self, data: bytes) -> str:
        """The text that these bytes complete; "" when they only begin a character."""
        return self._decode(data)

    def finish(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character, else ""."""
        return self._decode(b"", True)

"""Bytes to text, incrementally: tokens may end in the middle of a character.

However the bytes are cut, the text is what `bytes.decode("utf-8", "replace")` makes of the whole.
An unfinished character (at most 3 bytes) waits for its rest; bytes that can no longer become one
are U+FFFD at once. One that is unfinished at the end is left out: a limit on tokens has cut it, and
U+FFFD would look like damage.
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

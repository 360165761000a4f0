"""Text of a stream, purely: UTF-8 assembly and stop strings. No I/O, no tokens, no clock."""

from __future__ import annotations

from naiad.text.assembler import Assembler
from naiad.text.stops import StopMatcher
from naiad.text.stream import StreamText

__all__ = ["Assembler", "StopMatcher", "StreamText"]

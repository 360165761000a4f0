"""Durations as Ollama's clients write them: seconds, or text in the manner of Go."""

from __future__ import annotations

import math
import re
from typing import Any

from naiad.dialects.fields import bad, number
from naiad.errors import InvalidRequest

_SECONDS = {
    **{"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3},
    **{"s": 1.0, "m": 60.0, "h": 3600.0},
}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)", re.ASCII)
_WHOLE = re.compile(rf"([+-]?)((?:{_PART.pattern})+)", re.ASCII)
_MAX_CHARS = 64
_FOR_EVER_S = 1e9  # about thirty years; what the event loop can still count


def duration(name: str, value: Any) -> float:
    """Seconds, as a number or as text such as "5m", "1h30m" or "500ms"; math.inf if negative.

    What is longer than thirty years is for ever, too. Raises InvalidRequest.
    """
    found = _from_text(value) if isinstance(value, str) and len(value) <= _MAX_CHARS else None
    if found is None:
        try:
            found = number()(name, value)
        except InvalidRequest:
            raise bad(name, _WANTED, value) from None
    return math.inf if found < 0 or found > _FOR_EVER_S else found


_WANTED = (
    'a number of seconds or a duration such as "5m" or "1h30m" (negative: for ever; 0: unload now)'
)


def _from_text(value: str) -> float | None:
    found = _WHOLE.fullmatch(value.strip())
    if found is None:
        return None
    total = sum(float(count) * _SECONDS[unit] for count, unit in _PART.findall(found[2]))
    return -total if found[1] == "-" else total

"""Reading wire fields: what real front ends send, into checked values.

`null` means absent. Integral floats (2.0) and numeric strings ("5") are integers, because front
ends send them; booleans may be 1, 0, "true" or "false". Everything else of the wrong type, and
everything out of range, is an InvalidRequest that names the field, the value and the range.

A reader is a function of (field name, value); `Fields` looks a value up under its aliases, applies
a reader, and remembers which fields nobody asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from naiad.errors import InvalidRequest

T = TypeVar("T")

#: Checks and converts a value that is not None. Raises InvalidRequest.
Reader = Callable[[str, Any], T]

_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_SHOWN_CHARS = 40
_SHOWN_NAMES = 64

#: Beyond every context and vocabulary, within every integer that llama.cpp takes.
MAX_INT = 2**31 - 1


class Fields:
    """A body, or an object inside one, being read.

    Args:
        body: the JSON object.
        path: put before the names of fields in messages, e.g. "stream_options.".
    """

    __slots__ = ("_body", "_note", "_path", "_seen")

    def __init__(self, body: Mapping[str, Any], path: str = "") -> None:
        self._body = body
        self._path = path
        self._seen: set[str] = set()
        # Bodies from which the reference is made want to know what they were asked for.
        self._note: Callable[..., None] | None = getattr(body, "note", None)

    def find(self, *names: str) -> tuple[str, Any]:
        """The first of these names that is present, and its value; (first name, None) if none is.

        All of them count as read.
        """
        self._seen.update(names)
        if self._note is not None:
            self._note(self._path, names)
        for name in names:
            value = self._body.get(name)
            if value is not None:
                return self._path + name, value
        return self._path + names[0], None

    def peek(self, name: str) -> Any:
        """A value without its counting as read; None if it is absent."""
        return self._body.get(name)

    def get(self, read: Reader[T], *names: str) -> T | None:
        """The value under the first of these names that is present, or None."""
        name, value = self.find(*names)
        if self._note is not None:
            self._note(self._path, names, is_one=True)
        return None if value is None else read(name, value)

    def need(self, read: Reader[T], *names: str) -> T:
        """As get, but the field must be there."""
        name, value = self.find(*names)
        if self._note is not None:
            self._note(self._path, names, is_one=True, is_needed=True)
        if value is None:
            raise InvalidRequest(f"'{name}' is missing.", param=name)
        return read(name, value)

    def unread(self) -> dict[str, Any]:
        """The fields that are present and were never asked for."""
        return {
            name: value
            for name, value in self._body.items()
            if value is not None and name not in self._seen
        }


def bad(name: str, wanted: str, value: Any) -> InvalidRequest:
    """The error for a value of the wrong kind or range; shows short scalars as they were sent."""
    return InvalidRequest(f"'{name}' must be {wanted}, not {_shown(value)}.", param=name)


def wrong_kind(name: str, wanted: str, value: Any) -> InvalidRequest:
    """As bad, for fields that hold people's text: says the kind of what was sent, never itself."""
    return InvalidRequest(f"'{name}' must be {wanted}, not {_kind(value)}.", param=name)


def member(read: Reader[T], name: str, value: Any, wanted: str) -> T:
    """One of many values in a field. wanted: what the whole field must be, for the refusal."""
    try:
        return read(name, value)
    except InvalidRequest:
        raise bad(name, wanted, value) from None


def _shown(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 128:
        return "a very large integer"
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        return _kind(value)
    shown = ascii(value)  # an emoji takes ten characters, so what is shown is what is measured
    is_long = isinstance(value, str) and len(shown) > _SHOWN_CHARS + 2
    return "a long string" if is_long else shown


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return _KINDS.get(type(value), "something else")


_KINDS: dict[type, str] = {
    str: "a string",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def listed(names: Iterable[str]) -> tuple[str, ...]:
    """Names of ignored fields, fit for a log: few, short, ASCII."""
    short = (ascii(name)[1:-1][:_SHOWN_CHARS] for name in names)
    return tuple(name for name, _ in zip(short, range(_SHOWN_NAMES), strict=False))


def _within(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f" from {low} to {high}"
    if low is not None:
        return f" of at least {low}"
    return f" of at most {high}" if high is not None else ""


def _is_outside(value: float, low: float | None, high: float | None) -> bool:
    return (low is not None and value < low) or (high is not None and value > high)


def number(low: float | None = None, high: float | None = None) -> Reader[float]:
    """A finite number, bounds included."""

    def read(name: str, value: Any) -> float:
        found = _to_number(value)
        if found is None or _is_outside(found, low, high):
            raise bad(name, f"a number{_within(low, high)}", value)
        return float(found)

    return read


def integer(low: int | None = None, high: int | None = None) -> Reader[int]:
    """An integer, bounds included."""

    def read(name: str, value: Any) -> int:
        found = _to_number(value)
        if found is None or found != int(found) or _is_outside(found, low, high):
            raise bad(name, f"an integer{_within(low, high)}", value)
        return int(found)

    return read


def _to_number(value: Any) -> int | float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and len(value) <= _SHOWN_CHARS and _NUMBER.fullmatch(value):
        text = value.strip()
        value = int(text) if text.lstrip("+-").isdigit() else float(text)
    if isinstance(value, int) and value.bit_length() <= 1000:  # what a float can hold
        return value
    return value if isinstance(value, float) and math.isfinite(value) else None


def boolean(name: str, value: Any) -> bool:
    """true or false, also as 1, 0 or a string."""
    found = _BOOLEANS.get(str(value).lower()) if isinstance(value, bool | int | str) else None
    if found is None:
        raise bad(name, "true or false", value)
    return found


def text(name: str, value: Any) -> str:
    """A string that can be encoded (JSON can spell lone surrogates; no text holds them)."""
    if not isinstance(value, str):
        raise wrong_kind(name, "a string", value)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"'{name}' holds a lone surrogate at character {error.start}: it is no valid Unicode.",
            param=name,
        ) from None
    return value


def short_text(limit: int) -> Reader[str]:
    """A string of at most `limit` characters."""

    def read(name: str, value: Any) -> str:
        found = text(name, value)
        if len(found) > limit:
            raise InvalidRequest(
                f"'{name}' must have at most {limit} characters, not {len(found)}.", param=name
            )
        return found

    return read


def array(name: str, value: Any) -> list[Any]:
    """A list of anything."""
    if not isinstance(value, list):
        raise wrong_kind(name, "a list", value)
    return value


def mapping(name: str, value: Any) -> dict[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise wrong_kind(name, "an object", value)
    return value


def token_ids(n_vocab: int) -> Reader[list[int]]:
    """A list of token ids below n_vocab (0: the size of the vocabulary is not known)."""
    top = n_vocab - 1 if n_vocab > 0 else MAX_INT

    def read(name: str, value: Any) -> list[int]:
        ids = array(name, value)
        if not ids:
            return ids
        # Whole-list checks in C: a list may have millions of entries, and this is the event loop.
        if set(map(type, ids)) != {int} or min(ids) < 0 or max(ids) > top:
            raise InvalidRequest(f"'{name}' must hold token ids from 0 to {top}.", param=name)
        return ids

    return read

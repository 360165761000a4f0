"""Phrases that must not be said, and KoboldCpp's and others' lists that mix them with token ids."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from naiad.dialects.fields import MAX_INT, Fields, array, integer, member, short_text
from naiad.errors import InvalidRequest
from naiad.types import ModelInfo

MAX_PHRASES = 768
MAX_PHRASE_CHARS = 256
MAX_CHARS = 16_384

_IDS = re.compile(r"[\s\d,\[\]]*")


def read_phrases(fields: Fields, model: ModelInfo) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Banned phrases, and banned token ids that stand in the same fields. Raises InvalidRequest.

    `banned_strings`, `banned_phrases` and `banned_tokens` are all read: lists of strings and ids,
    or one string, which is ids if it has nothing but digits and commas. Lines of one string are
    phrases of their own, and so are a JSON list's strings.
    """
    phrases: dict[str, None] = {}
    ids: dict[int, None] = {}
    top = model.n_vocab - 1 if model.n_vocab > 0 else MAX_INT
    token, wanted = integer(0, top), f"made of texts and token ids from 0 to {top}"
    for field in ("banned_strings", "banned_phrases", "banned_tokens"):
        name, value = fields.find(field)
        for one in _members(name, value):
            if isinstance(one, str):
                phrases[short_text(MAX_PHRASE_CHARS)(name, one)] = None
            else:
                ids[member(token, name, one, wanted)] = None
        _check_number(name, [phrase for phrase in phrases if phrase])
    phrases.pop("", None)
    return tuple(phrases), tuple(ids)


def _members(name: str, value: Any) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, str):
        return array(name, value)
    if _IDS.fullmatch(value):
        return [int(part) for part in re.findall(r"\d{1,10}", value)]
    return _json_list(value) or value.splitlines()


def _json_list(value: str) -> list[str]:
    """The strings of a list in JSON; [] when it is none, as a phrase may begin with a bracket."""
    try:
        return msgspec.json.decode(value, type=list[str])
    except msgspec.DecodeError:
        return []


def _check_number(name: str, phrases: list[str]) -> None:
    n_chars = sum(map(len, phrases))
    if len(phrases) > MAX_PHRASES or n_chars > MAX_CHARS:
        raise InvalidRequest(
            f"'{name}' may hold at most {MAX_PHRASES} phrases with {MAX_CHARS} characters in all, "
            f"not {len(phrases)} with {n_chars}.",
            param=name,
        )

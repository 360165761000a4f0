"""Biases of tokens, by id and by text, and bans."""

from __future__ import annotations

import math
from typing import Any

from naiad.dialects.fields import MAX_INT, Fields, array, integer, member, number, short_text
from naiad.errors import InvalidRequest
from naiad.types import ModelInfo

MAX_BIASES = 1024
MAX_TEXT_CHARS = 256

_BIAS = number(-100, 100)
#: The bias that bans.
NEVER = -math.inf

Biases = tuple[tuple[int, float], ...]
TextBiases = tuple[tuple[str, float], ...]


def read_biases(fields: Fields, model: ModelInfo) -> tuple[Biases, TextBiases]:
    """Biases by token id and by text; minus infinity bans. Raises InvalidRequest."""
    name, value = fields.find("logit_bias")
    pairs = _pairs(name, value) if value else []
    bans = fields.get(short_text(16 * MAX_BIASES), "custom_token_bans") or ""
    where, _ = fields.find("custom_token_bans")
    banned = [(where, one, False) for one in bans.split(",") if one.strip()]
    everything = [(name, *pair) for pair in pairs] + banned
    if len(everything) > MAX_BIASES:
        raise InvalidRequest(
            f"'{name}' may name at most {MAX_BIASES} tokens, not {len(everything)}.", param=name
        )
    top = model.n_vocab - 1 if model.n_vocab > 0 else MAX_INT
    token = integer(0, top)
    by_id: dict[int, float] = {}
    by_text: dict[str, float] = {}
    for source, key, by in everything:
        bias = (
            NEVER if by is False else member(_BIAS, source, by, "made of biases from -100 to 100")
        )
        if isinstance(key, _Text):
            by_text[short_text(MAX_TEXT_CHARS)(source, key.text)] = bias
        else:
            by_id[member(token, source, key, f"made of token ids from 0 to {top}")] = bias
    by_text.pop("", None)
    return tuple(by_id.items()), tuple(by_text.items())


class _Text:
    """A key that names text, not a token id."""

    def __init__(self, text: str) -> None:
        self.text = text


def _pairs(name: str, value: Any) -> list[tuple[Any, Any]]:
    """{"id or text": bias}, or [[id or "text", bias], ...]; false as a bias means never.

    The keys of an object are always strings, so one that reads as an integer is an id; in a list,
    where both can be told apart, a string is text. That is llama-server's rule.
    """
    if isinstance(value, dict):
        return [(_Text(key) if not _is_number(key) else key, by) for key, by in value.items()]
    pairs = array(name, value)
    if any(not isinstance(pair, list | tuple) or len(pair) != 2 for pair in pairs):
        raise InvalidRequest(
            f"'{name}' must be an object of token id or text: bias, or a list of "
            "[token id or text, bias].",
            param=name,
        )
    return [(_Text(key) if isinstance(key, str) else key, by) for key, by in pairs]


def _is_number(key: str) -> bool:
    try:
        return math.isfinite(float(key))  # "nan" and "inf" are words
    except ValueError:
        return False

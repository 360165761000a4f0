"""Logprobs in OpenAI's two shapes, and the fields that ask for them."""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from typing import Any

import msgspec

from naiad.dialects.fields import Fields, boolean, integer
from naiad.errors import InvalidRequest
from naiad.types import Likely, SamplingParams, TokenLogprob

#: Of the likeliest tokens at each place, the most that can be told of.
MAX_TOP = 20

#: What the API writes for a token that was impossible; JSON has no infinity.
IMPOSSIBLE = -9999.0

_new_decoder = codecs.getincrementaldecoder("utf-8")


def with_chat_logprobs(sampling: SamplingParams, fields: Fields) -> SamplingParams:
    """`logprobs` true or false, and with it `top_logprobs`, 0 to 20."""
    is_wanted = fields.get(boolean, "logprobs") or False
    n_top = fields.get(integer(0, MAX_TOP), "top_logprobs") or 0
    if n_top and not is_wanted:
        raise InvalidRequest(
            "'top_logprobs' tells how many to send with 'logprobs', which must then be true.",
            param="top_logprobs",
        )
    return _asking(sampling, n_top if is_wanted else None, fields)


def with_text_logprobs(sampling: SamplingParams, fields: Fields) -> SamplingParams:
    """`logprobs` as a number, 0 to 20; the API itself goes up to 5. true is 1, false is none."""
    name, value = fields.find("logprobs")
    if isinstance(value, bool):
        value = 1 if value else None
    n_top = None if value is None else integer(0, MAX_TOP)(name, value)
    return _asking(sampling, n_top, fields)


def _asking(sampling: SamplingParams, n_top: int | None, fields: Fields) -> SamplingParams:
    is_after = fields.get(boolean, "post_sampling_probs") or False  # llama-server's name
    if n_top is None:
        return sampling
    return msgspec.structs.replace(sampling, n_logprobs=n_top, logprobs_after=is_after)


def chat_logprobs(told: Sequence[TokenLogprob]) -> dict[str, Any]:
    """{"content": [{token, logprob, bytes, top_logprobs}, ...]}"""
    content = [{**_entry(one), "top_logprobs": [_entry(x) for x in one.top]} for one in told]
    return {"content": content, "refusal": None}


def _entry(one: TokenLogprob | Likely) -> dict[str, Any]:
    return {"token": _shown(one.data), "logprob": _finite(one.logprob), "bytes": list(one.data)}


class TextLogprobs:
    """The older shape, of one answer: parallel lists, with offsets in characters of its text.

    start: characters of the text before the answer (an echoed prompt).
    """

    def __init__(self, start: int = 0) -> None:
        self._offset = start
        self._decoder = _new_decoder(errors="replace")

    def shape(self, told: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Of the next tokens."""
        top = [_by_name(one) for one in told]
        return {
            "tokens": [_shown(one.data) for one in told],
            "token_logprobs": [_finite(one.logprob) for one in told],
            "top_logprobs": top if any(one.top for one in told) else None,
            "text_offset": [self._next_offset(one) for one in told],
        }

    def _next_offset(self, told: TokenLogprob) -> int:
        offset = self._offset
        self._offset += len(self._decoder.decode(told.data))
        return offset


def _by_name(told: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens and, always, the one that was chosen."""
    likely = {_shown(one.data): _finite(one.logprob) for one in told.top}
    return (
        likely
        if _shown(told.data) in likely
        else {**likely, _shown(told.data): _finite(told.logprob)}
    )


def _shown(data: bytes) -> str:
    """The token as text; a part of a character as the API writes it, bytes:\\xf0\\x9f."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else IMPOSSIBLE

"""Logprobs in OpenAI's two shapes."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from naiad.dialects.fields import Fields
from naiad.dialects.logprobs import entries, finite, shown, with_counted_logprobs
from naiad.types import SamplingParams, TokenLogprob

_new_decoder = codecs.getincrementaldecoder("utf-8")


def with_text_logprobs(sampling: SamplingParams, fields: Fields) -> SamplingParams:
    """`logprobs` as a number, 0 to 20; the API itself goes up to 5. true is 1, false is none.

    llama-server's `n_probs` counts too; there 0 asks for nothing.
    """
    name, _ = fields.find("logprobs", "n_probs")
    is_off_at_0 = name == "n_probs"
    return with_counted_logprobs(sampling, fields, "logprobs", "n_probs", is_off_at_0=is_off_at_0)


def chat_logprobs(told: Sequence[TokenLogprob]) -> dict[str, Any]:
    """{"content": [{token, logprob, bytes, top_logprobs}, ...]}"""
    return {"content": entries(told), "refusal": None}


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
            "tokens": [shown(one.data) for one in told],
            "token_logprobs": [finite(one.logprob) for one in told],
            "top_logprobs": top if any(one.top for one in told) else None,
            "text_offset": [self._next_offset(one) for one in told],
        }

    def _next_offset(self, told: TokenLogprob) -> int:
        offset = self._offset
        self._offset += len(self._decoder.decode(told.data))
        return offset


def _by_name(told: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens and, always, the one that was chosen."""
    likely = {shown(one.data): finite(one.logprob) for one in told.top}
    return (
        likely if shown(told.data) in likely else {**likely, shown(told.data): finite(told.logprob)}
    )

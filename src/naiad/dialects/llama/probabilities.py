"""Probabilities as llama-server tells them: `completion_probabilities`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from naiad.types import Likely, TokenLogprob

#: What llama-server writes for a token that was impossible: the least float of 32 bits.
_IMPOSSIBLE = -3.4028234663852886e38


def probabilities(told: Sequence[TokenLogprob], *, is_after: bool) -> list[dict[str, Any]]:
    """[{id, token, bytes, logprob, top_logprobs}, ...], each of the top ones without more below it.

    is_after: of what the samplers left; these are `prob` and `top_probs`, from 0 to 1.
    """
    top = "top_probs" if is_after else "top_logprobs"
    return [{**_entry(one, is_after), top: [_entry(x, is_after) for x in one.top]} for one in told]


def _entry(one: TokenLogprob | Likely, is_after: bool) -> dict[str, Any]:
    data = one.data
    told = {"id": one.token, "token": data.decode("utf-8", "ignore"), "bytes": list(data)}
    if is_after:
        return {**told, "prob": math.exp(one.logprob)}
    return {**told, "logprob": max(one.logprob, _IMPOSSIBLE)}

"""Logprobs: the fields that ask for them, and what the dialects' ways to tell them share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from naiad.dialects.fields import Fields, boolean, integer
from naiad.errors import InvalidRequest
from naiad.types import Likely, SamplingParams, TokenLogprob

#: Of the likeliest tokens at each place, the most that can be told of.
MAX_TOP = 20

#: What OpenAI's API writes for a token that was impossible; JSON has no infinity.
IMPOSSIBLE = -9999.0


def with_switched_logprobs(sampling: SamplingParams, fields: Fields) -> SamplingParams:
    """`logprobs` true or false, and with it `top_logprobs`, 0 to 20."""
    is_wanted = fields.get(boolean, "logprobs") or False
    n_top = fields.get(integer(0, MAX_TOP), "top_logprobs") or 0
    if n_top and not is_wanted:
        raise InvalidRequest(
            "'top_logprobs' tells how many to send with 'logprobs', which must then be true.",
            param="top_logprobs",
        )
    return asking(sampling, n_top if is_wanted else None, fields)


def with_counted_logprobs(
    sampling: SamplingParams,
    fields: Fields,
    *names: str,
    if_true: int = 1,
    is_off_at_0: bool = True,
) -> SamplingParams:
    """Under the first of these names, how many of the likeliest tokens to tell of, 0 to 20.

    if_true: how many `true` means. is_off_at_0: whether 0 asks for nothing, not even for the
    token that was chosen.
    """
    name, value = fields.find(*names)
    if isinstance(value, bool):
        value = if_true if value else None
    n_top = None if value is None else integer(0, MAX_TOP)(name, value)
    return asking(sampling, (n_top or None) if is_off_at_0 else n_top, fields)


def asking(sampling: SamplingParams, n_top: int | None, fields: Fields) -> SamplingParams:
    """Telling of so many; None for nothing. `post_sampling_probs`: of what the samplers left."""
    is_after = fields.get(boolean, "post_sampling_probs") or False  # llama-server's name
    if n_top is None:
        return sampling
    return msgspec.structs.replace(sampling, n_logprobs=n_top, logprobs_after=is_after)


def entries(told: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """[{token, logprob, bytes, top_logprobs}, ...], as OpenAI's chats and Ollama write them."""
    return [{**entry(one), "top_logprobs": [entry(x) for x in one.top]} for one in told]


def entry(one: TokenLogprob | Likely) -> dict[str, Any]:
    """{token, logprob, bytes}"""
    return {"token": shown(one.data), "logprob": finite(one.logprob), "bytes": list(one.data)}


def shown(data: bytes) -> str:
    """The token as text; a part of a character as OpenAI's API writes it, bytes:\\xf0\\x9f."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def finite(logprob: float) -> float:
    """What JSON can hold."""
    return logprob if math.isfinite(logprob) else IMPOSSIBLE

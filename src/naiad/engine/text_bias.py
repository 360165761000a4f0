"""Biases by text: where the vocabulary is at hand, they become biases by id."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from naiad.types import SamplingParams


def with_text_biases(params: SamplingParams, encode: Callable[[str], list[int]]) -> SamplingParams:
    """The same parameters with `text_bias` resolved: each token of a text gets its bias.

    encode: tokenises without adding special tokens.
    """
    if not params.text_bias:
        return params
    found = [(token, bias) for text, bias in params.text_bias for token in set(encode(text))]
    biases = (*params.logit_bias, *found)
    return msgspec.structs.replace(params, logit_bias=biases, text_bias=())

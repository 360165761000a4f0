"""A model's size in its short description: counted, where llama.cpp guesses by layers."""

from __future__ import annotations

import re

#: Architecture, size, type of the weights, as llama_model_desc puts them: "llama 256M Q4_1",
#: "llama4 17Bx16E (Scout) Q4_K - Medium". The size is that of a known model with as many layers.
_DESCRIPTION = re.compile(r"(\S+) \S+(?: \([^)]*\))? (\S.*)")


def with_count(description: str, n_params: int) -> str:
    """The description with the number of weights in place of the guess; else as it is."""
    found = _DESCRIPTION.fullmatch(description)
    return f"{found[1]} {short_count(n_params)} {found[2]}" if found and n_params else description


def short_count(n: int) -> str:
    """A number of weights as in names of models: three digits and a letter, e.g. 135M, 1.24B."""
    for size, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if n >= size * 0.9995:
            return f"{n / size:.3g}{letter}"
    return str(n)

"""The look-back model: the next character is the one after the character K places back.

One attention layer. A token's embedding is a constant channel and a random unit code. Query and
key read the constant channel alone, so the score of two tokens depends on their distance d only:
with the key (A, 0) and the query (A cos(-theta K), A sin(-theta K)) in every rotary pair, the score
after rotary coding is A squared times the sum over the pairs of cos(theta (d - K)), which peaks at
d = K. The value copies the code found there, and the output row of its successor is that code.

So each answer token reads one particular cell of the KV cache: a cell that is missing, stale,
shifted or of another sequence changes the text.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from naiad.testing.exact_models import (
    HEAD_SIZE,
    N_CHANNELS,
    N_HEADS,
    N_VOCAB,
    Weights,
    successor,
    successor_rows,
    unit_codes,
    write_model,
)

if TYPE_CHECKING:
    from naiad.testing.exact_models import Matrix

ROPE_BASE = 200.0
SHARPNESS = 6.0  # A above: how far the right cell's score stands out
MAX_BACK = 2000


def lookback_text(prompt: str, n: int, back: int = 40) -> str:
    """The only right answer of n characters to a prompt of at least back + 1 characters.

    Raises:
        ValueError: the prompt is too short: the first answer would look before its start.
    """
    if len(prompt) <= back:
        raise ValueError(
            f"a prompt must be longer than {back} characters, this one has {len(prompt)}"
        )
    text = list(prompt)
    for _ in range(n):
        text.append(successor(text[-back - 1]))
    return "".join(text[len(prompt) :])


def build_lookback(path: Path, back: int = 40) -> Path:
    """Write the look-back model to `path` and return it. Deterministic; 10 MB; needs `gguf`.

    Args:
        back: how many places before the last token the answer is read, 1 to 2000.

    Raises:
        ValueError: `back` is out of range.
    """
    import numpy as np

    if not 1 <= back <= MAX_BACK:
        raise ValueError(f"back must be 1 to {MAX_BACK}, not {back}")
    codes = unit_codes(N_CHANNELS - 1)
    constant = np.ones((N_VOCAB, 1), np.float32)
    query, key = _rotary_query_and_key(back)
    copy = np.eye(N_CHANNELS, dtype=np.float32)
    copy[0, 0] = 0.0  # the constant channel says nothing about the token
    weights = Weights(
        embedding=np.concatenate([constant, codes], axis=1),
        output=np.concatenate([np.zeros_like(constant), successor_rows(codes)], axis=1),
        query=_from_constant_channel(query),
        key=_from_constant_channel(key),
        value=copy,
        attention_output=np.eye(N_CHANNELS, dtype=np.float32),
    )
    write_model(path, f"lookback-{back}", weights, ROPE_BASE)
    return path


def _rotary_query_and_key(back: int) -> tuple[Matrix, Matrix]:
    """One head's query and key, as pairs to be rotated by position."""
    import numpy as np

    theta = ROPE_BASE ** (-2.0 * np.arange(HEAD_SIZE // 2) / HEAD_SIZE)
    query, key = np.zeros((2, HEAD_SIZE), np.float32)
    query[0::2] = SHARPNESS * np.cos(-theta * back)
    query[1::2] = SHARPNESS * np.sin(-theta * back)
    key[0::2] = SHARPNESS
    return query, key


def _from_constant_channel(head: Matrix) -> Matrix:
    """A projection that gives every head this vector, whatever the token.

    The embedding has length sqrt(2), so the norm before attention multiplies its constant channel
    by sqrt(N_CHANNELS / 2), which is divided out here.
    """
    import numpy as np

    weights = np.zeros((N_CHANNELS, N_CHANNELS), np.float32)
    weights[:, 0] = np.tile(head, N_HEADS) / np.float32((N_CHANNELS / 2) ** 0.5)
    return weights

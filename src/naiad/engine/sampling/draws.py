"""Draws keyed by their place, never by how many came before.

So a stream can be resumed, replayed, preempted or rewound and still say the same. blake2b serves as
the counter-based generator (0.7 us a draw; NumPy's Philox takes ten times that).
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import numpy.typing as npt

_TWO_POW_64 = float(1 << 64)

Floats = npt.NDArray[np.float64]


def uniform(seed: int, choice: int, position: int, purpose: bytes = b"") -> float:
    """The draw in [0, 1) that belongs to this place of this stream.

    purpose: at most 16 bytes; draws for different purposes at one place are independent.
    """
    key = struct.pack("<QQQ", seed & (2**64 - 1), choice, position)
    digest = hashlib.blake2b(key, digest_size=8, person=purpose).digest()
    return float(int.from_bytes(digest, "little") >> 11) * (2048.0 / _TWO_POW_64)


def weights_of(logits: npt.NDArray[np.float32]) -> Floats:
    """Softmax before it is divided by its sum; the greatest weight is 1."""
    away = down_from_top(logits)
    return np.exp(away, out=away)


def down_from_top(logits: npt.NDArray[np.float32]) -> Floats:
    """Each logit less the greatest. Exact; the ufuncs themselves, as arrays here are short."""
    away: Floats = np.subtract(logits, np.maximum.reduce(logits), dtype=np.float64)
    return away


def shares_of(logits: npt.NDArray[np.float32]) -> Floats:
    """Softmax."""
    weights = weights_of(logits)
    weights /= np.add.reduce(weights)
    return weights


def pick(cumulative: Floats, u: float) -> int:
    """The place where a running sum passes the share u of its total."""
    index = int(cumulative.searchsorted(u * cumulative[-1], side="right"))
    return min(index, len(cumulative) - 1)


def draw_from(ids: npt.NDArray[np.int32], logits: npt.NDArray[np.float32], u: float) -> int:
    """The token where the running sum of the candidates' softmax passes u."""
    if len(ids) == 1:
        return int(ids[0])
    return int(ids[pick(weights_of(logits).cumsum(), u)])


def draw(rows: npt.NDArray[np.void], u: float) -> int:
    """As draw_from, of llama.cpp's candidates."""
    return draw_from(rows["id"], rows["logit"], u)

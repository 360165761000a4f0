"""A batch of tokens for one decode, filled through NumPy views (item by item costs 100x)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llama_cpp as lib
import numpy as np
import numpy.typing as npt

import ctypes  # isort: skip


class Batch:
    """Room for `capacity` tokens, each of exactly one sequence.

    The arrays are ours and llama.cpp only reads them; the pointers are set once.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.n_tokens = 0
        self.token: npt.NDArray[np.int32] = np.zeros(capacity, np.int32)
        self.pos: npt.NDArray[np.int32] = np.zeros(capacity, np.int32)
        self.seq: npt.NDArray[np.int32] = np.zeros(capacity, np.int32)
        self.want_logits: npt.NDArray[np.int8] = np.zeros(capacity, np.int8)
        self._n_seq: npt.NDArray[np.int32] = np.ones(capacity, np.int32)
        base = self.seq.ctypes.data
        self._seq_pointers = base + 4 * np.arange(capacity, dtype=np.uint64)
        self._native = lib.llama_batch(
            n_tokens=0,
            token=_pointer(self.token, "token"),
            embd=None,
            pos=_pointer(self.pos, "pos"),
            n_seq_id=_pointer(self._n_seq, "n_seq_id"),
            seq_id=_pointer(self._seq_pointers, "seq_id"),
            logits=_pointer(self.want_logits, "logits"),
        )

    def clear(self) -> None:
        self.n_tokens = 0

    def add(self, seq: int, tokens: Sequence[int], start: int, *, n_logits: int) -> int:
        """Append tokens of one sequence at positions start, start + 1, ...

        Returns the index of the last one. Logits will be computed for the last n_logits tokens.
        """
        first, end = self.n_tokens, self.n_tokens + len(tokens)
        self.token[first:end] = tokens
        self.pos[first:end] = np.arange(start, start + len(tokens), dtype=np.int32)
        self.seq[first:end] = seq
        self.want_logits[first:end] = 0
        self.want_logits[end - n_logits : end] = 1
        self.n_tokens = end
        return end - 1

    def native(self) -> Any:
        """The struct to hand to llama_decode, valid until the next change."""
        self._native.n_tokens = self.n_tokens
        return self._native


def _pointer(array: npt.NDArray[Any], field: str) -> Any:
    kind = dict(lib.llama_batch._fields_)[field]
    return ctypes.cast(array.ctypes.data, kind)

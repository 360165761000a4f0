"""Sampler chains: llama.cpp's own stages in an order given as data, applied to candidates."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterable

import llama_cpp as lib
import numpy as np
import numpy.typing as npt

#: One candidate as llama.cpp lays it out: id, logit, probability.
CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Candidates:
    """A reusable candidate array of up to n_vocab entries."""

    def __init__(self, n_vocab: int) -> None:
        self.rows: npt.NDArray[np.void] = np.zeros(n_vocab, CANDIDATE)
        self._ids: npt.NDArray[np.int32] = np.arange(n_vocab, dtype=np.int32)
        self._native = lib.llama_token_data_array()

    def fill(self, logits: npt.NDArray[np.float32]) -> None:
        """Take every token with its logit."""
        self.rows["id"] = self._ids
        self.rows["logit"] = logits
        self._native.data = ctypes.cast(self.rows.ctypes.data, lib.llama_token_data_p)
        self._native.size = len(self.rows)
        self._native.selected = -1
        self._native.sorted = False

    def apply(self, chain: SamplerChain) -> npt.NDArray[np.void]:
        """Run a chain; returns the candidates that are left, a view valid until the next fill."""
        lib.llama_sampler_apply(chain.handle, ctypes.byref(self._native))
        address = ctypes.cast(self._native.data, ctypes.c_void_p).value or 0
        start, rest = divmod(address - self.rows.ctypes.data, CANDIDATE.itemsize)
        end = start + self._native.size
        assert rest == 0 and 0 <= start <= end <= len(self.rows), "a stage left our array"
        return self.rows[start:end]


class SamplerChain:
    """Owner of a native chain. Stages run in the order they were added."""

    def __init__(self) -> None:
        self._resources = contextlib.ExitStack()
        self.handle = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        self._resources.callback(lib.llama_sampler_free, self.handle)

    def add_logit_bias(self, n_vocab: int, biases: Iterable[tuple[int, float]]) -> None:
        rows = [lib.llama_logit_bias(token, bias) for token, bias in biases]
        array = (lib.llama_logit_bias * len(rows))(*rows)
        self._add(lib.llama_sampler_init_logit_bias(n_vocab, len(rows), array))

    def add_penalties(
        self, n_vocab: int, last_n: int, repeat: float, frequency: float, presence: float
    ) -> None:
        """last_n: tokens looked back over, already resolved (no -1)."""
        self._add(lib.llama_sampler_init_penalties(n_vocab, last_n, repeat, frequency, presence))

    def add_top_k(self, k: int) -> None:
        self._add(lib.llama_sampler_init_top_k(k))

    def add_top_p(self, p: float) -> None:
        self._add(lib.llama_sampler_init_top_p(p, 1))

    def add_min_p(self, p: float) -> None:
        self._add(lib.llama_sampler_init_min_p(p, 1))

    def add_typical(self, p: float) -> None:
        self._add(lib.llama_sampler_init_typical(p, 1))

    def add_temperature(self, temperature: float) -> None:
        self._add(lib.llama_sampler_init_temp(temperature))

    def _add(self, stage: object) -> None:
        lib.llama_sampler_chain_add(self.handle, stage)  # the chain owns the stage from here on

    def accept(self, token: int) -> None:
        """Tell the stages that look back which token came."""
        lib.llama_sampler_accept(self.handle, token)

    def close(self) -> None:
        """Free the chain and its stages. Safe to call twice."""
        self._resources.close()
        self.handle = None

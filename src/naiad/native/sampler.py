"""Sampler chains: llama.cpp's own stages in an order given as data, applied to candidates."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterable
from functools import cached_property

import llama_cpp as lib
import numpy as np
import numpy.typing as npt

#: One candidate as llama.cpp lays it out: id, logit, probability.
CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])

Ids = npt.NDArray[np.int32]
Logits = npt.NDArray[np.float32]


class Candidates:
    """A reusable candidate array of up to n_vocab entries, and room to work on rows of logits.

    For one thread at a time.
    """

    def __init__(self, n_vocab: int) -> None:
        self.rows: npt.NDArray[np.void] = np.zeros(n_vocab, CANDIDATE)
        self._address = int(self.rows.ctypes.data)
        self._first = ctypes.cast(self._address, lib.llama_token_data_p)
        self._native = lib.llama_token_data_array()

    @cached_property
    def ids(self) -> Ids:
        """0, 1, 2, ...: not to be written to."""
        return np.arange(len(self.rows), dtype=np.int32)

    @cached_property
    def flags(self) -> npt.NDArray[np.bool_]:
        """Scratch, one per token."""
        return np.empty(len(self.rows), np.bool_)

    @cached_property
    def floats(self) -> Logits:
        """Scratch, one per token."""
        return np.empty(len(self.rows), np.float32)

    def fill(self, logits: Logits) -> None:
        """Take every token with its logit."""
        self._take(self.ids, logits)

    def _take(self, ids: Ids, logits: Logits) -> None:
        rows = self.rows[: len(ids)]
        rows["id"] = ids
        rows["logit"] = logits
        self._native.data = self._first
        self._native.size = len(ids)
        self._native.selected = -1
        self._native.sorted = False

    def apply(self, chain: SamplerChain) -> npt.NDArray[np.void]:
        """Run a chain; returns the candidates that are left, a view valid until the next fill."""
        lib.llama_sampler_apply(chain.handle, ctypes.byref(self._native))
        address = ctypes.cast(self._native.data, ctypes.c_void_p).value or 0
        start, rest = divmod(address - self._address, CANDIDATE.itemsize)
        end = start + self._native.size
        assert rest == 0 and 0 <= start <= end <= len(self.rows), "a stage left our array"
        return self.rows[start:end]

    def run(self, chain: SamplerChain, ids: Ids, logits: Logits) -> tuple[Ids, Logits]:
        """Run a chain over some candidates; returns copies of those that are left."""
        self._take(ids, logits)
        rows = self.apply(chain)
        return rows["id"].copy(), rows["logit"].copy()


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

    def add_top_n_sigma(self, n: float) -> None:
        self._add(lib.llama_sampler_init_top_n_sigma(n))

    def add_temperature(self, temperature: float, spread: float = 0.0, power: float = 1.0) -> None:
        """spread > 0: temperature -+ spread, by the candidates' entropy to this power."""
        self._add(lib.llama_sampler_init_temp_ext(temperature, spread, power))

    def add_xtc(self, probability: float, threshold: float, seed: int) -> None:
        """Draws from a generator of its own, as do the two below: for comparisons."""
        self._add(lib.llama_sampler_init_xtc(probability, threshold, 1, seed))

    def add_adaptive_p(self, target: float, decay: float, seed: int) -> None:
        self._add(lib.llama_sampler_init_adaptive_p(target, decay, seed))

    def add_draw(self, seed: int) -> None:
        self._add(lib.llama_sampler_init_dist(seed))

    def _add(self, stage: object) -> None:
        lib.llama_sampler_chain_add(self.handle, stage)  # the chain owns the stage from here on

    def accept(self, token: int) -> None:
        """Tell the stages that look back which token came."""
        lib.llama_sampler_accept(self.handle, token)

    def close(self) -> None:
        """Free the chain and its stages. Safe to call twice."""
        self._resources.close()
        self.handle = None

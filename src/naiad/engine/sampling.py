"""Choosing the next token of one sequence: a chain of stages, then a draw of our own.

The draw is keyed by (seed, choice, position), never by how many draws came before, so a stream can
be resumed, replayed or preempted and still say the same. blake2b serves as the counter-based
generator (0.7 us a draw; NumPy's Philox takes ten times that).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

from naiad.native.sampler import Candidates, SamplerChain
from naiad.types import SamplingParams

import numpy as np  # isort: skip  (after llama_cpp)
import numpy.typing as npt  # isort: skip

Logits = npt.NDArray[np.float32]
_TWO_POW_64 = float(1 << 64)
#: Below this temperature logits overflow when divided by it; the draw is the greedy choice anyway.
_COLDEST = 1e-5


def uniform(seed: int, choice: int, position: int) -> float:
    """The draw in [0, 1) that belongs to this place of this stream."""
    key = struct.pack("<QQQ", seed & (2**64 - 1), choice, position)
    digest = hashlib.blake2b(key, digest_size=8).digest()
    return float(int.from_bytes(digest, "little") >> 11) * (2048.0 / _TWO_POW_64)


def draw(rows: npt.NDArray[np.void], u: float) -> int:
    """The token where the running sum of the candidates' softmax passes u."""
    logits = rows["logit"].astype(np.float64)
    weights = np.exp(logits - logits.max())
    cumulative = np.cumsum(weights)
    index = int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))
    return int(rows["id"][min(index, len(rows) - 1)])


_Stage = Callable[[SamplerChain, SamplingParams, int, int], None]


def _logit_bias(chain: SamplerChain, p: SamplingParams, n_vocab: int, _n_ctx: int) -> None:
    inside = [(token, bias) for token, bias in p.logit_bias if 0 <= token < n_vocab]
    if inside:
        chain.add_logit_bias(n_vocab, inside)


def _penalties(chain: SamplerChain, p: SamplingParams, n_vocab: int, n_ctx: int) -> None:
    last_n = n_ctx if p.penalty_last_n < 0 else min(p.penalty_last_n, n_ctx)
    if last_n and (p.repetition_penalty, p.frequency_penalty, p.presence_penalty) != (1, 0, 0):
        chain.add_penalties(
            n_vocab, last_n, p.repetition_penalty, p.frequency_penalty, p.presence_penalty
        )


def _top_k(chain: SamplerChain, p: SamplingParams, _n_vocab: int, _n_ctx: int) -> None:
    if p.top_k > 0:
        chain.add_top_k(p.top_k)


def _typical(chain: SamplerChain, p: SamplingParams, _n_vocab: int, _n_ctx: int) -> None:
    if p.typical_p < 1:
        chain.add_typical(p.typical_p)


def _top_p(chain: SamplerChain, p: SamplingParams, _n_vocab: int, _n_ctx: int) -> None:
    if p.top_p < 1:
        chain.add_top_p(p.top_p)


def _min_p(chain: SamplerChain, p: SamplingParams, _n_vocab: int, _n_ctx: int) -> None:
    if p.min_p > 0:
        chain.add_min_p(p.min_p)


def _temperature(chain: SamplerChain, p: SamplingParams, _n_vocab: int, _n_ctx: int) -> None:
    if p.temperature != 1:
        chain.add_temperature(p.temperature)


#: Stages that can move the most likely token: all a greedy request needs.
_SHAPING: dict[str, _Stage] = {"logit_bias": _logit_bias, "penalties": _penalties}
#: Stages that only cut or flatten the distribution.
_CUTTING: dict[str, _Stage] = {
    "top_k": _top_k,
    "typical_p": _typical,
    "top_p": _top_p,
    "min_p": _min_p,
    "temperature": _temperature,
}
STAGES: dict[str, _Stage] = _SHAPING | _CUTTING
DEFAULT_ORDER: tuple[str, ...] = tuple(STAGES)


class Sampler:
    """One sequence's chain.

    Args:
        params: the request's settings.
        n_vocab: size of the vocabulary.
        n_ctx: what a look-back of -1 means.
        eog: end-of-generation tokens, which `ignore_eos` forbids.
        prompt: tokens the penalties look back over from the start.
    """

    def __init__(
        self,
        params: SamplingParams,
        n_vocab: int,
        n_ctx: int,
        eog: frozenset[int],
        prompt: list[int],
    ) -> None:
        self._params = params
        self._banned = np.fromiter(eog if params.ignore_eos else (), np.intp)
        self._chain: SamplerChain | None = SamplerChain()
        self._is_greedy = params.is_greedy or params.temperature < _COLDEST
        order = _SHAPING if self._is_greedy else DEFAULT_ORDER
        for name in order:
            STAGES[name](self._chain, params, n_vocab, n_ctx)
        self._is_plain = self._is_greedy and not self._looks_back() and not params.logit_bias
        if self._looks_back():
            last_n = params.penalty_last_n if params.penalty_last_n >= 0 else n_ctx
            for token in prompt[-last_n:]:
                self._chain.accept(token)

    def _looks_back(self) -> bool:
        p = self._params
        neutral = (p.repetition_penalty, p.frequency_penalty, p.presence_penalty) == (1, 0, 0)
        return p.penalty_last_n != 0 and not neutral

    def sample(self, logits: Logits, position: int, candidates: Candidates) -> int:
        """The next token. `logits` is shape (n_vocab,) and may be written to."""
        if self._banned.size:
            logits[self._banned] = -np.inf
        if self._is_plain or self._chain is None:
            return int(logits.argmax())
        candidates.fill(logits)
        rows = candidates.apply(self._chain)
        if self._is_greedy:
            token = int(rows["id"][rows["logit"].argmax()])
        else:
            token = draw(rows, uniform(self._params.seed, 0, position))
        self._chain.accept(token)
        return token

    def close(self) -> None:
        if self._chain is not None:
            self._chain.close()
            self._chain = None

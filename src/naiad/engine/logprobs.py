"""How likely a stream's tokens were: log-probabilities, for those who ask.

By default they are the model's own: ln softmax of its logits as they come, before biases, masks,
penalties and every other stage, whatever the request's sampling does. After the samplers they are
those of the distribution that the token was drawn from; what the stages left out is not in it.
"""

from __future__ import annotations

import math
from typing import Protocol

from naiad.engine.sampling.rows import Left, Row, descending, largest, log_total
from naiad.engine.sampling.sampler import Mask, Sampler
from naiad.native.sampler import Candidates, Logits
from naiad.types import Likely, TokenLogprob

import numpy as np  # isort: skip  (after llama_cpp)


class Pieces(Protocol):
    """What is needed of a vocabulary."""

    eog: frozenset[int]

    def piece(self, token: int, *, special: bool = False) -> bytes: ...


class Scribe:
    """Tells of one stream's tokens.

    Args:
        n_top: how many of the likeliest tokens to name at each place; 0 or more.
        scratch: of the vocabulary's size; may be shared, used only within `tell`.
        is_after: of what the samplers left, not of the model's own distribution.

    row: the logits of the next token; to be set before each `tell`, and only read.
    """

    def __init__(
        self, vocab: Pieces, n_top: int, scratch: Candidates, *, is_after: bool = False
    ) -> None:
        self.row: Logits = np.zeros(0, np.float32)
        self.is_after = is_after
        self._vocab = vocab
        self._n_top = n_top
        self._scratch = scratch

    def tell(
        self,
        sampler: Sampler,
        token: int,
        position: int,
        mask: Mask | None = None,
        *,
        is_forced: bool = False,
    ) -> TokenLogprob:
        """Of a token that the sampler has not yet accepted.

        position: its place, which keys stages that draw. mask: what a grammar allowed there.
        is_forced: it was not drawn, so after the samplers it was certain.
        """
        if not self.is_after:
            logprob, top = self._before(token)
        elif is_forced:
            logprob, top = 0.0, [(token, 0.0)][: self._n_top]
        else:
            left = sampler.distribution(self.row, position, self._scratch, mask)
            logprob, top = self._of(left, token)
        piece = self._vocab.piece
        data = b"" if token in self._vocab.eog else piece(token)
        named = tuple(Likely(one, piece(one, special=True), p) for one, p in top)
        return TokenLogprob(token, data, logprob, named)

    def _before(self, token: int) -> tuple[float, list[tuple[int, float]]]:
        row = Row(self.row, 1.0, self._scratch, has_columns=self._n_top > 0)
        best = largest(row, self._n_top) if self._n_top else None  # first: both use the scratch
        total = row.top + log_total(row)
        logprob = float(self.row[token]) - total
        return logprob, [] if best is None else _pairs(best, total)

    def _of(self, left: Left, token: int) -> tuple[float, list[tuple[int, float]]]:
        """Within a distribution over few tokens."""
        if not len(left.ids):
            return -math.inf, []
        logits = left.logits.astype(np.float64)
        total = float(logits.max() + np.log(np.exp(logits - logits.max()).sum()))
        at = np.flatnonzero(left.ids == token)
        logprob = float(logits[at[0]]) - total if len(at) else -math.inf
        ids, ordered = descending(left)
        return logprob, _pairs(Left(ids[: self._n_top], ordered[: self._n_top]), total)


def _pairs(left: Left, total: float) -> list[tuple[int, float]]:
    return [(int(i), float(x) - total) for i, x in zip(left.ids, left.logits, strict=True)]

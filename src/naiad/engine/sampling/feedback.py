"""Stages whose aim moves with what was chosen: mirostat and adaptive-p.

Their state is a pair of numbers at most, so it is kept for every token: going back is dropping the
last ones. `Sampler.state` gives the newest, with which a stream can go on elsewhere.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from array import array

import numpy as np

from naiad.engine.sampling.draws import Floats, shares_of
from naiad.engine.sampling.rows import Left, Row, above, descending, largest, log_total
from naiad.native.sampler import Ids, Logits
from naiad.types import SamplingParams

_LN_2 = math.log(2)
_ESTIMATE_FROM = 100  # tokens mirostat 1 estimates the distribution's shape from

State = tuple[float, ...]


class Feedback(ABC):
    """Base of both: cuts or reshapes the candidates, then learns which of them was drawn."""

    def __init__(self, state: State) -> None:
        self._width = len(state)
        self._states = array("d", state)
        self._drawn: tuple[int, float] | None = None
        self._ids: Ids = np.empty(0, np.int32)
        self._shares: Floats = np.empty(0)

    @property
    def state(self) -> State:
        """After the last accepted token."""
        return tuple(self._states[-self._width :])

    def reshape(self, left: Left) -> Left:
        """The candidates to draw from; remembers each one's share."""
        self._ids, self._shares = left.ids, shares_of(left.logits)
        return left

    def drew(self, token: int) -> None:
        """Which one was drawn of those last reshaped. Nothing is learnt before it is accepted."""
        place = int((self._ids == token).argmax())
        self._drawn = token, float(self._shares[place])

    def accept(self, token: int) -> None:
        """A token came. One that was not drawn here (a forced one) teaches nothing."""
        is_drawn = self._drawn is not None and self._drawn[0] == token
        share = self._drawn[1] if self._drawn and is_drawn else None
        self._states.extend(self.state if share is None else self.after(share))
        self._drawn = None

    def rewind(self, n_tokens: int) -> None:
        del self._states[len(self._states) - n_tokens * self._width :]
        self._drawn = None

    @abstractmethod
    def after(self, share: float) -> State:
        """The state after a token with this share of the probability was drawn."""


class Mirostat(Feedback):
    """Keeps the surprise of what is drawn near tau bits.

    Source: Basu et al., "Mirostat", arXiv 2007.14966. mu begins at 2 tau; after each token
    mu -= eta * (surprise - tau), where the surprise is -log2 of its share among those it was drawn
    from. Version 2 keeps the tokens whose surprise is at most mu; version 1 keeps the k best, with
    k estimated from mu and the slope of the 100 best tokens' logits (Zipf's law).
    """

    def __init__(self, p: SamplingParams, n_vocab: int, state: State = ()) -> None:
        super().__init__(state or (2 * p.mirostat_tau,))
        self._p = p
        self._n_vocab = n_vocab

    def open(self, row: Row) -> Left:
        """The cut, of a whole row."""
        if self._p.mirostat == 1:
            best = largest(row, _ESTIMATE_FROM)
            return largest(row, self._n_kept(best.logits * np.float32(row.scale)))
        return above(row, row.top + (log_total(row) - self.state[0] * _LN_2) / row.scale)

    def cut(self, left: Left) -> Left:
        """The cut, of candidates."""
        ids, logits = descending(left)
        if self._p.mirostat == 1:
            n = self._n_kept(logits[:_ESTIMATE_FROM])
        else:
            least = 2.0 ** -self.state[0]
            n = max(1, int(np.count_nonzero(shares_of(logits) >= least)))
        return Left(ids[:n], logits[:n])

    def _n_kept(self, best: Logits) -> int:
        """Mirostat 1's k for the best tokens' logits, best first."""
        best = best[np.isfinite(best)]
        if len(best) < 2:
            return 1
        places = np.arange(1, len(best), dtype=np.float64)
        steps = np.log((places + 1) / places)
        drops = -np.diff(best.astype(np.float64))
        slope = float(steps @ drops) / float(steps @ steps)
        excess = slope - 1
        if abs(excess) < 1e-9 or slope <= 0:
            return 1 if slope > 0 else self._n_vocab
        spread = 1 - float(self._n_vocab) ** -excess
        try:
            k = (excess * 2.0 ** self.state[0] / spread) ** (1 / slope)
        except OverflowError:
            return self._n_vocab
        return int(min(max(k, 1), self._n_vocab))

    def after(self, share: float) -> State:
        surprise = -math.log2(max(share, 1e-300))
        return (self.state[0] - self._p.mirostat_eta * (surprise - self._p.mirostat_tau),)


class AdaptiveP(Feedback):
    """Draws tokens near a share of the probability that moves so that their average is the target.

    Source: llama.cpp's adaptive-p stage. With s = the decayed sum of drawn shares and w = that of
    ones, the next aim is 2 * target - s / w, within [0, 1]; each logit becomes
    5 - 10 * d * d / (1 + d), where d = |share - aim| / 0.3. After a token s = share + decay * s
    and w = 1 + decay * w; both begin as if the target had always been met.
    """

    def __init__(self, p: SamplingParams, state: State = ()) -> None:
        self._target = min(p.adaptive_target, 1.0)
        self._decay = min(max(p.adaptive_decay, 0.0), 0.99)
        weight = 1 / (1 - self._decay)
        super().__init__(state or (self._target * weight, weight))

    def reshape(self, left: Left) -> Left:
        super().reshape(left)
        total, weight = self.state
        aim = min(max(2 * self._target - total / weight, 0.0), 1.0)
        away = np.abs(self._shares - aim) / 0.3
        logits = (5 - 10 * away * away / (1 + away)).astype(np.float32)
        logits[left.logits == -np.inf] = -np.inf
        return Left(left.ids, logits)

    def after(self, share: float) -> State:
        total, weight = self.state
        return share + self._decay * total, 1 + self._decay * weight

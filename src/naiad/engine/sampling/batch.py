"""Choosing for many sequences at once, the passes over the vocabulary shared among threads.

NumPy lets go of the interpreter while it works on a long row, so those passes run side by side;
the rest is many short calls, which threads would only make wait for each other.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from naiad.engine.sampling.sampler import NO_TOKEN, Mask, Sampler, Work
from naiad.native.sampler import Candidates, Logits

_MAX_THREADS = 8
#: Logits from which a second thread saves more than waking it costs.
_WORTH_A_THREAD = 500_000


class BatchSampler:
    """Scratch and threads for the rows of a step. `close` ends the threads."""

    def __init__(self, n_vocab: int, n_threads: int | None = None) -> None:
        """n_threads: at least 1; by default one for two processors, at most 8: of two threads on
        two processors, one waits for the other as often as it works."""
        n = n_threads or min(_MAX_THREADS, max(1, (os.cpu_count() or 1) // 2))
        self._n_vocab = n_vocab
        self._scratch = [Candidates(n_vocab)]
        self._n_threads = n
        self._pool: ThreadPoolExecutor | None = None

    def sample(
        self,
        samplers: Sequence[Sampler],
        rows: Sequence[Logits],
        positions: Sequence[int],
        masks: Sequence[Mask | None] | None = None,
    ) -> list[int]:
        """One token for each row, accepted by its sampler unless it is NO_TOKEN.

        Each sampler may stand here once: its next row depends on what it accepts. The tokens are
        those that Sampler.sample would give.
        """
        tokens = self.choose(samplers, rows, positions, masks)
        for sampler, token in zip(samplers, tokens, strict=True):
            if token != NO_TOKEN:
                sampler.accept(token)
        return tokens

    def choose(
        self,
        samplers: Sequence[Sampler],
        rows: Sequence[Logits],
        positions: Sequence[int],
        masks: Sequence[Mask | None] | None = None,
    ) -> list[int]:
        """As sample, but nothing is accepted."""
        first = self._scratch[0]
        allowed = masks or [None] * len(rows)
        works = [
            sampler.begin(row, position, first, mask)
            for sampler, row, position, mask in zip(samplers, rows, positions, allowed, strict=True)
        ]
        self._cut(samplers, works)
        return [sampler.finish(work) for sampler, work in zip(samplers, works, strict=True)]

    def _cut(self, samplers: Sequence[Sampler], works: list[Work]) -> None:
        n = min(self._n_threads, len(works), len(works) * self._n_vocab // _WORTH_A_THREAD)
        shares = [list(zip(samplers, works, strict=True))[i :: max(n, 1)] for i in range(max(n, 1))]
        while len(self._scratch) < len(shares):
            self._scratch.append(Candidates(self._n_vocab))
        if len(shares) == 1:
            _cut_share(shares[0], self._scratch[0])
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._n_threads - 1, "sampling")
        pairs = zip(shares[1:], self._scratch[1:], strict=False)
        others = [self._pool.submit(_cut_share, share, scratch) for share, scratch in pairs]
        try:
            _cut_share(shares[0], self._scratch[0])
        finally:
            wait(others)
        for other in others:
            other.result()

    def close(self) -> None:
        """Safe to call twice."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def _cut_share(share: list[tuple[Sampler, Work]], scratch: Candidates) -> None:
    for sampler, work in share:
        sampler.cut(work, scratch)

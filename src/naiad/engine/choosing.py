"""What a step's logits become: tokens, ends and errors, in one place for every stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from naiad.engine.executor import Executor
from naiad.engine.sampling import NO_TOKEN, BatchSampler, Sampler
from naiad.engine.sequence import Sequence
from naiad.types import FinishReason


class TokenTable(Protocol):
    """What the engine needs of a vocabulary; see `naiad.native.vocab.Vocab`."""

    n_tokens: int
    eog: frozenset[int]

    def piece(self, token: int, *, special: bool = False) -> bytes: ...


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """A sequence whose logits are there: of run `run`, after its last token and its `draft`."""

    run: int
    sequence: Sequence
    draft: tuple[int, ...] = ()


@dataclass(slots=True)
class Said:
    """What a sequence says in this step; already appended to its tokens. finish: it ends here."""

    tokens: list[int]
    data: bytes = b""
    finish: FinishReason | None = None
    error: str | None = None


class Chooser:
    """Owns the samplers of the running sequences."""

    def __init__(self, executor: Executor, vocab: TokenTable, n_ctx: int) -> None:
        self._executor = executor
        self._vocab = vocab
        self._n_ctx = n_ctx
        self._samplers: dict[int, Sampler] = {}
        self._batch = BatchSampler(vocab.n_tokens)

    @property
    def uids(self) -> set[int]:
        """Whose samplers are here."""
        return set(self._samplers)

    def begin(self, sequence: Sequence) -> None:
        """It will be sampled from now on; once is enough."""
        if sequence.uid not in self._samplers:
            self._samplers[sequence.uid] = Sampler(
                sequence.job.sampling,
                self._vocab.n_tokens,
                self._n_ctx,
                self._vocab.eog,
                sequence.tokens,
                self._vocab.piece,
            )

    def forget(self, uid: int) -> None:
        if sampler := self._samplers.pop(uid, None):
            sampler.close()

    def choose(self, caught_up: list[CaughtUp]) -> list[Said]:
        """One Said for each; drafts are followed as far as they are what is chosen anyway."""
        first = self._batch.sample(
            [self._samplers[c.sequence.uid] for c in caught_up],
            [self._executor.logits(c.run, len(c.draft)) for c in caught_up],
            [c.sequence.position for c in caught_up],
        )
        return [self._say(c, token) for c, token in zip(caught_up, first, strict=True)]

    def _say(self, caught_up: CaughtUp, token: int) -> Said:
        said = Said([])
        self._take(caught_up.sequence, token, said)
        draft = caught_up.draft
        for n_left, guess in zip(range(len(draft) - 1, -1, -1), draft, strict=True):
            if said.finish is not None or token != guess:
                break
            row = self._executor.logits(caught_up.run, n_left)
            sequence = caught_up.sequence
            sampler = self._samplers[sequence.uid]
            [token] = self._batch.sample([sampler], [row], [sequence.position])
            self._take(sequence, token, said)
        return said

    def _take(self, sequence: Sequence, token: int, said: Said) -> None:
        if token == NO_TOKEN:
            said.finish = FinishReason.ERROR
            said.error = (
                "no token can be chosen: the model computed NaN or infinity, or all are banned"
            )
            return
        sequence.tokens.append(token)
        said.tokens.append(token)
        is_end = token in self._vocab.eog
        if is_end and not sequence.job.sampling.bypass_eos:
            said.finish = FinishReason.STOP
            return
        said.data += b"" if is_end else self._vocab.piece(token)
        is_full = len(sequence.tokens) >= self._n_ctx
        if is_full or sequence.n_generated >= sequence.job.max_tokens:
            said.finish = FinishReason.LENGTH

    def close(self) -> None:
        """Safe to call twice."""
        for uid in self.uids:
            self.forget(uid)
        self._batch.close()

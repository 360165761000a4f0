"""What a step's logits become: tokens, ends and errors, in one place for every stream."""

from __future__ import annotations

from dataclasses import dataclass

from naiad.engine.executor import Executor
from naiad.engine.grammar.masks import MaskBatch
from naiad.engine.logprobs import Scribe
from naiad.engine.sampling import BatchSampler, Sampler
from naiad.engine.sequence import Sequence
from naiad.engine.voice import Said, TokenTable, Voice
from naiad.native.sampler import Candidates

__all__ = ["CaughtUp", "Chooser", "Said", "TokenTable"]


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """A sequence whose logits are there: of run `run`, after its last token and its `draft`."""

    run: int
    sequence: Sequence
    draft: tuple[int, ...] = ()


class Chooser:
    """Owns the voices of the running sequences."""

    def __init__(
        self, executor: Executor, vocab: TokenTable, n_ctx: int, *, can_shift: bool = False
    ) -> None:
        self._executor = executor
        self._vocab = vocab
        self._n_ctx = n_ctx
        self._can_shift = can_shift
        self._voices: dict[int, Voice] = {}
        self._batch = BatchSampler(vocab.n_tokens)
        self._masks = MaskBatch(vocab.n_tokens)
        self._scratch: Candidates | None = None  # of the scribes, once there is one

    @property
    def uids(self) -> set[int]:
        """Whose voices are here."""
        return set(self._voices)

    def begin(self, sequence: Sequence) -> None:
        """It will be sampled from now on; once is enough."""
        if sequence.uid in self._voices:
            return
        sampler = Sampler(
            sequence.job.sampling,
            self._vocab.n_tokens,
            self._n_ctx,
            self._vocab.eog,
            sequence.tokens,
            self._vocab.piece,
            choice=sequence.job.sampling.choice,
        )
        may_shift = self._can_shift and sequence.job.shift_at_limit
        scribe = self._scribe_for(sequence)
        voice = Voice(
            sequence, sampler, self._vocab, self._n_ctx, may_shift=may_shift, scribe=scribe
        )
        self._voices[sequence.uid] = voice

    def _scribe_for(self, sequence: Sequence) -> Scribe | None:
        params = sequence.job.sampling
        if params.n_logprobs < 0:
            return None
        if self._scratch is None:
            self._scratch = Candidates(self._vocab.n_tokens)
        is_after = params.logprobs_after
        return Scribe(self._vocab, params.n_logprobs, self._scratch, is_after=is_after)

    def forget(self, uid: int) -> None:
        if voice := self._voices.pop(uid, None):
            voice.close()

    def choose(self, caught_up: list[CaughtUp]) -> list[Said]:
        """One Said for each; drafts are followed as far as they are what is chosen anyway."""
        said = [Said([]) for _ in caught_up]
        voices = [self._voices[c.sequence.uid] for c in caught_up]
        n_before = [len(c.sequence.tokens) for c in caught_up]
        rows = [self._executor.logits(c.run, len(c.draft)) for c in caught_up]
        for voice, row in zip(voices, rows, strict=True):
            voice.sees(row)
        free = [i for i, voice in enumerate(voices) if not voice.force(said[i])]
        filled = self._masks.fill([voices[i].follower for i in free])
        tokens = self._batch.choose(
            [voices[i].sampler for i in free],
            [rows[i] for i in free],
            [caught_up[i].sequence.position for i in free],
            [voices[i].mask(bits) for i, bits in zip(free, filled, strict=True)],
        )
        for i, token in zip(free, tokens, strict=True):
            voices[i].take(token, said[i])
        for c, voice, one, n in zip(caught_up, voices, said, n_before, strict=True):
            self._go_on(c, voice, one, n)
            voice.settle(one)
        return said

    def _go_on(self, caught_up: CaughtUp, voice: Voice, said: Said, n_before: int) -> None:
        """Choose on while the tokens are the draft's, or again where the first choice was banned.

        n_before: tokens of the sequence before this step.
        """
        sequence, draft = caught_up.sequence, caught_up.draft
        while True:
            new = sequence.tokens[n_before:] if not said.is_rewound else []
            said.n_drafted = _n_common(new, draft)
            if said.finish or said.is_rewound or said.n_drafted != len(new):
                return
            row = self._executor.logits(caught_up.run, len(draft) - len(new))
            if voice.sees(row) and voice.force(said):
                continue
            position = sequence.position
            [token] = self._batch.choose([voice.sampler], [row], [position], [voice.mask()])
            voice.take(token, said)

    def close(self) -> None:
        """Safe to call twice."""
        for uid in self.uids:
            self.forget(uid)
        self._batch.close()


def _n_common(tokens: list[int], draft: tuple[int, ...]) -> int:
    """How many leading tokens the two share."""
    n = 0
    while n < min(len(tokens), len(draft)) and tokens[n] == draft[n]:
        n += 1
    return n

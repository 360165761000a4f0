"""Choosing the next token of one sequence: a plan of stages, then a draw keyed by its place."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from naiad.engine.sampling.draws import draw_from
from naiad.engine.sampling.dry import Piece
from naiad.engine.sampling.feedback import State
from naiad.engine.sampling.history import History
from naiad.engine.sampling.plan import Setting, make_plan
from naiad.engine.sampling.rows import Left, Row, draw_whole
from naiad.engine.sampling.shaping import Undo, shape_row, unshape
from naiad.engine.sampling.stages import Moment
from naiad.native.sampler import Candidates, Logits
from naiad.types import SamplingParams

Mask = npt.NDArray[np.bool_]

#: What is chosen where nothing can be: the row holds NaN or infinity, or every token is banned.
NO_TOKEN = -1

#: For each byte of a mask, the most that the logits of its eight tokens may be.
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_LIMITS = np.where(_BITS, np.inf, -np.inf).astype(np.float32)


@dataclass(slots=True)
class Work:
    """One token being chosen. found: already known; left: what was not cut.

    is_shown: the distribution is wanted, not a draw.
    """

    row: Logits
    moment: Moment
    undo: list[Undo]
    found: int | None = None
    left: Left | None = None
    is_shown: bool = False


class Sampler:
    """One sequence's stages and their state.

    Args:
        params: the request's settings.
        n_vocab: size of the vocabulary.
        n_ctx: what a look-back of -1 means.
        eog: end-of-generation tokens, which `ignore_eos` forbids.
        tokens: the prompt, which the penalties look back over from the start. Copied.
        piece: a token's bytes, for DRY's sequence breakers; without it they break nothing.
        choice: which of a request's answers this is.
        state: `state` of a sampler whose stream this one goes on with.
    """

    def __init__(
        self,
        params: SamplingParams,
        n_vocab: int,
        n_ctx: int,
        eog: frozenset[int],
        tokens: list[int],
        piece: Piece | None = None,
        *,
        choice: int = 0,
        state: State = (),
    ) -> None:
        self._seed, self._choice = params.seed, choice
        self._history = History(tokens)
        self._n_accepted = 0
        self._limits: Logits = np.empty((0, 8), np.float32)  # once there is a mask
        self._plan = make_plan(params, self._history, Setting(n_vocab, n_ctx, eog, piece, state))

    @property
    def state(self) -> State:
        """What a stage has learnt from the tokens so far; () where none learns."""
        return self._plan.feedback.state if self._plan.feedback else ()

    # -- choosing ----------------------------------------------------------------------------

    def sample(self, logits: Logits, position: int, candidates: Candidates) -> int:
        """Choose the next token and accept it; NO_TOKEN is not accepted."""
        token = self.choose(logits, position, candidates)
        if token != NO_TOKEN:
            self.accept(token)
        return token

    def choose(
        self, logits: Logits, position: int, candidates: Candidates, mask: Mask | None = None
    ) -> int:
        """The next token, or NO_TOKEN. Changes no state; choosing again gives it again.

        Args:
            logits: shape (n_vocab,). Written to meanwhile, and put back.
            position: of the token in its sequence; keys the draw.
            mask: the tokens a grammar allows, shape (n_vocab,); None for all.
        """
        work = self.begin(logits, position, candidates, mask)
        self.cut(work, candidates)
        return self.finish(work)

    def begin(
        self, logits: Logits, position: int, candidates: Candidates, mask: Mask | None = None
    ) -> Work:
        """First third: biases, bans and penalties go into the row."""
        row = logits if mask is None else self._held_to(mask, logits)
        moment = Moment(self._seed, self._choice, position, candidates)
        head = self._plan.head if self._n_accepted >= self._plan.n_early else self._plan.early_head
        return Work(row, moment, [] if self._may_skip_bans else shape_row(row, head))

    def _held_to(self, mask: Mask, logits: Logits) -> Logits:
        """The logits, with minus infinity for what is masked; NaN may become infinity.

        Eight tokens at a time, whichever they are: choosing one by one waits for guesses that go
        wrong, and takes three to fifteen times as long.
        """
        bits = np.packbits(mask, bitorder="little")
        if len(self._limits) != len(bits):
            self._limits = np.empty((len(bits), 8), np.float32)
        _LIMITS.take(bits, axis=0, out=self._limits, mode="clip")
        row = self._limits.reshape(-1)[: len(logits)]
        return np.fmin(row, logits, out=row)

    def cut(self, work: Work, scratch: Candidates) -> None:
        """Second third: goes through the vocabulary. May run in a thread beside other rows' cuts.

        The row is put back; what is left to do needs only the candidates.
        """
        if self._plan.is_greedy:
            work.found = self._best(work)
        else:
            self._cut(work, scratch)
        unshape(work.row, work.undo)

    @property
    def _may_skip_bans(self) -> bool:
        """Whether it is enough to look at bans once the best token turns out to be banned."""
        plan = self._plan
        return plan.is_greedy and plan.banned is not None and self._n_accepted >= plan.n_early

    def _best(self, work: Work) -> int:
        best = int(work.row.argmax())  # the first NaN, if there is one
        if self._may_skip_bans and best in (self._plan.banned or ()):
            work.undo = shape_row(work.row, self._plan.head)
            best = int(work.row.argmax())
        return best if math.isfinite(work.row[best]) else NO_TOKEN

    def _cut(self, work: Work, scratch: Candidates) -> None:
        plan = self._plan
        row = Row(work.row, plan.scale, scratch, has_columns=plan.has_columns)
        if not math.isfinite(row.top):
            work.found = NO_TOKEN
        elif plan.is_whole and not work.is_shown:
            work.found = draw_whole(row, work.moment.uniform())
        else:
            work.left = plan.opening(row)

    def finish(self, work: Work) -> int:
        """Last third: the stages on what is left, and the draw."""
        if work.left is None:
            return NO_TOKEN if work.found is None else work.found
        left = self._reduced(work.left, work.moment)
        token = draw_from(left.ids, left.logits, work.moment.uniform())
        if self._plan.feedback:
            self._plan.feedback.drew(token)
        return token

    def _reduced(self, left: Left, moment: Moment) -> Left:
        for step in self._plan.steps:
            if len(left.ids) == 1:
                break  # no stage takes the last one
            left = step(left, moment)
        return self._plan.feedback.reshape(left) if self._plan.feedback else left

    def distribution(
        self, logits: Logits, position: int, candidates: Candidates, mask: Mask | None = None
    ) -> Left:
        """What `choose` draws from: token ids and logits, whose softmax are their chances.

        Empty where nothing can be chosen. Changes no state.
        """
        work = self.begin(logits, position, candidates, mask)
        work.is_shown = True
        self.cut(work, candidates)
        if work.left is not None:
            return self._reduced(work.left, work.moment)
        found = [] if work.found in (None, NO_TOKEN) else [work.found]
        return Left(np.array(found, np.int32), np.zeros(len(found), np.float32))

    # -- the state ---------------------------------------------------------------------------

    def accept(self, token: int) -> None:
        """A token came, chosen here or not (one that a grammar forces, say)."""
        self._n_accepted += 1
        if self._plan.shapers:
            self._history.append(token)
            for shaper in self._plan.shapers:
                shaper.accept(token)
        if self._plan.feedback:
            self._plan.feedback.accept(token)

    def rewind(self, n_tokens: int) -> None:
        """Take back the last tokens. Raises ValueError for more than were accepted."""
        if not 0 <= n_tokens <= self._n_accepted:
            raise ValueError(f"cannot take back {n_tokens} of {self._n_accepted} tokens")
        if n_tokens == 0:
            return
        self._n_accepted -= n_tokens
        if self._plan.shapers:
            for shaper in self._plan.shapers:
                shaper.rewind(n_tokens)
            self._history.rewind(n_tokens)
        if self._plan.feedback:
            self._plan.feedback.rewind(n_tokens)

    def close(self) -> None:
        """Free the native chains. Safe to call twice; nothing can be chosen afterwards."""
        for chain in self._plan.chains:
            chain.close()

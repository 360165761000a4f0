"""What decides about one stream's tokens: its sampler, its grammar and its banned phrases."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from naiad.engine.grammar.follower import Follower
from naiad.engine.grammar.masks import Bits
from naiad.engine.logprobs import Scribe
from naiad.engine.phrases import PhraseWatch, automaton
from naiad.engine.sampling import NO_TOKEN, Sampler
from naiad.engine.sampling.sampler import Mask
from naiad.engine.sequence import Sequence
from naiad.engine.thinking import ThinkingWatch
from naiad.errors import EngineFailed, InvalidRequest
from naiad.native.sampler import Logits
from naiad.types import FinishReason, TokenLogprob

#: Times that a stream goes back without a token that is safe to send in between. Then it ends.
MOST_REWINDS = 200


class TokenTable(Protocol):
    """What the engine needs of a vocabulary; see `naiad.native.vocab.Vocab`."""

    n_tokens: int
    eog: frozenset[int]

    def piece(self, token: int, *, special: bool = False) -> bytes: ...

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...


@dataclass(slots=True)
class Said:
    """What a sequence says in this step; already among its tokens. finish: it ends here.

    error, code: why, when it is an error; see naiad.errors.

    sizes: bytes of each token. logprobs: one for each token, where the stream asks for them.

    n_drafted: of the draft, the first tokens that were chosen. is_rewound: earlier tokens were
    taken back, so the sequence's cells may reach too far.
    """

    tokens: list[int]
    data: bytes = b""
    finish: FinishReason | None = None
    error: str | None = None
    code: str = EngineFailed.code
    n_drafted: int = 0
    is_rewound: bool = False
    sizes: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)


class Voice:
    """One stream's.

    Tokens that may be part of a banned phrase are held back, and the draws at each place are keyed
    by it: going back and saying something else changes nothing that was sent.
    """

    def __init__(
        self,
        sequence: Sequence,
        sampler: Sampler,
        vocab: TokenTable,
        n_ctx: int,
        *,
        may_shift: bool = False,
        scribe: Scribe | None = None,
    ) -> None:
        """n_ctx: tokens the sequence may have. may_shift: then the oldest are given up.
        scribe: of a stream that asks for logprobs.
        """
        job = sequence.job
        self.sampler = sampler
        self.follower: Follower | None = job.follower
        self._sequence = sequence
        self._vocab = vocab
        self._n_ctx = n_ctx
        self._may_shift = may_shift
        self._thinking = ThinkingWatch(job.reasoning, vocab) if job.reasoning else None
        phrases = job.sampling.banned_phrases
        self._watch = PhraseWatch(automaton(phrases)) if phrases else None
        self._banned: dict[int, set[int]] = {}  # position -> tokens that may not stand there
        self._held: list[int] = []
        self._scribe = scribe
        self._held_logprobs: list[TokenLogprob] = []  # of the held tokens
        self._n_rewinds = 0

    def mask(self, filled: Bits | None = None) -> Mask | None:
        """Which tokens may come next; None for all. filled: as of Follower.mask."""
        banned = self._banned.get(self._sequence.position) if self._banned else None
        if self.follower is None and not banned:
            return None
        mask = (
            self.follower.mask(filled) if self.follower else np.ones(self._vocab.n_tokens, np.bool_)
        )
        if banned:
            mask[list(banned)] = False
        return mask

    # -- one token after another -----------------------------------------------------------------

    def take(self, token: int, said: Said) -> None:
        """A token was chosen, and with it those that nothing else may follow."""
        if token == NO_TOKEN:
            self._give_up(said)
        elif self._append(token, said) and self.has_next_by_itself and said.finish is None:
            self.force(said)

    @property
    def has_next_by_itself(self) -> bool:
        """Whether several tokens that nothing else may follow may come at once: not where their
        logprobs are wanted, which need the logits of each place."""
        return self._may_force and self._scribe is None

    @property
    def _may_force(self) -> bool:
        return self.follower is not None or self._thinking is not None

    def sees(self, row: Logits) -> bool:
        """These logits are the next token's. True when this stream wants to be told of them."""
        if self._scribe is not None:
            self._scribe.row = row
        return self._scribe is not None

    def force(self, said: Said) -> bool:
        """Say what there is no choice about: the end of a reasoning that is long enough, and what
        the grammar leaves one way for. False when there was no such token.

        What does not fit the context waits until there is room.
        """
        if not self._may_force:
            return False
        n_before = len(self._sequence.tokens)
        for source in (self._thinking, self.follower):
            if source is None or said.finish:
                continue
            if not self._force(source.forced(), said):
                break
            if self._scribe is not None and len(self._sequence.tokens) != n_before:
                break  # one at a time: see has_next_by_itself
        return len(self._sequence.tokens) != n_before or said.is_rewound or bool(said.finish)

    def _force(self, tokens: list[int], said: Said) -> bool:
        """False when not all of them could be said."""
        for token in tokens[: None if self._scribe is None else 1]:
            is_full = len(self._sequence.tokens) >= self._n_ctx
            is_banned = token in self._banned.get(self._sequence.position, ())
            if is_full or is_banned or not self._append(token, said, is_forced=True):
                return False
            if said.finish:
                return False
        return True

    def _append(self, token: int, said: Said, *, is_forced: bool = False) -> bool:
        """False when the token may not stand here after all, or with some before it."""
        if self.follower is not None and not self.follower.allows(token):
            self._banned.setdefault(self._sequence.position, set()).add(token)
            return False
        is_end = token in self._vocab.eog
        piece = self._piece(token)
        if self._watch is not None and (n := self._watch.feed(piece)):
            self._go_back(token, n, said)
            return False
        if self._scribe is not None:
            self._write_down(self._scribe, token, said, is_forced=is_forced)
        self.sampler.accept(token)
        if self._thinking is not None:
            self._thinking.accept(token)
        self._sequence.tokens.append(token)
        if self._watch is None:
            said.tokens.append(token)
            said.data += piece
            said.sizes.append(len(piece))
        else:
            self._held.append(token)
        self._find_end(token, is_end, said)
        return True

    def _write_down(self, scribe: Scribe, token: int, said: Said, *, is_forced: bool) -> None:
        mask = self.mask() if scribe.is_after and not is_forced else None
        position = self._sequence.position
        told = scribe.tell(self.sampler, token, position, mask, is_forced=is_forced)
        (said.logprobs if self._watch is None else self._held_logprobs).append(told)

    def _piece(self, token: int) -> bytes:
        """What a token shows as; control tokens, and those that end an answer, only if asked."""
        shown = self._sequence.job.shown
        if shown is None or (shown and token in shown):
            return self._vocab.piece(token, special=True)
        return b"" if token in self._vocab.eog else self._vocab.piece(token)

    def _find_end(self, token: int, is_end: bool, said: Said) -> None:
        sequence, job = self._sequence, self._sequence.job
        if self.follower is not None and self._follow(self.follower, token, said):
            return
        if is_end and not (job.sampling.bypass_eos and self.follower is None):
            said.finish = FinishReason.STOP
        elif self._is_full() or sequence.n_generated >= job.max_tokens:
            said.finish = FinishReason.LENGTH

    def _is_full(self) -> bool:
        return len(self._sequence.tokens) >= self._n_ctx and not self._may_shift

    def _follow(self, follower: Follower, token: int, said: Said) -> bool:
        """Go on in the grammar. True when that ends the stream."""
        if not follower.accept(token) or follower.failure:
            _fail(follower.failure, said)
        elif follower.is_complete:
            said.finish = FinishReason.STOP
        return said.finish is not None

    def _give_up(self, said: Said) -> None:
        """No token is left. Where phrases are banned, that is an end like a full context."""
        if self._banned.get(self._sequence.position):
            said.finish = FinishReason.LENGTH
            return
        if self.follower is not None and self.follower.failure:
            _fail(self.follower.failure, said)
            return
        said.finish = FinishReason.ERROR
        said.error = "no token can be chosen: the model computed NaN or infinity, or all are banned"

    # -- phrases ---------------------------------------------------------------------------------

    def _go_back(self, token: int, n_tokens: int, said: Said) -> None:
        """The last n tokens, of which `token` is to come, hold a banned phrase: take them back.

        The phrase's first token is banned where it stood; what was banned behind it was for another
        beginning. A token that was sent stays (it was safe, before the stream went back to it):
        then it is the first one behind that is banned.
        """
        assert self._watch is not None
        n_tokens = min(n_tokens, len(self._held) + 1)
        self._watch.rewind(n_tokens)
        tokens = self._sequence.tokens
        n_back = n_tokens - 1
        position = self._sequence.position - n_back
        first = tokens[-n_back] if n_back else token
        if n_back:
            self.sampler.rewind(n_back)
            if self.follower is not None:
                self.follower.rewind(n_back)
            if self._thinking is not None:
                self._thinking.rewind(n_back)
            del tokens[-n_back:], self._held[-n_back:], self._held_logprobs[-n_back:]
            said.is_rewound = True
        self._banned = {at: ids for at, ids in self._banned.items() if at <= position}
        self._banned.setdefault(position, set()).add(first)
        self._n_rewinds += 1
        if self._n_rewinds > MOST_REWINDS:
            said.finish = FinishReason.LENGTH

    def settle(self, said: Said) -> None:
        """Let go of the tokens that are safe: all of them at the end, which no phrase reached."""
        if self._watch is None:
            return
        n_safe = len(self._held)
        if said.finish is None:
            n_safe -= min(self._watch.n_held, n_safe)
        if not n_safe:
            return
        said.tokens, self._held = self._held[:n_safe], self._held[n_safe:]
        said.logprobs = self._held_logprobs[:n_safe]
        del self._held_logprobs[:n_safe]
        pieces = [self._piece(token) for token in said.tokens]
        said.data, said.sizes = b"".join(pieces), [len(piece) for piece in pieces]
        self._n_rewinds = 0
        first_held = self._sequence.position - len(self._held)
        self._banned = {at: ids for at, ids in self._banned.items() if at >= first_held}

    def close(self) -> None:
        self.sampler.close()


def _fail(reason: str, said: Said) -> None:
    """The grammar turned out too much for its limits: the request was at fault."""
    said.finish = FinishReason.ERROR
    said.code = InvalidRequest.code
    said.error = f"the grammar cannot be followed any longer: {reason.partition(chr(10))[0][:200]}"

"""A core over words instead of numbers, whose every choice can be computed again the slow way.

The logits of a place are random, keyed by all the tokens before it, read from the cells: after a
wrong way back they are other ones, and so is the text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from fake_executor import FakeExecutor, FakeMemory
from naiad.engine.base import CoreJob
from naiad.engine.core import CoreLimits, EngineCore
from naiad.engine.executor import Run
from naiad.engine.grammar.follower import Follower
from naiad.engine.sampling import Sampler
from naiad.engine.scheduler import StepBudget
from naiad.ipc.messages import StreamItem
from naiad.native.sampler import Candidates
from naiad.types import FinishReason, SamplingParams

PIECES = (
    [chr(c) for c in range(ord("a"), ord("z") + 1)]
    + list('0123456789{}[]":, ')
    + ["Ab", "bA", "ab", "aba", "ca", "ac", "the", " the", "re", "true", "false", '":', '","', '{"']
)
LONGEST = re.compile("|".join(map(re.escape, sorted(PIECES, key=len, reverse=True))))
EOG = len(PIECES)
N_VOCAB = EOG + 1


class TextVocab:
    """Tokens are short texts; the last ends a generation."""

    n_tokens = N_VOCAB
    eog = frozenset({EOG})

    def piece(self, token: int, *, special: bool = False) -> bytes:
        if token == EOG:
            return b"</s>" if special else b""
        return PIECES[token].encode()

    def fresh_piece(self, token: int, *, special: bool = False) -> bytes:
        return self.piece(token, special=special)

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        found = LONGEST.findall(text)
        assert "".join(found) == text, "this vocabulary has no such character"
        return [PIECES.index(piece) for piece in found]


def logits_after(tokens: Sequence[int], favoured: frozenset[int]) -> npt.NDArray[np.float32]:
    digest = hashlib.blake2b(bytes(tokens), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "little"))
    row = (rng.standard_normal(N_VOCAB) * 2).astype(np.float32)
    row[list(favoured)] += 3
    return row


class TextExecutor(FakeExecutor):
    """favoured: tokens that come often, so that the rare cases are none."""

    def __init__(self, favoured: frozenset[int] = frozenset(), n_cells: int = 4096) -> None:
        super().__init__(memory=FakeMemory(n_cells))
        self.favoured = favoured

    def _row(self, run: Run, back: int) -> npt.NDArray[np.float32]:
        cells = self.memory.sequences[run.slot]
        last = max(cells) - back
        assert sorted(cells) == list(range(max(cells) + 1)), "a hole in the sequence"
        return logits_after([cells[i][0] for i in range(last + 1)], self.favoured)


def make_core(executor: FakeExecutor, *, drafts: bool = False, **changes: object) -> EngineCore:
    settings: dict[str, object] = {
        "n_ctx": 512,
        "pool_cells": 4096,
        "parallel": 4,
        "n_parked": 4,
        "host_cache_bytes": 1 << 20,
        "budget": StepBudget(alone=32, beside=8),
        "check_integrity": True,
        "drafts": drafts,
    }
    limits = CoreLimits(**{**settings, **changes})  # type: ignore[arg-type]
    return EngineCore(executor, TextVocab(), limits)


def run_all(
    core: EngineCore, jobs: list[CoreJob], steps: int = 20_000
) -> dict[int, list[StreamItem]]:
    for job in jobs:
        core.add(job)
    items: dict[int, list[StreamItem]] = {job.uid: [] for job in jobs}
    for _ in range(steps):
        if not core.has_work():
            return items
        for item in core.step():
            items[item.uid].append(item)
    raise AssertionError("the engine did not finish its work")


def tokens_of(items: list[StreamItem]) -> list[int]:
    assert [item.seq for item in items] == list(range(len(items)))
    assert [bool(item.finish) for item in items] == [False] * (len(items) - 1) + [True]
    assert b"".join(item.data for item in items).decode() == text_of(
        [token for item in items for token in item.tokens]
    )
    return [token for item in items for token in item.tokens]


def text_of(tokens: Sequence[int]) -> str:
    return "".join(PIECES[t] for t in tokens if t != EOG)


def reference(
    prompt: Sequence[int],
    n: int,
    params: SamplingParams,
    favoured: frozenset[int] = frozenset(),
    follower: Follower | None = None,
) -> tuple[list[int], FinishReason]:
    """The answer, with all of it computed anew for each token and no way back in any state."""
    out: list[int] = []
    n_sent = 0
    banned: dict[int, set[int]] = {}
    while True:
        mask = np.ones(N_VOCAB, np.bool_) if follower is None else follower.mask()
        mask[list(banned.get(len(out), ()))] = False
        before = [*prompt, *out]
        sampler = Sampler(params, N_VOCAB, 512, frozenset({EOG}), before, TextVocab().piece)
        row = logits_after(before, favoured)
        token = sampler.choose(row, len(before), Candidates(N_VOCAB), mask)
        sampler.close()
        out.append(token)
        pieces = [PIECES[t] if t != EOG else "" for t in out]
        found = _first_phrase(pieces, params.banned_phrases)
        if found is not None:
            found = max(found, n_sent)
            banned = {at: ids for at, ids in banned.items() if at <= found}
            banned.setdefault(found, set()).add(out[found])
            del out[found:]
            continue
        n_sent = max(n_sent, _first_held(pieces, params.banned_phrases))
        if token == EOG:
            return out, FinishReason.STOP
        if len(out) == n:
            return out, FinishReason.LENGTH


def _first_held(pieces: list[str], phrases: tuple[str, ...]) -> int:
    """The token from which on the text may become a phrase."""
    text = "".join(pieces).lower()
    begins = [i for i, piece in enumerate(pieces) for _ in piece]
    starts = [p[:n].lower() for p in phrases for n in range(1, len(p))]
    longest = max((len(start) for start in starts if text.endswith(start)), default=0)
    return begins[len(text) - longest] if longest else len(pieces)


def _first_phrase(pieces: list[str], phrases: tuple[str, ...]) -> int | None:
    """The token in which the first complete phrase begins; of several the longest."""
    text = "".join(pieces).lower()
    begins = [i for i, piece in enumerate(pieces) for _ in piece]
    for end in range(len(text) + 1):
        for phrase in sorted(phrases, key=len, reverse=True):
            if text[:end].endswith(phrase.lower()):
                return begins[end - len(phrase)]
    return None


def always_guess(n: int) -> Callable[..., tuple[int, float]]:
    """In the place of `NgramDrafter.n_worth`: n tokens, whatever they are worth."""

    def n_worth(
        drafter: object,
        cost: object,
        n_rows: int,
        n_expected: float,
        longest_s: float,
        most: int,
    ) -> tuple[int, float]:
        return max(min(n, most), 0), n_expected

    return n_worth

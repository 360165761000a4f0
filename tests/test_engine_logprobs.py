"""Logprobs: the model's own, exact, for each token that is said, however it came to be said."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from naiad.engine.base import CoreJob
from naiad.engine.drafts import NgramDrafter
from naiad.engine.grammar.compiler import GrammarCompiler
from naiad.engine.grammar.definition import define
from naiad.engine.grammar.vetting import Vetted, Vetting
from naiad.engine.logprobs import Scribe
from naiad.engine.sampling import Sampler
from naiad.ipc.messages import StreamItem
from naiad.native.sampler import Candidates
from naiad.types import Grammar, SamplingParams, TokenLogprob
from text_engine import (
    EOG,
    N_VOCAB,
    PIECES,
    TextExecutor,
    TextVocab,
    always_guess,
    logits_after,
    make_core,
    run_all,
    text_of,
    tokens_of,
)

pytestmark = pytest.mark.usefixtures("steady_clock")

PROMPT = (0, 1, 2, 3)
FAVOURED = frozenset(i for i, piece in enumerate(PIECES) if set(piece.lower()) <= set("abc"))
HOT = {"temperature": 1.7, "repetition_penalty": 1.3, "logit_bias": ((5, 2.0),), "seed": 9}


class NoVetting(Vetting):
    def vet(self, kind: str, text: str) -> Vetted:
        return Vetted(define(kind, text), 0.0)


def told_of(items: list[StreamItem]) -> list[TokenLogprob]:
    """All of a stream's, one for each of its tokens."""
    tokens, told = tokens_of(items), [one for item in items for one in item.logprobs or []]
    assert [one.token for one in told] == tokens
    assert b"".join(one.data for one in told) == b"".join(item.data for item in items)
    return told


def log_softmax(tokens: list[int], favoured: frozenset[int]) -> list[float]:
    row = logits_after(tokens, favoured).astype(np.float64)
    return list(row - row.max() - math.log(np.exp(row - row.max()).sum()))


def check(told: list[TokenLogprob], n_top: int, favoured: frozenset[int] = FAVOURED) -> None:
    """Each is ln softmax of the logits that all the tokens before it lead to."""
    before = list(PROMPT)
    for one in told:
        right = log_softmax(before, favoured)
        assert one.logprob == pytest.approx(right[one.token], abs=2e-5)
        best = sorted(range(N_VOCAB), key=lambda i: -right[i])[:n_top]
        assert [other.token for other in one.top] == best
        assert [x.logprob for x in one.top] == pytest.approx([right[i] for i in best], abs=2e-5)
        before.append(one.token)


def job(uid: int = 1, n: int = 40, follower: object = None, **params: object) -> CoreJob:
    sampling = SamplingParams(**{**HOT, **params})  # type: ignore[arg-type]
    return CoreJob(uid, PROMPT, n, sampling, follower=follower)  # type: ignore[arg-type]


@pytest.mark.parametrize("n_top", [0, 1, 5, 20])
def test_they_are_of_the_logits_before_any_sampler(n_top: int) -> None:
    core = make_core(TextExecutor(FAVOURED))
    items = run_all(core, [job(n_logprobs=n_top), job(2)])
    check(told_of(items[1]), n_top)
    assert tokens_of(items[2]) == tokens_of(items[1])  # asking changes nothing
    assert all(item.logprobs is None for item in items[2])
    core.close()


def test_several_tokens_a_step_by_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run_all(make_core(TextExecutor(FAVOURED)), [job()])[1]
    right = [*PROMPT, *tokens_of(plain)]

    def draft(self: NgramDrafter, most: int) -> tuple[int, ...]:
        at = len(self._tokens)
        found = right[at : at + most]
        return tuple(found if at % 3 else [*found[:1], 0])  # some of them are wrong

    monkeypatch.setattr(NgramDrafter, "n_worth", always_guess(3))
    monkeypatch.setattr(NgramDrafter, "draft", draft)
    items = run_all(make_core(TextExecutor(FAVOURED), drafts=True), [job(n_logprobs=2)])[1]
    assert max(len(item.tokens) for item in items) > 2
    check(told_of(items), 2)
    assert tokens_of(items) == tokens_of(plain)


@pytest.mark.parametrize("is_after", [False, True])
def test_tokens_that_a_grammar_forces_are_told_of_and_stay_the_same(*, is_after: bool) -> None:
    grammars = GrammarCompiler(TextVocab(), NoVetting())
    grammar = Grammar("regex", r'\{"the":(true|false),"the":(true|false)\}')
    plain = run_all(make_core(TextExecutor()), [job(follower=grammars.compile(grammar))])[1]
    asking = job(follower=grammars.compile(grammar), n_logprobs=3, logprobs_after=is_after)
    items = run_all(make_core(TextExecutor()), [asking])[1]
    told = told_of(items)
    assert text_of(tokens_of(items)) == text_of(tokens_of(plain))
    assert len(told) > 8
    if is_after:
        assert told[0].logprob == 0.0  # there was no other way
        assert all(one.logprob <= 1e-6 for one in told)
    else:
        check(told, 3, frozenset())


def test_what_is_taken_back_is_not_told_of() -> None:
    phrases = ("ab", "ca", "bc")
    items = run_all(
        make_core(TextExecutor(FAVOURED)), [job(n=120, n_logprobs=1, banned_phrases=phrases)]
    )[1]
    check(told_of(items), 1)
    assert not any(phrase in text_of(tokens_of(items)).lower() for phrase in phrases)


def test_after_the_samplers_what_they_left_adds_up_to_one() -> None:
    core = make_core(TextExecutor(FAVOURED))
    cut: dict[str, Any] = {"n_logprobs": 20, "logprobs_after": True, "top_k": 4, "temperature": 0.9}
    for one in told_of(run_all(core, [job(**cut)])[1]):
        assert len(one.top) <= 4
        assert sum(math.exp(other.logprob) for other in one.top) == pytest.approx(1, abs=1e-5)
        assert one.logprob == next(x.logprob for x in one.top if x.token == one.token)
        assert all(a.logprob >= b.logprob for a, b in pairwise(one.top))
    core.close()


def test_control_tokens_are_named_among_the_likely_and_have_no_text() -> None:
    row = np.zeros(N_VOCAB, np.float32)
    row[EOG] = 5
    scribe = Scribe(TextVocab(), 1, Candidates(N_VOCAB))
    scribe.row = row
    sampler = Sampler(SamplingParams(), N_VOCAB, 10, frozenset({EOG}), [])
    told = scribe.tell(sampler, EOG, 0)
    assert (told.data, told.top[0].data) == (b"", b"</s>")
    scribe.is_after = True
    left_out = Sampler(SamplingParams(top_k=1), N_VOCAB, 10, frozenset({EOG}), [])
    assert scribe.tell(left_out, 0, 0).logprob == -math.inf


def test_a_large_vocabulary_is_as_exact_as_a_small_one() -> None:
    class Wide(TextVocab):
        def piece(self, token: int, *, special: bool = False) -> bytes:
            return b"x"

    row = np.random.default_rng(1).normal(0, 4, 50_000).astype(np.float32)
    scribe = Scribe(Wide(), 5, Candidates(len(row)))
    scribe.row = row
    told = scribe.tell(Sampler(SamplingParams(), len(row), 10, frozenset(), []), 77, 0)
    wide = row.astype(np.float64)
    total = math.log(np.exp(wide).sum())
    assert told.logprob == pytest.approx(wide[77] - total, abs=1e-5)
    assert [one.token for one in told.top] == np.argsort(-wide)[:5].tolist()

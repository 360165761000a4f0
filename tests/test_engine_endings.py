"""Answers of at least some tokens, and samplers whose state goes with a stream that is put back."""

from __future__ import annotations

from typing import Any

import pytest

from naiad.engine.base import CoreJob
from naiad.engine.drafts import NgramDrafter
from naiad.engine.grammar.compiler import GrammarCompiler
from naiad.engine.intake import Intake
from naiad.types import FinishReason, Grammar, SamplingParams
from test_engine_grammar import NoVetting
from text_engine import (
    EOG,
    PIECES,
    TextExecutor,
    TextVocab,
    always_guess,
    make_core,
    run_all,
    text_of,
    tokens_of,
)

pytestmark = pytest.mark.usefixtures("steady_clock")

PROMPT = (0, 1, 2, 3)
ENDS_AT_ONCE: Any = {"logit_bias": ((EOG, 50.0),)}


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("n", [0, 1, 7])
def test_no_end_comes_before_so_many_tokens(temperature: float, n: int) -> None:
    core = make_core(TextExecutor())
    params = SamplingParams(temperature=temperature, seed=3, min_tokens=n, **ENDS_AT_ONCE)
    tokens = tokens_of(run_all(core, [CoreJob(1, PROMPT, 20, params)])[1])
    assert tokens.index(EOG) == len(tokens) - 1 == n
    core.close()


def test_an_end_that_ends_nothing_does_not_come_either() -> None:
    core = make_core(TextExecutor())
    params = SamplingParams(temperature=0, bypass_eos=True, min_tokens=3, **ENDS_AT_ONCE)
    tokens = tokens_of(run_all(core, [CoreJob(1, PROMPT, 6, params)])[1])
    assert [token == EOG for token in tokens] == [False, False, False, True, True, True]
    core.close()


def test_tokens_that_were_taken_back_do_not_count() -> None:
    core = make_core(TextExecutor())
    params = SamplingParams(
        temperature=1.5, seed=1, min_tokens=9, banned_phrases=("ab", "e", "th"), **ENDS_AT_ONCE
    )
    tokens = tokens_of(run_all(core, [CoreJob(1, PROMPT, 20, params)])[1])
    assert tokens.index(EOG) == len(tokens) - 1 == 9
    core.close()


def test_a_grammar_ends_where_nothing_else_may_follow() -> None:
    compiler = GrammarCompiler(TextVocab(), NoVetting())
    for text, least in (("ab", 2), ("a{1,9}", 5)):
        core = make_core(TextExecutor())
        follower = compiler.compile(Grammar("regex", text))
        params = SamplingParams(temperature=0, min_tokens=5, **ENDS_AT_ONCE)
        items = run_all(core, [CoreJob(1, PROMPT, 20, params, follower=follower)])[1]
        assert items[-1].finish is FinishReason.STOP
        assert len(text_of(tokens_of(items))) >= least
        core.close()


FAVOURED = frozenset(i for i, piece in enumerate(PIECES) if set(piece.lower()) <= set("abc"))
LEARNING: list[dict[str, Any]] = [
    {"mirostat": 1, "mirostat_tau": 3.0},
    {"mirostat": 2, "mirostat_tau": 3.0},
    {"adaptive_target": 0.3, "xtc_probability": 0.5},
    {"dry_multiplier": 0.8, "dry_allowed_length": 1, "dry_breakers": ("c",)},
    {"repetition_penalty": 1.3, "penalty_slope": 0.5, "penalty_last_n": 20},
    {"mirostat": 2, "mirostat_tau": 3.0, "banned_phrases": ("abac", "bb")},
]


@pytest.mark.parametrize("drafts", [False, True])
def test_what_a_sampler_has_learnt_goes_with_a_stream_that_is_put_back(
    drafts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_back: list[int] = []
    original = Intake.put_back

    def counted(self: Intake, sequence: Any) -> None:
        put_back.append(sequence.uid)
        original(self, sequence)

    monkeypatch.setattr(Intake, "put_back", counted)
    monkeypatch.setattr(NgramDrafter, "n_worth", always_guess(3))
    said = []
    for n_cells in (4096, 100):
        core = make_core(TextExecutor(FAVOURED, n_cells), drafts=drafts, pool_cells=n_cells)
        params = [SamplingParams(temperature=1.0, seed=i, **p) for i, p in enumerate(LEARNING)]
        jobs = [CoreJob(uid, PROMPT, 60, p) for uid, p in enumerate(params)]
        said.append({uid: tokens_of(items) for uid, items in run_all(core, jobs).items()})
        core.close()
        assert bool(put_back) == (n_cells == 100)
    assert said[0] == said[1]
    assert len(set(put_back)) >= 3

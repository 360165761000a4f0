"""Masks that are worked out together are those of each stream by itself."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from naiad.engine.base import CoreJob
from naiad.engine.grammar import masks
from naiad.engine.grammar.compiler import GrammarCompiler
from naiad.engine.grammar.follower import Follower
from naiad.engine.grammar.masks import MaskBatch
from naiad.types import Grammar, SamplingParams
from test_engine_grammar import PROMPT, SCHEMA, NoVetting
from text_engine import EOG, N_VOCAB, TextExecutor, TextVocab, make_core, run_all, tokens_of

GRAMMARS = (
    Grammar("json_schema", json.dumps(SCHEMA)),
    Grammar("regex", "[ab]{2,4}(the|there)*"),
    Grammar("regex", "[a-z]*", after="}"),  # begins later
    Grammar("regex", "[0-9]+", after="}", opening="{"),  # or at once, or later
    Grammar("gbnf", 'root ::= ("yes" | "no") [0-1]'),
)


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(TextVocab(), NoVetting())


@pytest.mark.parametrize("seed", range(3))
def test_together_they_are_what_each_is_alone(compiler: GrammarCompiler, seed: int) -> None:
    rng = np.random.default_rng(seed)
    batch = MaskBatch(N_VOCAB, n_threads=3)
    streams: list[Follower | None] = [
        compiler.compile(GRAMMARS[i % len(GRAMMARS)]) for i in range(20)
    ]
    streams[7] = None  # one without a grammar
    n_filled = 0
    for _ in range(12):
        filled = batch.fill(streams)
        n_filled += sum(bits is not None for bits in filled)
        for i, (stream, bits) in enumerate(zip(streams, filled, strict=True)):
            if stream is None:
                assert bits is None
                continue
            mask = stream.mask(bits)
            assert np.array_equal(mask, stream.mask()), i
            ways = [int(token) for token in mask.nonzero()[0] if token != EOG]
            if not ways or not stream.accept(int(rng.choice(ways))) or stream.is_complete:
                streams[i] = compiler.compile(GRAMMARS[i % len(GRAMMARS)])
    assert n_filled > 12 * 8


def test_one_that_cannot_be_followed_any_longer_harms_no_other(compiler: GrammarCompiler) -> None:
    streams = [compiler.compile(GRAMMARS[1]) for _ in range(9)]
    assert not streams[4].accept(EOG)
    batch = MaskBatch(N_VOCAB, n_threads=2)
    for stream, bits in zip(streams, batch.fill(streams), strict=True):
        if stream is not streams[4]:
            assert bits is not None
            assert np.array_equal(stream.mask(bits), stream.mask())
        assert bool(stream.failure) is (stream is streams[4])


@pytest.mark.parametrize(("n_streams", "n_threads"), [(7, 4), (20, 1)])
def test_few_streams_and_few_processors_are_not_worth_it(
    compiler: GrammarCompiler, n_streams: int, n_threads: int
) -> None:
    streams = [compiler.compile(GRAMMARS[1]) for _ in range(n_streams)]
    assert MaskBatch(N_VOCAB, n_threads).fill(streams) == [None] * n_streams


def test_after_a_slow_step_each_stream_is_timed_for_a_while(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = [compiler.compile(GRAMMARS[1]) for _ in range(9)]
    batch = MaskBatch(N_VOCAB, n_threads=2)
    monkeypatch.setattr(masks, "_N_APART", 2)
    monkeypatch.setattr(masks, "SLOW_S", -1.0)
    together = [batch.fill(streams)[0] is not None for _ in range(7)]
    assert together == [True, False, False, True, False, False, True]


def test_answers_are_the_same_either_way(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(make: Callable[[int], MaskBatch]) -> list[list[int]]:
        monkeypatch.setattr("naiad.engine.choosing.MaskBatch", make)
        jobs = [
            CoreJob(
                uid,
                PROMPT,
                24,
                SamplingParams(seed=uid, temperature=1.5),
                follower=compiler.compile(GRAMMARS[uid % len(GRAMMARS)]),
            )
            for uid in range(16)
        ]
        core = make_core(TextExecutor(), parallel=16)
        return [tokens_of(items) for items in run_all(core, jobs).values()]

    assert answers(lambda n: MaskBatch(n, 3)) == answers(lambda n: MaskBatch(n, 1))

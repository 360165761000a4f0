"""Banned phrases: found however the text is split, never sent, and nothing else is changed."""

from __future__ import annotations

import math
import random

import msgspec
import pytest

from naiad.engine import voice
from naiad.engine.base import CoreJob
from naiad.engine.drafts import NgramDrafter
from naiad.engine.phrases import Phrases, PhraseWatch, automaton, fold
from naiad.types import FinishReason, SamplingParams
from text_engine import (
    EOG,
    N_VOCAB,
    PIECES,
    TextExecutor,
    always_guess,
    make_core,
    reference,
    run_all,
    text_of,
    tokens_of,
)

pytestmark = pytest.mark.usefixtures("steady_clock")

FAVOURED = frozenset(i for i, piece in enumerate(PIECES) if set(piece.lower()) <= set("abc"))
PROMPT = (0, 1, 2, 3)


# -- the automaton ------------------------------------------------------------------------------


def slow_depth(text: str, phrases: list[str]) -> int:
    lengths = range(1, max(map(len, phrases)) + 1)
    return max(
        (n for n in lengths for p in phrases if n <= len(p) and text.endswith(p[:n])), default=0
    )


def test_the_automaton_knows_how_much_of_a_phrase_the_text_ends_with() -> None:
    rng = random.Random(1)
    for _ in range(60):
        phrases = ["".join(rng.choices("ab", k=rng.randint(1, 5))) for _ in range(4)]
        found, state, text = Phrases(tuple(phrases)), 0, ""
        for char in rng.choices("abc", k=40):
            text += char
            state = found.after(state, char)
            assert found.depth[state] == slow_depth(text, phrases)
            complete = max((len(p) for p in phrases if text.endswith(p)), default=0)
            assert found.found[state] == complete


def test_the_same_phrases_have_one_automaton() -> None:
    assert automaton(("a", "b")) is automaton(("a", "b"))


@pytest.mark.parametrize(("char", "folded"), [("A", "a"), ("É", "é"), ("İ", "İ"), ("ß", "ß")])
def test_characters_are_compared_in_lower_case_where_that_is_one_character(
    char: str, folded: str
) -> None:
    assert fold(char) == folded


# -- one stream ---------------------------------------------------------------------------------


def test_a_phrase_is_found_wherever_the_bytes_are_split() -> None:
    phrase, text = "schön é", "so SCHÖN Éa".encode()
    for first in range(len(text)):
        for second in range(first, len(text)):
            watch = PhraseWatch(Phrases((phrase,)))
            pieces = [text[:first], text[first:second], text[second:]]
            found = [watch.feed(piece) for piece in pieces]
            n = next(n for n in found if n)
            at = found.index(n)
            begins = len(b"so ")
            ends = [len(b"".join(pieces[: i + 1])) for i in range(3)]
            assert at - n + 1 == next(i for i in range(3) if ends[i] > begins)


def test_what_may_become_a_phrase_is_held_and_the_rest_is_not() -> None:
    watch = PhraseWatch(Phrases(("abc", "bcd")))
    held = []
    for piece in [b"x", b"a", b"b", b"x", b"xa", b"b"]:
        assert watch.feed(piece) == 0
        held.append(watch.n_held)
    assert held == [0, 1, 2, 0, 1, 2]
    assert watch.feed(b"d") == 0
    assert watch.n_held == 0


def test_half_a_character_is_held() -> None:
    watch = PhraseWatch(Phrases(("é",)))
    first, second = "é".encode()[:1], "é".encode()[1:]
    assert (watch.feed(first), watch.n_held) == (0, 1)
    assert watch.feed(second) == 2


def test_going_back_is_as_if_it_had_never_been() -> None:
    rng = random.Random(3)
    for _ in range(100):
        watch = PhraseWatch(Phrases(("abab", "bé")))
        pieces: list[bytes] = []
        for _ in range(20):
            if pieces and rng.random() < 0.4:
                n = rng.randint(1, min(3, len(pieces)))
                watch.rewind(n)
                del pieces[-n:]
            piece = rng.choice([b"a", b"b", b"\xc3", b"\xa9", b"\xff", b"x", b""])
            if watch.feed(piece):
                watch.rewind(1)
            else:
                pieces.append(piece)
        fresh = PhraseWatch(Phrases(("abab", "bé")))
        assert [fresh.feed(piece) for piece in pieces] == [0] * len(pieces)
        assert fresh.n_held == watch.n_held
        assert [fresh.feed(p) for p in (b"b", b"ab")] == [watch.feed(p) for p in (b"b", b"ab")]


# -- in the core --------------------------------------------------------------------------------

PHRASES = ("abac", "cab", "Aa", "bb", "c the")


def job(uid: int, seed: int, phrases: tuple[str, ...], **values: object) -> CoreJob:
    params = SamplingParams(temperature=0.9, seed=seed, banned_phrases=phrases, **values)  # type: ignore[arg-type]
    return CoreJob(uid, PROMPT, 30, params)


@pytest.mark.parametrize(("drafts", "n_cells"), [(False, 4096), (True, 4096), (True, 90)])
def test_the_answer_is_the_slow_reference_whatever_runs_beside_it(
    drafts: bool, n_cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NgramDrafter, "n_worth", always_guess(3))
    for seed in (1, 3):
        core = make_core(TextExecutor(FAVOURED, n_cells), drafts=drafts, pool_cells=n_cells)
        penalised = {"repetition_penalty": 1.1, "dry_multiplier": 0.5}
        jobs = [job(1, seed, PHRASES), job(2, seed, ()), job(3, seed, PHRASES, **penalised)]
        items = run_all(core, jobs)
        for one in jobs:
            wanted, finish = reference(PROMPT, 30, one.sampling, FAVOURED)
            assert tokens_of(items[one.uid]) == wanted
            assert items[one.uid][-1].finish is finish
            text = text_of(wanted).lower()
            assert not [p for p in one.sampling.banned_phrases if p.lower() in text]
        core.close()


@pytest.mark.parametrize("kind", [{"can_cut": False}, {"kv_unified": False}])
def test_cells_that_cannot_be_cut_are_computed_again(kind: dict[str, bool]) -> None:
    core = make_core(TextExecutor(FAVOURED), **kind)
    jobs = [job(1, 3, PHRASES), job(2, 3, ())]
    items = run_all(core, jobs)
    for one in jobs:
        assert tokens_of(items[one.uid]) == reference(PROMPT, 30, one.sampling, FAVOURED)[0]
    core.close()


def test_what_was_sent_was_safe_when_it_was_sent() -> None:
    core = make_core(TextExecutor(FAVOURED))
    items = run_all(core, [job(1, 5, PHRASES)])[1]
    assert len(items) < sum(len(item.tokens) for item in items), "nothing was ever held"
    assert all(item.tokens for item in items)
    several = [item for item in items if len(item.tokens) > 1]
    assert [i.sizes for i in several] == [[len(text_of([t])) for t in i.tokens] for i in several]
    core.close()


def test_an_end_lets_go_of_what_was_held() -> None:
    executor = TextExecutor()
    core = make_core(executor)
    first = reference(PROMPT, 1, SamplingParams(temperature=0))[0]
    phrase = text_of(first) + "#"
    params = SamplingParams(temperature=0, banned_phrases=(phrase,))
    core.add(CoreJob(1, PROMPT, 1, params))
    [item] = core.step()
    assert (item.tokens, item.finish) == (first, FinishReason.LENGTH)
    core.close()


def test_without_anything_left_to_say_a_stream_ends_as_if_it_were_cut() -> None:
    everything = tuple({piece[0] for piece in PIECES})
    params = SamplingParams(temperature=0.9, banned_phrases=everything, ignore_eos=True)
    core = make_core(TextExecutor())
    items = run_all(core, [CoreJob(1, PROMPT, 40, params)])[1]
    assert [(item.tokens, item.finish) for item in items] == [([], FinishReason.LENGTH)]
    core.close()


def test_a_stream_that_only_goes_back_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voice, "MOST_REWINDS", 9)
    letters = [i for i, piece in enumerate(PIECES) if len(piece) == 1 and piece.isalpha()]
    pairs = tuple(PIECES[a] + PIECES[b] for a in letters for b in letters)
    others = tuple((t, -math.inf) for t in range(N_VOCAB) if t not in letters)
    params = SamplingParams(temperature=0.9, banned_phrases=pairs, logit_bias=others)
    executor = TextExecutor()
    core = make_core(executor)
    items = run_all(core, [CoreJob(1, PROMPT, 40, params)])[1]
    assert [(item.tokens, item.finish) for item in items] == [([], FinishReason.LENGTH)]
    assert len(executor.decoded) == 2 * 10
    core.close()


def test_an_abort_sends_nothing_of_what_was_held() -> None:
    first = reference(PROMPT, 1, SamplingParams(temperature=0))[0]
    params = SamplingParams(temperature=0, banned_phrases=(text_of(first) + "#",))
    core = make_core(TextExecutor())
    core.add(CoreJob(1, PROMPT, 40, params))
    assert core.step() == []
    core.abort(1)
    [item] = core.step()
    assert (item.seq, item.tokens, item.finish) == (0, [], FinishReason.CANCELLED)
    core.close()


def test_an_end_of_generation_that_ends_nothing_is_no_text() -> None:
    params = SamplingParams(
        temperature=0, banned_phrases=("zz",), bypass_eos=True, logit_bias=((EOG, 100.0),)
    )
    core = make_core(TextExecutor())
    items = run_all(core, [CoreJob(1, PROMPT, 3, params)])[1]
    assert tokens_of(items) == [EOG] * 3
    core.close()


@pytest.mark.soak
def test_no_phrase_comes_in_two_hundred_answers_and_the_neighbours_do_not_notice() -> None:
    rng = random.Random(11)
    cased = [char for piece in PIECES for char in piece]
    core = make_core(TextExecutor(FAVOURED), parallel=8)
    jobs = []
    for uid in range(250):
        some = tuple("".join(rng.choices("abAcB", k=rng.randint(2, 4))) for _ in range(4))
        phrases = (*some, rng.choice(cased).swapcase()) if uid < 200 else ()
        jobs.append(job(uid, uid, phrases))
    found = run_all(core, rng.sample(jobs, len(jobs)))
    core.close()
    assert set(found) == set(range(250))
    n_rewound = 0
    for one in jobs:
        tokens, phrases = tokens_of(found[one.uid]), one.sampling.banned_phrases
        text = "".join(map(fold, text_of(tokens)))
        assert not [p for p in phrases if "".join(map(fold, p)) in text]
        if phrases:
            free = msgspec.structs.replace(one.sampling, banned_phrases=())
            n_rewound += reference(PROMPT, 30, free, FAVOURED)[0] != tokens
        else:
            assert tokens == reference(PROMPT, 30, one.sampling, FAVOURED)[0]
    assert n_rewound > 150, "hardly any phrase would have come"

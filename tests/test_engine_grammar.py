"""Answers held to a grammar: masks, forced tokens, drafts, ways back and ends."""

from __future__ import annotations

import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import pytest

from naiad.engine.base import CoreJob
from naiad.engine.drafts import NgramDrafter
from naiad.engine.grammar.compiler import GrammarCompiler
from naiad.engine.grammar.definition import MAX_BYTES, define
from naiad.engine.grammar.follower import Follower
from naiad.engine.grammar.vetting import Vetted, Vetting
from naiad.errors import EngineFailed, InvalidRequest
from naiad.types import FinishReason, Grammar, SamplingParams
from patience import PATIENCE_S
from text_engine import (
    EOG,
    N_VOCAB,
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
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-c]{1,6}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["the", "ab", True]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
#: All texts of a and b with 2 to 4 letters.
AB = ["".join(p) for n in (2, 3, 4) for p in itertools.product("ab", repeat=n)]


class NoVetting(Vetting):
    """Without a process of its own, for grammars that the tests themselves bring."""

    def vet(self, kind: str, text: str) -> Vetted:
        return Vetted(define(kind, text), 0.0)


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(TextVocab(), NoVetting())


def schema_follower(compiler: GrammarCompiler) -> Follower:
    return compiler.compile(Grammar("json_schema", json.dumps(SCHEMA)))


# -- one follower -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "language"),
    [
        ("regex", "[ab]{2,4}", AB),
        ("lark", 'start: "the" | "there" | "ab" "a"?', ["the", "there", "ab", "aba"]),
        ("gbnf", 'root ::= ("yes" | "no") [0-1]', ["yes0", "yes1", "no0", "no1"]),
        ("json_schema", '{"enum": ["ab", 12, true]}', ['"ab"', "12", "true"]),
    ],
)
def test_the_mask_is_what_a_list_of_all_answers_allows(
    compiler: GrammarCompiler, kind: str, text: str, language: list[str]
) -> None:
    states = [""]
    seen = set()
    while states:
        said = states.pop()
        if said in seen:
            continue
        seen.add(said)
        follower = compiler.compile(Grammar(kind, text))
        ids = TextVocab().encode(said, add_special=False, parse_special=False)
        assert all(follower.accept(token) for token in ids)
        ways = [t for t in range(EOG) if any(one.startswith(said + PIECES[t]) for one in language)]
        allowed = follower.mask().nonzero()[0].tolist()
        if forced := follower.forced():  # one text is left, and one way to spell it
            assert allowed == forced[:1] and forced[0] in ways
        else:
            assert allowed == sorted([*ways, *([EOG] if said in language else [])])
        assert follower.is_complete is (said in language and not ways)
        assert follower.failure == ""
        states += [said + PIECES[t] for t in ways]


def test_going_back_is_as_if_it_had_never_been(compiler: GrammarCompiler) -> None:
    follower = schema_follower(compiler)
    ids = TextVocab().encode('{"name":"ab","age":7', add_special=False, parse_special=False)
    masks = []
    for token in ids:
        masks.append(follower.mask())
        assert follower.accept(token)
    for n in (1, 2, len(ids)):
        follower.rewind(n)
        assert (follower.mask() == masks[len(ids) - n]).all()
        assert all(follower.accept(token) for token in ids[len(ids) - n :])


def test_each_request_has_a_place_of_its_own_in_a_kept_grammar(compiler: GrammarCompiler) -> None:
    grammar = Grammar("regex", "[ad]c?")
    assert compiler.cached(grammar) is None
    first = compiler.compile(grammar)
    assert first.accept(0)
    second = compiler.cached(grammar)
    assert second is not None
    assert second.mask()[0] and not first.mask()[0]


def test_what_the_grammar_does_not_allow_ends_in_a_reason(compiler: GrammarCompiler) -> None:
    follower = compiler.compile(Grammar("regex", "abc"))
    assert not follower.accept(5)
    assert follower.failure
    assert not follower.is_complete


# -- behind the reasoning -------------------------------------------------------------------------


def reasoning(compiler: GrammarCompiler, opening: str | None = None) -> Follower:
    return compiler.compile(Grammar("regex", "[0-9]{2}", after="the", opening=opening))


def ids_of(text: str) -> list[int]:
    return [PIECES.index(char) for char in text]


def test_all_but_an_end_may_come_before_the_grammar_begins(compiler: GrammarCompiler) -> None:
    follower = reasoning(compiler)
    for token in ids_of("xyth"):
        assert follower.is_waiting
        assert follower.mask().sum() == N_VOCAB - 1
        assert follower.forced() == []
        assert follower.accept(token)
    assert follower.accept(PIECES.index("e"))
    assert not follower.is_waiting
    assert follower.mask().sum() == 10


def test_the_way_back_over_the_beginning(compiler: GrammarCompiler) -> None:
    follower = reasoning(compiler)
    assert all(follower.accept(token) for token in ids_of("xthe1"))
    follower.rewind(2)
    assert follower.is_waiting
    assert all(follower.accept(token) for token in ids_of("re the42"))
    assert follower.is_complete


def test_one_token_may_hold_the_end_of_the_reasoning_and_blanks_only(
    compiler: GrammarCompiler,
) -> None:
    follower = compiler.compile(Grammar("regex", "bA[0-9]", after="a"))
    assert not follower.allows(PIECES.index("ca") + 1)  # "ac": the c is not in the grammar
    assert follower.allows(PIECES.index("aba")) is False
    assert follower.allows(PIECES.index("a"))
    assert follower.allows(PIECES.index("the"))


def test_an_answer_may_begin_with_reasoning_or_without(compiler: GrammarCompiler) -> None:
    follower = reasoning(compiler, opening="x")
    assert follower.mask().sum() == 11
    assert follower.forced() == []
    assert follower.accept(PIECES.index("4"))
    assert follower.mask().sum() == 10
    follower.rewind(1)
    assert all(follower.accept(token) for token in ids_of("xythe"))
    assert follower.mask().sum() == 10
    follower.rewind(5)
    assert follower.mask().sum() == 11


# -- in the core ----------------------------------------------------------------------------------


def job(uid: int, seed: int, follower: Follower, n: int = 60, **values: object) -> CoreJob:
    params = SamplingParams(temperature=2.0, seed=seed, **values)  # type: ignore[arg-type]
    return CoreJob(uid, PROMPT, n, params, follower=follower)


@pytest.mark.parametrize(("drafts", "n_cells"), [(False, 4096), (True, 4096), (True, 90)])
def test_every_answer_that_ends_is_valid(
    compiler: GrammarCompiler, drafts: bool, n_cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NgramDrafter, "n_worth", always_guess(3))
    core = make_core(TextExecutor(n_cells=n_cells), drafts=drafts, pool_cells=n_cells)
    jobs = [job(uid, uid, schema_follower(compiler)) for uid in range(12)]
    found = run_all(core, jobs)
    for items in found.values():
        text = text_of(tokens_of(items))
        assert items[-1].finish is FinishReason.STOP
        jsonschema.validate(json.loads(text), SCHEMA)
        assert len(items) < sum(len(item.tokens) for item in items), "nothing was forced"
    assert len({text_of(tokens_of(items)) for items in found.values()}) > 8
    core.close()


def test_drafts_and_company_change_nothing(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NgramDrafter, "n_worth", always_guess(4))
    answers = []
    for drafts, uids in ((False, [3]), (True, [3]), (True, [1, 3, 5])):
        core = make_core(TextExecutor(), drafts=drafts)
        grammar = Grammar("regex", "(ab){12,20}[0-9]")
        jobs = [job(uid, uid, compiler.compile(grammar)) for uid in uids]
        answers.append(tokens_of(run_all(core, jobs)[3]))
        core.close()
    assert answers[0] == answers[1] == answers[2]


def test_what_is_cut_is_a_valid_beginning(compiler: GrammarCompiler) -> None:
    for n in range(1, 14):
        core = make_core(TextExecutor())
        items = run_all(core, [job(1, 7, schema_follower(compiler), n)])[1]
        tokens = tokens_of(items)
        assert (len(tokens), items[-1].finish) == (n, FinishReason.LENGTH)
        follower = schema_follower(compiler)
        assert all(follower.accept(token) for token in tokens)
        core.close()


def test_the_end_of_the_context_cuts_forced_tokens_too(compiler: GrammarCompiler) -> None:
    core = make_core(TextExecutor(), n_ctx=7)
    items = run_all(core, [job(1, 7, compiler.compile(Grammar("regex", "abcdefghij")))])[1]
    assert (len(tokens_of(items)), items[-1].finish) == (3, FinishReason.LENGTH)
    core.close()


@pytest.mark.parametrize("values", [{"ignore_eos": True}, {"bypass_eos": True}])
def test_a_complete_answer_ends_whatever_is_said_about_ends(
    compiler: GrammarCompiler, values: dict[str, bool]
) -> None:
    core = make_core(TextExecutor())
    items = run_all(core, [job(1, 1, compiler.compile(Grammar("regex", "ab?")), **values)])[1]
    assert items[-1].finish is FinishReason.STOP
    assert text_of(tokens_of(items)) in ("a", "ab")
    core.close()


def test_phrases_are_banned_within_a_grammar(compiler: GrammarCompiler) -> None:
    core = make_core(TextExecutor())
    grammar = Grammar("regex", "(the|ab|ca|x){10}")
    jobs = [
        job(uid, uid, compiler.compile(grammar), banned_phrases=("xa", "abc", "E"))
        for uid in range(8)
    ]
    for items in run_all(core, jobs).values():
        text = text_of(tokens_of(items))
        assert not [phrase for phrase in ("xa", "abc", "e") if phrase in text]
        follower = compiler.compile(grammar)
        assert all(follower.accept(token) for token in tokens_of(items))
    core.close()


def test_a_phrase_that_the_grammar_forces_ends_the_stream(compiler: GrammarCompiler) -> None:
    core = make_core(TextExecutor())
    follower = compiler.compile(Grammar("regex", "[0-9]the[0-9]"))
    items = run_all(core, [job(1, 1, follower, banned_phrases=("he",))])[1]
    text = text_of(tokens_of(items))
    assert items[-1].finish is FinishReason.LENGTH
    assert "he" not in text
    core.close()


def test_a_grammar_that_turns_out_too_much_is_the_callers_fault(compiler: GrammarCompiler) -> None:
    core = make_core(TextExecutor())
    follower = compiler.compile(Grammar("lark", 'start: (("a"{1000}){1000}){1000}'))
    *_, last = run_all(core, [job(1, 1, follower)])[1]
    assert last.finish is FinishReason.ERROR
    assert last.error is not None
    assert last.error[0] == "invalid_request"
    assert "cannot be followed any longer" in last.error[1]
    core.close()


def test_an_abort_within_a_grammar_leaves_nothing(compiler: GrammarCompiler) -> None:
    core = make_core(TextExecutor())
    core.add(job(1, 1, schema_follower(compiler)))
    core.step()
    core.abort(1)
    assert [item.finish for item in core.step()] == [FinishReason.CANCELLED]
    assert not core._chooser.uids
    core.close()


def test_reasoning_then_the_grammar(compiler: GrammarCompiler) -> None:
    core = make_core(TextExecutor(frozenset(ids_of("the"))))
    for uid in range(5):
        items = run_all(core, [job(uid, uid, reasoning(compiler), 200)])[uid]
        text = text_of(tokens_of(items))
        assert items[-1].finish is FinishReason.STOP
        answer = text.partition("the")[2].lstrip()
        assert len(answer) == 2 and answer.isdigit()
    core.close()


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "where"),
    [
        ("json_schema", '{"type": "foo"}', "Invalid type: foo"),
        ("json_schema", '{"type": "object", "not": {}}', 'Unimplemented keys: \\["not"\\]'),
        ("json_schema", '{"type": ', "line 1 column|char"),
        ("json_schema", "[1]", "must be a JSON object"),
        ("json_schema", "[" * 65 + "]" * 65, "more than 64 levels"),
        ("json_schema", '{"$ref": "#/$defs/a"}', "does not exist"),
        ("regex", "(a", "unclosed group"),
        ("lark", 'start: "a" | foo', "unknown name"),
        ("gbnf", "root ::= foo", "foo"),
        ("gbnf", "root ::= " + "(" * 60_000, "recursion"),
        ("regex", "a" * (MAX_BYTES + 1), "at most 262144"),
    ],
)
def test_a_grammar_that_cannot_be_compiled_is_refused_with_the_place(
    compiler: GrammarCompiler, kind: str, text: str, where: str
) -> None:
    with pytest.raises(InvalidRequest, match=where) as caught:
        compiler.compile(Grammar(kind, text))
    assert len(caught.value.message) < 500


class Slow(NoVetting):
    """Every grammar is one that was slow to try out."""

    def vet(self, kind: str, text: str) -> Vetted:
        return Vetted(define(kind, text), 0.5)


def test_one_that_was_slow_to_try_out_is_compiled_where_others_come_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gave_way: list[str] = []
    monkeypatch.setattr(
        "naiad.engine.grammar.compiler.give_way",
        lambda: gave_way.append(threading.current_thread().name),
    )
    monkeypatch.setattr("naiad.engine.grammar.compiler._APART_S", PATIENCE_S)
    for vetting, n in ((NoVetting(), 0), (Slow(), 1)):
        follower = GrammarCompiler(TextVocab(), vetting).compile(Grammar("regex", "[ab]{2}"))
        assert follower.mask()[0]
        assert len(gave_way) == n
    assert threading.current_thread().name not in gave_way


def test_one_that_gets_nothing_of_the_processor_is_compiled_with_equal_rights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starved = threading.Event()
    monkeypatch.setattr("naiad.engine.grammar.compiler.give_way", starved.wait)
    monkeypatch.setattr("naiad.engine.grammar.compiler._APART_S", 0.01)
    compiler = GrammarCompiler(TextVocab(), Slow())
    try:
        for text in ("[ab]{2}", "[ab]{3}", "[ab]{4}", "[ab]{5}"):
            assert compiler.compile(Grammar("regex", text)).mask()[0]
        assert not compiler._apart.acquire(blocking=False)  # no more threads are left behind
    finally:
        starved.set()


class Noting(TextVocab):
    """Knows who read it."""

    def __init__(self) -> None:
        self.readers: list[str] = []

    def piece(self, token: int, *, special: bool = False) -> bytes:
        self.readers.append(threading.current_thread().name)
        return super().piece(token, special=special)


def test_a_vocabulary_is_read_where_nobody_else_comes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("naiad.engine.grammar.compiler.give_way", lambda: None)
    monkeypatch.setattr("naiad.engine.grammar.compiler._APART_S", PATIENCE_S)
    vocab = Noting()
    GrammarCompiler(vocab, Slow()).compile(Grammar("regex", "[ab]{2}"))
    assert set(vocab.readers) == {threading.current_thread().name}


def test_what_was_prepared_in_slices_is_not_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("naiad.engine.grammar.vocabulary._SLICE", N_VOCAB // 3)
    vocab = Noting()
    compiler = GrammarCompiler(vocab, NoVetting())
    assert compiler.prepare()
    n_read = len(vocab.readers)
    assert N_VOCAB // 3 <= n_read < N_VOCAB // 2
    n_slices = 2
    while compiler.prepare():
        n_slices += 1
    assert n_slices in (3, 4)
    assert len(vocab.readers) < 2 * N_VOCAB
    n_read = len(vocab.readers)
    follower = compiler.compile(Grammar("regex", "[ab]{2}"))
    assert not compiler.prepare()
    assert len(vocab.readers) == n_read
    whole = GrammarCompiler(TextVocab(), NoVetting()).compile(Grammar("regex", "[ab]{2}"))
    assert (follower.mask() == whole.mask()).all()


class Endless(TextVocab):
    """Has no token that ends a text."""

    eog: frozenset[int] = frozenset()


def test_a_vocabulary_that_grammars_cannot_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = GrammarCompiler(Endless(), NoVetting())
    with pytest.raises(InvalidRequest, match="no token that ends a text"):
        compiler.prepare()
    with pytest.raises(InvalidRequest, match="no token that ends a text"):
        compiler.compile(Grammar("regex", "[ab]{2}"))

    class Panic(BaseException):
        """As the library's own are."""

    def panics(*_: object, **__: object) -> None:
        raise Panic("a token too long")

    monkeypatch.setattr("llguidance.LLTokenizer", panics)
    with pytest.raises(EngineFailed, match="vocabulary: a token too long"):
        while GrammarCompiler(TextVocab(), NoVetting()).prepare():
            pass


def test_one_grammar_does_not_wait_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2)

    class Meeting(NoVetting):
        def vet(self, kind: str, text: str) -> Vetted:
            both.wait(PATIENCE_S)
            return super().vet(kind, text)

    monkeypatch.setattr("naiad.engine.grammar.compiler.Vetting", Meeting)
    compiler = GrammarCompiler(TextVocab())
    with ThreadPoolExecutor(2) as threads:
        found = list(
            threads.map(compiler.compile, [Grammar("regex", "ab"), Grammar("regex", "ca")])
        )
    assert [follower.failure for follower in found] == ["", ""]
    assert compiler.cached(Grammar("regex", "ca")) is not None


def test_brackets_in_strings_are_not_depth() -> None:
    define("json_schema", json.dumps({"const": "[{" * 200 + '\\"'}))


@pytest.mark.model
def test_the_real_vocabulary(starter: Path) -> None:
    from naiad.native import library
    from naiad.native.model import Model

    library.start()
    model = Model(starter, gpu_layers=0, extra_buffers=False)
    try:
        vocab = model.vocab
        compiler = GrammarCompiler(vocab, NoVetting())
        language = ["red", "green", "greenish"]
        follower = compiler.compile(Grammar("json_schema", json.dumps({"enum": language})))
        said = ""
        while not follower.is_complete:
            texts = {t: vocab.piece(t).decode("utf-8", "replace") for t in range(vocab.n_tokens)}
            wholes = [json.dumps(one) for one in language]
            ways = [
                t for t, x in texts.items() if x and any(w.startswith(said + x) for w in wholes)
            ]
            assert follower.mask().nonzero()[0].tolist() == ways
            said += texts[max(ways, key=lambda t: len(texts[t]))]
            follower.accept(max(ways, key=lambda t: len(texts[t])))
        assert json.loads(said) in language
    finally:
        model.close()

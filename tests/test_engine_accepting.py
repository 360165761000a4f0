"""Requests with a grammar: others do not wait for its compiling, and an abort finds them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from naiad.engine.accepting import Accepting
from naiad.engine.base import CoreJob, EngineBackend
from naiad.engine.grammar.compiler import N_AT_ONCE
from naiad.engine.grammar.follower import Follower
from naiad.errors import EngineUnavailable, InvalidRequest
from naiad.ipc.channel import WorkerChannel
from naiad.ipc.messages import Accepted, Refused, Submit
from naiad.types import EngineSettings, Grammar, ModelInfo, SamplingParams, Trim
from patience import PATIENCE_S

FOLLOWER = cast(Follower, object())


class Told:
    """Takes the place of a channel and of the queue behind it."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.news = threading.Semaphore(0)

    def send(self, event: object) -> None:
        self.events.append(event)
        self.news.release()

    def enqueue(self, job: CoreJob) -> None:
        self.events.append(job)
        self.news.release()

    def wait(self, n: int) -> list[Any]:
        for _ in range(n):
            assert self.news.acquire(timeout=PATIENCE_S)
        return self.events


class Backend:
    """Compiles when it is told to."""

    def __init__(self) -> None:
        self.may_compile = threading.Event()
        self.began = threading.Semaphore(0)
        self.error: Exception | None = None
        self.known: set[str] = set()
        self.compiled = threading.Semaphore(0)

    class tokenizer:
        @staticmethod
        def encode(text: str, *, add_special: bool, parse_special: bool) -> list[int]:
            return [len(text)]

    def check(self, prompt: list[int], max_tokens: int | None) -> int:
        return max_tokens or 1

    def cached_grammar(self, grammar: Grammar) -> Follower | None:
        return FOLLOWER if grammar.text in self.known else None

    def close_grammars(self) -> None: ...

    def compile_grammar(self, grammar: Grammar) -> Follower:
        self.began.release()
        assert self.may_compile.wait(PATIENCE_S)
        self.compiled.release()
        if self.error:
            raise self.error
        return FOLLOWER


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
def accepting(told: Told, backend: Backend) -> Iterator[Accepting]:
    made = Accepting(
        cast(WorkerChannel, told), 1, lambda: cast(EngineBackend, backend), told.enqueue
    )
    yield made
    backend.may_compile.set()
    made.close()


def submit(uid: int, text: str | None = None) -> Submit:
    grammar = Grammar("regex", text, field="guided_regex") if text else None
    return Submit(uid, "hi", 5, SamplingParams(), grammar=grammar)


def test_others_are_answered_while_a_grammar_is_compiled(
    accepting: Accepting, told: Told, backend: Backend
) -> None:
    accepting.submit(submit(1, "a"))
    assert backend.began.acquire(timeout=PATIENCE_S)
    accepting.submit(submit(2))
    assert [type(event) for event in told.wait(2)] == [Accepted, CoreJob]
    backend.may_compile.set()
    accepted, job = told.wait(2)[2:]
    assert (accepted.uid, job.uid, job.follower) == (1, 1, FOLLOWER)


def test_a_grammar_that_is_known_is_answered_at_once(
    accepting: Accepting, told: Told, backend: Backend
) -> None:
    backend.known.add("a")
    accepting.submit(submit(1, "a"))
    assert told.events[1].follower is FOLLOWER


def test_a_refusal_names_the_callers_field(
    accepting: Accepting, told: Told, backend: Backend
) -> None:
    backend.error = InvalidRequest("the grammar cannot be compiled: at 1(8)")
    backend.may_compile.set()
    accepting.submit(submit(1, "(a"))
    [refused] = told.wait(1)
    assert isinstance(refused, Refused)
    assert (refused.uid, refused.code) == (1, "invalid_request")
    assert refused.details == {"param": "guided_regex"}


def test_an_abort_of_one_that_waits_is_its_answer_at_once(
    accepting: Accepting, told: Told, backend: Backend
) -> None:
    for uid in range(1, N_AT_ONCE + 3):
        accepting.submit(submit(uid, f"a{uid}"))
    for _ in range(N_AT_ONCE):
        assert backend.began.acquire(timeout=PATIENCE_S)
    assert accepting.abort(1)  # is being compiled
    assert accepting.abort(N_AT_ONCE + 1)  # waits for its turn
    assert not accepting.abort(1)
    assert not accepting.abort(99)
    assert [(one.uid, one.code) for one in told.events] == [
        (1, "cancelled"),
        (N_AT_ONCE + 1, "cancelled"),
    ]
    backend.may_compile.set()
    later = told.wait(2 + 2 * N_AT_ONCE)[2:]
    assert {one.uid for one in later} == {*range(2, N_AT_ONCE + 3)} - {N_AT_ONCE + 1}
    for _ in range(N_AT_ONCE + 1):
        assert backend.compiled.acquire(timeout=PATIENCE_S)
    assert not backend.compiled.acquire(blocking=False)  # not what was aborted before its turn


def test_a_defect_is_an_answer_too(
    accepting: Accepting, told: Told, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.error = RuntimeError("bug")
    backend.may_compile.set()
    accepting.submit(submit(1, "a"))
    assert told.wait(1)[0].code == "internal_error"
    assert "a command failed" in caplog.text


def test_without_grammars_or_engine_it_is_refused(told: Told) -> None:
    def unavailable() -> EngineBackend:
        raise EngineUnavailable("the model is still loading", retry_after=1)

    cannot = Accepting(
        cast(WorkerChannel, told), 1, lambda: cast(EngineBackend, object()), told.enqueue
    )
    cannot.submit(submit(1, "a"))
    loading = Accepting(cast(WorkerChannel, told), 1, unavailable, told.enqueue)
    loading.submit(submit(2, "a"))
    assert [event.code for event in told.events] == ["unsupported", "engine_unavailable"]
    cannot.close()
    loading.close()


def test_after_the_end_nobody_is_answered(
    accepting: Accepting, told: Told, backend: Backend
) -> None:
    accepting.submit(submit(1, "a"))
    assert backend.began.acquire(timeout=PATIENCE_S)
    accepting.close()
    backend.may_compile.set()
    accepting.submit(submit(2, "b"))
    assert told.events == []


# -- prompts that are too long ------------------------------------------------------------------


class Letters(Backend):
    """One token a character, a BOS in front, a context of 10."""

    info = ModelInfo(name="letters", engine=EngineSettings(n_ctx=10))

    class tokenizer:
        @staticmethod
        def encode(text: str, *, add_special: bool, parse_special: bool) -> list[int]:
            assert parse_special
            return [0] * add_special + list(text.encode())


def cut(text: str | list[int], trim: Trim | None, max_tokens: int | None = 3) -> tuple[str, int]:
    """What is left of a prompt, its BOS as a caret, and how much is told to be left out."""
    told = Told()
    made = Accepting(
        cast(WorkerChannel, told), 1, lambda: cast(EngineBackend, Letters()), told.enqueue
    )
    made.submit(Submit(1, text, max_tokens, SamplingParams(), trim=trim))
    accepted, job = told.wait(2)
    made.close()
    assert accepted.n_prompt == len(job.prompt)
    return bytes(token or ord("^") for token in job.prompt).decode(), accepted.n_dropped


@pytest.mark.parametrize(
    ("text", "trim", "max_tokens", "want"),
    [
        ("abcdefghij", None, 3, ("^abcdefghij", 0)),
        ("abcdef", Trim(), 3, ("^abcdef", 0)),
        ("abcdefg", Trim(), 3, ("^bcdefg", 1)),
        ("abcdefghij", Trim(None, 2), 3, ("^abghij", 4)),
        ("abcdefghij", Trim(8, 2), 3, ("^abij", 6)),
        ("abcdefghij", Trim(99, 2), 3, ("^abghij", 4)),
        ("abcdefghij", Trim(), 99, ("^ghij", 6)),  # the answer never takes more than half
        ("abcdefghij", Trim(), None, ("^cdefghij", 2)),
        ("abcdefghij", Trim(None, 9), 3, ("^abcdefghij", 0)),  # the kept part alone is too long
        ("abcdefghij", Trim(None, 10), 3, ("^abcdefghij", 0)),
        ([1, 2], Trim(), 3, ("\x01\x02", 0)),
    ],
)
def test_the_oldest_of_a_prompt_that_is_too_long_is_left_out(
    text: str | list[int], trim: Trim | None, max_tokens: int | None, want: tuple[str, int]
) -> None:
    assert cut(text, trim, max_tokens) == want

"""A second model guesses: never another answer, whatever it says and what befalls its streams."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from fake_executor import BACK, EOG, FakeExecutor, FakeMemory, FakeVocab, answer
from naiad.engine.base import CoreJob
from naiad.engine.core import CoreLimits, EngineCore
from naiad.engine.cost import MIN_CHUNK, StepCost
from naiad.engine.draft_model import MOST_BEHIND, DraftModel
from naiad.engine.memory_fit import ModelShape, Wish, fit
from naiad.engine.sequence import Sequence
from naiad.engine.worth import MOST_DRAFT, best_length
from naiad.errors import ConfigError
from naiad.types import SamplingParams

GREEDY = SamplingParams(temperature=0)
N_CTX = 700


def prompt_of(seed: int, n: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(EOG) for _ in range(n)]


class Engine:
    """A core whose plain steps are dear, so that right guesses pay; text never repeats itself."""

    def __init__(self, *, back: int = BACK, n_cells: int = 4000, n_slots: int = 3) -> None:
        self.second = FakeExecutor(memory=FakeMemory(n_cells), back=back)
        self.n_closed = 0
        self.model = DraftModel(self.second, n_slots, n_cells, self._closed)
        self.main = FakeExecutor(memory=FakeMemory(4000))
        limits = CoreLimits(
            n_ctx=N_CTX,
            pool_cells=4000,
            parallel=3,
            n_parked=3,
            host_cache_bytes=1 << 20,
            can_shift=True,
            drafts=True,
            check_integrity=True,
        )
        self.core = EngineCore(self.main, FakeVocab(), limits, draft_model=self.model)
        cost = self.core._cost
        cost._decode_s = 0.02
        cost.step_s = lambda n_rows, depth: 0.02 + 0.001 * n_rows  # type: ignore[method-assign]
        assert self.core._drafting is not None
        self.core._drafting._drafter = lambda _: NoGuess()  # type: ignore[assignment,method-assign,return-value]
        self.said: dict[int, list[int]] = {}

    def _closed(self) -> None:
        self.n_closed += 1

    def add(self, uid: int, prompt: list[int], n: int, *, shift: bool = False) -> None:
        self.said[uid] = []
        self.core.add(CoreJob(uid, tuple(prompt), n, GREEDY, shift_at_limit=shift))

    def step(self) -> None:
        for item in self.core.step():
            self.said[item.uid] += item.tokens

    def run(self) -> None:
        while self.core.has_work():
            self.step()

    @property
    def n_asked(self) -> int:
        """Rounds in which the second model computed."""
        return len(self.second.decoded)


class NoGuess:
    """Stands in for the n-grams, which know the fake model's text by heart."""

    def n_worth(self, *given: object) -> tuple[int, float]:
        return 0, float(given[2])  # type: ignore[arg-type]


def test_right_guesses_save_steps_and_change_nothing() -> None:
    engine = Engine()
    prompts = {uid: prompt_of(uid, 50 + 30 * uid) for uid in (1, 2, 3)}
    for uid, prompt in prompts.items():
        engine.add(uid, prompt, 150)
    engine.run()
    assert engine.said == {uid: answer(prompt, 150) for uid, prompt in prompts.items()}
    assert len(engine.main.decoded) < 60
    assert all(not cells for cells in engine.second.memory.sequences.values())
    assert sorted(engine.model._free) == [0, 1, 2]


def test_wrong_guesses_cost_little_and_change_nothing() -> None:
    engine = Engine(back=BACK + 1)
    prompt = prompt_of(1, 60)
    engine.add(1, prompt, 600)
    engine.run()
    assert engine.said[1] == answer(prompt, 600)
    assert engine.n_asked < 60
    drafted = sum(len(run.tokens) - 1 for runs in engine.main.decoded[1:] for run in runs)
    assert drafted < 40


def test_a_long_prompt_is_taken_in_over_several_steps() -> None:
    engine = Engine()
    prompt = prompt_of(1, MOST_BEHIND + 60)
    engine.add(1, prompt, 40)
    engine.run()
    assert engine.said[1] == answer(prompt, 40)
    assert max(len(run.tokens) for runs in engine.second.decoded for run in runs) == MOST_BEHIND


class SlowToTakeIn(StepCost):
    """Two milliseconds for each token of a prompt, whatever the clock says; see `seen`."""

    def __init__(self) -> None:
        super().__init__(0.002)
        self.seen: list[int] = []

    def saw_prefill(self, n_tokens: int, depth: int, seconds: float, *, beside: int) -> None:
        self.seen.append(n_tokens)


def n_taken_in(engine: Engine) -> list[int]:
    """Tokens of prompts in each decode of the second model."""
    sizes = [sum(len(run.tokens) for run in runs) for runs in engine.second.decoded]
    return [n for n in sizes if n > 2 * 3]


def test_what_one_step_takes_in_is_bounded_by_time() -> None:
    """The target is 80 ms, of which the step itself takes 21 to 30."""
    engine = Engine()
    engine.model.cost = cost = SlowToTakeIn()
    prompt = prompt_of(1, 160)
    engine.add(1, prompt, 100)
    engine.run()
    assert engine.said[1] == answer(prompt, 100)
    assert len(n_taken_in(engine)) > 5
    assert MIN_CHUNK < max(n_taken_in(engine)) <= 0.06 / 0.002
    assert set(n_taken_in(engine)) <= set(cost.seen)

    cost = engine.model.cost = SlowToTakeIn()
    asked = [(Sequence(CoreJob(9, tuple(prompt), 40, GREEDY)), 4)]
    assert engine.model.guess(asked, 0.25) == [()]
    assert engine.model.guess(asked, -1.0) == [()]
    assert engine.model.guess(asked, 1.0) == [tuple(answer(prompt, 4))]
    assert cost.seen == [125, MIN_CHUNK, 160 - 125 - MIN_CHUNK]


class SlowEngine(Engine):
    """A step takes longer than streams should wait: 100 ms, of 80."""

    def __init__(self) -> None:
        super().__init__()
        self.model.cost = SlowToTakeIn()
        cost = self.core._cost
        cost._decode_s = 0.1
        cost.step_s = lambda n_rows, depth: 0.1 + 0.001 * n_rows  # type: ignore[method-assign]
        cost.saw_decode = lambda *_: None  # type: ignore[method-assign]

    @property
    def has_guess(self) -> list[bool]:
        """Of each step after the prompt's."""
        return [any(len(run.tokens) > 1 for run in runs) for runs in self.main.decoded[1:]]


def test_a_slow_model_is_guessed_for_soon() -> None:
    """Half of a step is 50 ms, in which 25 tokens are taken in; each step brings another."""
    engine = SlowEngine()
    prompt = prompt_of(1, 400)
    engine.add(1, prompt, 150)
    engine.run()
    assert engine.said[1] == answer(prompt, 150)
    assert engine.has_guess.index(True) <= 400 // (25 - 1)
    assert len(engine.has_guess) < 400 // 24 + 1 + 150 // MOST_DRAFT


def test_a_prompt_that_is_taken_in_too_late_is_not_begun() -> None:
    """400 tokens need some 16 steps, and 16 of the answer must be left then."""
    engine = SlowEngine()
    engine.add(1, prompt_of(1, 400), 28)
    engine.run()
    assert engine.n_asked == 0


def test_who_is_a_draft_behind_need_not_wait() -> None:
    engine = Engine()
    engine.model.cost = SlowToTakeIn()
    new, near = (Sequence(CoreJob(uid, tuple(prompt_of(uid, 90)), 40, GREEDY)) for uid in (1, 2))
    engine.model.guess([(near, 4)])
    near.tokens += answer(near.tokens, MOST_DRAFT + 1)
    assert engine.model.guess([(new, 4), (near, 4)], -1.0)[1] == tuple(answer(near.tokens, 4))


def test_a_trial_that_needs_several_steps_is_not_given_up() -> None:
    """Each step takes in the least there is, and what comes meanwhile."""
    engine = Engine()
    engine.model.cost = SlowToTakeIn()
    assert engine.core._drafting is not None and engine.core._drafting._model is not None
    engine.core._drafting._model._target_s = 0.0
    engine.core._drafting._model._share = 0.0
    prompt = prompt_of(1, 60)
    engine.add(1, prompt, 600)
    engine.run()
    assert engine.said[1] == answer(prompt, 600)
    assert len(engine.main.decoded) < 500


def test_a_long_prompt_keeps_nobody_from_guessing() -> None:
    engine = Engine()
    engine.model.cost = SlowToTakeIn()
    long, short, new = (
        Sequence(CoreJob(uid, tuple(prompt_of(uid, n)), 40, GREEDY))
        for uid, n in ((1, 300), (2, 30), (3, 90))
    )
    engine.model.guess([(short, 4)])
    short.tokens += answer(short.tokens, 2)
    first, second, third = engine.model.guess([(long, 4), (short, 4), (new, 4)], 0.04)
    assert (first, second, third) == ((), tuple(answer(short.tokens, 4)), ())
    assert engine.model.holds(3)
    assert not engine.model.holds(1)
    for _ in range(30):
        first, second, third = engine.model.guess([(long, 4), (short, 4), (new, 4)], 0.04)
    assert all((first, second, third))


def test_the_first_round_is_timed_as_the_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is a second after the one before."""
    ticks = iter(range(1000))
    monkeypatch.setattr("naiad.engine.draft_model.time.perf_counter", lambda: next(ticks))
    engine = Engine()
    sequence = Sequence(CoreJob(1, tuple(prompt_of(1, 60)), 40, GREEDY))
    engine.model.guess([(sequence, 1)])
    assert engine.model.round_s == 0
    sequence.tokens += answer(sequence.tokens, 2)
    engine.model.guess([(sequence, 1)])
    assert engine.model.round_s == 1


def test_short_answers_are_not_worth_a_prompt() -> None:
    engine = Engine()
    engine.add(1, prompt_of(1, 60), 10)
    engine.run()
    assert engine.n_asked == 0


def test_streams_that_leave_or_lose_their_beginning_go_on_rightly() -> None:
    engine = Engine()
    long, gone = prompt_of(1, 100), prompt_of(2, 80)
    engine.add(1, long, 1500, shift=True)
    engine.add(2, gone, 500)
    for _ in range(8):
        engine.step()
    engine.core.abort(2)
    engine.add(3, prompt_of(3, 70), 80)
    engine.run()
    assert engine.said[1] == answer(long, 1500)
    assert engine.said[3] == answer(prompt_of(3, 70), 80)
    assert engine.said[2] == answer(gone, 500)[: len(engine.said[2])]
    assert not engine.model._held


@pytest.mark.parametrize(("n_cells", "n_slots"), [(130, 3), (4000, 1)])
def test_who_finds_no_place_goes_without(n_cells: int, n_slots: int) -> None:
    engine = Engine(n_cells=n_cells, n_slots=n_slots)
    prompts = {uid: prompt_of(uid, 60) for uid in (1, 2, 3)}
    for uid, prompt in prompts.items():
        engine.add(uid, prompt, 40)
    engine.run()
    assert engine.said == {uid: answer(prompt, 40) for uid, prompt in prompts.items()}
    assert engine.n_asked


def test_who_has_no_place_for_the_whole_takes_none_from_the_others() -> None:
    engine = Engine(n_cells=1000)
    large, small = (
        Sequence(CoreJob(uid, tuple(prompt_of(uid, n)), 40, GREEDY))
        for uid, n in ((1, 980), (2, 60))
    )
    assert engine.model.guess([(small, 4)]) == [tuple(answer(small.tokens, 4))]
    for _ in range(4):
        first, second = engine.model.guess([(large, 4), (small, 4)])
        assert (first, list(second)) == ((), answer(small.tokens, 4))
    assert not engine.model.holds(1)


def test_room_that_is_promised_to_one_is_not_given_to_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = Engine(n_cells=1020, n_slots=4)
    streams = [Sequence(CoreJob(uid, tuple(prompt_of(uid, 240)), 40, GREEDY)) for uid in range(4)]
    for i in range(40):
        guesses = engine.model.guess([(sequence, 1 + 7 * (i % 2)) for sequence in streams])
        for sequence, guess in zip(streams, guesses, strict=True):
            sequence.tokens += list(guess[:1]) or answer(sequence.tokens, 1)
    assert "could not compute" not in caplog.text
    assert engine.n_asked


def test_a_model_that_fails_begins_again(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine()
    prompt = prompt_of(1, 60)
    engine.add(1, prompt, 100)
    for _ in range(4):
        engine.step()
    engine.second.fatal = True
    for _ in range(3):
        engine.step()
    engine.second.fatal = False
    engine.run()
    assert engine.said[1] == answer(prompt, 100)
    assert "draft model could not compute" in caplog.text


def test_what_it_holds_follows_the_stream() -> None:
    """A guess that was not kept, a token that was taken back: cut, and computed from there."""
    engine = Engine()
    sequence = Sequence(CoreJob(1, tuple(prompt_of(1, 60)), 40, GREEDY))
    [first] = engine.model.guess([(sequence, 4)])
    assert list(first) == answer(list(sequence.job.prompt), 4)
    sequence.tokens += [*first[:2], (first[2] + 1) % EOG]
    [second] = engine.model.guess([(sequence, 4)])
    assert list(second) == answer(sequence.tokens, 4)
    del sequence.tokens[-30:]
    [third] = engine.model.guess([(sequence, 4)])
    assert list(third) == answer(sequence.tokens, 4)
    assert engine.model.guess([]) == []


def test_it_is_closed_with_the_core() -> None:
    engine = Engine()
    engine.core.close()
    assert engine.second.is_closed
    assert engine.n_closed == 1


def test_a_length_is_worth_it_by_what_it_brings_a_second() -> None:
    sure = [1.0] * MOST_DRAFT
    assert best_length(sure, lambda k: 1 + 0.1 * k, 1.0, 9.0) == (MOST_DRAFT, 1.0 + MOST_DRAFT)
    assert best_length(sure, lambda k: 1 + 0.1 * k, 1.0, 1.35) == (3, 4.0)
    assert best_length([0.5] * 4, lambda k: 1 + 0.6 * k, 1.0, 9.0) == (0, 1.0)
    assert best_length([], lambda _: 1.0, 2.0, 9.0) == (0, 2.0)


def test_its_memory_is_counted() -> None:
    shape = ModelShape(100 << 20, 40_000, 8192, n_vocab=50_000, n_embd=576, n_head=9)
    second = replace(shape, mapped_bytes=20 << 20, bytes_per_cell=8_000)
    free = 4 << 30
    plain, wish = fit(shape, Wish(4, ctx=8192), free), Wish(4, ctx=8192, draft=second)
    assert (plain.draft_cells, fit(shape, wish, free).draft_cells) == (0, 8192)
    assert "draft model" in fit(shape, wish, free).arithmetic
    with pytest.raises(ConfigError, match="draft model"):
        fit(shape, replace(wish, draft=replace(second, mapped_bytes=4 << 30)), free)


@pytest.mark.parametrize("free_gib", [12, 16, 32])
def test_without_a_wish_its_weights_are_not_taken_from_the_context(free_gib: int) -> None:
    shape = ModelShape(
        (free_gib // 2) << 30, 131_072, 32_768, n_vocab=128_000, n_embd=4096, n_head=32
    )
    second = replace(shape, mapped_bytes=1 << 30, bytes_per_cell=32_768, n_embd=2048)
    plain = fit(shape, Wish(4), free_gib << 30)
    drafted = fit(shape, Wish(4, draft=second), free_gib << 30)
    assert plain.n_ctx > drafted.n_ctx > plain.n_ctx // 2

"""Drafts: guesses from the text itself. They may change how soon a token comes, nothing else."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_executor import EOG, N_VOCAB, FakeExecutor, FakeVocab, answer
from naiad.engine.base import CoreJob
from naiad.engine.core import CoreLimits, EngineCore
from naiad.engine.cost import StepCost
from naiad.engine.drafts import MOST_READ, NgramDrafter, Shares
from naiad.engine.executor import Run
from naiad.engine.scheduler import StepBudget
from naiad.engine.sequence import Sequence
from naiad.engine.worth import MOST_DRAFT
from naiad.ipc.messages import StreamItem
from naiad.types import FinishReason, SamplingParams

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("steady_clock")]

GREEDY = SamplingParams(temperature=0)


class RepeatingExecutor(FakeExecutor):
    """Noisy logits of the last two tokens: texts repeat themselves, so guesses are often right."""

    poison_at: int | None = None

    def _row(self, run: Run, back: int) -> npt.NDArray[np.float32]:
        row = super()._row(run, back)  # checks for holes
        cells = self.memory.sequences[run.slot]
        last = max(cells) - back
        key = 64 * cells[last][0] + cells[last - 1][0] // 16
        row[:] = np.random.default_rng(key).standard_normal(N_VOCAB) * 3
        if last == self.poison_at:
            row[:] = np.nan
        return row


def costs(*, decode_s: float, token_s: float) -> StepCost:
    cost = StepCost(token_s)
    cost.saw_decode(decode_s)
    return cost


@dataclass
class Engine:
    """A core whose costs are given, and what its streams said."""

    core: EngineCore
    executor: FakeExecutor
    items: dict[int, list[StreamItem]]

    def step(self) -> None:
        for item in self.core.step():
            self.items.setdefault(item.uid, []).append(item)

    def run(self) -> None:
        for _ in range(5000):
            if not self.core.has_work():
                return
            self.step()
        raise AssertionError("a livelock")

    def add(self, uid: int, prompt: list[int], n: int, sampling: SamplingParams = GREEDY) -> None:
        self.core.add(CoreJob(uid, tuple(prompt), n, sampling))

    def said(self, uid: int) -> list[int]:
        return [token for item in self.items[uid] for token in item.tokens]

    @property
    def n_guessed(self) -> int:
        """Tokens computed as guesses."""
        runs = (run for runs in self.executor.decoded for run in runs)
        return sum(max(run.n_logits - 1, 0) for run in runs)


def engine(
    *, drafts: bool = True, make: Callable[[int], FakeExecutor] = FakeExecutor, **changes: Any
) -> Engine:
    limits: dict[str, Any] = {
        "n_ctx": 400,
        "pool_cells": 4096,
        "parallel": 4,
        "n_parked": 2,
        "host_cache_bytes": 1 << 20,
        "budget": StepBudget(alone=64, beside=16),
        "check_integrity": True,
    }
    limits |= changes
    executor = make(limits["pool_cells"])
    core = EngineCore(executor, FakeVocab(), CoreLimits(drafts=drafts, **limits))
    core._cost._decode_s = 1.0
    core._cost.saw_decode = lambda *_: None  # type: ignore[method-assign]
    core._cost.saw_prefill = lambda *_, **__: None  # type: ignore[method-assign]
    return Engine(core, executor, {})


# -- the same text --------------------------------------------------------------------------------


@settings(max_examples=12, derandomize=True)
@given(
    st.lists(st.lists(st.integers(0, EOG - 1), min_size=5, max_size=30), min_size=1, max_size=5),
    st.floats(0.2, 1.2),
    st.floats(1.0, 1.3),
    st.floats(0.0, 0.6),
    st.sampled_from([None, 5, 40]),
    st.booleans(),
)
def test_streams_with_drafts_say_what_streams_without_say(
    prompts: list[list[int]],
    temperature: float,
    repetition: float,
    frequency: float,
    top_k: int | None,
    ignore_eos: bool,
) -> None:
    said, engines = [], [engine(drafts=d, make=RepeatingExecutor) for d in (True, False)]
    for each in engines:
        for uid, prompt in enumerate(prompts):
            sampling = SamplingParams(
                temperature=temperature,
                seed=uid,
                repetition_penalty=repetition,
                frequency_penalty=frequency,
                top_k=top_k or 0,
                ignore_eos=ignore_eos,
            )
            each.add(uid, prompt * 2, 60, sampling)
        each.run()
        said.append([(each.said(uid), each.items[uid][-1].finish) for uid in range(len(prompts))])
    assert said[0] == said[1]
    assert engines[1].n_guessed == 0


def test_drawn_texts_that_repeat_themselves_are_guessed() -> None:
    """So that the test above is about something."""
    each = engine(make=RepeatingExecutor)
    for uid in range(4):
        sampling = SamplingParams(temperature=0.6, seed=uid, ignore_eos=True)
        each.add(uid, [uid, 2, 3, 4] * 5, 100, sampling)
    each.run()
    assert each.n_guessed > 50
    assert sum(len(item.tokens) > 1 for items in each.items.values() for item in items) > 10


def test_right_guesses_save_steps() -> None:
    prompt = answer([1, 20, 40, 50], 300)
    with_drafts, without = engine(), engine(drafts=False)
    for each in (with_drafts, without):
        each.add(1, prompt, 80)
        each.run()
        assert each.said(1) == answer(prompt, 80)
    assert len(with_drafts.executor.decoded) < len(without.executor.decoded) // 3
    assert max(len(item.tokens) for item in with_drafts.items[1]) > MOST_DRAFT
    for item in with_drafts.items[1]:
        pieces = [FakeVocab().piece(token) for token in item.tokens]
        assert item.sizes == ([len(piece) for piece in pieces] if len(pieces) > 1 else None)


def test_guesses_of_one_stream_ride_beside_others() -> None:
    each = engine()
    loop, plain = answer([1, 20, 40, 50], 300), [3, 9, 27, 18, 54, 33]
    each.add(1, loop, 80)
    each.add(2, plain, 80)
    each.run()
    assert each.said(1) == answer(loop, 80)
    assert each.said(2) == answer(plain, 80)
    assert any(len(runs) == 2 and runs[0].n_logits > 1 for runs in each.executor.decoded)


# -- where they pay -------------------------------------------------------------------------------


def test_guesses_are_what_followed_the_last_three_tokens_the_last_time() -> None:
    tokens = [1, 2, 3, 4, 5, 9, 1, 2, 3, 6, 7, 8, 1, 2, 3]
    drafter = NgramDrafter(tokens)
    drafter.catch_up()
    assert drafter.draft(4) == (6, 7, 8, 1)
    assert drafter.draft(1) == (6,)
    tokens += [6, 50]
    drafter.catch_up()
    assert drafter.draft(4) == ()


@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(1, 9), max_size=20))
def test_guesses_are_the_same_however_the_tokens_come(tokens: list[int], cuts: list[int]) -> None:
    whole, parts, grown = NgramDrafter(tokens), NgramDrafter(mine := []), 0
    whole.catch_up()
    for cut in itertools.chain(cuts, [len(tokens)]):
        mine += tokens[grown : grown + cut]
        grown = len(mine)
        parts.catch_up()
        parts.catch_up()
    assert mine == tokens[:grown]
    mine += tokens[grown:]
    parts.catch_up()
    assert whole.draft(8) == parts.draft(8)
    assert whole.shares._shares == pytest.approx(parts.shares._shares)


def test_a_long_prompt_is_read_over_several_steps() -> None:
    drafter = NgramDrafter([1, 2, 3, 4] * MOST_READ)
    for _ in range(3):
        drafter.catch_up()
        assert drafter.draft(2) == ()
    drafter.catch_up()
    assert drafter.draft(2) == (1, 2)


def test_a_text_that_goes_round_is_followed_around() -> None:
    drafter = NgramDrafter([5, 1, 2, 1, 2, 1, 2])
    drafter.catch_up()
    assert drafter.draft(7) == (1, 2, 1, 2, 1, 2, 1)


def test_the_share_of_right_guesses_is_learned_without_making_any() -> None:
    right, wrong = NgramDrafter([1, 2, 3, 4] * 30), NgramDrafter([1, 2, 3, 4])
    rng = random.Random(1)
    for _ in range(60):
        wrong._tokens.extend([1, 2, 3, rng.randrange(100, 10_000)])
    right.catch_up()
    wrong.catch_up()
    assert right.shares.of(40) > 0.95
    assert wrong.shares.of(3) < 0.1


def test_what_one_text_taught_is_known_to_the_next() -> None:
    everyone = Shares()
    NgramDrafter([1, 2, 3, 4] * 60, everyone).catch_up()
    assert everyone.of(32) > 0.95
    assert NgramDrafter([], everyone).shares.of(32) == everyone.of(32)
    assert everyone.of(3) == pytest.approx(Shares().of(3), abs=0.05)  # seen once


def test_a_longer_match_is_told_from_a_short_one() -> None:
    """Every three tokens come again and go on otherwise; whole verses come again and go on."""
    rng, everyone = random.Random(1), Shares()
    verse = [rng.randrange(100, 10_000) for _ in range(40)]
    text = [t for _ in range(60) for t in (1, 2, 3, rng.randrange(100, 10_000))] + verse * 4
    NgramDrafter(text, everyone).catch_up()
    assert everyone.of(3) < 0.3
    assert everyone.of(16) > 0.8


MATCHED = [1, 2, 3, 4, 1, 2, 3]


def at_share(share: float) -> NgramDrafter:
    drafter = NgramDrafter(list(MATCHED))
    drafter.catch_up()
    drafter.shares._shares = [share] * len(drafter.shares._shares)
    return drafter


@given(st.floats(0.0, 1.0), st.floats(1e-4, 1.0), st.floats(1e-6, 1.0), st.integers(1, 16))
def test_no_more_is_guessed_than_pays(
    share: float, decode_s: float, token_s: float, n_running: int
) -> None:
    drafter, cost = at_share(share), costs(decode_s=decode_s, token_s=token_s)
    plain_s = cost.step_s(n_running, len(MATCHED))
    n, brings = drafter.n_worth(cost, n_running, n_running, 1e9, 99)
    assert 0 <= n <= MOST_DRAFT
    assert brings == pytest.approx(n_running + sum(share**k for k in range(1, n + 1)))
    if n:
        assert brings / cost.step_s(n_running + n, len(MATCHED)) > n_running / plain_s
    if token_s * n_running > plain_s:
        assert n == 0


@given(st.integers(0, 12), st.floats(0.001, 0.02))
def test_a_guess_stays_inside_its_bounds(most: int, longest_s: float) -> None:
    drafter, cost = at_share(1.0), costs(decode_s=0.004, token_s=0.001)
    n, _ = drafter.n_worth(cost, 1, 1, longest_s, most)
    assert n <= most
    assert n == 0 or cost.step_s(1 + n, len(MATCHED)) <= longest_s
    assert n == min(most, MOST_DRAFT, max(int((longest_s - 0.004) / 0.001 + 1e-6), 0))


def test_long_guesses_pay_where_short_ones_do_not() -> None:
    """As kernels go: the second row costs more than the first, the next ones little."""
    drafter, cost = at_share(1.0), costs(decode_s=1.0, token_s=0.1)
    for n_rows, seconds in ((2, 2.2), (3, 2.7), (4, 3.0), (9, 5.5)):
        for _ in range(3):
            cost.saw_decode(seconds, n_rows, n_rows - 1)
    assert drafter.n_worth(cost, 1, 1, 9.0, 1)[0] == 0
    assert drafter.n_worth(cost, 1, 1, 9.0, 3)[0] == 3
    assert drafter.n_worth(cost, 1, 1, 9.0, 8)[0] == 8


def test_one_slow_step_does_not_end_guessing() -> None:
    """The first guess finds the machine busy: its cost is measured again, and guesses go on."""
    each = engine()
    learn = StepCost.saw_decode.__get__(each.core._cost)
    seen: list[int] = []

    def saw(seconds: float, n_rows: int = 1, n_drafted: int = 0) -> None:
        if n_drafted:
            seen.append(n_drafted)
            learn(50.0 if len(seen) == 1 else 1.001, n_rows, n_drafted)

    each.core._cost.saw_decode = saw  # type: ignore[method-assign]
    prompt = answer([1, 20, 40, 50], 300)
    each.add(1, prompt, 90)
    each.run()
    assert each.said(1) == answer(prompt, 90)
    assert len(seen) > 8


def test_before_a_step_was_measured_nothing_is_guessed() -> None:
    each = engine()
    each.core._cost._decode_s = 0.0
    each.add(1, answer([1, 20, 40, 50], 300), 40)
    each.run()
    assert each.n_guessed == 0


def test_where_computing_a_token_costs_a_step_nothing_is_guessed() -> None:
    each = engine()
    each.core._cost._decode_s = 0.001
    prompt = answer([1, 20, 40, 50], 300)
    each.add(1, prompt, 80)
    each.run()
    assert each.said(1) == answer(prompt, 80)
    assert each.n_guessed == 0


def test_a_text_that_never_repeats_soon_costs_no_guesses() -> None:
    """Every trigram comes twice, followed by something else each time."""
    each, rng = engine(), random.Random(3)
    prompt = [t for _ in range(80) for t in (1, 2, 3, rng.randrange(4, EOG))]
    each.add(1, prompt, 60)
    each.run()
    assert each.said(1) == answer(prompt, 60)
    assert each.n_guessed <= 8


# -- ends inside a draft ----------------------------------------------------------------------


@pytest.mark.parametrize("n", range(1, 2 * MOST_DRAFT))
def test_the_length_ends_inside_a_draft(n: int) -> None:
    each = engine()
    prompt = answer([1, 20, 40, 50], 300)
    each.add(1, prompt, n)
    each.run()
    assert each.said(1) == answer(prompt, n)
    assert each.items[1][-1].finish is FinishReason.LENGTH


@pytest.mark.parametrize("n_left", range(1, 2 * MOST_DRAFT))
def test_the_context_ends_inside_a_draft(n_left: int) -> None:
    prompt = answer([1, 20, 40, 50], 300)
    each = engine(n_ctx=300 + n_left)
    each.add(1, prompt, 1000)
    each.run()
    assert each.said(1) == answer(prompt, n_left)
    assert max(run.start + len(run.tokens) for runs in each.executor.decoded for run in runs) < (
        300 + n_left
    )


@pytest.mark.parametrize("place", range(1, 12))
def test_the_end_of_generation_inside_a_draft(place: int) -> None:
    """The text so far says that the end comes; the guesses after it are not said."""
    each = engine()
    prompt = answer([1, 20, 40, 50], 300)
    right = answer(prompt, 40)
    each.core._chooser._vocab.eog = frozenset({right[place]})
    first = right.index(right[place])
    each.add(1, prompt, 40)
    each.run()
    assert each.said(1) == right[: first + 1]
    assert each.items[1][-1].finish is FinishReason.STOP
    assert b"".join(item.data for item in each.items[1]) == bytes(right[:first])


@pytest.mark.parametrize("place", range(300, 312))
def test_numbers_that_go_bad_inside_a_draft(place: int) -> None:
    each = engine(make=RepeatingExecutor)
    assert isinstance(each.executor, RepeatingExecutor)
    prompt = [5, 6, 7, 8, 9] * 60
    each.executor.poison_at = place
    sampling = SamplingParams(temperature=0, ignore_eos=True)
    each.add(1, prompt, 60, sampling)
    each.run()
    assert len(each.said(1)) == place - 299
    assert each.items[1][-1].finish is FinishReason.ERROR
    assert each.executor.memory.n_used == 0
    clean = engine(drafts=False, make=RepeatingExecutor)
    clean.add(1, prompt, 60, sampling)
    clean.run()
    assert clean.said(1)[: place - 299] == each.said(1)


def test_an_abort_after_a_draft_leaves_the_pool_right() -> None:
    each = engine()
    prompt = answer([1, 20, 40, 50], 300)
    each.add(1, prompt, 90)
    while 1 not in each.items or len(each.said(1)) < 12:
        each.step()
    each.core.abort(1)
    each.step()
    assert each.items[1][-1].finish is FinishReason.CANCELLED
    again = [*prompt, *each.said(1), 7, 8]
    each.add(2, again, 30)
    each.run()
    assert each.said(2) == answer(again, 30)


@pytest.mark.parametrize("moment", range(1, 8))
def test_an_interrupted_draft_is_computed_again(moment: int) -> None:
    each, n = engine(), itertools.count(1)

    def interrupt() -> None:
        each.executor.interrupted = next(n) == moment + 5

    each.executor.during = interrupt
    prompts = {uid: answer([uid, 20, 40, 50], 300) for uid in (1, 2)}
    for uid, prompt in prompts.items():
        each.add(uid, prompt, 80)
    each.run()
    assert {uid: each.said(uid) for uid in prompts} == {
        uid: answer(prompt, 80) for uid, prompt in prompts.items()
    }


# -- a pool that is nearly full -----------------------------------------------------------------


def n_put_back(each: Engine, prompts: dict[int, list[int]], n: dict[int, int]) -> int:
    counted: list[Sequence] = []
    put_back = each.core._intake.put_back

    def count(sequence: Sequence) -> None:
        counted.append(sequence)
        put_back(sequence)

    each.core._intake.put_back = count  # type: ignore[method-assign]
    for uid, prompt in prompts.items():
        each.add(uid, prompt, n[uid])
    each.run()
    for uid, prompt in prompts.items():
        assert each.said(uid) == answer(prompt, n[uid])
    return len(counted)


@pytest.mark.parametrize("n_spare", range(12, 33, 2))
def test_a_guess_never_costs_anyone_his_place(n_spare: int) -> None:
    """The short one ends before the pool is full, but there is no room for guesses until then."""
    prompts = {uid: answer([uid, 20, 40, 50], 260) for uid in (1, 2)}
    n = {1: 12, 2: 60}
    limits: dict[str, Any] = {
        "pool_cells": 2 * 260 + n_spare,
        "n_parked": 0,
        "budget": StepBudget(alone=600),
    }
    with_drafts, without = (engine(drafts=drafts, **limits) for drafts in (True, False))
    assert n_put_back(with_drafts, prompts, n) <= n_put_back(without, prompts, n)
    assert with_drafts.n_guessed > 0


def test_a_guess_never_pushes_out_what_is_kept() -> None:
    """One that has ended waits in the pool to be saved; a guess that finds no room is not made."""
    each = engine(pool_cells=640, parallel=1, n_parked=2, host_cache_bytes=0)
    each.add(1, [30, *range(10), 7, 9] * 20, 1)
    each.run()
    [parked] = each.core._prefix.parked
    prompt = answer([1, 20, 40, 50], 300)
    each.core._prefix.save_slice = lambda: False  # type: ignore[method-assign]
    n_left = 640 - len(parked.tokens) - len(prompt)
    each.add(2, prompt, 99)
    while 2 not in each.items or len(each.said(2)) < n_left:
        each.step()
        assert parked in each.core._prefix.parked
    assert each.said(2) == answer(prompt, 99)[: len(each.said(2))]


@pytest.mark.parametrize("seed", range(4))
def test_crowded_streams_with_drafts_say_what_they_say_alone(seed: int) -> None:
    rng = random.Random(seed)
    each = engine(pool_cells=700)
    prompts = {uid: answer([uid, 20, 40, 50], rng.randrange(40, 300)) for uid in range(6)}
    for uid, prompt in prompts.items():
        each.add(uid, prompt, 60)
    each.run()
    for uid, prompt in prompts.items():
        assert each.said(uid) == answer(prompt, 60)

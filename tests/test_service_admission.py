"""The queue's two bounds, what is told to those who are refused, and the waiting time learned."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.errors import Overloaded
from naiad.service.admission import Admission, Place, tokens_in, tokens_of
from naiad.types import ChatMessage, ChatPrompt, Prompt, TextPrompt, TokenPrompt


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class House:
    """An admission whose guests come and go by name."""

    def __init__(self, max_requests: int = 4, max_tokens: int = 1000, parallel: int = 2) -> None:
        self.clock = Clock()
        self.parallel = parallel
        self.admission = Admission(max_requests, max_tokens, self.clock)
        self._stacks: dict[str, ExitStack] = {}

    def enter(self, name: str, n_tokens: int = 10) -> Place:
        stack = ExitStack()
        place = stack.enter_context(self.admission.admit(self.parallel, n_tokens))
        self._stacks[name] = stack
        return place

    def leave(self, name: str, after_s: float = 0.0) -> None:
        self.clock.now += after_s
        self._stacks.pop(name).close()

    def refusal(self, n_tokens: int = 10) -> Overloaded:
        with pytest.raises(Overloaded) as refused:
            self.admission.check(self.parallel, n_tokens)
        return refused.value

    def retry_after(self, n_tokens: int = 10) -> int:
        seconds = self.refusal(n_tokens).details["retry_after"]
        assert isinstance(seconds, int)
        return seconds


# -- bounds -----------------------------------------------------------------------------------


def test_what_runs_and_what_may_wait_comes_in_and_the_next_is_refused() -> None:
    house = House(max_requests=1, parallel=2)
    for name in "abc":
        house.enter(name)
    assert house.admission.n_queued(2) == 1
    assert "3" in house.refusal().message
    house.leave("a")
    house.enter("d")


def test_a_queue_of_none_still_runs_what_the_engine_runs() -> None:
    house = House(max_requests=0, parallel=2)
    house.enter("a")
    house.enter("b")
    house.refusal()


def test_prompt_tokens_that_wait_are_bounded() -> None:
    house = House(max_tokens=100)
    house.enter("a", 60)
    house.enter("b", 40)
    assert "about 100, at most 100" in house.refusal(1).message


def test_a_prompt_larger_than_the_bound_comes_in_when_none_is_before_it() -> None:
    house = House(max_tokens=100)
    place = house.enter("a", 5000)
    house.refusal(1)
    place.started()
    house.enter("b", 5000)


def test_a_prompt_that_is_computed_waits_no_longer() -> None:
    house = House(max_tokens=100)
    place = house.enter("a", 100)
    house.refusal(1)
    place.started()
    place.started()
    assert house.admission.n_tokens == 0
    house.enter("b", 100)


def test_the_engines_count_replaces_the_estimate() -> None:
    house = House(max_tokens=100)
    place = house.enter("a", 80)
    house.refusal(30)
    place.counted(20)
    house.enter("b", 80)
    assert house.admission.n_tokens == 100
    place.started()
    place.counted(50)  # too late to matter
    assert house.admission.n_tokens == 80


def test_whoever_leaves_takes_everything_along_however_it_ends() -> None:
    house = House()
    with pytest.raises(RuntimeError), house.admission.admit(2, 50) as place:
        place.counted(70)
        assert (house.admission.n_in_flight, house.admission.n_tokens) == (1, 70)
        raise RuntimeError
    assert (house.admission.n_in_flight, house.admission.n_tokens) == (0, 0)


def test_a_refused_one_holds_nothing() -> None:
    house = House(max_requests=0, parallel=1)
    house.enter("a")
    with pytest.raises(Overloaded), house.admission.admit(1, 10):
        raise AssertionError("must not come in")
    house.leave("a")
    assert (house.admission.n_in_flight, house.admission.n_tokens) == (0, 0)


@given(st.lists(st.tuples(st.sampled_from(["enter", "start", "leave"]), st.integers(1, 60))))
def test_the_bounds_hold_and_the_books_balance(actions: list[tuple[str, int]]) -> None:
    house, inside = House(max_requests=3, max_tokens=100), dict[str, tuple[Place, int]]()
    for number, (action, n) in enumerate(actions):
        if action == "enter":
            try:
                inside[str(number)] = house.enter(str(number), n), n
            except Overloaded as refused:
                assert 1 <= refused.details["retry_after"] <= 60
        elif inside:
            name = sorted(inside)[n % len(inside)]
            place, _ = inside[name]
            if action == "start":
                place.started()
                inside[name] = place, 0
            else:
                house.leave(name)
                del inside[name]
        assert house.admission.n_in_flight == len(inside) <= 5
        assert house.admission.n_tokens == sum(tokens for _, tokens in inside.values()) <= 100


# -- what is known of waiting ------------------------------------------------------------------


def test_nothing_is_told_before_anything_is_known() -> None:
    house = House(max_requests=0, parallel=1)
    assert house.enter("a").eta_s(0) is None
    assert house.retry_after() == 1


def test_the_first_that_ends_tells_how_long_one_takes() -> None:
    house = House(parallel=2)
    place = house.enter("a")
    house.leave("a", after_s=8.0)
    assert place.eta_s(0) == pytest.approx(4.0)  # two run at once
    assert place.eta_s(4) == pytest.approx(20.0)


def test_when_requests_wait_the_time_between_two_ends_counts() -> None:
    house = House(max_requests=200, parallel=1)
    for number in range(60):
        house.enter(str(number))
    for number in range(60):
        house.leave(str(number), after_s=3.0)
    place = house.enter("last")
    assert place.eta_s(0) == pytest.approx(3.0)


def test_the_estimate_follows_a_change() -> None:
    house = House(parallel=1)
    for _ in range(50):
        house.enter("a")
        house.leave("a", after_s=1.0)
    for _ in range(50):
        house.enter("a")
        house.leave("a", after_s=9.0)
    assert house.enter("a").eta_s(0) == pytest.approx(9.0, abs=0.1)


def test_refusals_and_hang_ups_teach_nothing() -> None:
    house = House(parallel=1)
    with pytest.raises(RuntimeError), house.admission.admit(1, 10):
        house.clock.now += 500
        raise RuntimeError
    assert house.enter("a").eta_s(0) is None


def test_retry_after_is_when_there_is_room_again() -> None:
    house = House(max_requests=0, max_tokens=100, parallel=2)
    house.enter("a")
    house.leave("a", after_s=14.0)  # so a place becomes free every 7 s
    house.enter("b", 50)
    house.enter("c", 50)
    assert house.retry_after() == 7


def test_retry_after_for_tokens_counts_those_that_must_leave() -> None:
    house = House(max_requests=100, max_tokens=100, parallel=2)
    house.enter("a")
    house.leave("a", after_s=14.0)
    for name in "bcde":
        house.enter(name, 25)
    assert house.retry_after(25) == 7
    assert house.retry_after(60) == 21
    assert house.retry_after(100_000) == 28  # all of them


@pytest.mark.parametrize(("took_s", "told"), [(0.001, 1), (5000.0, 60)])
def test_retry_after_is_from_1_to_60(took_s: float, told: int) -> None:
    house = House(max_requests=0, parallel=1)
    house.enter("a")
    house.leave("a", after_s=took_s)
    house.enter("b")
    assert house.retry_after() == told


# -- the size of a prompt ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "n_tokens"),
    [
        (TextPrompt(""), 1),
        (TextPrompt("x" * 400), 100),
        (TextPrompt("語" * 400), 300),
        (TokenPrompt((1, 2, 3)), 3),
        (TokenPrompt(()), 1),
        (ChatPrompt((ChatMessage("user", "x" * 40), ChatMessage("user", "y" * 40))), 20),
        (ChatPrompt(()), 1),
    ],
)
def test_tokens_are_estimated_from_the_length(prompt: Prompt, n_tokens: int) -> None:
    assert tokens_in(prompt) == n_tokens


def test_tokens_of_bytes() -> None:
    assert [tokens_of(n) for n in (0, 3, 4, 4000)] == [1, 1, 1, 1000]

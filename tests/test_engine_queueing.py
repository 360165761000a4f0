"""The line of waiting sequences, by itself and against a slow, obvious one."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.engine.base import CoreJob
from naiad.engine.queueing import MAX_CHARGED_OUTPUT, WaitingLine, cost
from naiad.engine.sequence import Sequence
from naiad.types import SamplingParams


def waiting(
    uid: int, caller: str = "ann", priority: int = 0, n_prompt: int = 10, max_tokens: int = 10
) -> Sequence:
    prompt = tuple(range(n_prompt))
    job = CoreJob(uid, prompt, max_tokens, SamplingParams(), priority=priority, caller=caller)
    return Sequence(job)


def line_of(*sequences: Sequence) -> WaitingLine:
    line = WaitingLine()
    for sequence in sequences:
        line.add(sequence)
    return line


def uids(line: WaitingLine) -> list[int]:
    return [sequence.uid for sequence in line]


def start_first(line: WaitingLine) -> Sequence:
    sequence = line.ordered()[0]
    line.started(sequence)
    return sequence


def start_all(line: WaitingLine) -> list[int]:
    return [start_first(line).uid for _ in range(len(line))]


# -- the three rules --------------------------------------------------------------------------


def test_an_empty_line() -> None:
    line = WaitingLine()
    assert len(line) == 0
    assert line.ordered() == ()


def test_one_caller_is_served_in_order_of_arrival() -> None:
    line = line_of(*(waiting(uid, n_prompt=100 - uid) for uid in range(5)))
    assert uids(line) == [0, 1, 2, 3, 4]
    assert start_all(line) == [0, 1, 2, 3, 4]


def test_lower_numbers_go_first_whoever_asks() -> None:
    line = line_of(waiting(1, priority=5), waiting(2), waiting(3, "bob", -5), waiting(4, "bob", 5))
    assert uids(line) == [3, 2, 1, 4]


def test_a_caller_with_one_request_does_not_wait_for_a_hundred_of_another() -> None:
    line = line_of(*(waiting(uid) for uid in range(100)), waiting(100, "bob"))
    assert start_all(line).index(100) == 1


def test_equal_callers_take_turns() -> None:
    line = line_of(*(waiting(uid, "ann" if uid < 4 else "bob") for uid in range(8)))
    assert start_all(line) == [0, 4, 1, 5, 2, 6, 3, 7]


def test_turns_are_counted_in_tokens() -> None:
    large = [waiting(uid, "ann", n_prompt=90) for uid in range(3)]  # 100 tokens each
    small = [waiting(uid, "bob", n_prompt=40) for uid in range(10, 16)]  # 50 tokens each
    assert start_all(line_of(*large, *small)) == [0, 10, 11, 1, 12, 13, 2, 14, 15]


def test_priorities_have_accounts_of_their_own() -> None:
    line = line_of(waiting(1, "ann", -1, n_prompt=1000))
    line.started(line.ordered()[0])
    line.add(waiting(2, "ann"))
    line.add(waiting(3, "bob"))
    assert uids(line) == [2, 3]


# -- nobody saves up, nobody is forgotten too early ---------------------------------------------


def test_who_was_idle_has_saved_up_nothing() -> None:
    line = line_of(*(waiting(uid) for uid in range(20)))
    for _ in range(10):
        start_first(line)
    for uid in range(100, 110):
        line.add(waiting(uid, "bob"))
    turns = ["bob" if uid >= 100 else "ann" for uid in start_all(line)]
    assert turns == ["bob", "ann"] * 10


def test_leaving_and_coming_back_gains_nothing() -> None:
    line = line_of(waiting(1, "ann"), waiting(2, "ann"), waiting(3, "bob"))
    first = start_first(line)
    line.ended(first, cost(first))
    assert start_first(line).uid == 3
    line.add(waiting(4, "bob"))
    assert uids(line) == [2, 4]


def test_an_idle_line_forgets_everything() -> None:
    line = line_of(waiting(1, "ann", n_prompt=1000))
    first = start_first(line)
    line.ended(first, cost(first))
    line.add(waiting(2, "bob"))
    line.add(waiting(3, "ann"))
    line.add(waiting(4, "bob"))
    assert uids(line) == [2, 3, 4]


def test_callers_who_left_are_not_kept() -> None:
    line = line_of(*(waiting(uid, "steady") for uid in range(300)))
    for uid in range(300, 400):
        line.add(waiting(uid, f"caller {uid}"))
        for sequence in (start_first(line), start_first(line)):
            line.ended(sequence, cost(sequence))
    assert len(line._levels[0].accounts) < 5


# -- charging --------------------------------------------------------------------------------


def test_what_is_reused_is_not_charged() -> None:
    line = line_of(waiting(1, "ann", n_prompt=1000), waiting(2, "ann"))
    line.add(waiting(3, "bob", n_prompt=100))
    line.add(waiting(4, "bob"))
    first = line.ordered()[0]
    first.computed = 990  # its prefix was in the cache
    line.started(first)
    assert start_all(line) == [3, 2, 4]


def test_an_unlimited_request_is_charged_a_fixed_output() -> None:
    assert cost(waiting(1, n_prompt=7, max_tokens=100_000)) == 7 + MAX_CHARGED_OUTPUT


def test_an_early_end_gives_back_what_was_not_used() -> None:
    line = line_of(waiting(1, "ann", max_tokens=500), waiting(2, "ann"))
    line.add(waiting(3, "bob", max_tokens=100))
    line.add(waiting(4, "bob"))
    first = start_first(line)
    line.started(line.ordered()[0])
    assert uids(line) == [4, 2]
    line.ended(first, 12)
    assert uids(line) == [2, 4]


def test_ended_for_one_that_never_started_does_nothing() -> None:
    line = line_of(waiting(1), waiting(2))
    dropped = line.ordered()[0]
    line.remove(dropped)
    line.ended(dropped, 5)
    assert uids(line) == [2]


# -- put back ---------------------------------------------------------------------------------


def test_one_that_was_put_back_goes_first_in_its_priority() -> None:
    line = line_of(waiting(1, "ann"), waiting(2, "bob"), waiting(3, "bob"), waiting(4, "bob", -1))
    first, second = line.ordered()[1:3]
    line.started(first)
    line.started(second)
    line.put_back(second)
    line.put_back(first)
    assert uids(line) == [4, 1, 2, 3]


def test_being_put_back_is_charged_once() -> None:
    line = line_of(waiting(1, "ann"), waiting(2, "ann"), waiting(3, "bob"), waiting(4, "bob"))
    first = start_first(line)
    for _ in range(3):
        line.put_back(first)
        assert start_first(line) is first
    assert start_all(line) == [3, 2, 4]


def test_one_that_was_put_back_can_be_removed() -> None:
    line = line_of(waiting(1), waiting(2))
    first = start_first(line)
    line.put_back(first)
    line.remove(first)
    line.ended(first, 0)
    assert uids(line) == [2]


def test_only_what_was_started_can_be_put_back() -> None:
    line = line_of(waiting(1))
    with pytest.raises(KeyError):
        line.put_back(line.ordered()[0])


def test_only_what_waits_has_a_place_and_can_leave() -> None:
    line = line_of(waiting(1))
    stranger = waiting(2)
    for verb in (line.started, line.remove, line.position):
        with pytest.raises(KeyError):
            verb(stranger)


def test_starting_while_going_through_the_line() -> None:
    line = line_of(*(waiting(uid) for uid in range(6)))
    for sequence in line:
        if sequence.uid % 2:
            line.started(sequence)
    assert uids(line) == [0, 2, 4]


# -- against a slow, obvious reference --------------------------------------------------------


@dataclass
class Reference:
    """The same rules, with one list and every account kept for ever."""

    waiting: list[tuple[Sequence, bool]] = field(default_factory=list)  # and: was put back
    accounts: dict[tuple[int, str], int] = field(default_factory=dict)
    floors: dict[int, int] = field(default_factory=dict)
    charges: dict[int, int] = field(default_factory=dict)
    live: dict[int, int] = field(default_factory=dict)  # uid -> priority

    def add(self, sequence: Sequence) -> None:
        key = (sequence.job.priority, sequence.job.caller)
        floor = self.floors.setdefault(key[0], 0)
        if not any(self.key(s) == key and not back for s, back in self.waiting):
            self.accounts[key] = max(self.accounts.get(key, floor), floor)
        self.waiting.append((sequence, False))
        self.live[sequence.uid] = key[0]

    @staticmethod
    def key(sequence: Sequence) -> tuple[int, str]:
        return sequence.job.priority, sequence.job.caller

    def order(self) -> list[Sequence]:
        """Simulate one start after the other, each time looking at everybody."""
        accounts, left, order = dict(self.accounts), list(self.waiting), []
        while left:
            level = [e for e in left if e[0].job.priority == min(s.job.priority for s, _ in left)]
            returned = [e for e in level if e[1]]
            entry = returned[-1] if returned else min(level, key=lambda e: accounts[self.key(e[0])])
            if not returned:
                accounts[self.key(entry[0])] += cost(entry[0])
            left.remove(entry)
            order.append(entry[0])
        return order

    def leave(self, sequence: Sequence) -> None:
        self.waiting = [entry for entry in self.waiting if entry[0] is not sequence]

    def started(self, sequence: Sequence) -> None:
        self.leave(sequence)
        if sequence.uid in self.charges:
            return
        key = self.key(sequence)
        start = self.accounts[key]
        self.charges[sequence.uid] = cost(sequence)
        self.accounts[key] += cost(sequence)
        others = [
            self.accounts[self.key(s)]
            for s, back in self.waiting
            if s.job.priority == key[0] and not back
        ]
        self.floors[key[0]] = max(self.floors[key[0]], min([start, *others]))

    def put_back(self, sequence: Sequence) -> None:
        self.waiting.append((sequence, True))

    def ended(self, sequence: Sequence, n_used: int) -> None:
        if sequence.uid in self.charges:
            self.accounts[self.key(sequence)] += n_used - self.charges[sequence.uid]
        priority = self.live.pop(sequence.uid)
        if priority not in self.live.values():
            self.floors.pop(priority)
            self.accounts = {k: v for k, v in self.accounts.items() if k[0] != priority}


ACTIONS = st.tuples(
    st.sampled_from(["add", "add", "add", "start", "skip", "back", "end", "remove"]),
    st.sampled_from(["ann", "bob", "cy"]),
    st.sampled_from([0, 0, 0, 3, -1]),
    st.integers(1, 40),
)


def act(action: str, pick: int, line: WaitingLine, model: Reference, run: list[Sequence]) -> None:
    """Do the same to both. pick chooses among those it can be done to."""
    order = line.ordered()
    if action in {"start", "skip"} and order:
        sequence = order[0 if action == "start" else pick % len(order)]
        line.started(sequence)
        model.started(sequence)
        run.append(sequence)
    elif action == "remove" and order:
        sequence = order[pick % len(order)]
        line.remove(sequence)
        model.leave(sequence)
        line.ended(sequence, pick)
        model.ended(sequence, pick)
    elif action in {"back", "end"} and run:
        sequence = run.pop(pick % len(run))
        if action == "back":
            line.put_back(sequence)
            model.put_back(sequence)
        else:
            line.ended(sequence, pick)
            model.ended(sequence, pick)


@given(st.lists(ACTIONS, max_size=40))
def test_the_line_is_the_reference(actions: list[tuple[str, str, int, int]]) -> None:
    line, model, run = WaitingLine(), Reference(), list[Sequence]()
    for uid, (action, caller, priority, n) in enumerate(actions):
        if action == "add":
            sequence = waiting(uid, caller, priority, n_prompt=n)
            line.add(sequence)
            model.add(sequence)
        else:
            act(action, n, line, model, run)
        assert uids(line) == [s.uid for s in model.order()]
        assert [line.position(s) for s in line] == list(range(len(line)))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 40)), min_size=1, max_size=30))
def test_nobody_falls_behind_by_more_than_one_request(jobs: list[tuple[str, int]]) -> None:
    """Of two callers who both still wait, neither got more than the largest request ahead."""
    sequences = [waiting(uid, caller, n_prompt=n) for uid, (caller, n) in enumerate(jobs)]
    line = line_of(*sequences)
    served = dict.fromkeys("abc", 0)
    while len(line):
        callers = {s.job.caller for s in line}
        amounts = [served[caller] for caller in callers]
        assert max(amounts) - min(amounts) <= max(cost(s) for s in sequences)
        sequence = start_first(line)
        served[sequence.job.caller] += cost(sequence)

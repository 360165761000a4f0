"""Who starts next: the line of sequences that wait for the engine. Pure: no clock, no threads.

The order has three rules, strongest first:

1. Priority. A lower number goes first, always: there is no aging. Work that was sent to the back
   of the line is work that shall run when nothing else waits, and numbers below 0, which could
   hold everybody else up, are the administrator's alone.
2. Fair between callers. Each priority keeps an account per caller: the tokens started for it. The
   caller with the lowest account is next, so one with a hundred requests and one with a single
   request take turns. This is start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) with
   tokens for bits: who was idle starts from the account of the request started last, so idling
   saves up nothing, and when nobody waits or runs at a priority, all its accounts are forgotten.
3. First come, first served within one caller, and between callers with equal accounts.

A sequence that was put back for lack of room had its turn, so it goes first in its priority and
is not charged again.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from naiad.engine.sequence import Sequence

#: Tokens to generate that are charged in advance at most. Clients ask for far more than they use
#: (many for the whole context), and what was really used is settled at the end.
MAX_CHARGED_OUTPUT = 512


def cost(sequence: Sequence) -> int:
    """Tokens to charge for starting it: those to compute, and those it may generate, with a cap."""
    n_left = sequence.job.max_tokens - sequence.n_generated
    return sequence.n_pending + min(max(n_left, 0), MAX_CHARGED_OUTPUT)


@dataclass(slots=True, eq=False)
class _Account:
    """One caller at one priority. charged: tokens, on the scale of its level's `floor`."""

    charged: int
    waiting: deque[Sequence] = field(default_factory=deque)
    n_started: int = 0  # running or put back

    @property
    def is_idle(self) -> bool:
        return not self.waiting and not self.n_started


@dataclass(slots=True, eq=False)
class _Level:
    """One priority. floor: the account that the request started last had before its charge."""

    accounts: dict[str, _Account] = field(default_factory=dict)
    returned: deque[Sequence] = field(default_factory=deque)
    floor: int = 0

    def account(self, caller: str) -> _Account:
        """The caller's account, opened at the floor when it has none."""
        return self.accounts.setdefault(caller, _Account(self.floor))

    def order(self, arrivals: dict[int, int]) -> Iterator[Sequence]:
        """As they would start one after the other, each charged as it goes."""
        yield from self.returned
        heads = [
            (account.charged, arrivals[account.waiting[0].uid], 0, account)
            for account in self.accounts.values()
            if account.waiting
        ]
        heapq.heapify(heads)  # arrivals differ, so accounts themselves are never compared
        while heads:
            charged, _, place, account = heads[0]
            sequence = account.waiting[place]
            yield sequence
            if place + 1 == len(account.waiting):
                heapq.heappop(heads)
                continue
            arrival = arrivals[account.waiting[place + 1].uid]
            heapq.heapreplace(heads, (charged + cost(sequence), arrival, place + 1, account))

    def raise_floor(self, start: int) -> None:
        """After a start from `start`; who still waits below it keeps the floor down."""
        lowest = min((a.charged for a in self.accounts.values() if a.waiting), default=start)
        self.floor = max(self.floor, min(start, lowest))

    def forget_idle(self) -> None:
        """Close the accounts that say nothing a new one would not say."""
        self.accounts = {
            caller: account
            for caller, account in self.accounts.items()
            if not account.is_idle or account.charged > self.floor
        }

    @property
    def is_idle(self) -> bool:
        return all(account.is_idle for account in self.accounts.values())


class WaitingLine:
    """The waiting sequences in the order in which to try to start them.

    Every sequence goes through: `add`, `started`, perhaps `put_back` and `started` again, `ended`.
    One that is dropped while it waits goes through `remove` and `ended`. `ended` may be called
    for any sequence, started or not.
    """

    def __init__(self) -> None:
        self._levels: dict[int, _Level] = {}
        self._arrivals: dict[int, int] = {}  # uid -> place in the order of arrival
        self._n_arrived = 0
        self._waiting: set[Sequence] = set()
        self._charges: dict[int, int] = {}  # uid -> tokens charged, for each started one
        self._order: list[Sequence] | None = None
        self._places: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._waiting

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self.ordered())

    def ordered(self) -> tuple[Sequence, ...]:
        """The order in which to try to start them. A copy: starting them changes the line."""
        return tuple(self._in_order())

    def position(self, sequence: Sequence) -> int:
        """How many are ahead of it. Raises KeyError when it does not wait."""
        self._in_order()
        return self._places[sequence.uid]

    def add(self, sequence: Sequence) -> None:
        """A new one, behind its caller's others of the same priority."""
        level = self._levels.setdefault(sequence.job.priority, _Level())
        account = level.account(sequence.job.caller)
        if not account.waiting:
            account.charged = max(account.charged, level.floor)
        account.waiting.append(sequence)
        self._arrivals[sequence.uid] = self._n_arrived
        self._n_arrived += 1
        self._waiting.add(sequence)
        self._order = None

    def started(self, sequence: Sequence) -> None:
        """It runs now: it leaves the line and its caller is charged, once however often it is put
        back. Call it when `computed` says what is reused, which is not charged.
        """
        self._leave(sequence)
        if sequence.uid in self._charges:
            return
        level = self._levels[sequence.job.priority]
        account = level.account(sequence.job.caller)
        start = account.charged
        self._charges[sequence.uid] = cost(sequence)
        account.charged += self._charges[sequence.uid]
        account.n_started += 1
        level.raise_floor(start)
        level.forget_idle()

    def put_back(self, sequence: Sequence) -> None:
        """One that was started has to wait again: first in its priority, ahead of those that were
        put back before it. Raises KeyError when it was not started.
        """
        if sequence.uid not in self._charges:
            raise KeyError(sequence.uid)
        self._levels[sequence.job.priority].returned.appendleft(sequence)
        self._waiting.add(sequence)
        self._order = None

    def remove(self, sequence: Sequence) -> None:
        """It shall not be started any more. Raises KeyError when it does not wait."""
        self._leave(sequence)
        self._forget_idle(sequence.job.priority)

    def ended(self, sequence: Sequence, n_used: int) -> None:
        """It is over and not in the line. n_used: tokens computed and generated for it; its
        caller's account is corrected to that. Does nothing for one that was never started.
        """
        charge = self._charges.pop(sequence.uid, None)
        if charge is None:
            return
        level = self._levels[sequence.job.priority]
        account = level.accounts[sequence.job.caller]
        account.charged += n_used - charge
        account.n_started -= 1
        self._forget_idle(sequence.job.priority)
        self._order = None

    def _leave(self, sequence: Sequence) -> None:
        self._waiting.remove(sequence)
        level = self._levels[sequence.job.priority]
        if sequence.uid in self._charges:
            level.returned.remove(sequence)
        else:
            level.account(sequence.job.caller).waiting.remove(sequence)
            del self._arrivals[sequence.uid]
        self._order = None

    def _forget_idle(self, priority: int) -> None:
        self._levels[priority].forget_idle()
        if self._levels[priority].is_idle:
            del self._levels[priority]

    def _in_order(self) -> list[Sequence]:
        """Sorted only after a change, since the core asks before every step."""
        if self._order is None:
            levels = (self._levels[priority] for priority in sorted(self._levels))
            self._order = [s for level in levels for s in level.order(self._arrivals)]
            self._places = {s.uid: place for place, s in enumerate(self._order)}
        return self._order

"""What a step costs on this machine, learned while it runs, and how much prefill it may carry.

A decode step takes about the same whatever is in it; a prefilled token costs more the deeper it
lies, because it attends to all before it: seconds = a + b x depth. Both are learned by regression
over recent steps, so that a change of load, model or machine is followed within a few steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

#: How much of what was learned is kept with each new observation.
_MEMORY = 0.9
#: Steps of one size that are remembered; how many it takes to believe them alone.
_N_KEPT, _N_TRUSTED = 5, 3
#: Steps after which a size that was not seen again is forgotten.
_FRESH = 500
#: Nothing smaller is worth a step of its own: small chunks are less efficient.
MIN_CHUNK = 8
#: More than any budget, for targets without an end.
_MOST_CHUNK = 1 << 20
#: Seconds that a step or a token takes at least, also where the clock stood still.
_LEAST_S = 1e-9


class StepCost:
    """Learns from `saw_decode` and `saw_prefill`; answers `chunk`, `prefill_s` and `step_s`.

    first_guess_s: seconds of one prefilled token, before anything was seen.
    """

    def __init__(self, first_guess_s: float = 0.002) -> None:
        self._decode_s = 0.0
        self._rows = _Rows()
        self._line = _Line(first_guess_s)

    @property
    def decode_s(self) -> float:
        """Seconds of a step that only decodes; 0 before one was seen."""
        return self._decode_s

    def saw_decode(self, seconds: float, n_rows: int = 1, n_drafted: int = 0) -> None:
        """A step without prefill took this long: n_rows tokens, n_drafted of them guessed."""
        seconds = max(seconds, _LEAST_S)
        self._rows.saw(n_rows, seconds)
        if n_drafted:
            return
        if not self._decode_s:
            self._decode_s = seconds
        self._decode_s += (1 - _MEMORY) * (seconds - self._decode_s)

    def saw_prefill(self, n_tokens: int, depth: int, seconds: float, *, beside: int) -> None:
        """n_tokens at about `depth` took this long; in the same step with `beside` streams."""
        own = max(seconds - (self.step_s(beside, depth) if beside else 0.0), seconds * 0.1)
        if n_tokens >= MIN_CHUNK:
            self._line.add(depth, max(own / n_tokens, _LEAST_S))

    def step_s(self, n_rows: int, depth: int) -> float:
        """Seconds of a step that decodes n_rows tokens, guessed ones among them.

        Steps of many sizes are no straight line: kernels change with the number of rows (two rows
        may take more than twice as long as one, and eight no longer than seven).
        """
        return self._rows.at(n_rows, self._decode_s, self.prefill_s(1, depth))

    def prefill_s(self, n_tokens: int, depth: int) -> float:
        """Seconds that n_tokens more would take after `depth` tokens, all in full chunks."""
        return n_tokens * self._line.at(depth + n_tokens / 2)

    def chunk(self, target_s: float, depth: int, n_rows: int) -> int:
        """Tokens of prefill that fit in a step of target_s beside n_rows streams; at least
        MIN_CHUNK.
        """
        return max(MIN_CHUNK, self.n_within(target_s - self.step_s(n_rows, depth), depth))

    def n_within(self, seconds: float, depth: int) -> int:
        """Tokens of prefill after `depth` tokens that so many seconds are enough for; 0 or more."""
        return max(0, int(min(seconds / self._line.at(depth), _MOST_CHUNK)))


class _Rows:
    """What decoding steps took lately, by their number of tokens.

    The first step of a size may take long for once, so a size is believed by the median of what
    was seen, with what its neighbours suggest in the place of steps that are yet to come. What was
    not seen for a while is forgotten, or one bad moment would rule a size out for good.
    """

    def __init__(self) -> None:
        self._seen: dict[int, deque[float]] = {}
        self._median: dict[int, float] = {}
        self._last: dict[int, int] = {}
        self._n = 0

    def saw(self, n_rows: int, seconds: float) -> None:
        self._n += 1
        if not self._is_known(n_rows):
            self._seen[n_rows] = deque(maxlen=_N_KEPT)
        self._last[n_rows] = self._n
        self._seen[n_rows].append(seconds)
        self._median[n_rows] = _middle(self._seen[n_rows])

    def at(self, n_rows: int, first_s: float, each_s: float) -> float:
        """first_s: of one row, each_s: of one more, where nothing else is known."""
        if not self._is_known(n_rows):
            return self._guess(n_rows, first_s, each_s)
        seen = self._seen[n_rows]
        if len(seen) >= _N_TRUSTED:
            return self._median[n_rows]
        guess = self._guess(n_rows, first_s, each_s)
        return _middle([*seen, *[guess] * (_N_TRUSTED - len(seen))])

    def _is_known(self, n_rows: int) -> bool:
        last = self._last.get(n_rows)
        return last is not None and self._n - last <= _FRESH

    def _guess(self, n_rows: int, first_s: float, each_s: float) -> float:
        """On the line between the next sizes that are known."""
        below = max((n for n in self._median if n < n_rows and self._is_known(n)), default=0)
        above = min((n for n in self._median if n > n_rows and self._is_known(n)), default=0)
        at, here_s = (below, self._median[below]) if below else (1, first_s)
        if above > at:
            each_s = max(0.0, (self._median[above] - here_s) / (above - at))
        return here_s + (n_rows - at) * each_s


def _middle(values: Iterable[float]) -> float:
    """The lower median."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2]


class _Line:
    """y = a + b x, fitted to recent points by least squares with exponential forgetting; b >= 0."""

    def __init__(self, first: float) -> None:
        self._first = first
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def add(self, x: float, y: float) -> None:
        keep = _MEMORY
        self._n = self._n * keep + 1
        self._x = self._x * keep + x
        self._y = self._y * keep + y
        self._xx = self._xx * keep + x * x
        self._xy = self._xy * keep + x * y

    def at(self, x: float) -> float:
        if not self._n:
            return self._first
        mean_x, mean_y = self._x / self._n, self._y / self._n
        spread = self._xx / self._n - mean_x**2
        slope = (self._xy / self._n - mean_x * mean_y) / spread if spread > 1 else 0.0
        return max(mean_y + max(slope, 0.0) * (x - mean_x), mean_y / 4)

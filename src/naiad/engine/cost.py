"""What a step costs on this machine, learned while it runs, and how much prefill it may carry.

A decode step takes about the same whatever is in it; a prefilled token costs more the deeper it
lies, because it attends to all before it: seconds = a + b x depth. Both are learned by regression
over recent steps, so that a change of load, model or machine is followed within a few steps.
"""

from __future__ import annotations

#: How much of what was learned is kept with each new observation.
_MEMORY = 0.9
#: Nothing smaller is worth a step of its own: small chunks are less efficient.
MIN_CHUNK = 8
#: Seconds that a token takes at least, where a clock that stood still says that it took none.
_LEAST_S = 1e-9


class StepCost:
    """Learns from `saw_decode` and `saw_prefill`; answers `chunk` and `prefill_s`.

    first_guess_s: seconds of one prefilled token, before anything was seen.
    """

    def __init__(self, first_guess_s: float = 0.002) -> None:
        self._decode_s = 0.0
        self._draft_s = 0.0
        self._line = _Line(first_guess_s)

    @property
    def decode_s(self) -> float:
        """Seconds of a step that only decodes; 0 before one was seen."""
        return self._decode_s

    def saw_decode(self, seconds: float) -> None:
        """A step without prefill took this long."""
        if not self._decode_s:
            self._decode_s = seconds
        self._decode_s += (1 - _MEMORY) * (seconds - self._decode_s)

    def saw_prefill(self, n_tokens: int, depth: int, seconds: float, *, beside: bool) -> None:
        """n_tokens at about `depth` took this long; `beside` decoding streams, in the same step."""
        own = max(seconds - (self._decode_s if beside else 0.0), seconds * 0.1)
        if n_tokens >= MIN_CHUNK:
            self._line.add(depth, max(own / n_tokens, _LEAST_S))

    def saw_drafts(self, n_tokens: int, seconds: float) -> None:
        """A decoding step with n_tokens guessed ones in it took this long."""
        each = max(seconds - self._decode_s, seconds * 0.1) / n_tokens
        if not self._draft_s:
            self._draft_s = each
        self._draft_s += (1 - _MEMORY) * (each - self._draft_s)

    def draft_s(self, depth: int) -> float:
        """Seconds that one guessed token adds to a step."""
        return self._draft_s or self.prefill_s(1, depth)

    def prefill_s(self, n_tokens: int, depth: int) -> float:
        """Seconds that n_tokens more would take after `depth` tokens, all in full chunks."""
        return n_tokens * self._line.at(depth + n_tokens / 2)

    def chunk(self, target_s: float, depth: int) -> int:
        """Tokens of prefill that fit beside decoding in a step of target_s; at least MIN_CHUNK."""
        left = target_s - self._decode_s
        return max(MIN_CHUNK, int(left / self._line.at(depth)))


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

"""How many guessed tokens a step should check: as many as bring the most tokens a second."""

from __future__ import annotations

from collections.abc import Callable, Iterable

#: A draft must promise this much more than a plain step.
MARGIN = 1.1
#: The most tokens guessed at once.
MOST_DRAFT = 8


def best_length(
    shares: Iterable[float],
    seconds: Callable[[int], float],
    n_expected: float,
    longest_s: float,
) -> tuple[int, float]:
    """How many tokens to guess for one stream, and how many the step brings then.

    shares: of right guesses, for each place of the draft: with these the i-th is accepted with the
    product of the first i. seconds: of a step with so many guesses; longest_s: those it may take.
    n_expected: tokens that the step brings without.
    """
    best = n_expected / seconds(0) * MARGIN
    n, brings = 0, n_expected
    chance, expected = 1.0, n_expected
    for k, share in enumerate(shares, 1):
        chance *= share
        expected += chance
        if seconds(k) <= longest_s and expected / seconds(k) > best:
            n, brings, best = k, expected, expected / seconds(k)
    return n, brings

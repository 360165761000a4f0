"""Whole rows of logits: the first cut, done with as few passes over the vocabulary as it can be.

Every cut here is exact. What comes before it (biases, bans, penalties) has already been written
into the row, so a token that was raised counts with its raised logit. `scale` is 1 / temperature
where the temperature comes before the cut, else 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from naiad.engine.sampling.draws import pick
from naiad.native.sampler import Candidates, Ids, Logits

_BLOCK = 512
_N_COLUMNS = 4096


class Left(NamedTuple):
    """The candidates that are left: token ids, each once, and their logits."""

    ids: Ids
    logits: Logits


class Row:
    """One row to be cut.

    columns: the greatest logits of the tokens c, c + 4096, c + 8192, ... for each c, where they
    were asked for and the row is long enough. top: the greatest logit; NaN if there is one.
    """

    __slots__ = ("columns", "logits", "scale", "scratch", "top")

    def __init__(
        self, logits: Logits, scale: float, scratch: Candidates, *, has_columns: bool = False
    ) -> None:
        self.logits = logits
        self.scale = scale
        self.scratch = scratch
        is_long = has_columns and len(logits) >= 2 * _N_COLUMNS
        self.columns = _fold(logits, scratch.floats) if is_long else None
        self.top = float((logits if self.columns is None else self.columns).max())


def _fold(logits: Logits, room: Logits) -> Logits:
    """The maximum over each column of the row in lines of 4096: halves laid upon each other."""
    n_lines, n_rest = divmod(len(logits), _N_COLUMNS)
    folded = logits
    while n_lines > 1:
        half, size = n_lines // 2, n_lines // 2 * _N_COLUMNS
        out = np.maximum(folded[:size], folded[size : 2 * size], out=room[:size])
        if n_lines % 2:
            odd = folded[2 * size : 2 * size + _N_COLUMNS]
            np.maximum(out[:_N_COLUMNS], odd, out=out[:_N_COLUMNS])
        folded, n_lines = out, half
    rest = logits[len(logits) - n_rest :]
    np.maximum(folded[:n_rest], rest, out=folded[:n_rest])
    return folded[:_N_COLUMNS]


def everything(row: Row) -> Left:
    """All tokens. Stages that need the whole distribution start from here."""
    return Left(row.scratch.ids, row.logits.copy())


def above(row: Row, threshold: float | np.float32) -> Left:
    """Tokens with at least this logit; the best one always."""
    limit = np.float32(min(threshold, row.top))
    ids = np.flatnonzero(np.greater_equal(row.logits, limit, out=row.scratch.flags))
    return Left(ids.astype(np.int32), row.logits[ids])


def descending(left: Left) -> Left:
    """By logit, then by id: the one order in which candidates of equal logits can come."""
    if (left.logits[1:] <= left.logits[:-1]).all():
        return left
    order = np.argsort(-left.logits, kind="stable")
    return Left(left.ids[order], left.logits[order])


def largest(row: Row, k: int) -> Left:
    """The k best tokens, best first.

    The k-th greatest of the columns' maxima is at most the k-th greatest logit, so the k best stand
    in columns that reach it, and few others do.
    """
    if row.columns is not None and k <= _N_COLUMNS // 8:
        left = _in_columns(row, row.columns, k)
    elif k < len(row.logits):
        left = above(row, float(np.partition(row.logits, -k)[-k]))
    else:
        left = everything(row)
    ids, logits = descending(left)
    return Left(ids[:k], logits[:k])


def _in_columns(row: Row, columns: Logits, k: int) -> Left:
    limit = np.partition(columns, -k)[-k]
    places = (columns >= limit).nonzero()[0]
    n = len(row.logits)
    ids = (np.arange(0, n, _N_COLUMNS)[:, None] + places).ravel()
    logits = row.logits.take(ids, mode="clip")
    is_kept = logits >= limit
    if n % _N_COLUMNS:
        is_kept &= ids < n
    keep = is_kept.nonzero()[0]
    return Left(ids[keep].astype(np.int32), logits[keep])


def weights(row: Row) -> Logits:
    """exp((logit - top) * scale) of every token, in the scratch."""
    found = np.subtract(row.logits, np.float32(row.top), out=row.scratch.floats)
    if row.scale != 1:
        np.multiply(found, np.float32(row.scale), out=found)
    return np.exp(found, out=found)


def log_total(row: Row) -> float:
    """ln of the sum of the weights: minus the log-probability of the best token."""
    return math.log(_sum(weights(row)))


def total_and_entropy(row: Row) -> tuple[float, float]:
    """log_total, and the entropy of the whole distribution in nats."""
    found = weights(row)
    total = _sum(found)
    surprise = np.log(np.maximum(found, np.finfo(np.float32).tiny))  # 0 * ln 0 counts as 0
    return math.log(total), math.log(total) - _sum(np.multiply(found, surprise, out=found)) / total


def _sum(values: Logits) -> float:
    """Column by column: as exact as NumPy's sum, and quicker."""
    n_lines = len(values) // _N_COLUMNS
    lines = values[: n_lines * _N_COLUMNS].reshape(n_lines, _N_COLUMNS)
    rest = values[n_lines * _N_COLUMNS :].sum(dtype=np.float64)
    return float(lines.sum(axis=0).sum(dtype=np.float64) + rest)


def _sum_of_squares(values: Logits) -> float:
    n_lines = len(values) // _N_COLUMNS
    lines = values[: n_lines * _N_COLUMNS].reshape(n_lines, _N_COLUMNS)
    rest = values[n_lines * _N_COLUMNS :]
    with np.errstate(over="ignore"):  # told by infinity
        return float(np.vecdot(lines, lines).sum(dtype=np.float64) + np.vecdot(rest, rest))


def nucleus(row: Row, share: float) -> Left:
    """The fewest best tokens that hold this share of the probability, best first (top-p)."""
    found = weights(row)
    wanted = share * _sum(found)
    left = above(row, row.top - 5.0 / row.scale)
    if found[left.ids].sum() <= wanted:
        left = above(row, row.top - 15.0 / row.scale)
    if found[left.ids].sum() <= wanted:
        left = everything(row)
    ids, logits = descending(left)
    cumulative = found[ids].cumsum(dtype=np.float64)
    n = int(cumulative.searchsorted(wanted)) + 1
    return Left(ids[:n], logits[:n])


def near_top(row: Row, n_sigma: float) -> Left:
    """Tokens within n standard deviations of all logits below the best one (top-n-sigma)."""
    return above(row, near_top_limit(row, n_sigma))


def near_top_limit(row: Row, n_sigma: float) -> np.float32:
    """The least logit that is."""
    spread = _spread(row.logits, row.scratch.floats)
    if not math.isfinite(spread):  # banned tokens are minus infinity: they do not count
        spread = float(row.logits[np.isfinite(row.logits)].std(dtype=np.float64))
    return np.float32(min(row.top - n_sigma * spread, row.top))


def _spread(logits: Logits, room: Logits) -> float:
    """The standard deviation; not finite where a logit is not.

    From the sums of logits and squares, for which the row need not be written down anew, where
    their difference loses no more than four bits.
    """
    mean, square = _sum(logits) / len(logits), _sum_of_squares(logits) / len(logits)
    if (variance := square - mean * mean) > square / 16:
        return math.sqrt(variance)
    if not math.isfinite(mean):
        return mean
    away = np.subtract(logits, np.float32(mean), out=room)
    return math.sqrt(_sum(np.square(away, out=away)) / len(logits))


def draw_whole(row: Row, u: float) -> int:
    """A draw from the whole distribution: by blocks first, then inside one."""
    found = weights(row)
    starts = np.arange(0, len(found), _BLOCK)
    cumulative = np.add.reduceat(found, starts).cumsum(dtype=np.float64)
    block = pick(cumulative, u)
    before = float(cumulative[block - 1]) if block else 0.0
    inside = found[starts[block] : starts[block] + _BLOCK].cumsum(dtype=np.float64)
    place = int(inside.searchsorted(u * float(cumulative[-1]) - before, side="right"))
    if place == len(inside):  # rounding: the last one that weighs anything
        place = int(np.flatnonzero(found[starts[block] : starts[block] + _BLOCK])[-1])
    return int(starts[block]) + place

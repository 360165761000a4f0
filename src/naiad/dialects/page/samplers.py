"""The sampling parameters as a person meets them: one table, from which panels are built.

Ranges are those that the readers in `naiad.dialects.sampling` enforce. The slider's ends are where
people's values lie; any other value in range can be typed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from naiad.dialects.fields import MAX_INT
from naiad.dialects.openai.requests import DEFAULTS
from naiad.dialects.sampling import KNOBS

NUMBER, INTEGER, BOOLEAN, STRINGS = "number", "integer", "boolean", "strings"


@dataclass(frozen=True, slots=True)
class Sampler:
    """One parameter. minimum, maximum: what is accepted. slider: (from, to, step), if one helps."""

    name: str  # on the wire
    group: str
    label: str
    help: str
    type: str = NUMBER
    minimum: float | None = None
    maximum: float | None = None
    slider: tuple[float, float, float] | None = None


def _num(
    name: str, group: str, label: str, low: float, high: float, slider: Any, told: str
) -> Sampler:
    return Sampler(name, group, label, told, NUMBER, low, high, slider)


def _int(
    name: str, group: str, label: str, low: float, high: float, slider: Any, told: str
) -> Sampler:
    return Sampler(name, group, label, told, INTEGER, low, high, slider)


_B, _C, _R, _D, _X, _T, _M, _O = (
    "Basics",
    "Cutting the tail",
    "Repetition",
    "DRY",
    "Exclude top choices",
    "Shaping temperature",
    "Mirostat and adaptive-p",
    "Ending",
)
_UNIT = (0.0, 1.0, 0.01)

SAMPLERS: tuple[Sampler, ...] = (
    _num(
        "temperature", _B, "Temperature", 0, 100, (0.0, 2.0, 0.05),
        "How daring the choice of words is; 0 always takes the likeliest.",
    ),
    _num(
        "top_p", _B, "Top-p", 0, 1, _UNIT,
        "Keeps the fewest best tokens that hold this share; 1 is off.",
    ),
    _int("top_k", _B, "Top-k", -1, MAX_INT, (0, 200, 1), "Keeps this many best tokens; 0 is off."),
    _num(
        "min_p", _B, "Min-p", 0, 1, (0.0, 0.5, 0.01),
        "Keeps tokens of at least this share of the best one's; 0 is off.",
    ),
    _int(
        "seed", _B, "Seed", -1, 2**53 - 1, None,
        "The same seed draws the same numbers; -1 draws a new one.",
    ),
    _num(
        "typical_p", _C, "Typical-p", 0, 1, _UNIT,
        "Keeps what is about as surprising as expected; 1 is off.",
    ),
    _num("tfs", _C, "Tail-free", 0, 1, _UNIT, "Cuts where the curve of shares bends; 1 is off."),
    _num(
        "epsilon_cutoff", _C, "Epsilon cutoff", 0, 10_000, (0.0, 20.0, 0.1),
        "Keeps shares of at least this many ten-thousandths; 0 is off.",
    ),
    _num(
        "eta_cutoff", _C, "Eta cutoff", 0, 10_000, (0.0, 20.0, 0.1),
        "The same, but less where the choice is wide open; 0 is off.",
    ),
    _num(
        "top_a", _C, "Top-a", 0, 1, _UNIT,
        "Keeps shares of at least this times the best share squared; 0 is off.",
    ),
    _num(
        "top_n_sigma", _C, "Top-n-sigma", -1, 100, (0.0, 5.0, 0.05),
        "Keeps logits within this many standard deviations of the best; 0 is off.",
    ),
    _num(
        "repetition_penalty", _R, "Repetition penalty", 0.01, 100, (1.0, 2.0, 0.01),
        "Makes tokens that were said before less likely; 1 is off.",
    ),
    _int(
        "repeat_last_n", _R, "Looks back", -1, MAX_INT, (0, 4096, 16),
        "Tokens the penalties look back over; -1 is the whole context, 0 is off.",
    ),
    _num(
        "rep_pen_slope", _R, "Slope", 0, 10, (0.0, 10.0, 0.1),
        "How much of the penalty the older half of those tokens gets.",
    ),
    _num(
        "presence_penalty", _R, "Presence penalty", -2, 2, (-2.0, 2.0, 0.05),
        "Taken off every token that came at all; 0 is off.",
    ),
    _num(
        "frequency_penalty", _R, "Frequency penalty", -2, 2, (-2.0, 2.0, 0.05),
        "Taken off for each time a token came; 0 is off.",
    ),
    _num(
        "dry_multiplier", _D, "Strength", 0, 100, (0.0, 2.0, 0.05),
        "How strongly repeating whole sequences is held back; 0 is off, 0.8 is usual.",
    ),
    _num(
        "dry_base", _D, "Base", 1, 100, (1.0, 4.0, 0.05),
        "How fast that grows with the length of the repetition.",
    ),
    _int(
        "dry_allowed_length", _D, "Allowed length", 0, MAX_INT, (0, 20, 1),
        "Repetitions up to this many tokens are free.",
    ),
    _int(
        "dry_penalty_last_n", _D, "Looks back", -1, MAX_INT, (-1, 8192, 1),
        "Tokens it looks back over; -1 is the whole context.",
    ),
    Sampler(
        "dry_sequence_breakers", _D, "Breakers", "Texts at which a repetition ends, one a line.",
        STRINGS,
    ),
    _num(
        "xtc_probability", _X, "Probability", 0, 1, _UNIT,
        "How often the likeliest tokens are left out; 0 is off.",
    ),
    _num(
        "xtc_threshold", _X, "Threshold", 0, 1, (0.0, 0.5, 0.01),
        "Leaves out all tokens above this share but the least of them.",
    ),
    _num(
        "dynatemp_range", _T, "Dynamic range", 0, 100, (0.0, 2.0, 0.05),
        "The temperature follows the uncertainty, this far up and down; 0 is off.",
    ),
    _num(
        "dynatemp_exponent", _T, "Dynamic exponent", 0.01, 100, (0.05, 5.0, 0.05),
        "How the temperature follows it; 1 is evenly.",
    ),
    _num(
        "smoothing_factor", _T, "Smoothing", 0, 100, (0.0, 2.0, 0.05),
        "Quadratic smoothing of the logits; 0 is off.",
    ),
    _num("smoothing_curve", _T, "Smoothing curve", 0, 100, (1.0, 5.0, 0.1), "1 is quadratic."),
    _int(
        "mirostat_mode", _M, "Mirostat", 0, 2, (0, 2, 1),
        "Steers towards an even surprise, in place of cutting; version 1 or 2, 0 is off.",
    ),
    _num("mirostat_tau", _M, "Tau", 0, 100, (0.0, 10.0, 0.1), "The surprise it aims at, in bits."),
    _num("mirostat_eta", _M, "Eta", 0, 100, (0.0, 1.0, 0.01), "How fast it learns."),
    _num(
        "adaptive_target", _M, "Adaptive-p target", -1, 1, (-1.0, 1.0, 0.05),
        "The share it aims at on average; below 0 is off.",
    ),
    _num("adaptive_decay", _M, "Adaptive-p decay", 0, 1, _UNIT, "How long it remembers."),
    _int(
        "min_tokens", _O, "At least", 0, MAX_INT, (0, 1024, 8),
        "Neither the model nor a stop string ends the answer before so many tokens.",
    ),
    Sampler(
        "ignore_eos", _O, "Never end", "The model cannot end its turn by itself.", BOOLEAN
    ),
    Sampler(
        "bypass_eos", _O, "Go on after the end", "It may say its end token, which ends nothing.",
        BOOLEAN,
    ),
)  # fmt: skip


@lru_cache(maxsize=1)
def sampler_table() -> list[dict[str, Any]]:
    """The table as JSON values; `default` is what applies when a chat request is silent."""
    fields = {knob.names[0]: knob.field for knob in KNOBS}
    return [{**asdict(one), "default": _default(fields[one.name])} for one in SAMPLERS]


def _default(field: str) -> Any:
    return -1 if field == "seed" else getattr(DEFAULTS, field)

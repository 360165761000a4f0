"""The order of the samplers as clients send it: KoboldCpp's ids and llama-server's names.

Both name the stages of SamplingParams.order. A stage that an order leaves out does not run, as in
the servers the orders come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from naiad.dialects.fields import Fields, array, bad, integer, text
from naiad.errors import InvalidRequest

MAX_STAGES = 64

#: KoboldCpp's ids. What stands beside an id's stage has no id of its own there.
KOBOLD_STAGES: Mapping[int, tuple[str, ...]] = {
    0: ("top_k",),
    1: ("top_a",),
    2: ("top_p", "min_p"),
    3: ("tfs",),
    4: ("typical_p", "epsilon_cutoff", "eta_cutoff"),
    5: ("temperature", "smoothing", "top_n_sigma"),
    6: ("penalties",),
}
_KOBOLD_FIRST = ("dry",)
_KOBOLD_LAST = ("xtc", "adaptive_p")
_KOBOLD_DEFAULT = (6, 0, 1, 3, 4, 2, 5)

#: llama-server's names, its aliases, and names for the stages it lacks.
NAMED_STAGES: Mapping[str, tuple[str, ...]] = {
    "penalties": ("penalties",),
    "dry": ("dry",),
    "top_n_sigma": ("top_n_sigma",),
    "top_k": ("top_k",),
    "top_a": ("top_a",),
    "tfs": ("tfs",),
    "tfs_z": ("tfs",),
    "typ_p": ("typical_p",),
    "typical_p": ("typical_p",),
    "typical": ("typical_p",),
    "epsilon_cutoff": ("epsilon_cutoff",),
    "eta_cutoff": ("eta_cutoff",),
    "top_p": ("top_p",),
    "nucleus": ("top_p",),
    "min_p": ("min_p",),
    "xtc": ("xtc",),
    "temperature": ("temperature", "smoothing"),
    "temp": ("temperature", "smoothing"),
    "smoothing": ("smoothing",),
    "adaptive_p": ("adaptive_p",),
    "infill": (),  # for code completion inside a text, which is not offered
}
#: llama-server's letters, for orders sent as one string.
LETTERS: Mapping[str, str] = {
    "a": "adaptive_p",
    "d": "dry",
    "e": "penalties",
    "i": "infill",
    "k": "top_k",
    "m": "min_p",
    "p": "top_p",
    "s": "top_n_sigma",
    "t": "temperature",
    "x": "xtc",
    "y": "typ_p",
}


def kobold_order(ids: Iterable[int] = _KOBOLD_DEFAULT) -> tuple[str, ...]:
    """The stages in the order that KoboldCpp runs them."""
    named = (stage for one in ids for stage in KOBOLD_STAGES[one])
    return tuple(dict.fromkeys((*_KOBOLD_FIRST, *named, *_KOBOLD_LAST)))


def read_order(fields: Fields) -> tuple[str, ...] | None:
    """The order a request asks for; None for the default. `samplers` counts before ids."""
    ids = fields.get(_ids, "sampler_order")
    names = fields.get(_names, "samplers")
    return names or (kobold_order(ids) if ids else None)


def _ids(name: str, value: Any) -> list[int]:
    found = array(name, value)
    if len(found) > MAX_STAGES:
        raise _too_many(name, len(found))
    read = integer(0, max(KOBOLD_STAGES))
    return [read(f"{name}[{place}]", one) for place, one in enumerate(found)]


def _names(name: str, value: Any) -> tuple[str, ...]:
    """A list of names, several in one string parted by ";", or a string of letters."""
    is_letters = isinstance(value, str) and set(value.strip()) <= LETTERS.keys()
    if is_letters:
        found = [LETTERS[letter] for letter in value.strip()]
    else:
        found = value.split(";") if isinstance(value, str) else array(name, value)
    if len(found) > MAX_STAGES:
        raise _too_many(name, len(found))
    stages = [stage for one in found for stage in _stages(name, one)]
    return tuple(dict.fromkeys(stages))


def _stages(name: str, value: Any) -> tuple[str, ...]:
    key = text(name, value).strip().lower().replace("-", "_")
    if key not in NAMED_STAGES:
        known = ", ".join(sorted(NAMED_STAGES))
        raise bad(name, f"a list of sampler names ({known}) or letters", value)
    return NAMED_STAGES[key]


def _too_many(name: str, n: int) -> InvalidRequest:
    message = f"'{name}' may name at most {MAX_STAGES} samplers, not {n}."
    return InvalidRequest(message, param=name)

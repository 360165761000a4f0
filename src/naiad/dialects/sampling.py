"""The sampling fields that the dialects share, and those that nothing here understands.

Clients mix the names of several servers (SillyTavern sends three for one penalty), so every name is
read in every dialect. Of several names for one thing the first that is present counts, in the order
of the table.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from naiad.dialects.biases import NEVER, read_biases
from naiad.dialects.fields import (
    MAX_INT,
    Fields,
    Reader,
    array,
    bad,
    boolean,
    integer,
    listed,
    mapping,
    number,
    short_text,
    wrong_kind,
)
from naiad.dialects.phrases import read_phrases
from naiad.dialects.sampler_order import read_order
from naiad.errors import InvalidRequest
from naiad.types import ModelInfo, SamplingParams

MAX_STOPS = 256
MAX_STOP_CHARS = 1024
MAX_BREAKERS = 128
MAX_BREAKER_CHARS = 256
MAX_HANDLE_CHARS = 256
MAX_PRIORITY = 100

_TINY = 1e-6  # a share of probability that only the best token passes


@dataclass(frozen=True, slots=True)
class Knob:
    """One field of SamplingParams, the names it has on the wire, and how it is read."""

    field: str
    names: tuple[str, ...]
    read: Reader[Any]


def _top_k(name: str, value: Any) -> int:
    return max(0, integer(-1, MAX_INT)(name, value))  # -1 and 0: off


def _top_p(name: str, value: Any) -> float:
    return max(_TINY, number(0, 1)(name, value))  # 0 is legal in OpenAI's API: the best token only


def _share(name: str, value: Any) -> float:
    return number(0, 1)(name, value) or 1.0  # 0: off, as front ends mean it


def _cutoff(name: str, value: Any) -> float:
    return number(0, 10_000)(name, value) / 10_000  # text-generation-webui's unit


def _n_sigma(name: str, value: Any) -> float:
    return max(0.0, number(-1, 100)(name, value))  # -1 and 0: off


def _decay(name: str, value: Any) -> float:
    return min(0.99, number(0, 1)(name, value))  # 1 would never forget


def _breakers(name: str, value: Any) -> tuple[str, ...]:
    """A list of strings, or such a list as JSON in a string."""
    found = value
    if isinstance(value, str):
        try:
            found = msgspec.json.decode(value) if value.strip() else []
        except msgspec.DecodeError:
            raise wrong_kind(name, "a list of strings, or one as JSON", value) from None
    if len(array(name, found)) > MAX_BREAKERS:
        raise InvalidRequest(
            f"'{name}' may hold at most {MAX_BREAKERS} strings, not {len(found)}.", param=name
        )
    read = short_text(MAX_BREAKER_CHARS)
    breakers = [read(f"{name}[{place}]", one) for place, one in enumerate(found)]
    return tuple(dict.fromkeys(one for one in breakers if one))


def _seed(name: str, value: Any) -> int:
    return integer(-(2**63), 2**64 - 1)(name, value) % 2**64  # -1: see read_sampling


def random_seed() -> int:
    """A seed for a request that brings none."""
    return secrets.randbits(64)


_SEEDS = ("seed", "sampler_seed")

KNOBS: tuple[Knob, ...] = (
    Knob("temperature", ("temperature",), number(0, 100)),
    Knob("top_k", ("top_k",), _top_k),
    Knob("top_p", ("top_p",), _top_p),
    Knob("min_p", ("min_p",), number(0, 1)),
    Knob("top_a", ("top_a",), number(0, 1)),
    Knob("typical_p", ("typical_p", "typical"), _share),
    Knob("tfs", ("tfs", "tfs_z"), _share),
    Knob("epsilon_cutoff", ("epsilon_cutoff",), _cutoff),
    Knob("eta_cutoff", ("eta_cutoff",), _cutoff),
    Knob("top_n_sigma", ("top_n_sigma", "nsigma"), _n_sigma),
    Knob("dynatemp_range", ("dynatemp_range",), number(0, 100)),
    Knob("dynatemp_exponent", ("dynatemp_exponent",), number(0.01, 100)),
    Knob("smoothing_factor", ("smoothing_factor",), number(0, 100)),
    Knob("smoothing_curve", ("smoothing_curve",), number(0, 100)),
    Knob(
        "repetition_penalty",
        ("repetition_penalty", "repeat_penalty", "rep_pen"),
        number(0.01, 100),
    ),
    Knob(
        "penalty_last_n",
        ("repeat_last_n", "rep_pen_range", "repetition_penalty_range"),
        integer(-1, MAX_INT),
    ),
    Knob("presence_penalty", ("presence_penalty",), number(-2, 2)),
    Knob("frequency_penalty", ("frequency_penalty",), number(-2, 2)),
    Knob("penalty_slope", ("rep_pen_slope",), number(0, 10)),
    Knob("dry_multiplier", ("dry_multiplier",), number(0, 100)),
    Knob("dry_base", ("dry_base",), number(1, 100)),
    Knob("dry_allowed_length", ("dry_allowed_length",), integer(0, MAX_INT)),
    Knob("dry_last_n", ("dry_penalty_last_n", "dry_range"), integer(-1, MAX_INT)),
    Knob("dry_breakers", ("dry_sequence_breakers",), _breakers),
    Knob("xtc_probability", ("xtc_probability",), number(0, 1)),
    Knob("xtc_threshold", ("xtc_threshold",), number(0, 1)),
    Knob("mirostat", ("mirostat_mode", "mirostat"), integer(0, 2)),
    Knob("mirostat_tau", ("mirostat_tau",), number(0, 100)),
    Knob("mirostat_eta", ("mirostat_eta",), number(0, 100)),
    Knob("adaptive_target", ("adaptive_target",), number(-1, 1)),
    Knob("adaptive_decay", ("adaptive_decay",), _decay),
    Knob("bypass_eos", ("bypass_eos",), boolean),
    Knob("ignore_eos", ("ignore_eos", "ban_eos_token", "use_default_badwordsids"), boolean),
    Knob("min_tokens", ("min_tokens", "min_new_tokens", "min_length"), integer(0, MAX_INT)),
    Knob("seed", _SEEDS, _seed),
)


def read_sampling(
    fields: Fields,
    model: ModelInfo,
    defaults: SamplingParams,
    *,
    is_deterministic: bool | None = None,
) -> SamplingParams:
    """The sampling parameters of a request. Raises InvalidRequest.

    is_deterministic: whether a seed that is not given is 0; by default as `fields` say.
    """
    found = {knob.field: fields.get(knob.read, *knob.names) for knob in KNOBS}
    given = {name: value for name, value in found.items() if value is not None}
    is_seedless = fields.find(*_SEEDS)[1] in (None, -1, "-1")
    if is_seedless:
        is_fixed = read_deterministic(fields) if is_deterministic is None else is_deterministic
        given["seed"] = 0 if is_fixed else random_seed()
    biases, given["text_bias"] = read_biases(fields, model)
    given["banned_phrases"], banned = read_phrases(fields, model)
    given["logit_bias"] = tuple({**dict(biases), **dict.fromkeys(banned, NEVER)}.items())
    _read_dynamic_range(fields, given)
    order = read_order(fields)
    given.update({"order": order} if order else {})
    return msgspec.structs.replace(defaults, **given)


def _read_dynamic_range(fields: Fields, given: dict[str, Any]) -> None:
    """The other spelling of a dynamic temperature: its two ends, and a switch."""
    switch = fields.get(boolean, "dynamic_temperature")
    ends = [fields.get(number(0, 100), name) for name in ("dynatemp_low", "dynatemp_high")]
    low, high = ends
    if switch and not given.get("dynatemp_range") and low is not None and high is not None:
        given["temperature"] = (low + high) / 2
        given["dynatemp_range"] = abs(high - low) / 2


def read_stops(fields: Fields, *names: str) -> tuple[str, ...]:
    """One stop string, or a list of up to 256, each of up to 1024 characters; "" is none."""
    name, value = fields.find(*names)
    if value is None:
        return ()
    read = short_text(MAX_STOP_CHARS)
    if isinstance(value, str):
        return (read(name, value),) if value else ()
    if not isinstance(value, list):
        raise bad(name, "a string or a list of strings", value)
    if len(value) > MAX_STOPS:
        raise InvalidRequest(
            f"'{name}' may hold at most {MAX_STOPS} strings, not {len(value)}.", param=name
        )
    found = [read(f"{name}[{place}]", one) for place, one in enumerate(value)]
    return tuple(dict.fromkeys(stop for stop in found if stop))


def read_max_tokens(fields: Fields, *names: str) -> int | None:
    """At least 1, and no upper bound: what reaches past the context ends with `length`."""
    found = fields.get(integer(1), *names)
    return None if found is None else min(found, MAX_INT)


def read_handle(fields: Fields) -> str | None:
    """The caller's own name for this generation; "" is none."""
    return fields.get(short_text(MAX_HANDLE_CHARS), "genkey") or None


def read_priority(fields: Fields) -> int:
    """Lower goes first; who may go below 0 is not decided here."""
    return fields.get(integer(-MAX_PRIORITY, MAX_PRIORITY), "priority") or 0


def read_deterministic(fields: Fields) -> bool:
    """Whether the text shall be the same every time; without a seed, 0 is it then."""
    return fields.get(boolean, "deterministic") or False


def wants_progress(fields: Fields) -> bool:
    """Whether the client asks to be told how far it is; llama-server's name."""
    return fields.get(boolean, "return_progress") or False


def keeps_stop(fields: Fields) -> bool:
    """Whether the stop string that ended the text is part of it; KoboldCpp's and vLLM's names."""
    is_kept = fields.get(boolean, "include_stop_str_in_output") or False
    return fields.get(boolean, "trim_stop") is False or is_kept


def shows_controls(fields: Fields) -> bool:
    """Whether control tokens show as text; KoboldCpp's name and everybody else's."""
    is_shown = fields.get(boolean, "render_special") or False
    return fields.get(boolean, "skip_special_tokens") is False or is_shown


def read_object(fields: Fields, name: str) -> Fields:
    """An object inside the body; an empty one when it is absent."""
    return Fields(fields.get(mapping, name) or {}, f"{name}.")


#: Values with which a field that has no effect here asks for none.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "add_bos_token": (True,),
    "cache_prompt": (True,),
    "guidance_scale": (1,),
    "id_slot": (-1,),
    "images": ([],),
    "lora": ([],),
    "logprobs": (False, 0),
    "include_reasoning": (False, True),
    "memory": ("",),
    "min_keep": (0,),
    "n": (1,),
    "n_cache_reuse": (0,),
    "n_indent": (0,),
    "n_keep": (0,),
    "n_probs": (0,),
    "post_sampling_probs": (False,),
    "quiet": (False, True),
    "render_special": (False,),
    "return_full_text": (False,),
    "return_tokens": (False,),
    "singleline": (False,),
    "skew": (0,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "t_max_predict_ms": (0,),
    "timings_per_token": (False,),
    "tools": ([],),
    "top_logprobs": (0,),
    "trim_stop": (True,),
    "use_authors_note": (False,),
    "use_beam_search": (False,),
    "use_memory": (False,),
    "use_story": (False,),
    "use_world_info": (False,),
}

#: Fields that mean nothing while their switches are all absent or neutral.
DEPENDENT: Mapping[str, tuple[str, ...]] = {
    "negative_prompt": ("guidance_scale",),
    "parallel_tool_calls": ("tools",),
    "tool_choice": ("tools",),
}


def ignored(fields: Fields) -> tuple[str, ...]:
    """The fields that asked for something and had no effect, for the log."""
    asked = {name: value for name, value in fields.unread().items() if not _is_neutral(name, value)}
    return listed(
        name for name in asked if any(switch in asked for switch in DEPENDENT.get(name, (name,)))
    )


def _is_neutral(name: str, value: Any) -> bool:
    return value in NEUTRAL.get(name, ())

"""The sampling fields that the dialects share, and those that nothing here understands yet.

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
)
from naiad.errors import InvalidRequest
from naiad.types import ModelInfo, SamplingParams

MAX_STOPS = 256
MAX_STOP_CHARS = 1024
MAX_BIASES = 1024
MAX_HANDLE_CHARS = 256

_TINY = 1e-6  # a share of probability that only the best token passes
_BIAS = number(-100, 100)


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


def _typical_p(name: str, value: Any) -> float:
    return number(0, 1)(name, value) or 1.0  # 0: off, as front ends mean it


def _seed(name: str, value: Any) -> int:
    seed = integer(-(2**63), 2**64 - 1)(name, value)
    return random_seed() if seed == -1 else seed % 2**64


def random_seed() -> int:
    """A seed for a request that brings none."""
    return secrets.randbits(64)


KNOBS: tuple[Knob, ...] = (
    Knob("temperature", ("temperature",), number(0, 100)),
    Knob("top_k", ("top_k",), _top_k),
    Knob("top_p", ("top_p",), _top_p),
    Knob("min_p", ("min_p",), number(0, 1)),
    Knob("typical_p", ("typical_p", "typical"), _typical_p),
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
    Knob("ignore_eos", ("ignore_eos", "ban_eos_token", "use_default_badwordsids"), boolean),
    Knob("seed", ("seed", "sampler_seed"), _seed),
)


def read_sampling(fields: Fields, model: ModelInfo, defaults: SamplingParams) -> SamplingParams:
    """The sampling parameters of a request. Raises InvalidRequest."""
    found = {knob.field: fields.get(knob.read, *knob.names) for knob in KNOBS}
    given = {name: value for name, value in found.items() if value is not None}
    given.setdefault("seed", random_seed())
    given["logit_bias"] = _read_biases(fields, model)
    return msgspec.structs.replace(defaults, **given)


def _read_biases(fields: Fields, model: ModelInfo) -> tuple[tuple[int, float], ...]:
    name, value = fields.find("logit_bias")
    pairs = _bias_pairs(name, value) if value else []
    bans = fields.get(short_text(16 * MAX_BIASES), "custom_token_bans") or ""
    banned = [("custom_token_bans", one, -100) for one in bans.split(",") if one.strip()]
    everything = [(name, *pair) for pair in pairs] + banned
    if len(everything) > MAX_BIASES:
        raise InvalidRequest(
            f"'{name}' may name at most {MAX_BIASES} tokens, not {len(everything)}.", param=name
        )
    token = integer(0, model.n_vocab - 1 if model.n_vocab > 0 else MAX_INT)
    return tuple({token(source, key): _BIAS(source, by) for source, key, by in everything}.items())


def _bias_pairs(name: str, value: Any) -> list[tuple[Any, Any]]:
    """Both spellings: {"id": bias} and [[id, bias], ...]; false as a bias means never."""
    pairs = list(value.items()) if isinstance(value, dict) else array(name, value)
    if any(not isinstance(pair, list | tuple) or len(pair) != 2 for pair in pairs):
        raise InvalidRequest(
            f"'{name}' must be an object of token id: bias, or a list of [token id, bias].",
            param=name,
        )
    return [(key, -100 if by is False else by) for key, by in pairs]


def read_stops(fields: Fields, *names: str) -> tuple[str, ...]:
    """One stop string, or a list of up to 256, each of up to 1024 characters; "" is none."""
    name, value = fields.find(*names)
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list):
        raise bad(name, "a string or a list of strings", value)
    if len(stops) > MAX_STOPS:
        raise InvalidRequest(
            f"'{name}' may hold at most {MAX_STOPS} strings, not {len(stops)}.", param=name
        )
    read = short_text(MAX_STOP_CHARS)
    return tuple(dict.fromkeys(stop for stop in (read(name, one) for one in stops) if stop))


def read_max_tokens(fields: Fields, *names: str) -> int | None:
    """At least 1, and no upper bound: what reaches past the context ends with `length`."""
    found = fields.get(integer(1), *names)
    return None if found is None else min(found, MAX_INT)


def read_handle(fields: Fields) -> str | None:
    """The caller's own name for this generation; "" is none."""
    return fields.get(short_text(MAX_HANDLE_CHARS), "genkey") or None


def read_object(fields: Fields, name: str) -> Fields:
    """An object inside the body; an empty one when it is absent."""
    return Fields(fields.get(mapping, name) or {}, f"{name}.")


#: Values with which a field that has no effect here asks for none.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "adaptive_target": (-1, -0.01),
    "add_bos_token": (True,),
    "banned_strings": ([], ""),
    "banned_tokens": ([], ""),
    "bypass_eos": (False,),
    "dry_multiplier": (0,),
    "dynamic_temperature": (False,),
    "dynatemp_range": (0,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "grammar": ("",),
    "grammar_retain_state": (False,),
    "grammar_string": ("",),
    "guidance_scale": (1,),
    "images": ([],),
    "logprobs": (False, 0),
    "include_reasoning": (False, True),
    "memory": ("",),
    "min_keep": (0,),
    "min_tokens": (0,),
    "mirostat": (0,),
    "mirostat_mode": (0,),
    "n": (1,),
    "n_probs": (0,),
    "nsigma": (0,),
    "quiet": (False, True),
    "render_special": (False,),
    "rep_pen_slope": (0, 1),
    "return_full_text": (False,),
    "sampler_order": ([6, 0, 1, 3, 4, 2, 5], []),
    "singleline": (False,),
    "skew": (0,),
    "skip_special_tokens": (True,),
    "smoothing_factor": (0,),
    "spaces_between_special_tokens": (True,),
    "tfs": (1,),
    "tools": ([],),
    "top_a": (0,),
    "top_logprobs": (0,),
    "top_n_sigma": (0,),
    "trim_stop": (True,),
    "use_authors_note": (False,),
    "use_beam_search": (False,),
    "use_memory": (False,),
    "use_story": (False,),
    "use_world_info": (False,),
    "xtc_probability": (0,),
}

#: Fields that mean nothing while their switches are all absent or neutral.
DEPENDENT: Mapping[str, tuple[str, ...]] = {
    "adaptive_decay": ("adaptive_target",),
    "dry_allowed_length": ("dry_multiplier",),
    "dry_base": ("dry_multiplier",),
    "dry_penalty_last_n": ("dry_multiplier",),
    "dry_sequence_breakers": ("dry_multiplier",),
    "dynatemp_exponent": ("dynatemp_range",),
    "dynatemp_high": ("dynamic_temperature",),
    "dynatemp_low": ("dynamic_temperature",),
    "mirostat_eta": ("mirostat", "mirostat_mode"),
    "mirostat_tau": ("mirostat", "mirostat_mode"),
    "negative_prompt": ("guidance_scale",),
    "parallel_tool_calls": ("tools",),
    "smoothing_curve": ("smoothing_factor",),
    "tool_choice": ("tools",),
    "xtc_threshold": ("xtc_probability",),
}


def ignored(fields: Fields) -> tuple[str, ...]:
    """The fields that asked for something and had no effect, for the log."""
    asked = {name: value for name, value in fields.unread().items() if not _is_neutral(name, value)}
    return listed(
        name for name in asked if any(switch in asked for switch in DEPENDENT.get(name, (name,)))
    )


def _is_neutral(name: str, value: Any) -> bool:
    return value in NEUTRAL.get(name, ())

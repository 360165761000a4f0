"""Sampling fields: names, ranges and neutral values, the same in every dialect."""

from __future__ import annotations

from math import inf
from typing import Any

import msgspec
import pytest

from dialect_cases import MODEL
from naiad.dialects.fields import Fields
from naiad.dialects.sampler_order import LETTERS, NAMED_STAGES, kobold_order
from naiad.dialects.sampling import (
    DEPENDENT,
    KNOBS,
    NEUTRAL,
    ignored,
    read_handle,
    read_max_tokens,
    read_sampling,
    read_stops,
)
from naiad.errors import InvalidRequest
from naiad.types import SamplingParams


def sampling(**body: Any) -> SamplingParams:
    return read_sampling(Fields(body), MODEL, SamplingParams())


def test_every_sampling_parameter_can_be_set() -> None:
    known = {knob.field for knob in KNOBS} | {
        "logit_bias",
        "text_bias",
        "banned_phrases",
        "order",
        "choice",  # one of the answers of a body
        "n_logprobs",  # what is told of, each dialect in its own words
        "logprobs_after",
    }
    assert known == set(SamplingParams.__struct_fields__)


def test_nothing_sent_means_the_defaults_and_a_seed_of_its_own() -> None:
    first, second = sampling(), sampling(seed=None)
    assert first.seed != second.seed
    assert 0 <= first.seed < 2**64
    assert SamplingParams(seed=first.seed) == first


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("temperature", "0.7", "temperature", 0.7),
        ("temperature", 0, "temperature", 0.0),
        ("top_k", -1, "top_k", 0),
        ("top_k", 40.0, "top_k", 40),
        ("top_p", 0, "top_p", 1e-6),
        ("top_p", 1, "top_p", 1.0),
        ("min_p", "0.05", "min_p", 0.05),
        ("typical", 0, "typical_p", 1.0),
        ("typical_p", 0.9, "typical_p", 0.9),
        ("epsilon_cutoff", 3, "epsilon_cutoff", 3e-4),
        ("eta_cutoff", 10_000, "eta_cutoff", 1.0),
        ("min_new_tokens", "5", "min_tokens", 5),
        ("rep_pen", 1.1, "repetition_penalty", 1.1),
        ("repeat_penalty", 1.2, "repetition_penalty", 1.2),
        ("repetition_penalty", 1.3, "repetition_penalty", 1.3),
        ("repeat_last_n", -1, "penalty_last_n", -1),
        ("rep_pen_range", 2048, "penalty_last_n", 2048),
        ("presence_penalty", -2, "presence_penalty", -2.0),
        ("frequency_penalty", "1.5", "frequency_penalty", 1.5),
        ("ban_eos_token", 1, "ignore_eos", True),
        ("bypass_eos", "true", "bypass_eos", True),
        ("top_a", "0.2", "top_a", 0.2),
        ("tfs", 0, "tfs", 1.0),
        ("tfs_z", 0.95, "tfs", 0.95),
        ("nsigma", 1, "top_n_sigma", 1.0),
        ("top_n_sigma", -1, "top_n_sigma", 0.0),
        ("dynatemp_range", 0.5, "dynatemp_range", 0.5),
        ("dynatemp_exponent", 2, "dynatemp_exponent", 2.0),
        ("smoothing_factor", 0.2, "smoothing_factor", 0.2),
        ("smoothing_curve", "1.5", "smoothing_curve", 1.5),
        ("rep_pen_slope", 0, "penalty_slope", 0.0),
        ("dry_multiplier", 0.8, "dry_multiplier", 0.8),
        ("dry_base", 2, "dry_base", 2.0),
        ("dry_allowed_length", "3", "dry_allowed_length", 3),
        ("dry_penalty_last_n", -1, "dry_last_n", -1),
        ("dry_range", 512, "dry_last_n", 512),
        ("dry_sequence_breakers", '["\\n", ":"]', "dry_breakers", ("\n", ":")),
        ("dry_sequence_breakers", ["*", "", "*", "###"], "dry_breakers", ("*", "###")),
        ("dry_sequence_breakers", "", "dry_breakers", ()),
        ("xtc_probability", 1, "xtc_probability", 1.0),
        ("xtc_threshold", 0.05, "xtc_threshold", 0.05),
        ("mirostat", 1.0, "mirostat", 1),
        ("mirostat_mode", "2", "mirostat", 2),
        ("mirostat_tau", 3, "mirostat_tau", 3.0),
        ("mirostat_eta", 0.2, "mirostat_eta", 0.2),
        ("adaptive_target", -0.01, "adaptive_target", -0.01),
        ("adaptive_decay", 1, "adaptive_decay", 0.99),
        ("ignore_eos", "true", "ignore_eos", True),
        ("seed", 42, "seed", 42),
        ("sampler_seed", "42", "seed", 42),
        ("seed", -2, "seed", 2**64 - 2),
        ("seed", 2**64 - 1, "seed", 2**64 - 1),
    ],
)
def test_values(name: str, value: Any, field: str, expected: Any) -> None:
    assert getattr(sampling(**{name: value}), field) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 101),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_k", -2),
        ("top_k", 1.5),
        ("top_k", 2**31),
        ("top_p", 1.1),
        ("top_p", -0.1),
        ("min_p", 2),
        ("typical", 2),
        ("rep_pen", 0),
        ("rep_pen_range", -2),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("seed", 2**64),
        ("seed", -(2**63) - 1),
        ("ignore_eos", "perhaps"),
        ("top_a", 1.1),
        ("tfs", 1.1),
        ("nsigma", -2),
        ("dynatemp_range", -1),
        ("dynatemp_exponent", 0),
        ("smoothing_factor", -1),
        ("smoothing_curve", "curvy"),
        ("rep_pen_slope", 11),
        ("dry_multiplier", -0.1),
        ("dry_base", 0.9),
        ("dry_allowed_length", -1),
        ("dry_penalty_last_n", -2),
        ("dry_sequence_breakers", "\\n, :"),
        ("dry_sequence_breakers", 5),
        ("dry_sequence_breakers", [5]),
        ("dry_sequence_breakers", ["x"] * 129),
        ("dry_sequence_breakers", ["x" * 257]),
        ("xtc_probability", 1.5),
        ("xtc_threshold", -1),
        ("mirostat", 3),
        ("mirostat_tau", "low"),
        ("adaptive_target", 2),
        ("adaptive_decay", 1.1),
        ("bypass_eos", 2),
        ("sampler_order", [7]),
        ("sampler_order", [-1]),
        ("sampler_order", "6,0"),
        ("sampler_order", [0] * 65),
        ("samplers", ["top_k", "magic"]),
        ("samplers", "magic"),
        ("samplers", 5),
        ("samplers", [5]),
        ("samplers", "k" * 65),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {"five": 101}),
        ("logit_bias", {"5.5": 1}),
        ("logit_bias", {"x" * 257: 1}),
        ("logit_bias", {"1000": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"5": "nan"}),
        ("logit_bias", [[1]]),
        ("logit_bias", [5]),
        ("logit_bias", "5:1"),
        ("logit_bias", {str(i): 1 for i in range(1000)} | {f"{i}.0": 1 for i in range(1000)}),
        ("custom_token_bans", "5,x"),
    ],
)
def test_refusals_name_the_field(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=rf"'{name}(\[\d+\])?'") as caught:
        sampling(**{name: value})
    assert (caught.value.param or "").partition("[")[0] == name


def test_a_seed_of_minus_one_is_drawn() -> None:
    assert sampling(seed=-1).seed != sampling(seed=-1).seed


def test_biases_by_id_in_both_spellings_and_bans() -> None:
    assert sampling(logit_bias={"5": -100, "7": "1.5"}).logit_bias == ((5, -100.0), (7, 1.5))
    assert sampling(logit_bias=[[5, 2], [7.0, False]]).logit_bias == ((5, 2.0), (7, -inf))
    assert sampling(logit_bias={}, custom_token_bans="3, 4,").logit_bias == ((3, -inf), (4, -inf))


def test_a_ban_inside_of_an_object_is_refused_by_its_whole_name() -> None:
    fields = Fields({"custom_token_bans": "1,x"}, "options.")
    with pytest.raises(InvalidRequest, match=r"'options\.custom_token_bans'") as caught:
        read_sampling(fields, MODEL, SamplingParams())
    assert caught.value.param == "options.custom_token_bans"


def test_biases_by_text() -> None:
    """Keys of an object are always strings; in a list, a string is text."""
    assert sampling(logit_bias={"nan": 1, "inf": 2}).text_bias == (("nan", 1.0), ("inf", 2.0))
    params = sampling(logit_bias={" cat": 2, "7": 1, "": 5, "dog": False})
    assert params.text_bias == ((" cat", 2.0), ("dog", -inf))
    assert params.logit_bias == ((7, 1.0),)
    params = sampling(logit_bias=[["7", 1], [7, 2]])
    assert (params.text_bias, params.logit_bias) == ((("7", 1.0),), ((7, 2.0),))


# -- order --------------------------------------------------------------------------------------


def test_both_spellings_reach_every_stage() -> None:
    every = {stage for stages in NAMED_STAGES.values() for stage in stages}
    assert set(kobold_order()) == every
    assert set(LETTERS.values()) <= NAMED_STAGES.keys()


def test_koboldcpps_ids() -> None:
    assert sampling().order == ()
    assert sampling(sampler_order=[]).order == ()
    assert sampling(sampler_order=[6, 0, 1, 3, 4, 2, 5]).order == (
        *("dry", "penalties", "top_k", "top_a", "tfs", "typical_p", "epsilon_cutoff"),
        *("eta_cutoff", "top_p", "min_p"),
        *("temperature", "smoothing", "top_n_sigma", "xtc", "adaptive_p"),
    )
    assert sampling(sampler_order=["5", 2.0, 5]).order == (
        *("dry", "temperature", "smoothing", "top_n_sigma", "top_p", "min_p"),
        *("xtc", "adaptive_p"),
    )


@pytest.mark.parametrize(
    ("samplers", "want"),
    [
        (["top-k", "Temperature", "infill", "xtc"], ("top_k", "temperature", "smoothing", "xtc")),
        (["smoothing", "temp"], ("smoothing", "temperature")),
        (
            "edskypmxt",
            (
                *("penalties", "dry", "top_n_sigma", "top_k", "typical_p", "top_p", "min_p"),
                *("xtc", "temperature", "smoothing"),
            ),
        ),
        ("kt", ("top_k", "temperature", "smoothing")),
        ("top_k;typ_p", ("top_k", "typical_p")),
        (["min_p", "min_p"], ("min_p",)),
    ],
)
def test_llama_servers_names_and_letters(samplers: Any, want: tuple[str, ...]) -> None:
    assert sampling(samplers=samplers, sampler_order=[3]).order == want


def test_a_dynamic_temperature_by_its_two_ends() -> None:
    ends = {"dynatemp_low": 0.5, "dynatemp_high": 1.5}
    found = sampling(temperature=0.2, dynamic_temperature=True, **ends)
    assert (found.temperature, found.dynatemp_range) == (1.0, 0.5)
    off = sampling(temperature=0.2, dynamic_temperature=False, **ends)
    assert (off.temperature, off.dynatemp_range) == (0.2, 0.0)
    both = sampling(temperature=0.8, dynamic_temperature=True, dynatemp_range=0.3, **ends)
    assert (both.temperature, both.dynatemp_range) == (0.8, 0.3)


def test_parameters_cross_the_border_small_and_whole() -> None:
    for params in (SamplingParams(), sampling(top_k=5, logit_bias={"3": False}, samplers="kt")):
        packed = msgspec.msgpack.encode(params)
        assert msgspec.msgpack.decode(packed, type=SamplingParams) == params
    assert len(msgspec.msgpack.encode(SamplingParams())) <= 3


# -- the rest -----------------------------------------------------------------------------------


def test_stops() -> None:
    assert read_stops(Fields({"stop": "x"}), "stop") == ("x",)
    assert read_stops(Fields({"stop": ["x", "", "y", "x"]}), "stop") == ("x", "y")
    assert read_stops(Fields({"stop": None, "stops": ["z"]}), "stop", "stops") == ("z",)
    assert read_stops(Fields({}), "stop") == ()
    for wrong in (5, [5], ["x" * 1025], ["x"] * 257, {"a": 1}, ["\ud800"]):
        with pytest.raises(InvalidRequest, match=r"'stop(\[0\])?'"):
            read_stops(Fields({"stop": wrong}), "stop")


def test_max_tokens_has_no_upper_bound() -> None:
    assert read_max_tokens(Fields({"m": 10**30}), "m") == 2**31 - 1
    assert read_max_tokens(Fields({"m": "16"}), "m") == 16
    assert read_max_tokens(Fields({}), "m") is None
    for wrong in (0, -1, 1.5, "many"):
        with pytest.raises(InvalidRequest, match="'m' must be an integer of at least 1"):
            read_max_tokens(Fields({"m": wrong}), "m")


def test_handles() -> None:
    assert read_handle(Fields({"genkey": "KCPP1234"})) == "KCPP1234"
    assert read_handle(Fields({"genkey": ""})) is None
    with pytest.raises(InvalidRequest, match="'genkey'"):
        read_handle(Fields({"genkey": "x" * 257}))


def test_neutral_values_are_not_reported_others_are() -> None:
    neutral = {name: values[0] for name, values in NEUTRAL.items()}
    assert ignored(Fields(neutral)) == ()
    assert ignored(Fields({"skew": 0.8, "min_keep": 3, "quiet": True})) == ("skew", "min_keep")
    assert ignored(Fields({"whatever": 0, "user": "me", "nothing": None})) == ("whatever", "user")


def test_details_of_a_stage_that_is_off_are_not_reported() -> None:
    details = dict.fromkeys(DEPENDENT, 5)
    assert ignored(Fields(details)) == ()
    assert ignored(Fields({**details, "guidance_scale": 2})) == (
        "negative_prompt",
        "guidance_scale",
    )

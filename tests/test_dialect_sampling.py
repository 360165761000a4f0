"""Sampling fields: names, ranges and neutral values, the same in every dialect."""

from __future__ import annotations

from typing import Any

import pytest

from dialect_cases import MODEL
from naiad.dialects.fields import Fields
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
    known = {knob.field for knob in KNOBS} | {"logit_bias"}
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
        ("rep_pen", 1.1, "repetition_penalty", 1.1),
        ("repeat_penalty", 1.2, "repetition_penalty", 1.2),
        ("repetition_penalty", 1.3, "repetition_penalty", 1.3),
        ("repeat_last_n", -1, "penalty_last_n", -1),
        ("rep_pen_range", 2048, "penalty_last_n", 2048),
        ("presence_penalty", -2, "presence_penalty", -2.0),
        ("frequency_penalty", "1.5", "frequency_penalty", 1.5),
        ("ban_eos_token", 1, "ignore_eos", True),
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
        ("logit_bias", {"5": 101}),
        ("logit_bias", {"five": 1}),
        ("logit_bias", {"1000": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", [[1]]),
        ("logit_bias", [5]),
        ("logit_bias", "5:1"),
        ("logit_bias", {str(i): 1 for i in range(1000)} | {f"{i}.0": 1 for i in range(1000)}),
        ("custom_token_bans", "5,x"),
    ],
)
def test_refusals_name_the_field(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"'{name}'") as caught:
        sampling(**{name: value})
    assert caught.value.param == name


def test_a_seed_of_minus_one_is_drawn() -> None:
    assert sampling(seed=-1).seed != sampling(seed=-1).seed


def test_biases_in_both_spellings_and_bans() -> None:
    assert sampling(logit_bias={"5": -100, "7": "1.5"}).logit_bias == ((5, -100.0), (7, 1.5))
    assert sampling(logit_bias=[[5, 2], ["7", False]]).logit_bias == ((5, 2.0), (7, -100.0))
    assert sampling(logit_bias={}, custom_token_bans="3, 4,").logit_bias == (
        (3, -100.0),
        (4, -100.0),
    )


def test_stops() -> None:
    assert read_stops(Fields({"stop": "x"}), "stop") == ("x",)
    assert read_stops(Fields({"stop": ["x", "", "y", "x"]}), "stop") == ("x", "y")
    assert read_stops(Fields({"stop": None, "stops": ["z"]}), "stop", "stops") == ("z",)
    assert read_stops(Fields({}), "stop") == ()
    for wrong in (5, [5], ["x" * 1025], ["x"] * 257, {"a": 1}, ["\ud800"]):
        with pytest.raises(InvalidRequest, match="'stop'"):
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
    assert ignored(Fields({"dry_multiplier": 0.8, "tfs": 0.9, "top_a": 0})) == (
        "dry_multiplier",
        "tfs",
    )
    assert ignored(Fields({"whatever": 0, "user": "me", "nothing": None})) == ("whatever", "user")


def test_details_of_a_stage_that_is_off_are_not_reported() -> None:
    details = dict.fromkeys(DEPENDENT, 5)
    assert ignored(Fields(details)) == ()
    assert ignored(Fields({**details, "mirostat_mode": 2})) == (
        "mirostat_eta",
        "mirostat_tau",
        "mirostat_mode",
    )

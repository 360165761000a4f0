"""SillyTavern's own request bodies, with every field it sends, and what becomes of each."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path
from typing import Any

import pytest

from dialect_cases import MODEL
from naiad.dialects.kobold.requests import parse_stream, parse_whole
from naiad.dialects.openai.requests import parse_completion
from naiad.dialects.sampler_order import kobold_order
from naiad.types import GenerateRequest, SamplingParams, TextPrompt, Trim

PROMPT = TextPrompt("You are Seraphina.\nYou: Hi!\nSeraphina:")


def body(name: str, **changes: Any) -> dict[str, Any]:
    path = Path(__file__).parent / "golden" / f"sillytavern-{name}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found | changes


def test_text_completion_with_koboldcpp_as_source() -> None:
    parsed = parse_completion(body("text-completion"), MODEL)
    assert parsed.request == GenerateRequest(
        prompt=PROMPT,
        sampling=SamplingParams(
            temperature=0.85,
            top_k=40,
            top_p=0.95,
            min_p=0.05,
            typical_p=1.0,
            repetition_penalty=1.08,
            penalty_last_n=2048,
            penalty_slope=0.9,
            presence_penalty=0.0,
            frequency_penalty=0.1,
            logit_bias=((15, -3.5),),
            adaptive_target=-0.01,
            dry_last_n=0,
            dry_breakers=("\n", ":", '"', "*"),
            order=kobold_order(),
            ignore_eos=False,
            n_logprobs=10,
            seed=parsed.request.sampling.seed,
        ),
        max_tokens=350,
        stop=("\nYou:", "\n***"),
        stream=True,
        model="tiny.Q4_1",
    )
    assert parsed.ignored == ()


def test_its_seed_of_minus_one_is_a_new_one_each_time() -> None:
    seeds = {
        parse_completion(body("text-completion"), MODEL).request.sampling.seed for _ in range(3)
    }
    assert len(seeds) == 3


@pytest.mark.parametrize(
    ("changes", "reported"),
    [
        ({"guidance_scale": 1.5, "negative_prompt": "dull"}, {"guidance_scale", "negative_prompt"}),
    ],
)
def test_samplers_that_are_not_there_are_reported_once_they_are_switched_on(
    changes: dict[str, Any], reported: set[str]
) -> None:
    parsed = parse_completion(body("text-completion", **changes), MODEL)
    assert reported <= set(parsed.ignored)


@pytest.mark.parametrize(
    ("changes", "want"),
    [
        ({"dry_multiplier": 0.8}, {"dry_multiplier": 0.8, "dry_base": 1.75, "dry_last_n": 0}),
        ({"xtc_probability": 0.5}, {"xtc_probability": 0.5, "xtc_threshold": 0.1}),
        ({"mirostat_mode": 2}, {"mirostat": 2, "mirostat_tau": 5.0, "mirostat_eta": 0.1}),
        ({"smoothing_factor": 0.3, "smoothing_curve": 2}, {"smoothing_curve": 2.0}),
        ({"adaptive_target": 0.4}, {"adaptive_target": 0.4, "adaptive_decay": 0.9}),
        ({"nsigma": 1.5, "top_n_sigma": 1.5}, {"top_n_sigma": 1.5}),
        ({"banned_strings": ["shivers"]}, {"banned_phrases": ("shivers",)}),
        ({"custom_token_bans": "5,6"}, {"logit_bias": ((15, -3.5), (5, -inf), (6, -inf))}),
        ({"sampler_order": [5, 0]}, {"order": kobold_order([5, 0])}),
    ],
)
def test_samplers_that_are_switched_on_are_read_in_full(
    changes: dict[str, Any], want: dict[str, Any]
) -> None:
    parsed = parse_completion(body("text-completion", **changes), MODEL)
    assert {name: getattr(parsed.request.sampling, name) for name in want} == want
    assert parsed.ignored == ()


@pytest.mark.parametrize(("parse", "is_streamed"), [(parse_whole, False), (parse_stream, True)])
def test_kobold_classic(parse: Any, is_streamed: bool) -> None:
    parsed = parse(body("kobold-classic"), MODEL)
    assert parsed.request == GenerateRequest(
        prompt=PROMPT,
        sampling=SamplingParams(
            temperature=0.79,
            top_k=0,
            top_p=0.9,
            min_p=0.0,
            typical_p=1.0,
            repetition_penalty=1.1,
            penalty_last_n=600,
            penalty_slope=0.8,
            tfs=0.95,
            mirostat=2,
            dry_last_n=320,
            xtc_threshold=0.2,
            order=kobold_order([6, 0, 1, 2, 3, 4, 5]),
            ignore_eos=False,
            seed=7,
        ),
        shift_at_limit=True,
        recalls_logprobs=True,
        trim=Trim(4096),
        max_tokens=182,
        stop=("You:", "\nSeraphina "),
        stream=is_streamed,
    )
    assert parsed.ignored == ()


@pytest.mark.parametrize("name", ["text-completion", "kobold-classic"])
def test_every_field_may_be_null_but_the_prompt(name: str) -> None:
    nothing = dict.fromkeys(body(name), None)
    for parse in (parse_completion, parse_whole):
        assert parse({**nothing, "prompt": "x"}, MODEL).ignored == ()

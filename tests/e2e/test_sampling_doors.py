"""What a request asks of its samplers, at every door and both ways.

One table row is a field with what must come of it; each row is sent as a real request to each
dialect that has the field, streamed and whole.
"""

from __future__ import annotations

import itertools
import json
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import sampling_reference as plain
from e2e.asking import CHATS, CUT, ENDED, PROMPT, TEXTS, ask, refused, same, server, shown
from e2e.client import ServerProcess
from e2e.doors import DOORS, Reply
from naiad.dialects.sampling import KNOBS
from naiad.types import SamplingParams

__all__ = ["server"]
pytestmark = [pytest.mark.engine, pytest.mark.model, pytest.mark.soak]

# Values that each sampler takes, and some that nothing takes. -----------------------------------

_SHARES = (0, 1e-320, 0.5, "0.25", 1)
_FACTORS = (0, 1e-320, "0.7", 100)
_COUNTS = (0, 1, "1e5", 2**31 - 1)
_SWITCHES = (0, 1, True, "false")
#: A value beyond every range, and what is none.
WRONG: tuple[Any, ...] = (1e308, -1e308, 2**64, "abc", "NaN", "Infinity", [], {})
#: field of SamplingParams -> values at and between its limits
RIGHT: dict[str, tuple[Any, ...]] = {
    "temperature": _FACTORS,
    "top_k": (-1, *_COUNTS),
    "top_p": _SHARES,
    "min_p": _SHARES,
    "top_a": _SHARES,
    "typical_p": _SHARES,
    "tfs": _SHARES,
    "epsilon_cutoff": (*_FACTORS, 10_000),
    "eta_cutoff": (*_FACTORS, 10_000),
    "top_n_sigma": (-1, *_FACTORS),
    "dynatemp_range": _FACTORS,
    "dynatemp_exponent": (0.01, "1.5", 100),
    "smoothing_factor": _FACTORS,
    "smoothing_curve": _FACTORS,
    "repetition_penalty": (0.01, "1.1", 100),
    "penalty_last_n": (-1, *_COUNTS),
    "presence_penalty": (-2, "0.5", 2),
    "frequency_penalty": (-2, "0.5", 2),
    "penalty_slope": (0, "0.5", 10),
    "dry_multiplier": _FACTORS,
    "dry_base": (1, "1.75", 100),
    "dry_allowed_length": _COUNTS,
    "dry_last_n": (-1, *_COUNTS),
    "dry_breakers": ("", [], '["\\n", ":"]', ["x", ""]),
    "xtc_probability": _SHARES,
    "xtc_threshold": _SHARES,
    "mirostat": (0, 1, "2"),
    "mirostat_tau": _FACTORS,
    "mirostat_eta": _FACTORS,
    "adaptive_target": (-1, *_SHARES),
    "adaptive_decay": _SHARES,
    "bypass_eos": _SWITCHES,
    "ignore_eos": _SWITCHES,
    "min_tokens": _COUNTS,
    "seed": (-1, 0, "7", 2**64 - 1),
}


def test_every_name_of_every_sampler_is_read_at_every_door(server: ServerProcess) -> None:
    """In turns: each name at every door, its values at one after another, and each both ways."""
    assert set(RIGHT) == {knob.field for knob in KNOBS}
    names = [(knob.field, name) for knob in KNOBS for name in knob.names]
    asked = [
        (door, name, *ways[(7 * i + k) % len(ways)], is_wrong)
        for i, (field, name) in enumerate(names)
        for values, is_wrong in ((RIGHT[field], False), (WRONG, True))
        for ways in [list(itertools.product(values, (False, True)))]
        for k, door in enumerate(DOORS)
    ]

    def send(one: tuple[str, str, Any, bool, bool]) -> Reply:
        door, name, value, is_streamed, _ = one
        return DOORS[door].post(server.url, PROMPT, 1, is_streamed=is_streamed, **{name: value})

    with ThreadPoolExecutor(4) as threads:
        for one, reply in zip(asked, threads.map(send, asked), strict=True):
            door, name, _, _, is_wrong = one
            if is_wrong and not (name.endswith("breakers") and one[2] == []):
                assert reply.status == 400, one
                assert f"'{shown(door, name)}" in reply.message, one
            else:
                assert reply.said.end in CUT | ENDED, one


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_what_is_no_number_of_json_is_refused(server: ServerProcess, number: str) -> None:
    for door in DOORS.values():
        body = json.dumps(door.make(PROMPT, 2, {"temperature": 0.125})).replace("0.125", number)
        status, told = server.post(door.path, body.encode())
        assert status == 400, (door.kind, told)


#: Settings after which one stage alone has left its mark on the twenty likeliest tokens.
STAGES: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 1.7},
    "dynamic temperature": {"temperature": 1.2, "dynatemp_range": 0.9, "dynatemp_exponent": 0.7},
    "smoothing": {"smoothing_factor": 0.4},
    "cubic smoothing": {"smoothing_factor": 0.4, "smoothing_curve": 2.5},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.6},
    "min_p": {"min_p": 0.3},
    "top_a": {"top_a": 0.9},
    "typical_p": {"typical_p": 0.5},
    "tfs": {"tfs": 0.6},
    "epsilon_cutoff": {"epsilon_cutoff": 900},
    "eta_cutoff": {"eta_cutoff": 3000},
    "top_n_sigma": {"top_n_sigma": 1.0},
    "xtc": {"xtc_probability": 1, "xtc_threshold": 0.1},
}
_ORDER = [
    *("top_k", "top_n_sigma", "top_a", "tfs", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("top_p", "min_p", "xtc", "temperature", "smoothing"),
]
_AS_PARAM = {"epsilon_cutoff": 1e-4, "eta_cutoff": 1e-4}


def likely(reply: Reply, kind: str) -> dict[str, float]:
    """token -> logprob of the likeliest at the first place."""
    told = json.loads(reply.body)
    if kind == "llama":
        first = told["completion_probabilities"][0]
        if "top_probs" in first:
            return {one["token"]: math.log(one["prob"]) for one in first["top_probs"]}
        tops = first["top_logprobs"]
    elif kind == "openai-completions":
        return dict(told["choices"][0]["logprobs"]["top_logprobs"][0])
    elif kind == "openai-responses":
        tops = told["output"][0]["content"][0]["logprobs"][0]["top_logprobs"]
    else:
        holder = told.get("choices", told.get("results", [told]))[0]["logprobs"]
        tops = (holder if isinstance(holder, list) else holder["content"])[0]["top_logprobs"]
    return {one["token"]: one["logprob"] for one in tops}


#: door -> the fields that ask it for twenty logprobs
ASKING: dict[str, dict[str, Any]] = {
    "openai-chat": {"logprobs": True, "top_logprobs": 20},
    "openai-completions": {"logprobs": 20},
    "openai-responses": {"top_logprobs": 20},
    "ollama-chat": {"logprobs": True, "top_logprobs": 20},
    "ollama-generate": {"logprobs": True, "top_logprobs": 20},
    "kobold": {"logprobs": 20},
    "llama": {"n_probs": 20},
}


@pytest.mark.parametrize("kind", ASKING)
def test_what_each_stage_leaves_is_its_plain_account(server: ServerProcess, kind: str) -> None:
    """The logprobs after the samplers are those before them, put through the slow reference."""
    neutral: dict[str, Any] = {
        "temperature": 1,
        "top_k": 20,
        "top_p": 1,
        "min_p": 0,
        "repetition_penalty": 1,
    }
    common: dict[str, Any] = {**ASKING[kind], **neutral, "seed": 1, "samplers": _ORDER}

    def tops(**fields: Any) -> dict[str, float]:
        # A character of several tokens is told of when it is whole.
        reply = DOORS[kind].post(server.url, PROMPT, 4, is_streamed=False, **common | fields)
        assert reply.status == 200, reply.body
        return likely(reply, kind)

    before = tops()
    assert len(before) == 20
    names = list(before)
    for stage, values in STAGES.items():
        params = {k: v * _AS_PARAM.get(k, 1) for k, v in values.items()}
        case = plain.Case(SamplingParams(**{"top_k": 20, **params}), [])
        left = plain.run({i: before[name] for i, name in enumerate(names)}, case, _ORDER)
        want = {names[i]: math.log(share) for i, share in plain.softmax(left).items() if share}
        found = tops(**values, post_sampling_probs=True)
        assert found == pytest.approx(want, abs=2e-3), stage


def test_penalties_and_dry_take_from_what_was_said(server: ServerProcess) -> None:
    prompt = "red red red red red red red red red red red red red"
    plainly = {"temperature": 0, "rep_pen": 1, "dry_multiplier": 0}
    for kind in TEXTS:
        for said in ask(server, kind, 3, prompt, **plainly):
            assert said.text == " red red red"
        for more in (
            {"repetition_penalty": 3, "rep_pen_range": 64},
            {"repeat_penalty": 3, "repeat_last_n": 64, "rep_pen_slope": 1},
            {"frequency_penalty": 2, "repeat_last_n": -1},
            {"dry_multiplier": 5, "dry_allowed_length": 1, "dry_sequence_breakers": "[]"},
        ):
            for said in ask(server, kind, 3, prompt, temperature=0, **more):
                assert not said.text.startswith(" red red"), more


@pytest.mark.parametrize("kind", ["kobold", "llama", "ollama-chat", "openai-chat"])
def test_orders_select_stages_and_refuse_what_they_do_not_know(
    server: ServerProcess, kind: str
) -> None:
    hot: dict[str, Any] = {"temperature": 50, "top_k": 1, "seed": 2}
    greedy = same(server, kind, 4, temperature=0).text
    orders: tuple[dict[str, Any], ...] = (
        {"sampler_order": [0, 5]},
        {"sampler_order": ["0", 0, 5, 5]},
        {"samplers": ["top_k", "temperature"]},
        {"samplers": ["TOP-K", "top_k", "temp"]},
        {"samplers": "kt"},
        {"samplers": []},
        {"sampler_order": []},
    )
    for given in orders:
        for said in ask(server, kind, 4, **hot, **given):
            assert said.text == greedy, given
    # A stage that is left out does not run.
    for order in ({"samplers": ["temperature"]}, {"sampler_order": [5]}):
        assert greedy not in [said.text for said in ask(server, kind, 4, **hot, **order)]
    for field, value in (
        ("sampler_order", [7]),
        ("sampler_order", [0.5]),
        ("sampler_order", "6,0"),
        ("sampler_order", [0] * 65),
        ("samplers", ["nope"]),
        ("samplers", "zz"),
        ("samplers", [1]),
    ):
        assert shown(kind, field) in refused(server, kind, **{field: value})


# Biases, bans, phrases. -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DOORS)
def test_biases_and_bans(server: ServerProcess, kind: str) -> None:
    greedy: dict[str, Any] = {"temperature": 0, "repetition_penalty": 1}
    _, told = server.post("/tokenize", {"content": " girl"})
    [girl] = told["tokens"]
    for bias in ({str(girl): 100}, {" girl": 100}, [[" girl", 100]], [[girl, 100]]):
        for said in ask(server, kind, 3, logit_bias=bias, **greedy):
            assert said.text == " girl girl girl", bias
    first = same(server, kind, 1, **greedy).text
    _, told = server.post("/tokenize", {"content": first})
    [token] = told["tokens"]
    for ban in (
        {"logit_bias": {first: -100}},
        {"logit_bias": {str(token): False}},
        {"logit_bias": [[token, False]]},
        {"custom_token_bans": f"{token}, 5,"},
        {"banned_tokens": [token]},
        {"banned_tokens": str(token)},
        {"banned_tokens": [first]},
        {"banned_strings": [first]},
        {"banned_strings": json.dumps([first.upper(), "zebra"])},
    ):
        for said in ask(server, kind, 1, **ban, **greedy):
            assert not said.text.startswith(first), ban
    for field, value in (
        ("logit_bias", {"5": 101}),
        ("logit_bias", {"999999999": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"5": None}),
        ("logit_bias", [1, 2]),
        ("custom_token_bans", "1,x"),
        ("banned_strings", ["x"] * 5 + [{}]),
        ("banned_strings", [f"p{i}" for i in range(800)]),
    ):
        assert shown(kind, field) in refused(server, kind, **{field: value})


@pytest.mark.parametrize("kind", DOORS)
def test_the_end_can_be_favoured_banned_and_passed_over(server: ServerProcess, kind: str) -> None:
    _, told = server.post("/tokenize", {"content": "<|im_end|>", "parse_special": True})
    [token] = told["tokens"]
    end: dict[str, Any] = {"logit_bias": {str(token): 100}, "temperature": 0}
    for said in ask(server, kind, 5, **end):
        assert (said.text, said.end in ENDED) == ("", True)
    for name in ("ignore_eos", "ban_eos_token", "use_default_badwordsids", "bypass_eos"):
        switched: dict[str, Any] = {**end, name: True}
        for said in ask(server, kind, 5, **switched):
            assert said.end in CUT, name
            assert bool(said.text) is (name != "bypass_eos")
    for said in ask(server, kind, 5, **end, min_tokens=4):
        assert said.text


@pytest.mark.parametrize("kind", DOORS)
def test_no_banned_phrase_comes_at_any_door(server: ServerProcess, kind: str) -> None:
    banned = ["e ", " THE", "You", "a"]
    free = same(server, kind, 16, temperature=0, repetition_penalty=1).text
    assert any(phrase.lower() in free.lower() for phrase in banned)
    names = ["banned_phrases", "banned_tokens"]
    for field in ("banned_strings", names[list(DOORS).index(kind) % 2]):
        asked: dict[str, Any] = {"temperature": 0.5, "seed": 1, field: banned}
        for said in ask(server, kind, 16, **asked):
            assert len(said.text) > 5
            assert not [phrase for phrase in banned if phrase.lower() in said.text.lower()]


# Logprobs. --------------------------------------------------------------------------------------


def likely_at(server: ServerProcess, kind: str, **more: Any) -> dict[str, float]:
    """The likeliest first tokens and their logprobs, as this door tells them."""
    asked = {**ASKING[kind], "temperature": 1.3, "seed": 3, **more}
    reply = DOORS[kind].post(server.url, PROMPT, 4, is_streamed=False, **asked)
    assert reply.status == 200, reply.body
    return likely(reply, kind)


def test_logprobs_are_the_same_at_every_door(server: ServerProcess) -> None:
    for kinds in (set(TEXTS), set(CHATS) & set(ASKING)):
        first, *others = (likely_at(server, kind) for kind in sorted(kinds))
        assert len(first) in (20, 21)
        assert sum(map(math.exp, first.values())) < 1
        for other in others:
            assert {name: other.get(name, 0) for name in first} == pytest.approx(first, abs=1e-3)

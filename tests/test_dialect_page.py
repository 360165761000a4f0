"""The routes of the web page: the sampler table is what the parser enforces, texts are rendered."""

from __future__ import annotations

from typing import Any

import pytest

from naiad.dialects.base import Access, Call
from naiad.dialects.openai.requests import DEFAULTS
from naiad.dialects.page import DIALECT, MAX_CHARS, MAX_TEXTS, render_markdown, show_samplers
from naiad.dialects.page.samplers import SAMPLERS, Sampler, sampler_table
from naiad.dialects.registry import for_path
from naiad.dialects.sampling import KNOBS
from naiad.errors import InvalidRequest
from naiad.types import Caller

BY_NAME = {knob.names[0]: knob for knob in KNOBS}
NUMBERS = [one for one in SAMPLERS if one.type in {"number", "integer"}]
BACKEND: Any = None  # these routes ask nothing of the service


def call(**body: Any) -> Call:
    return Call(body=body, query={}, path_params={}, caller=Caller("me"))


def test_the_table_has_every_parameter_once() -> None:
    names = [one.name for one in SAMPLERS]
    assert len(names) == len(set(names))
    assert set(names) == set(BY_NAME)


@pytest.mark.parametrize("one", NUMBERS, ids=lambda one: one.name)
def test_the_ranges_are_those_that_are_enforced(one: Sampler) -> None:
    knob = BY_NAME[one.name]
    for value in (one.minimum, one.maximum, *(one.slider or ())[:2]):
        knob.read(one.name, value)
    step = 1 if one.type == "integer" else 0.001
    assert one.minimum is not None
    assert one.maximum is not None
    if one.name == "seed":  # the server takes more of them than a script can hold exactly
        return
    for value in (one.minimum - step, one.maximum + step):
        with pytest.raises(InvalidRequest):
            knob.read(one.name, value)


def test_integers_refuse_halves_and_sliders_reach_their_ends() -> None:
    for one in NUMBERS:
        if one.type == "integer":
            with pytest.raises(InvalidRequest):
                BY_NAME[one.name].read(one.name, (one.minimum or 0) + 0.5)
        if one.slider:
            low, high, step = one.slider
            steps = (high - low) / step
            assert steps == pytest.approx(round(steps))


async def test_the_table_tells_the_defaults_of_chats() -> None:
    told = (await show_samplers(BACKEND, call()))["samplers"]
    defaults = {one["name"]: one["default"] for one in told}
    assert defaults["temperature"] == DEFAULTS.temperature
    assert defaults["repeat_last_n"] == DEFAULTS.penalty_last_n
    assert defaults["seed"] == -1
    assert all(one["label"] and one["help"] and one["group"] for one in sampler_table())


async def test_texts_are_rendered_in_order() -> None:
    found = await render_markdown(BACKEND, call(texts=["*a*", "`<b>`"]))
    assert found == {"html": ["<p><em>a</em></p>\n", "<p><code>&lt;b&gt;</code></p>\n"]}


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (None, "missing"),
        ("a", "must be a list"),
        ([1], "must be a string"),
        (["a"] * (MAX_TEXTS + 1), "at most 64 texts, not 65"),
        (["a" * (MAX_CHARS + 1)], "at most 400000 characters"),
    ],
)
async def test_bad_bodies_are_refused(texts: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        await render_markdown(BACKEND, call(texts=texts))


def test_the_routes_need_the_key() -> None:
    assert {operation.access for operation in DIALECT.operations} == {Access.USER}
    assert for_path("/api/naiad/nothing").name == "page"

"""Budgets for reasoning, and forms and calls behind it, at every door of a real model.

The model is the starter with another chat template, one that opens a reasoning section. It never
closes one by itself, so whatever stands behind the section has been led there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from dialect_folds import Said
from e2e.asking import CHATS, CUT, ENDED, FLAGS, TEXTS, ask
from e2e.client import ServerProcess, serving
from e2e.doors import DOORS
from e2e.test_structured_doors import ARGUMENTS, functions

pytestmark = [pytest.mark.engine, pytest.mark.model, pytest.mark.soak]

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + "
    "'<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}{# </think> #}"
)
COLOURS = {"red", "green"}


@pytest.fixture(scope="module")
def server(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("reasoning")
    with_template(starter, folder / "thinker.gguf")
    with serving(folder / "server.log", str(folder / "thinker.gguf"), *FLAGS) as server:
        yield server


def with_template(model: Path, path: Path) -> None:
    """The model with this template, padded with a blank end, so that all else stays in place."""
    data = model.read_bytes()
    key = b"tokenizer.chat_template"
    begin = data.index(key) + len(key) + 4 + 8  # behind the value's type and its length
    size = int.from_bytes(data[begin - 8 : begin], "little")
    template = TEMPLATE.encode().ljust(size)
    assert len(template) == size
    path.write_bytes(data[:begin] + template + data[begin + size :])


def budget(kind: str, n: int) -> dict[str, Any]:
    """A limit in the dialect's own words."""
    if kind == "anthropic":
        return {"thinking": {"type": "enabled", "budget_tokens": n}}
    if kind.startswith("ollama"):
        return {"think": True, "thinking_budget": n}
    if kind == "openai-responses":
        return {"reasoning": {"max_tokens": n}}
    return {"thinking_budget_tokens": n}


@pytest.mark.parametrize("kind", CHATS)
def test_reasoning_that_goes_on_is_all_there_is(server: ServerProcess, kind: str) -> None:
    more = {"think": True} if kind.startswith("ollama") else {}
    for said in ask(server, kind, 10, "Name a colour.", guided_regex="(red|green)", **more):
        assert said.reasoning
        assert (said.text, said.end in CUT) == ("", True)


@pytest.mark.parametrize("kind", CHATS)
@pytest.mark.parametrize("n", [0, 6])
def test_a_form_begins_behind_the_reasoning(server: ServerProcess, kind: str, n: int) -> None:
    fields = {**budget(kind, n), "temperature": 1.5, "seed": 2}
    for said in ask(server, kind, 60, "Name a colour.", guided_regex="(red|green)", **fields):
        assert (said.text in COLOURS, said.end in ENDED) == (True, True), said
        assert bool(said.reasoning) is bool(n)
        assert len(said.reasoning) <= 20 * n


@pytest.mark.parametrize("kind", ["openai-chat", "openai-responses", "anthropic"])
def test_a_call_that_is_demanded_comes_behind_the_reasoning(
    server: ServerProcess, kind: str
) -> None:
    choice = {"type": "any"} if kind == "anthropic" else "required"
    more = {"tools": functions(kind), "tool_choice": choice, "temperature": 2, "seed": 1}
    for said in ask(server, kind, 80, "Book a room.", **budget(kind, 5), **more):
        assert said.reasoning
        assert said.calls
        for name, arguments in said.calls:
            assert name in {"book", "find"}
            jsonschema.validate(json.loads(arguments), ARGUMENTS)


@pytest.mark.parametrize("kind", CHATS)
def test_what_is_said_last_is_part_of_the_reasoning(server: ServerProcess, kind: str) -> None:
    fields = {**budget(kind, 3), "thinking_budget_message": "Time is up.", "seed": 2}
    for said in ask(server, kind, 40, "Name a colour.", guided_regex="(red|green)", **fields):
        assert said.reasoning.rstrip().endswith("Time is up.")
        assert said.text in COLOURS


@pytest.mark.parametrize("kind", TEXTS)
def test_a_prompt_that_opened_the_section_is_limited_too(server: ServerProcess, kind: str) -> None:
    prompt = "<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\n<think>\n"
    for said in ask(server, kind, 16, prompt, thinking_budget=4, seed=3):
        before, mark, behind = said.text.partition("</think>")
        assert (bool(before.strip()), bool(mark), bool(behind)) == (True, True, True), said


@pytest.mark.parametrize("kind", DOORS)
def test_a_budget_that_is_none_is_refused(server: ServerProcess, kind: str) -> None:
    for is_streamed in (False, True):
        reply = DOORS[kind].post(
            server.url, "x", 2, is_streamed=is_streamed, thinking_budget="much"
        )
        assert reply.status == 400
        assert "thinking_budget" in reply.message


@pytest.mark.parametrize("kind", ["openai-chat", "llama"])
def test_the_same_reasoning_every_time(server: ServerProcess, kind: str) -> None:
    fields: dict[str, Any] = {"deterministic": True, "temperature": 1.4, "thinking_budget": 8}
    whole, streamed = ask(server, kind, 24, "Think of a colour.", **fields)
    assert whole == streamed
    assert whole != Said(end=whole.end)

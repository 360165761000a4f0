"""The real engine at temperature 2: what ends parses and validates, what is banned never comes."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jsonschema
import pytest

from naiad.config import EngineConfig
from naiad.engine.base import CoreJob
from naiad.engine.llama import LlamaBackend, load
from naiad.ipc.messages import StreamItem
from naiad.types import FinishReason, Grammar, SamplingParams
from patience import PATIENCE_S

pytestmark = pytest.mark.model

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["cat", "dog", None]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 2},
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": False,
}
SCHEMAS: list[dict[str, Any]] = [
    PERSON,
    {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 4},
    {
        "$defs": {
            "n": {
                "type": "object",
                "properties": {"next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}},
                "required": ["next"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/n",
    },
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
    {"oneOf": [{"type": "boolean"}, {"type": "integer", "multipleOf": 5}]},
    {
        "type": "object",
        "properties": {"a": {"const": "x"}, "b": {"type": "string", "format": "date"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
]


@pytest.fixture(scope="module")
def backend(starter: Path) -> Iterator[LlamaBackend]:
    config = EngineConfig(model=str(starter), parallel=6, ctx=1024, threads=1, check_integrity=True)
    made = cast(LlamaBackend, load(config)(lambda progress: None))
    yield made
    made.core.close()
    made.close_grammars()


def run(backend: LlamaBackend, jobs: list[CoreJob]) -> dict[int, list[StreamItem]]:
    woken: queue.SimpleQueue[None] = queue.SimpleQueue()
    backend.core.set_waker(lambda: woken.put(None))
    for job in jobs:
        backend.core.add(job)
    items: dict[int, list[StreamItem]] = {job.uid: [] for job in jobs}
    while not all(each and each[-1].finish for each in items.values()):
        if not backend.core.has_work():
            woken.get(timeout=PATIENCE_S)
        for item in backend.core.step():
            items[item.uid].append(item)
    return items


def prompt(backend: LlamaBackend, text: str) -> tuple[int, ...]:
    return tuple(backend.tokenizer.encode(text, add_special=True, parse_special=True))


def text_of(items: list[StreamItem]) -> str:
    return b"".join(item.data for item in items).decode("utf-8", "strict")


def test_what_ends_is_valid_and_what_is_cut_is_a_beginning(backend: LlamaBackend) -> None:
    grammars = [Grammar("json_schema", json.dumps(schema)) for schema in SCHEMAS]
    ask = prompt(backend, "A JSON value:")
    jobs = [
        CoreJob(
            uid,
            ask,
            200,
            SamplingParams(temperature=2.0, seed=uid),
            follower=backend.compile_grammar(grammars[uid % len(grammars)]),
        )
        for uid in range(12)
    ]
    n_whole = 0
    for uid, items in run(backend, jobs).items():
        assert items[-1].finish in (FinishReason.STOP, FinishReason.LENGTH), items[-1].error
        if items[-1].finish is FinishReason.STOP:
            n_whole += 1
            jsonschema.validate(json.loads(text_of(items)), SCHEMAS[uid % len(SCHEMAS)])
        else:
            follower = backend.compile_grammar(grammars[uid % len(grammars)])
            assert all(follower.accept(token) for item in items for token in item.tokens)
    assert n_whole >= 6  # three of the schemas have no long answers, whatever is drawn


def test_phrases_do_not_come_and_the_neighbours_do_not_notice(backend: LlamaBackend) -> None:
    ask = prompt(backend, "Once upon a time")
    phrases = (" The", "e was", " girl", ", an", "there")
    plain = SamplingParams(temperature=0.7, seed=5, top_k=20)
    jobs = [CoreJob(1, ask, 48, plain)]
    jobs += [
        CoreJob(uid, ask, 48, SamplingParams(temperature=1.0, seed=uid, banned_phrases=phrases))
        for uid in (2, 3)
    ]
    found = run(backend, jobs)
    for uid in (2, 3):
        text = text_of_cut(found[uid]).lower()
        assert not [phrase for phrase in phrases if phrase.lower() in text]
        assert found[uid][-1].finish in (FinishReason.LENGTH, FinishReason.STOP)
    assert sum(len(item.tokens) for item in found[1]) == 48 or found[1][-1].finish is (
        FinishReason.STOP
    )


def text_of_cut(items: list[StreamItem]) -> str:
    return b"".join(item.data for item in items).decode("utf-8", "replace")

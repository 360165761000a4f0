"""Five hundred answers of a real model at temperature 2 that end by themselves, each held to a
schema.

What ends parses and validates, what is cut can be gone on with to something that does, and a tool's
arguments are the same bytes in pieces. With planted faults the same questions find what is wrong.

The schemas are small: each keyword that is supported, alone and with others; and, where it has been
fetched, all that can be compiled of the JSON Schema Test Suite.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import jsonschema
import pytest

from naiad.chat.channels import Channels
from naiad.chat.tool_formats import PLAIN
from naiad.chat.tools import forced_call
from naiad.config import EngineConfig
from naiad.engine.base import CoreJob
from naiad.engine.grammar.follower import Follower, Mask
from naiad.engine.grammar.masks import Bits
from naiad.engine.llama import LlamaBackend, load
from naiad.engine.sampling import BatchSampler
from naiad.errors import InvalidRequest
from naiad.ipc.messages import StreamItem
from naiad.text import StreamText
from naiad.types import (
    ChatMessage,
    ChatPrompt,
    FinishReason,
    Grammar,
    SamplingParams,
    Tool,
    ToolCallDelta,
)
from schema_suite import FILES, cases
from test_engine_structured import prompt, run

pytestmark = [pytest.mark.model, pytest.mark.soak]

Schema = dict[str, Any]
N_ENDED = 500
N_AT_ONCE = 64
MAX_TOKENS = 64
WORD = {"type": "string", "maxLength": 6}
SMALL = {"type": "integer", "minimum": -9, "maximum": 99}


def closed(properties: Schema, **more: Any) -> Schema:
    """An object with these properties, all of them, and no others."""
    required = {"required": list(properties), "additionalProperties": False}
    return {"type": "object", "properties": properties, **required, **more}


SCHEMAS: dict[str, Schema] = {
    "type null": {"type": "null"},
    "type boolean": {"type": "boolean"},
    "type list": {"type": ["boolean", "null"]},
    "enum": {"enum": ["red", 5, None, [1, "a"], {"b": False}]},
    "const": {"const": {"a": ["x", 1.5, None]}},
    "const text": {"const": 'a "quoted" \\ \n é🙂'},
    "minimum": {"type": "integer", "minimum": 7, "maximum": 1200},
    "exclusive": {"type": "number", "exclusiveMinimum": -1, "exclusiveMaximum": 1},
    "negative": {"type": "number", "minimum": -3.5, "maximum": -1.25},
    "multipleOf": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 999},
    "maxLength": {"type": "string", "minLength": 2, "maxLength": 5},
    "pattern": {"type": "string", "pattern": "^(GET|POST) /[a-z]{1,8}$"},
    "unanchored pattern": {"type": "string", "pattern": "[0-9]{2}", "maxLength": 6},
    "format date": {"type": "string", "format": "date"},
    "format time": {"type": "string", "format": "time"},
    "format date-time": {"type": "string", "format": "date-time"},
    "format uuid": {"type": "string", "format": "uuid"},
    "format ipv4": {"type": "string", "format": "ipv4"},
    "items": {"type": "array", "items": SMALL, "maxItems": 4},
    "minItems": {"type": "array", "items": {"type": "boolean"}, "minItems": 3, "maxItems": 3},
    "prefixItems": {"type": "array", "prefixItems": [WORD, SMALL], "items": False, "minItems": 2},
    "properties": closed({"a": SMALL, "b": WORD}),
    "optional": {
        "type": "object",
        "properties": {"a": SMALL, "b": WORD, "c": {"type": "null"}},
        "required": ["b"],
        "additionalProperties": False,
    },
    "additionalProperties": {
        "type": "object",
        "properties": {"known": SMALL},
        "additionalProperties": {"type": "boolean"},
        "required": ["known"],
        "maxProperties": 2,
    },
    "patternProperties": {
        "type": "object",
        "patternProperties": {"^x[0-9]$": SMALL},
        "additionalProperties": False,
        "maxProperties": 2,
    },
    "anyOf": {"anyOf": [WORD, SMALL, closed({"a": {"type": "null"}})]},
    "oneOf": {"oneOf": [{"type": "boolean"}, SMALL]},
    "allOf": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 44}]},
    "$ref": {"$defs": {"w": WORD}, **closed({"a": {"$ref": "#/$defs/w"}})},
    "recursion": {
        "$defs": {
            "n": closed({"v": SMALL, "next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}})
        },
        "$ref": "#/$defs/n",
    },
    "nested": closed({"a": closed({"b": {"type": "array", "items": closed({"c": WORD})}})}),
    "names to escape": closed({'qu"ote': SMALL, "é🙂": WORD}),
    "true": closed({"a": True}),
}
TOOLS = (
    Tool("add", "", closed({"a": SMALL, "b": SMALL})),
    Tool("note", "", closed({"text": {"type": "string", "maxLength": 12}, "tag": WORD})),
    Tool("find", "", closed({"where": {"enum": ["here", "there"]}})),
)
CALL = forced_call(
    ChatPrompt((ChatMessage("user", "x"),), tools=TOOLS, forced=("add", "note", "find"))
)


def grammars() -> list[tuple[Grammar, Schema]]:
    assert CALL is not None
    calls = [(CALL, cast(Schema, json.loads(CALL.text)))] * 6
    return [(Grammar("json_schema", json.dumps(one)), one) for one in SCHEMAS.values()] + calls


@pytest.fixture(scope="module")
def backend(starter: Path) -> Iterator[LlamaBackend]:
    config = EngineConfig(model=str(starter), parallel=N_AT_ONCE, ctx=256, disk_cache=False)
    made = cast(LlamaBackend, load(config)(lambda progress: None))
    yield made
    made.core.close()
    made.close_grammars()


def test_every_answer_that_ends_is_valid_and_every_other_can_be_gone_on_with(
    backend: LlamaBackend,
) -> None:
    ended = hold(backend, grammars())
    assert sum(ended.values()) == N_ENDED
    assert len(ended) > 0.9 * len(grammars())


@pytest.mark.skipif(not FILES.is_dir(), reason="no suite: python tests/schema_suite.py")
def test_so_are_answers_to_each_schema_of_the_suite_that_can_be_compiled(
    backend: LlamaBackend,
) -> None:
    texts = dict.fromkeys(json.dumps(case.schema) for case in cases())
    kinds = [Grammar("json_schema", text) for text in texts if is_compiled(backend, text)]
    assert len(kinds) > 300
    n_ended = n_without_end = n_unread = 0
    short = answers(backend, kinds, wave=len(kinds), max_tokens=28)
    for kind, items in itertools.islice(short, len(kinds)):
        n_ended += items[-1].finish is FinishReason.STOP
        try:
            check(backend, kinds[kind], json.loads(kinds[kind].text), items)
        except NoEndInSight:  # a beginning all the same: every token of it was accepted
            n_without_end += 1
        except (AttributeError, re.error):  # jsonschema looks for $id in lists; re knows no \\p
            n_unread += 1
    assert n_unread < len(kinds) // 20
    assert n_ended > len(kinds) // 4
    assert n_without_end < len(kinds) // 10


# Faults that are planted. ----------------------------------------------------------------------

_BOOLEANS = {"type": "array", "items": {"type": "boolean"}, "minItems": 3, "maxItems": 3}
_NUMBER = {"type": "integer", "minimum": 10, "maximum": 99}
_WRONG = "~"


class Leaky(Follower):
    """Lets one wrong character through, once, and tells nobody."""

    has_leaked = False

    def mask(self, filled: Bits | None = None) -> Mask:
        mask = super().mask(filled)
        mask[self._wrong] |= not self.has_leaked
        return mask

    def accept(self, token: int) -> bool:
        if token != self._wrong:
            return super().accept(token)
        self.has_leaked = True
        return True

    @property
    def _wrong(self) -> int:
        return self._vocab.encode(_WRONG, add_special=False, parse_special=False)[0]


@pytest.mark.parametrize("max_tokens", [3, MAX_TOKENS])
def test_a_mask_that_lets_one_wrong_byte_through_is_found(
    backend: LlamaBackend, max_tokens: int
) -> None:
    """In answers that are cut behind it, and in those that go on to their end."""

    def leaky(grammar: Grammar) -> Follower:
        follower = backend.compile_grammar(grammar)
        follower.__class__ = Leaky
        return follower

    kinds = [Grammar("json_schema", json.dumps(_BOOLEANS))]
    [wrong] = backend.tokenizer.encode(_WRONG, add_special=False, parse_special=False)
    more: Any = {"wave": 1, "max_tokens": max_tokens}
    more["logit_bias"] = ((wrong, 100.0),)  # drawn wherever it may be
    _, items = next(answers(backend, kinds, leaky, **more))
    want = FinishReason.STOP if max_tokens == MAX_TOKENS else FinishReason.LENGTH
    assert (items[-1].finish, _WRONG.encode() in b"".join(i.data for i in items)) == (want, True)
    with pytest.raises((AssertionError, ValueError)):
        check(backend, kinds[0], _BOOLEANS, items)
    _, sound = next(answers(backend, kinds, **more))
    check(backend, kinds[0], _BOOLEANS, sound)


def test_masks_of_the_wrong_streams_are_found(
    backend: LlamaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = [(Grammar("json_schema", json.dumps(one)), one) for one in (_BOOLEANS, _NUMBER)]
    hold(backend, kinds, 8, wave=8)
    choose = BatchSampler.choose

    def mixed_up(
        batch: BatchSampler, samplers: Any, rows: Any, positions: Any, masks: Any
    ) -> list[int]:
        return choose(batch, samplers, rows, positions, [*masks[1:], *masks[:1]])

    monkeypatch.setattr(BatchSampler, "choose", mixed_up)
    with pytest.raises(AssertionError, match="the grammar cannot be followed"):
        hold(backend, kinds, 8, wave=8)


@pytest.mark.parametrize("way", ["one byte more", "one byte less", "cut and wrong"])
def test_an_answer_that_is_not_what_was_asked_for_is_found(backend: LlamaBackend, way: str) -> None:
    grammar = Grammar("json_schema", json.dumps(_NUMBER))
    whole, is_cut = {
        "one byte more": (b"424", False),
        "one byte less": (b"4", False),
        "cut and wrong": (b"x", True),
    }[way]
    ids = backend.tokenizer.encode(whole.decode(), add_special=False, parse_special=False)
    finish = FinishReason.LENGTH if is_cut else FinishReason.STOP
    with pytest.raises((AssertionError, jsonschema.ValidationError)):
        check(backend, grammar, _NUMBER, [StreamItem(1, 0, list(ids), whole, finish)])


# Asking, and looking at what comes. ------------------------------------------------------------


def hold(
    backend: LlamaBackend,
    kinds: list[tuple[Grammar, Schema]],
    n_ended: int = N_ENDED,
    wave: int = 4 * N_AT_ONCE,
) -> dict[int, int]:
    """Ask until so many answers have ended by themselves; kind -> how many of it have."""
    ended: dict[int, int] = {}
    for kind, items in answers(backend, [grammar for grammar, _ in kinds], wave=wave):
        grammar, schema = kinds[kind]
        check(backend, grammar, schema, items)
        if grammar is CALL:
            assert arguments_in_pieces(items) == arguments_in_pieces(joined(items))
        if items[-1].finish is FinishReason.STOP:
            ended[kind] = ended.get(kind, 0) + 1
        if sum(ended.values()) == n_ended:
            break
    return ended


class NoEndInSight(AssertionError):
    """What closes most does not close this."""


def is_compiled(backend: LlamaBackend, text: str) -> bool:
    try:
        backend.compile_grammar(Grammar("json_schema", text))
    except InvalidRequest as error:
        assert error.message.startswith("the grammar cannot be compiled")
        return False
    return True


def answers(
    backend: LlamaBackend,
    kinds: list[Grammar],
    follow: Callable[[Grammar], Follower] | None = None,
    max_tokens: int = MAX_TOKENS,
    wave: int = 4 * N_AT_ONCE,
    **sampling: Any,
) -> Iterator[tuple[int, list[StreamItem]]]:
    """Without end: which kind, and what came. All kinds in turn, each with a seed of its own.
    wave: how many are asked for together."""
    ask = prompt(backend, "A value in JSON:")
    follow = follow or backend.compile_grammar
    for first in itertools.count(step=wave):
        jobs = [
            CoreJob(
                uid,
                ask,
                max_tokens,
                SamplingParams(temperature=2.0, seed=uid, **sampling),
                follower=follow(kinds[uid % len(kinds)]),
            )
            for uid in range(first, first + wave)
        ]
        for uid, items in run(backend, jobs).items():
            yield uid % len(kinds), items


def check(backend: LlamaBackend, grammar: Grammar, schema: Any, items: list[StreamItem]) -> None:
    """The answer, or what it can be gone on to, is valid by the schema's own draft."""
    if items[-1].finish is FinishReason.STOP:
        text = b"".join(item.data for item in items).decode()
    else:
        assert items[-1].finish is FinishReason.LENGTH, items[-1].error
        text = gone_on_with(backend, backend.compile_grammar(grammar), items).decode()
    draft = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    draft(schema).validate(json.loads(text))


def gone_on_with(backend: LlamaBackend, follower: Follower, items: list[StreamItem]) -> bytes:
    """What was cut, with the shortest way to its end that trying what closes most finds."""
    vocab, said = backend.tokenizer, b""
    for token in (token for item in items for token in item.tokens):
        assert follower.accept(token)
        said += vocab.piece(token)
    closing = [
        token
        for text in ('"', "}", "]", "Z", "null", ":", ",", "0", "1", "a", "-", "{")
        for token in vocab.encode(text, add_special=False, parse_special=False)[:1]
    ]
    for _ in range(200):
        if follower.is_complete:
            return said
        mask = follower.mask()
        if any(mask[token] for token in vocab.eog):
            return said
        way = next((token for token in closing if mask[token]), int(mask.argmax()))
        assert follower.accept(way)
        said += vocab.piece(way)
    raise NoEndInSight(f"no end in sight: {said!r}")


def joined(items: list[StreamItem]) -> list[StreamItem]:
    data = b"".join(item.data for item in items)
    return [StreamItem(items[0].uid, 0, [], data, items[-1].finish)]


def arguments_in_pieces(items: list[StreamItem]) -> tuple[str, bytes]:
    """The name and the arguments of the call, as the stream tells them."""
    names = frozenset(tool.name for tool in TOOLS)
    channels = Channels(None, tools=PLAIN, names=names, new_id=lambda: "1")
    text = StreamText()
    events = [event for item in items for event in channels.feed(text.feed(item.data)[0], 1)]
    events += channels.feed(text.finish(), 0) + channels.finish()
    calls = [event for event in events if isinstance(event, ToolCallDelta)]
    return "".join({c.name for c in calls}), "".join(c.arguments for c in calls).encode()


def test_the_arguments_are_what_the_model_wrote() -> None:
    data = b'{"name":"note","arguments":{"text":"a } \\" b","tag":"x"}}'
    whole = [StreamItem(1, 0, [], data, FinishReason.STOP)]
    pieces = [StreamItem(1, i, [], data[i : i + 1]) for i in range(len(data))]
    assert arguments_in_pieces(whole) == arguments_in_pieces(pieces)
    assert arguments_in_pieces(whole) == ("note", b'{"text":"a } \\" b","tag":"x"}')

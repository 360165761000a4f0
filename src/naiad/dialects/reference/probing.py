"""What a route reads from its body, and what each field accepts: found by asking the route.

A route is run on a body that takes notes. Then each field that it asked for gets values of a kind
that nobody would send; the refusals say what is accepted. Nothing here reaches an engine: whatever
a route wants of one ends its run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import msgspec

from naiad.dialects.base import Backend, Call, Operation, Parsed
from naiad.dialects.sampling import KNOBS
from naiad.errors import InvalidRequest, Unsupported
from naiad.types import Caller, GenerateRequest, ModelInfo

#: Bodies that make most routes read all that they know.
_EXAMPLES: tuple[Mapping[str, Any], ...] = (
    {
        "model": "default",
        "messages": [{"role": "user", "content": "Hello!"}],
        "prompt": "Hello!",
        "input": "Hello!",
        "max_tokens": 16,
        "options": {},
    },
    {"prompt": "Hello!", "text": "Hello!", "ids": [1], "tokens": [1], "content": "Hello!"},
    {},
)
_SENSELESS: tuple[Any, ...] = ({"?": 0}, 0.5, "?", ["?"])
_GUESSES: Mapping[str, Any] = {
    "string": "Hello!",
    "list": [1],
    "object": {},
    "number": 1,
    "integer": 1,
}
_MOST_GUESSES = 8
_ACCEPTED = re.compile(r"must be (.+?), not (?:an? |null|true|false|-?\d|'|\")")
_PATH = re.compile(r"[^.\[\]]+")
_MODEL = ModelInfo(name="default", chat_template="<think></think>")
_KNOBS = {name: knob.field for knob in KNOBS for name in knob.names}
_CALLER = Caller("reference")


@dataclass(frozen=True, slots=True)
class FieldFacts:
    """A field of a body. names: the first that is present counts. path: before each name.

    accepts: in words, "" when anything is. default: what applies when it is absent, None when that
    is nothing in particular. refusal: why it is refused. has_effect: False if it is only accepted.
    """

    path: str
    names: tuple[str, ...]
    is_needed: bool = False
    accepts: str = ""
    default: Any = None
    refusal: str = ""
    has_effect: bool = True

    @property
    def name(self) -> str:
        """Where it stands, e.g. `options.seed` or `messages[].role`."""
        return self.path.replace("[0]", "[]") + self.names[0]


class NotedBody(dict[str, Any]):
    """A body, or an object within one, that tells what it is asked for. True even when empty."""

    def __init__(self, value: Mapping[str, Any], note: Callable[..., None]) -> None:
        super().__init__({name: _noted(one, note) for name, one in value.items()})
        self.note = note

    def __bool__(self) -> bool:
        return True


@dataclass
class _Notes:
    """Fields in the order in which they were first asked for."""

    seen: dict[tuple[str, str], FieldFacts] = field(default_factory=dict)
    sure: set[tuple[str, str]] = field(default_factory=set)  # whose names mean one thing

    def note(
        self,
        path: str,
        names: tuple[str, ...],
        *,
        is_one: bool = False,
        is_needed: bool = False,
    ) -> None:
        """is_one: all are names of one thing; else they may be things that are only looked at."""
        key = (path, names[0])
        known = self.seen.get(key, FieldFacts(path, names))
        names = tuple(dict.fromkeys((*known.names, *names)))
        self.seen[key] = replace(known, names=names, is_needed=known.is_needed or is_needed)
        if is_one:
            self.sure.add(key)


def facts_of(operation: Operation) -> tuple[FieldFacts, ...]:
    """The fields that a route's body may have, in the order in which the route reads them."""
    if operation.method in {"GET", "HEAD"} or not operation.has_body:
        return ()
    notes = _Notes()
    given = [operation.example] if operation.example else list(_EXAMPLES)
    bodies = [_completed(operation, body, notes) for body in given]
    best = next((b for b in bodies if _run(operation, b) is not None), bodies[0])
    usual = _run(operation, best)
    found: list[FieldFacts] = []
    for key, one in notes.seen.items():
        if key in notes.sure or len(one.names) == 1:
            found.append(_probed(operation, best, usual, one))
            continue
        apart = [replace(one, names=(name,)) for name in one.names]
        found += _joined([_probed(operation, best, usual, each) for each in apart])
    return tuple(found)


def _completed(operation: Operation, body: Mapping[str, Any], notes: _Notes) -> Mapping[str, Any]:
    """The body with something in each field that the route cannot do without."""
    for _ in range(_MOST_GUESSES):
        outcome = _run(operation, NotedBody(body, notes.note))
        name = outcome.param if isinstance(outcome, InvalidRequest) else None
        if name is None or name in body or not name.isidentifier():
            break
        refusals = (_run(operation, {**body, name: value}) for value in _SENSELESS)
        told = [_accepted(one.message) for one in refusals if isinstance(one, InvalidRequest)]
        accepts = next(filter(None, told), "")
        guess = next((value for word, value in _GUESSES.items() if word in accepts), "Hello!")
        body = {**body, name: guess}
    return body


def _joined(apart: list[FieldFacts]) -> list[FieldFacts]:
    """Names next to each other that accept the same thing are names of the same thing."""
    joined: list[FieldFacts] = []
    for one in apart:
        last = joined[-1] if joined else None
        if last and one.accepts and replace(last, names=()) == replace(one, names=()):
            joined[-1] = replace(last, names=last.names + one.names)
        else:
            joined.append(one)
    return joined


def _probed(
    operation: Operation, body: Mapping[str, Any], usual: object, one: FieldFacts
) -> FieldFacts:
    accepts, is_the_same = "", True
    for value in _SENSELESS:
        outcome = _run(operation, _with(body, one, value))
        if isinstance(outcome, Unsupported) and _is_about(outcome, one):
            return replace(one, refusal=outcome.message)
        if isinstance(outcome, InvalidRequest) and _is_about(outcome, one):
            accepts = accepts or _accepted(outcome.message)
        is_the_same = is_the_same and outcome == usual
    has_effect = bool(accepts) or not is_the_same or not isinstance(usual, GenerateRequest)
    told = replace(one, accepts=accepts, has_effect=has_effect)
    return replace(told, default=_default(operation, body, usual, told)) if accepts else told


def _default(operation: Operation, body: Mapping[str, Any], usual: object, one: FieldFacts) -> Any:
    if not isinstance(usual, GenerateRequest):
        return None
    knob = next((_KNOBS[name] for name in one.names if name in _KNOBS), None)
    if knob is not None and knob != "seed":
        return getattr(usual.sampling, knob)
    if one.accepts.startswith("true or false"):
        same = [v for v in (False, True) if _run(operation, _with(body, one, v)) == usual]
        return same[0] if len(same) == 1 else None
    return None


def _run(operation: Operation, body: Mapping[str, Any]) -> object:
    """The request that a body makes, or its refusal; None for what ends without either."""
    try:
        if operation.parse is not None:
            parsed = operation.parse(body, _MODEL)
            return _unseeded(parsed.request) if isinstance(parsed, Parsed) else parsed.wish
        return _ask(operation, body)
    except InvalidRequest as error:
        return error
    except Exception:
        return None  # it wanted an engine, or whatever else there is none of


def _ask(operation: Operation, body: Mapping[str, Any]) -> object:
    ask = cast(Callable[..., Coroutine[Any, Any, Any]], operation.plan or operation.handle)
    answering = ask(cast(Backend, _Nobody()), Call(body, {}, {}, _CALLER))
    try:
        answering.send(None)
    except StopIteration as end:
        return _unseeded(end.value.request) if isinstance(end.value, Parsed) else None
    finally:
        answering.close()
    return None


class _Nobody:
    """A backend with a model and nothing else."""

    model = _MODEL
    is_protected = False
    has_reasoning = True


def _unseeded(request: GenerateRequest) -> GenerateRequest:
    return replace(request, sampling=msgspec.structs.replace(request.sampling, seed=0))


def _is_about(error: InvalidRequest, one: FieldFacts) -> bool:
    about = (error.param or "").partition("[")[0] if "[" not in one.path else error.param
    return about in {one.path + name for name in one.names}


def _accepted(message: str) -> str:
    found = _ACCEPTED.search(message)
    return found[1] if found else ""


def _with(body: Mapping[str, Any], one: FieldFacts, value: Any) -> Any:
    """A copy of the body with this value under the field's name and under none of its aliases."""
    copy = msgspec.json.decode(msgspec.json.encode(body))
    inner = copy
    for step in _PATH.findall(one.path):
        try:
            inner = inner[int(step)] if step.isdigit() else inner.setdefault(step, {})
        except (LookupError, TypeError, AttributeError):
            return copy
    if isinstance(inner, dict):
        for name in one.names:
            inner.pop(name, None)
        inner[one.names[0]] = value
    return copy


def _noted(value: Any, note: Callable[..., None]) -> Any:
    if isinstance(value, Mapping):
        return NotedBody(value, note)
    return [_noted(one, note) for one in value] if isinstance(value, list) else value

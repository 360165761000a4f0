"""The Responses API: responses that stream, are kept, are followed by others, or run alone.

A kept response is a document of its caller: the object, its own input, all items of the
conversation up to its end, and, of one that was streamed from the background, its events.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from naiad.dialects.base import ApartWork, Backend, Call, Immediate, Ongoing, Parsed
from naiad.dialects.fields import Fields, boolean, integer, short_text
from naiad.dialects.openai.responses.formatter import ResponsesFormatter, response_of
from naiad.dialects.openai.responses.items import MAX_ITEMS, Item
from naiad.dialects.openai.responses.requests import (
    MAX_ID_CHARS,
    Asked,
    read_body,
    read_previous,
    read_prompt,
)
from naiad.errors import InvalidRequest, NotFound
from naiad.types import (
    Caller,
    Finished,
    GenerateRequest,
    Progress,
    ReasoningDelta,
    Started,
    StreamEvent,
    TextDelta,
)

MAX_REFERRED = 64  # responses whose items one request may refer to: each is read and decoded whole


class Kept(msgspec.Struct, frozen=True):
    """A response as it is stored. conversation: the items before it, its input and its output."""

    response: dict[str, Any]
    input: list[Item]
    conversation: list[Item]
    events: list[str] = []


async def create(backend: Backend, call: Call) -> Parsed | Immediate | Ongoing:
    """POST /v1/responses."""
    model = backend.model
    history: list[Item] = []
    if (previous := read_previous(call.body)) is not None:
        history = await _history(backend, call.caller, previous)
    body = await _with_referred(backend, call)
    asked = read_body(body, model, history)
    has_logprobs = asked.request.sampling.n_logprobs >= 0
    formatter = ResponsesFormatter(model.name, asked.shown, has_logprobs=has_logprobs)
    formatter.items = asked.items

    async def keep() -> None:
        await _save(backend, call.caller, formatter, asked, history)

    if asked.is_apart:
        return await _start_apart(backend, call.caller, formatter, asked, keep)
    return Parsed(asked.request, formatter, asked.ignored, keep=keep if asked.is_stored else None)


async def _history(backend: Backend, caller: Caller, previous: str) -> list[Item]:
    name = "previous_response_id"
    if backend.find_apart(caller, previous) is not None:
        raise InvalidRequest(f"'{name}' names a response that has not ended yet.", param=name)
    return (await _load(backend, caller, previous, name)).conversation


async def _with_referred(backend: Backend, call: Call) -> Mapping[str, Any]:
    """The body, with the items themselves where it refers to some of stored responses.

    Each may be referred to once, so a short body makes no prompt longer than what is stored.
    """
    given = call.body.get("input")
    if not isinstance(given, list) or not any(map(_is_reference, given)):
        return call.body
    if len(given) > MAX_ITEMS:  # which is refused where it is read
        return call.body
    found: dict[str, Item] = {}
    places: dict[str, int] = {}
    loaded = set[str]()
    items = []
    for place, one in enumerate(given):
        if not _is_reference(one):
            items.append(one)
            continue
        name = f"input[{place}].id"
        item_id = Fields(one, f"input[{place}].").need(short_text(MAX_ID_CHARS), "id")
        if (first := places.setdefault(item_id, place)) != place:
            raise InvalidRequest(
                f"'{name}' refers to the item that 'input[{first}]' refers to; an item may be "
                "referred to once.",
                param=name,
            )
        if (response_id := response_of(item_id)) not in loaded:
            if len(loaded) == MAX_REFERRED:
                raise _too_many(name)
            loaded.add(response_id)
            kept = await _load(backend, call.caller, response_id, name, item_id)
            found |= {item["id"]: item for item in kept.response["output"]}
        if item_id not in found:
            raise _not_found(item_id, name, "item")
        items.append(found[item_id])
    return {**call.body, "input": items}


def _too_many(name: str) -> InvalidRequest:
    return InvalidRequest(
        f"'{name}' refers to one response too many: items of at most {MAX_REFERRED} responses may "
        "be referred to.",
        param=name,
    )


def _is_reference(item: Any) -> bool:
    if not isinstance(item, dict):
        return False
    kind = item.get("type")
    return kind == "item_reference" or (kind is None and item.keys() == {"id"})


async def _start_apart(
    backend: Backend,
    caller: Caller,
    formatter: ResponsesFormatter,
    asked: Asked,
    keep: Callable[[], Awaitable[None]],
) -> Immediate | Ongoing:
    """Run it by itself; the answer says that it has begun, or streams while somebody listens."""
    response_id = formatter.response["id"]
    if asked.request.stream:
        formatter.log = []
    work = await backend.start_apart(
        response_id, formatter, asked.request, caller, lambda event: _tell(formatter, event), keep
    )
    await keep()  # so that it is known of, should the server end before it does
    if formatter.log is None:
        return Immediate(formatter.snapshot())
    return Ongoing(_follow(work, formatter.log, 0))


def _tell(formatter: ResponsesFormatter, event: StreamEvent) -> None:
    if isinstance(event, Started):
        formatter.open(event)
    elif isinstance(event, TextDelta):
        formatter.delta(event)
    elif isinstance(event, ReasoningDelta):
        formatter.reasoning(event)
    elif isinstance(event, Finished):
        formatter.close(event)
    elif not isinstance(event, Progress):
        formatter.tool_call(event)


async def _follow(work: ApartWork, log: Sequence[bytes], place: int) -> AsyncIterator[bytes]:
    """The events from that number on, as they come."""
    async for _ in work.changes():
        while place < len(log):
            yield log[place]
            place += 1


async def retrieve(backend: Backend, call: Call) -> Immediate | Ongoing:
    """A stored response, or one that is being made; with stream=true the events of one that was
    streamed from the background, those after number `starting_after`."""
    response_id = call.path_params["response_id"]
    query = Fields(call.query)
    wants_events = query.get(boolean, "stream") or False
    after = query.get(integer(-1), "starting_after")
    place = 0 if after is None else after + 1
    work = backend.find_apart(call.caller, response_id)
    if work is not None:
        formatter: ResponsesFormatter = work.subject
        if not wants_events:
            return Immediate(formatter.snapshot())
        if formatter.log is None:
            raise _without_events()
        return Ongoing(_follow(work, formatter.log, place))
    kept = await _load(backend, call.caller, response_id)
    if not wants_events:
        return Immediate(kept.response)
    if not kept.events:
        raise _without_events()
    return Ongoing(_again([one.encode() for one in kept.events[place:]]))


async def _again(frames: Sequence[bytes]) -> AsyncIterator[bytes]:
    for frame in frames:
        yield frame


def _without_events() -> InvalidRequest:
    return InvalidRequest(
        "This response has no events to replay: they are kept of responses that were created "
        "with 'background' and 'stream'.",
        param="stream",
    )


async def count_input(backend: Backend, call: Call) -> Any:
    """How many tokens the prompt of such a response has; nothing is generated or kept."""
    history: list[Item] = []
    if (previous := read_previous(call.body)) is not None:
        history = await _history(backend, call.caller, previous)
    prompt = read_prompt(Fields(await _with_referred(backend, call)), history).prompt
    text = await backend.render_chat(GenerateRequest(prompt))
    n_tokens = len(await backend.tokenize(text))
    return {"object": "response.input_tokens", "input_tokens": n_tokens}


async def compact(_backend: Backend, _call: Call) -> Any:
    """Always refused: conversations are not compacted here."""
    raise NotFound(
        "Conversations are not compacted here: send those messages again that should be kept, or a "
        "summary that the model wrote when asked for one."
    )


async def cancel(backend: Backend, call: Call) -> Any:
    """Cancels a response in the background; one that has ended stays as it is."""
    response_id = call.path_params["response_id"]
    await backend.cancel_apart(call.caller, response_id)
    kept = await _load(backend, call.caller, response_id)
    if not kept.response["background"]:
        raise InvalidRequest("Only a response with 'background' can be cancelled.", param="id")
    return kept.response


async def delete(backend: Backend, call: Call) -> Any:
    """Deletes a stored response. Those that follow it keep what they took over."""
    response_id = call.path_params["response_id"]
    await backend.cancel_apart(call.caller, response_id)
    if not await backend.documents.delete(call.caller, response_id):
        raise _not_found(response_id, "id")
    return {"id": response_id, "object": "response", "deleted": True}


async def list_input(backend: Backend, call: Call) -> Any:
    """What a stored response was made from, newest first unless order is asc."""
    query = Fields(call.query)
    limit = query.get(integer(1, 100), "limit") or 20
    order = query.get(short_text(8), "order") or "desc"
    if order not in ("asc", "desc"):
        raise InvalidRequest("'order' must be asc or desc.", param="order")
    response_id = call.path_params["response_id"]
    work = backend.find_apart(call.caller, response_id)
    if work is not None:
        items: list[Item] = work.subject.items
    else:
        items = (await _load(backend, call.caller, response_id)).input
    ordered = items if order == "asc" else items[::-1]
    after = query.get(short_text(256), "after")
    places = [place for place, item in enumerate(ordered) if item["id"] == after]
    rest = ordered[places[0] + 1 :] if places else ordered
    data = rest[:limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(rest) > limit,
    }


# -- what is kept --------------------------------------------------------------------------------


async def _load(
    backend: Backend, caller: Caller, response_id: str, param: str = "id", item: str = ""
) -> Kept:
    """item: that is looked for in it, for the refusal."""
    data = await backend.documents.load(caller, response_id)
    if data is None:
        raise _not_found(item or response_id, param, "item" if item else "response")
    kept = msgspec.json.decode(data, type=Kept)
    if kept.response["status"] == "in_progress":  # and it does not run, or it had been found there
        message = "The server ended before this response did."
        kept.response["status"] = "failed"
        kept.response["error"] = {"code": "server_error", "message": message}
    return kept


def _not_found(asked: str, param: str, what: str = "response") -> NotFound:
    return NotFound(
        f"There is no {what} {asked[:MAX_ID_CHARS]!a} here: it was not stored, belongs to "
        "another key, is too old, or has not ended.",
        param=param,
    )


async def _save(
    backend: Backend,
    caller: Caller,
    formatter: ResponsesFormatter,
    asked: Asked,
    history: Sequence[Item],
) -> None:
    response = formatter.response
    events = [frame.decode() for frame in formatter.log or ()]
    kept = Kept(response, asked.items, [*history, *asked.items, *response["output"]], events)
    await backend.documents.save(caller, response["id"], msgspec.json.encode(kept))

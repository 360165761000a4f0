"""The Responses API over the whole server, by the `openai` package: streamed, whole, and kept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pydantic
import pytest

from dialect_server import CALL, House, failing, house, saying
from fakes import FakeStream, silent
from http_client import connected, http
from naiad.dialects.openai.responses import routes
from naiad.dialects.openai.responses.items import MAX_ITEMS
from naiad.types import Caller, FinishReason
from patience import PATIENCE_S

TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Tells it.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}
ANSWER = f"<think>\nwhy\n</think>\n\nso \n{CALL}"


@asynccontextmanager
async def told(*pieces: str, **options: Any) -> AsyncIterator[tuple[House, Any]]:
    async with house(saying(*pieces, **options)) as running:
        yield running, client(running)


def client(running: House, key: str = "-") -> Any:  # its unions of dozens of kinds help nobody
    made = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0)
    running.closing.push_async_callback(made.close)
    return made


async def raw_events(running: House, body: dict[str, Any]) -> list[Any]:
    async with httpx.AsyncClient() as plain:
        answer = await plain.post(f"{running.url}/v1/responses", json=body)
    blocks = [block.split("\n") for block in answer.text.strip().split("\n\n")]
    events = [json.loads(lines[-1].removeprefix("data: ")) for lines in blocks if len(lines) == 2]
    assert [lines[0] for lines in blocks if len(lines) == 2] == [
        f"event: {event['type']}" for event in events
    ]
    return events


def plain(item: Any) -> Any:
    """An item without what differs each time."""
    return {k: v for k, v in item.items() if k not in ("id", "call_id")}


@pytest.mark.parametrize("size", [1, 5, 1000])
async def test_reasoning_text_and_a_call_are_items_in_order(size: int) -> None:
    pieces = [ANSWER[i : i + size] for i in range(0, len(ANSWER), size)]
    async with told(*pieces) as (running, openai_):
        whole = await openai_.responses.create(model="m", input="Hi", tools=[TOOL])
        kinds = [item.type for item in whole.output]
        assert kinds == ["reasoning", "message", "function_call"]
        assert (whole.output_text, whole.status) == ("so", "completed")
        assert whole.output[0].content[0].text == "why"
        assert json.loads(whole.output[2].arguments) == {"city": "Köln 😀"}
        assert running.asked["turns"] == [{"role": "user", "content": "Hi"}]
        assert running.asked["tools"][0]["function"]["name"] == "get_weather"
        async with openai_.responses.stream(model="m", input="Hi", tools=[TOOL]) as stream:
            events = [event async for event in stream]
            final = await stream.get_final_response()
        assert [e.sequence_number for e in events] == list(range(len(events)))
        assert [item.type for item in final.output] == kinds
        assert final.output_text == "so"
        assert final.usage.total_tokens == whole.usage.total_tokens
        assert whole.usage.output_tokens_details.reasoning_tokens > 0


async def test_every_event_says_which_item_it_is_about() -> None:
    async with told(ANSWER) as (running, _):
        events = await raw_events(running, {"input": "Hi", "tools": [TOOL], "stream": True})
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    items = events[-1]["response"]["output"]
    for event in events[2:-1]:
        item = items[event["output_index"]]
        assert event.get("item_id", event.get("item", {}).get("id")) == item["id"]
        is_part = "_part" in event["type"] or "text" in event["type"]
        assert (event.get("content_index") == 0) == is_part
    assert events[0]["response"]["output"] == []
    assert [plain(event["item"]) for event in events if event["type"].endswith("item.done")] == [
        plain(item) for item in items
    ]


async def test_a_cut_answer_is_incomplete_and_a_failed_one_failed() -> None:
    async with told("Once upon", reason=FinishReason.LENGTH) as (running, openai_):
        cut = await openai_.responses.create(model="m", input="x", max_output_tokens=2)
        assert (cut.status, cut.incomplete_details.reason) == (
            "incomplete",
            "max_output_tokens",
        )
        assert (cut.output_text, cut.max_output_tokens) == ("Once upon", 2)
        assert running.job.max_tokens == 2
        async with openai_.responses.stream(model="m", input="x") as stream:
            kinds = [event.type async for event in stream]
        assert kinds[-1] == "response.incomplete"
    async with house(failing) as running:
        events = await raw_events(running, {"input": "x", "stream": True})
        assert events[-1]["type"] == "response.failed"
        assert events[-1]["response"]["error"]["message"] == "The engine died."
        with pytest.raises(openai.InternalServerError, match="The engine died"):
            await client(running).responses.create(model="m", input="x")


async def test_an_empty_answer_has_a_message() -> None:
    async with told() as (_, openai_):
        empty = await openai_.responses.create(model="m", input="x")
        assert [item.type for item in empty.output] == ["message"]
        assert empty.output_text == ""


class Colour(pydantic.BaseModel):
    name: str


async def test_a_schema_is_enforced_and_parsed() -> None:
    async with told('{"name": "red"}') as (running, openai_):
        parsed = await openai_.responses.parse(model="m", input="x", text_format=Colour)
        assert parsed.output_parsed == Colour(name="red")
        assert running.job.grammar.field == "text.format"
        assert running.job.grammar.kind == "json_schema"
        text: Any = {"format": {"type": "json_object"}}
        shown = await openai_.responses.create(model="m", input="x", text=text)
        assert shown.text.format.type == "json_object"


async def test_logprobs_are_with_the_text() -> None:
    async with told("so", " it") as (_, openai_):
        whole = await openai_.responses.create(
            model="m", input="x", top_logprobs=2, include=["message.output_text.logprobs"]
        )
        told_of = whole.output[0].content[0].logprobs
        assert b"".join(bytes(one.bytes) for one in told_of) == b"so it"
        async with openai_.responses.stream(model="m", input="x", top_logprobs=1) as stream:
            deltas = [e async for e in stream if e.type == "response.output_text.delta"]
        assert deltas[0].logprobs[0].logprob == -0.5


# -- conversations --------------------------------------------------------------------------------


async def test_a_conversation_goes_on_from_what_was_kept() -> None:
    async with told(ANSWER) as (running, openai_):
        first = await openai_.responses.create(
            model="m", input="Weather?", tools=[TOOL], instructions="Be brief.", metadata={"a": "b"}
        )
        call: Any = first.output[-1]
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
        second = await openai_.responses.create(
            model="m", input=[result], previous_response_id=first.id, tools=[TOOL]
        )
        turns = running.asked["turns"]
        assert [turn["role"] for turn in turns] == ["user", "assistant", "tool"]  # no instructions
        assert turns[1]["tool_calls"][0]["function"]["name"] == "get_weather"
        assert (turns[1]["content"], turns[2]["content"]) == ("so", "rain")
        assert second.previous_response_id == first.id
        third = await openai_.responses.create(
            model="m", input="And?", previous_response_id=second.id, store=False
        )
        assert len(running.asked["turns"]) == 5
        shown = await openai_.responses.retrieve(first.id)
        assert shown == first
        with pytest.raises(openai.NotFoundError, match="not stored"):
            await openai_.responses.retrieve(third.id)
        listed = await openai_.responses.input_items.list(second.id)
        assert [item.type for item in listed.data] == ["function_call_output"]
        await openai_.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            await openai_.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError) as caught:
            await openai_.responses.create(model="m", input="x", previous_response_id=first.id)
        assert caught.value.param == "previous_response_id"
        kept = await openai_.responses.create(model="m", input="x", previous_response_id=second.id)
        assert kept.status == "completed"
        async with httpx.AsyncClient() as plain_client:
            answer = await plain_client.head(f"{running.url}/v1/responses/{kept.id}")
        assert answer.status_code == 200


async def test_items_of_stored_responses_can_be_referred_to() -> None:
    async with told(ANSWER) as (running, openai_):
        first = await openai_.responses.create(model="m", input="Weather?", tools=[TOOL])
        call: Any = first.output[-1]
        items: Any = [
            {"role": "user", "content": "Weather?"},
            *({"type": "item_reference", "id": item.id} for item in first.output),
            {"type": "function_call_output", "call_id": call.call_id, "output": "rain"},
        ]
        second = await openai_.responses.create(model="m", input=items, tools=[TOOL])
        turns = running.asked["turns"]
        assert [turn["role"] for turn in turns] == ["user", "assistant", "tool"]
        assert (turns[1]["content"], turns[1]["reasoning_content"]) == ("so", "why")
        assert turns[1]["tool_calls"][0]["function"]["name"] == "get_weather"
        shown = await openai_.responses.input_items.list(second.id, order="asc")
        assert [item.id for item in shown.data[1:4]] == [item.id for item in first.output]
        bare = await openai_.responses.input_tokens.count(model="m", input=[{"id": call.id}])
        assert bare.input_tokens > 0
        alone = await openai_.responses.create(model="m", input="x", store=False)
        for missing in ("x", "msg_", "msg_1234", alone.output[0].id, f"{call.id[:-1]}f"):
            with pytest.raises(openai.NotFoundError, match="There is no item") as caught:
                await openai_.responses.create(model="m", input=[*items[:1], {"id": missing}])
            assert caught.value.param == "input[1].id"


async def test_references_make_no_prompt_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "MAX_REFERRED", 1)
    async with told("ok") as (_, openai_):
        made = [await openai_.responses.create(model="m", input="x") for _ in range(2)]
        one, other = ({"type": "item_reference", "id": had.output[0].id} for had in made)
        many: Any = [one] * (MAX_ITEMS + 1)
        for given, words, param in (
            ([one, one], r"'input\[0\]' refers to; an item may be referred to once", "input[1].id"),
            ([one, other], "items of at most 1 responses", "input[1].id"),
            (many, f"1 to {MAX_ITEMS} items, not {MAX_ITEMS + 1}", "input"),
        ):
            with pytest.raises(openai.BadRequestError, match=words) as caught:
                await openai_.responses.create(model="m", input=given)
            assert caught.value.param == param


async def test_input_items_come_in_pages() -> None:
    turns: Any = [{"role": "user", "content": str(i)} for i in range(3)]
    async with told("ok") as (_, openai_):
        made = await openai_.responses.create(model="m", input=turns)
        page = await openai_.responses.input_items.list(made.id, limit=2)
        texts = [item.content[0].text async for item in page]
        assert texts == ["2", "1", "0"]
        first = await openai_.responses.input_items.list(made.id, limit=2, order="asc")
        assert (first.data[0].content[0].text, first.has_more) == ("0", True)
        with pytest.raises(openai.BadRequestError, match="asc or desc"):
            await openai_.responses.input_items.list(made.id, order="up")


async def test_nobody_reads_what_another_key_has_left() -> None:
    async with house(saying("secret"), api_key="mine", admin_key="other") as running:
        made = await client(running, "mine").responses.create(model="m", input="x")
        other = client(running, "other").responses
        for ask in (other.retrieve, other.delete, other.cancel, other.input_items.list):
            with pytest.raises(openai.NotFoundError):
                await ask(made.id)
        with pytest.raises(openai.NotFoundError):
            await other.create(model="m", input="x", previous_response_id=made.id)
        with pytest.raises(openai.NotFoundError):
            await other.create(model="m", input=[{"id": made.output[0].id}])
        assert (await client(running, "mine").responses.retrieve(made.id)).output_text == "secret"


# -- in the background ----------------------------------------------------------------------------


async def test_one_in_the_background_can_be_asked_for_while_it_runs() -> None:
    async with house(silent) as running:
        responses = client(running).responses
        made = await responses.create(model="m", input="x", background=True)
        assert (made.status, made.background, made.output) == ("in_progress", True, [])
        stream = running.engine.streams[1]
        with pytest.raises(openai.BadRequestError, match="has not ended yet"):
            await responses.create(model="m", input="x", previous_response_id=made.id)
        assert len((await responses.input_items.list(made.id)).data) == 1
        with pytest.raises(openai.BadRequestError, match="no events"):
            await responses.retrieve(made.id, stream=True)
        stream.put("done")
        stream.end(FinishReason.STOP)
        work = running.service.find_apart(Caller("", ""), made.id)
        async with asyncio.timeout(PATIENCE_S):
            [None async for _ in work.changes()] if work else []
        shown = await responses.retrieve(made.id)
        assert (shown.status, shown.output_text) == ("completed", "done")
        same = await responses.cancel(made.id)
        assert same.status == "completed"


async def test_one_in_the_background_can_be_cancelled() -> None:
    async with house(silent) as running:
        responses = client(running).responses
        made = await responses.create(model="m", input="x", background=True)
        stopped = await responses.cancel(made.id)
        assert stopped.status == "cancelled"
        assert running.engine.aborted == [1]
        assert (await responses.retrieve(made.id)).status == "cancelled"
        plain_one: Any = running.engine
        plain_one.script = saying("x")
        other = await responses.create(model="m", input="x")
        with pytest.raises(openai.BadRequestError, match="'background'"):
            await responses.cancel(other.id)


async def test_its_events_can_be_followed_left_and_taken_up_again() -> None:
    async with house(silent) as running:
        responses = client(running).responses
        stream = await responses.create(model="m", input="x", background=True, stream=True)
        engine = running.engine.streams[1]
        engine.put("one")
        seen = []
        async for event in stream:
            seen.append(event)
            if event.type == "response.output_text.delta":
                break
        await stream.close()  # it goes on without anybody
        response_id = seen[0].response.id
        again = await responses.retrieve(response_id, stream=True, starting_after=1)
        engine.put(" two")
        engine.end(FinishReason.STOP)
        rest = [event async for event in again]
        assert [event.sequence_number for event in rest] == list(range(2, 2 + len(rest)))
        assert rest[-1].type == "response.completed"
        later = await responses.retrieve(response_id, stream=True)
        assert [event.sequence_number async for event in later] == list(range(2 + len(rest)))
        assert (await responses.retrieve(response_id)).output_text == "one two"


async def test_a_refusal_comes_before_anything_runs() -> None:
    async with house(silent) as running:
        running.engine.is_closed = True
        with pytest.raises(openai.InternalServerError, match="closed"):
            await client(running).responses.create(model="m", input="x", background=True)


async def test_what_runs_is_ended_with_the_server() -> None:
    def script(stream: FakeStream) -> None:
        stream.put("half")

    async with house(script) as running:
        made = await client(running).responses.create(model="m", input="x", background=True)
        assert made.status == "in_progress"
    assert running.engine.aborted == [1]


async def test_a_client_that_hangs_up_leaves_nothing() -> None:
    async with house(silent) as running:
        async with connected(int(running.url.rpartition(":")[2])) as wire:
            await wire.send(http("/v1/responses", b'{"input": "x", "stream": true}'))
            await running.engine.until(lambda: len(running.engine.streams) == 1)
        await running.engine.until(lambda: running.engine.aborted == [1])


async def test_input_is_counted_with_what_it_follows_and_nothing_runs() -> None:
    async with told("so") as (running, openai_):
        previous = None
        for turn in range(2):
            given: Any = {"model": "m", "input": "Hi", "tools": [TOOL], "instructions": "Be."}
            given["previous_response_id"] = previous
            counted = await openai_.responses.input_tokens.count(**given)
            assert len(running.engine.streams) == turn
            previous = (await openai_.responses.create(**given)).id
            assert counted.input_tokens == len(running.prompt)


async def test_compaction_is_refused_as_not_there() -> None:
    async with told("so") as (_running, openai_):
        with pytest.raises(openai.NotFoundError, match="not compacted here"):
            await openai_.responses.compact(model="m", input="Hi")

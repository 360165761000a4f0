"""Scenarios with a past: what is sent turn after turn, and what is made of the times."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from naiad.bench import restarting
from naiad.bench.conversations import KINDS, new_conversation, restart
from naiad.bench.figures import cached_share, ratio
from naiad.bench.load import Sizes
from naiad.bench.results import StreamResult
from naiad.bench.scenarios import SCENARIOS
from naiad.bench.wire import DIALECTS, Ask, Turn
from naiad.errors import ConfigError
from patience import PATIENCE_S
from test_bench_client import CHUNKED, Body, Peer, chunk, client_for, echo, event, run, serving

Messages = list[dict[str, str]]
SMALL = {"system_tokens": 10, "turn_tokens": 5, "tokens": 4}
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":8,"completion_tokens":4,'
USAGE += b'"prompt_tokens_details":{"cached_tokens":6}}}\n\n'


class Recorder:
    """Echoes, and keeps every request's messages."""

    def __init__(self) -> None:
        self.asked: list[Messages] = []

    async def __call__(self, body: Body, peer: Peer) -> None:
        self.asked.append(body["messages"])
        await echo(body, peer)


def past(messages: Messages) -> Messages:
    """All but the question itself."""
    return messages[:-1]


async def test_each_turn_carries_the_ones_before_it() -> None:
    server = Recorder()
    lines = await run("multi-turn", server, conversations=2, turns=3, **SMALL)
    assert [line.name for line in lines] == [
        "multi-turn, turn 1",
        "multi-turn, turn 2",
        "multi-turn, turn 3",
        "multi-turn, from turn 2",
    ]
    assert (lines[-1].streams, lines[-1].failed) == (4, 0)
    assert lines[-1].extra["ttft_over_first_turn"] is not None
    first = server.asked[0::2]
    assert [len(messages) for messages in first] == [2, 4, 6]
    assert past(first[1])[:2] == first[0]
    assert past(first[2])[:4] == first[1]
    assert first[1][2] == {"role": "assistant", "content": _echoed(first[0])}


def _echoed(messages: Messages) -> str:
    return " ".join(messages[-1]["content"].split()[-4:])


async def test_one_turn_has_no_later_ones() -> None:
    lines = await run("multi-turn", echo, conversations=1, turns=1, **SMALL)
    assert [line.name for line in lines] == ["multi-turn, turn 1"]


async def test_a_trimmed_history_keeps_its_system_prompt_and_loses_its_oldest_turns() -> None:
    server = Recorder()
    lines = await run("trimmed-history", server, histories=1, history_tokens=60, **SMALL)
    assert [(line.name, line.streams) for line in lines] == [
        ("history, cold", 1),
        ("history, append", 2),
        ("history, trimmed", 2),
        ("history, trimmed, lore", 2),
    ]
    assert set(lines[2].extra) >= {"ttft_over_append", "ttft_over_cold"}
    asked = dict(zip(range(len(KINDS)), server.asked, strict=True))
    assert len({messages[0]["content"] for messages in server.asked}) == 1
    assert past(asked[1])[: len(asked[0])] == asked[0]
    assert asked[3][1 : len(asked[2]) - 2] == asked[2][3:]
    assert len(asked[3]) == len(asked[2]) == len(asked[5])


async def test_lore_stands_in_the_middle_and_changes_each_time() -> None:
    server = Recorder()
    await run("trimmed-history", server, histories=1, history_tokens=60, **SMALL)
    plain, *with_lore = server.asked[4:]
    places = [[i for i, m in enumerate(ms) if "[Lore:" in m["content"]] for ms in with_lore]
    assert places[0] == places[1]
    ((place,), _) = places
    assert 1 < place < len(plain) - 2
    first, second = (messages[place]["content"] for messages in with_lore)
    assert first.split("\n")[0] != second.split("\n")[0]
    assert first.split("\n")[1] == plain[place + 2]["content"]


async def test_no_two_conversations_begin_alike_unless_the_seed_is_the_same() -> None:
    systems = {new_conversation(Sizes()).system for _ in range(5)}
    assert len(systems) == 5
    seeded = {new_conversation(Sizes(rng=random.Random(3))).system for _ in range(5)}
    assert len(seeded) == 1


async def test_after_the_restart_every_conversation_goes_on() -> None:
    server, restarts = Recorder(), []

    async def again() -> None:
        restarts.append(len(server.asked))

    lines = await run("restart", server, conversations=2, turns=2, restart=again, **SMALL)
    assert [(line.name, line.streams) for line in lines] == [
        ("before the restart", 2),
        ("after the restart", 2),
    ]
    assert restarts == [4]
    assert past(server.asked[4])[: len(server.asked[2])] == server.asked[2]
    assert lines[1].extra["ttft_over_before"] is not None


async def test_without_a_way_to_restart_the_scenario_says_so() -> None:
    async with serving(echo) as url:
        with pytest.raises(ConfigError, match="--restart-command"):
            await restart(client_for(url), Sizes())


async def test_the_servers_own_count_of_what_it_knew_is_reported() -> None:
    async def with_usage(_body: Body, peer: Peer) -> None:
        answer = [event("a "), event("b ", "length"), USAGE]
        await peer.send(CHUNKED + b"".join(map(chunk, answer)) + b"0\r\n\r\n")

    lines = await run("multi-turn", with_usage, conversations=1, turns=2, **SMALL)
    assert lines[-1].extra["cached_share"] == 0.75
    assert cached_share([StreamResult(0.0, 1.0)]) is None


@pytest.mark.parametrize(
    ("of", "over", "expected"), [(3.0, 2.0, 1.5), (None, 2.0, None), (1.0, 0.0, None)]
)
def test_a_ratio_needs_both_sides(
    of: float | None, over: float | None, expected: float | None
) -> None:
    assert ratio(of, over) == expected


async def test_priorities_come_mixed_and_each_is_reported() -> None:
    sent: list[int] = []

    async def note(body: Body, peer: Peer) -> None:
        sent.append(body["priority"])
        await echo(body, peer)

    lines = await run("priorities", note, priorities=(0, 5), per_priority=3, tokens=4)
    assert Counter(sent) == {0: 4, 5: 3}
    assert [(line.name, line.streams) for line in lines] == [("priority 0", 3), ("priority 5", 3)]
    assert set(lines[0].extra) == {"queue_wait_p50", "queue_wait_max"}


async def test_priorities_of_a_silent_server_have_no_wait() -> None:
    async def refuse(_body: Body, peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")

    (line,) = await run("priorities", refuse, priorities=(0,), per_priority=2)
    assert (line.failed, line.extra) == (2, {})


async def test_a_sweep_is_a_line_for_each_step() -> None:
    lines = await run("sweep", echo, sweep=(1, 2, 3))
    assert [(line.name, line.streams) for line in lines] == [
        ("sweep 1", 1),
        ("sweep 2", 2),
        ("sweep 3", 3),
    ]


def test_a_conversation_as_plain_text_begins_like_its_last_turn() -> None:
    turns = (Turn("user", "Hi."), Turn("assistant", "Yes."))
    bodies: list[dict[str, Any]] = [
        DIALECTS["kobold"].body(ask, "m")
        for ask in (
            Ask("Hi.", 4, "Be brief.", history=()),
            Ask("More.", 4, "Be brief.", history=turns, priority=3),
        )
    ]
    assert bodies[0]["prompt"] == "Be brief.\nUser: Hi.\nAssistant:"
    assert bodies[1]["prompt"] == bodies[0]["prompt"] + " Yes.\nUser: More.\nAssistant:"
    assert "priority" not in bodies[0]
    assert bodies[1]["priority"] == 3


@asynccontextmanager
async def failing_first(failures: int) -> AsyncIterator[tuple[str, list[Body]]]:
    """A server that refuses the first requests, and what it was asked."""
    asked: list[Body] = []

    async def answer(body: Body, peer: Peer) -> None:
        asked.append(body)
        if len(asked) <= failures:
            await peer.send(b"HTTP/1.1 503 Loading\r\nContent-Length: 0\r\n\r\n")
        else:
            await echo(body, peer)

    async with serving(answer) as url:
        yield url, asked


async def test_a_restart_waits_until_the_server_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarting, "RETRY_S", 0)
    async with failing_first(2) as (url, asked):
        await restarting.restart_by("true", client_for(url), PATIENCE_S)
    assert len(asked) == 3


async def test_a_restart_command_that_fails_is_named_with_its_status() -> None:
    with pytest.raises(ConfigError, match="the restart command ended with status 3"):
        await restarting.restart_by("exit 3", client_for("http://127.0.0.1:1"), PATIENCE_S)


async def test_a_restart_that_never_ends_meets_the_deadline() -> None:
    with pytest.raises(ConfigError, match=r"no answer from the server within 0.05 s"):
        await restarting.restart_by("exec sleep 600", client_for("http://127.0.0.1:1"), 0.05)


def test_every_scenario_is_documented() -> None:
    assert all(scenario.__doc__ for scenario in SCENARIOS.values())

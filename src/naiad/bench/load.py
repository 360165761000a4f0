"""What every scenario is made of: its sizes, its progress, and asking one or many at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from naiad.bench.client import Client, Stream
from naiad.bench.results import StreamResult
from naiad.bench.wire import Ask

#: Called once for each stream that has ended.
Tick = Callable[[], None]

#: Stops the server and starts it again; returns when it answers.
Restart = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is asked. Counts are at least 1; lengths are tokens, about.

    rng: with the same seed the same questions are asked; a server's prefix cache may then know
        them. Without one they never repeat.
    restart: what the restart scenario does between two turns; the other scenarios never look.
    """

    streams: int = 30  # consecutive: how many, one after the other
    concurrency: tuple[int, ...] = (1, 4, 16)  # concurrent: how many at once, in steps
    sweep: tuple[int, ...] = (1, 2, 4, 8, 16, 32)  # sweep: likewise
    prompt_tokens: int = 80
    tokens: int = 64  # length of each answer
    sharers: int = 16  # shared-prefix: requests with one long system prompt
    prefix_tokens: int = 1700
    running: int = 4  # interference: streams that run while a long prompt arrives
    long_tokens: int = 2000
    conversations: int = 6  # multi-turn and restart: interleaved, this many
    turns: int = 5  # of each conversation; before the restart
    system_tokens: int = 300  # length of a conversation's system prompt
    turn_tokens: int = 60  # length of a user's turn
    histories: int = 3  # trimmed-history: conversations, one after the other
    history_tokens: int = 1500  # length of each one's turns before the first question
    priorities: tuple[int, ...] = (0, 5, 10)  # priorities: those that are sent
    per_priority: int = 8  # requests of each
    ignore_eos: bool = True
    rng: random.Random = field(default_factory=random.Random)
    restart: Restart | None = None


def quiet() -> None:
    """No one watches the progress."""


async def run_one(client: Client, ask: Ask, tick: Tick) -> Stream:
    """Run a stream to its end and leave it unread."""
    stream = await client.run(ask)
    tick()
    return stream


async def ask_one(client: Client, ask: Ask, tick: Tick) -> StreamResult:
    """Run a stream to its end and read it."""
    return (await run_one(client, ask, tick)).result()


async def ask_all(client: Client, asks: Iterable[Ask], tick: Tick) -> list[StreamResult]:
    """All at once; read when all have ended."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run_one(client, ask, tick)) for ask in asks]
    return [task.result().result() for task in tasks]

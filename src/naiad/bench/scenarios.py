"""What is asked of the server: four loads, each a coroutine from a client to report lines.

Every loop is bounded by its sizes and every request by its deadline.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from naiad.bench.client import Client, Stream
from naiad.bench.figures import (
    Summary,
    gaps_between,
    handovers,
    running_at,
    spread,
    summarize,
)
from naiad.bench.prompts import filler, marked_prompt, marker, question, story_prompt
from naiad.bench.results import StreamResult
from naiad.bench.wire import Ask

#: Called once for each stream that has ended.
Tick = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is asked. Counts are at least 1; lengths are tokens, about.

    seed: the same seed asks the same questions; a server's prefix cache may then know them.
    """

    streams: int = 30  # consecutive: how many, one after the other
    concurrency: tuple[int, ...] = (1, 4, 16)  # concurrent: how many at once, in steps
    prompt_tokens: int = 80
    tokens: int = 64  # length of each answer
    sharers: int = 16  # shared-prefix: requests with one long system prompt
    prefix_tokens: int = 1700
    running: int = 4  # interference: streams that run while a long prompt arrives
    long_tokens: int = 2000
    ignore_eos: bool = True
    rng: random.Random = field(default_factory=random.Random)


def _quiet() -> None:
    """No one watches the progress."""


async def _run(client: Client, ask: Ask, tick: Tick) -> Stream:
    stream = await client.run(ask)
    tick()
    return stream


async def _ask(client: Client, ask: Ask, tick: Tick) -> StreamResult:
    return (await _run(client, ask, tick)).result()


async def _ask_all(client: Client, asks: Iterable[Ask], tick: Tick) -> list[StreamResult]:
    """All at once; read when all have ended."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_run(client, ask, tick)) for ask in asks]
    return [task.result().result() for task in tasks]


async def consecutive(client: Client, sizes: Sizes, tick: Tick = _quiet) -> list[Summary]:
    """Streams back to back; each prompt names a word of its own, so a stale answer shows."""
    markers = [marker(i) for i in range(sizes.streams)]
    results = []
    for i in range(sizes.streams):
        text = marked_prompt(sizes.rng, i, sizes.prompt_tokens)
        results.append(await _ask(client, Ask(text, sizes.tokens, "", sizes.ignore_eos), tick))
    next_first = spread(handovers(results))
    extra = {"last_token_to_next_first_p50": next_first.p50 if next_first else None}
    return [summarize("consecutive", results, markers=markers, extra=extra)]


async def concurrent(client: Client, sizes: Sizes, tick: Tick = _quiet) -> list[Summary]:
    """Unrelated streams, all at once; one line for each number of them."""
    lines = []
    for n in sizes.concurrency:
        texts = [story_prompt(sizes.rng, sizes.prompt_tokens) for _ in range(n)]
        asks = [Ask(text, sizes.tokens, "", sizes.ignore_eos) for text in texts]
        lines.append(summarize(f"concurrent {n}", await _ask_all(client, asks, tick)))
    return lines


async def shared_prefix(client: Client, sizes: Sizes, tick: Tick = _quiet) -> list[Summary]:
    """Requests that share a long system prompt, all at once: new to the server, then known."""
    opening = f"Manual {sizes.rng.randrange(10**9)}."
    system = f"{opening} {filler(sizes.rng, sizes.prefix_tokens)}"
    lines = []
    for phase in ("cold", "warm"):
        asks = [
            Ask(question(sizes.rng), sizes.tokens, system, sizes.ignore_eos)
            for _ in range(sizes.sharers)
        ]
        lines.append(summarize(f"shared prefix, {phase}", await _ask_all(client, asks, tick)))
    return lines


#: A running stream counts as settled after this many events.
_SETTLED = 8
#: What a running stream may say at most; it is dropped when the newcomer is done.
_LONG_ANSWER = 4000


async def interference(client: Client, sizes: Sizes, tick: Tick = _quiet) -> list[Summary]:
    """A long prompt arrives while streams run: their longest gap, and its time to first token.

    The same kind of prompt is asked alone first, for comparison.
    """
    newcomer = _long_ask(sizes)
    alone = await _ask(client, _long_ask(sizes), tick)
    async with AsyncExitStack() as stack:
        asks = [
            Ask(story_prompt(sizes.rng, sizes.prompt_tokens), _LONG_ANSWER, "", sizes.ignore_eos)
            for _ in range(sizes.running)
        ]
        streams = [await stack.enter_async_context(client.open(ask)) for ask in asks]
        for stream in streams:
            await stream.wait_events(_SETTLED)
        newcomer_stream = await _run(client, newcomer, tick)
    result = newcomer_stream.result()
    running = [stream.result() for stream in streams]
    for _ in running:
        tick()
    return [
        summarize("newcomer alone", [alone]),
        summarize("newcomer", [result], extra=_compare(alone, result)),
        summarize("running streams", running, extra=_disturbance(running, result)),
    ]


def _long_ask(sizes: Sizes) -> Ask:
    text = story_prompt(sizes.rng, sizes.long_tokens)
    return Ask(text, min(sizes.tokens, 16), "", sizes.ignore_eos)


def _compare(alone: StreamResult, beside: StreamResult) -> dict[str, float | None]:
    if alone.ttft is None or beside.ttft is None:
        return {"ttft_over_alone": None}
    return {"ttft_over_alone": round(beside.ttft / alone.ttft, 3)}


def _disturbance(running: list[StreamResult], newcomer: StreamResult) -> dict[str, float | None]:
    """The running streams' gaps before the newcomer came and until its first token."""
    start = newcomer.started_at
    end = start + (newcomer.ttft if newcomer.ttft is not None else 0.0)
    before = spread(gaps_between(running, 0.0, start))
    during = spread(gaps_between(running, start, end))
    return {
        "gap_before_p50": before.p50 if before else None,
        "gap_during_max": during.max if during else None,
        "running_when_it_came": running_at(running, start),
        "running_at_its_first_token": running_at(running, end),
    }


Scenario = Callable[[Client, Sizes, Tick], Awaitable[list[Summary]]]

SCENARIOS: dict[str, Scenario] = {
    "consecutive": consecutive,
    "concurrent": concurrent,
    "shared-prefix": shared_prefix,
    "interference": interference,
}


def num_streams(name: str, sizes: Sizes) -> int:
    """How many streams a scenario runs: what its progress is measured against."""
    counts = {
        "consecutive": sizes.streams,
        "concurrent": sum(sizes.concurrency),
        "shared-prefix": 2 * sizes.sharers,
        "interference": 2 + sizes.running,
    }
    return counts[name]

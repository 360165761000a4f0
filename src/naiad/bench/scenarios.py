"""What is asked of the server: loads, each a coroutine from a client to report lines.

Every loop is bounded by its sizes and every request by its deadline.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from naiad.bench.client import Client
from naiad.bench.conversations import KINDS, multi_turn, restart, trimmed_history
from naiad.bench.figures import (
    Summary,
    cached_share,
    gaps_between,
    handovers,
    ratio,
    running_at,
    spread,
    summarize,
)
from naiad.bench.load import Sizes, Tick, ask_all, ask_one, quiet, run_one
from naiad.bench.priorities import priorities
from naiad.bench.prompts import filler, marked_prompt, marker, question, story_prompt
from naiad.bench.results import StreamResult
from naiad.bench.wire import Ask


async def consecutive(client: Client, sizes: Sizes, tick: Tick = quiet) -> list[Summary]:
    """Streams back to back; each prompt names a word of its own, so a stale answer shows."""
    markers = [marker(i) for i in range(sizes.streams)]
    results = []
    for i in range(sizes.streams):
        text = marked_prompt(sizes.rng, i, sizes.prompt_tokens)
        results.append(await ask_one(client, Ask(text, sizes.tokens, "", sizes.ignore_eos), tick))
    next_first = spread(handovers(results))
    extra = {"last_token_to_next_first_p50": next_first.p50 if next_first else None}
    return [summarize("consecutive", results, markers=markers, extra=extra)]


async def concurrent(client: Client, sizes: Sizes, tick: Tick = quiet) -> list[Summary]:
    """Unrelated streams, all at once; one line for each number of them."""
    return [await _at_once(client, sizes, tick, "concurrent", n) for n in sizes.concurrency]


async def sweep(client: Client, sizes: Sizes, tick: Tick = quiet) -> list[Summary]:
    """As concurrent, in the many steps that a curve of speed over streams needs."""
    return [await _at_once(client, sizes, tick, "sweep", n) for n in sizes.sweep]


async def _at_once(client: Client, sizes: Sizes, tick: Tick, name: str, n: int) -> Summary:
    texts = [story_prompt(sizes.rng, sizes.prompt_tokens) for _ in range(n)]
    asks = [Ask(text, sizes.tokens, "", sizes.ignore_eos) for text in texts]
    results = await ask_all(client, asks, tick)
    return summarize(f"{name} {n}", results, extra={"cached_share": cached_share(results)})


async def shared_prefix(client: Client, sizes: Sizes, tick: Tick = quiet) -> list[Summary]:
    """Requests that share a long system prompt, all at once: new to the server, then known."""
    opening = f"Manual {sizes.rng.randrange(10**9)}."
    system = f"{opening} {filler(sizes.rng, sizes.prefix_tokens)}"
    lines = []
    for phase in ("cold", "warm"):
        asks = [
            Ask(question(sizes.rng), sizes.tokens, system, sizes.ignore_eos)
            for _ in range(sizes.sharers)
        ]
        lines.append(summarize(f"shared prefix, {phase}", await ask_all(client, asks, tick)))
    return lines


#: A running stream counts as settled after this many events.
_SETTLED = 8
#: What a running stream may say at most; it is dropped when the newcomer is done.
_LONG_ANSWER = 4000


async def interference(client: Client, sizes: Sizes, tick: Tick = quiet) -> list[Summary]:
    """A long prompt arrives while streams run: their longest gap, and its time to first token.

    The same kind of prompt is asked alone first, for comparison.
    """
    newcomer = _long_ask(sizes)
    alone = await ask_one(client, _long_ask(sizes), tick)
    async with AsyncExitStack() as stack:
        asks = [
            Ask(story_prompt(sizes.rng, sizes.prompt_tokens), _LONG_ANSWER, "", sizes.ignore_eos)
            for _ in range(sizes.running)
        ]
        streams = [await stack.enter_async_context(client.open(ask)) for ask in asks]
        for stream in streams:
            await stream.wait_events(_SETTLED)
        newcomer_stream = await run_one(client, newcomer, tick)
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
    return {"ttft_over_alone": ratio(beside.ttft, alone.ttft)}


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
    "sweep": sweep,
    "shared-prefix": shared_prefix,
    "interference": interference,
    "multi-turn": multi_turn,
    "trimmed-history": trimmed_history,
    "restart": restart,
    "priorities": priorities,
}


def num_streams(name: str, sizes: Sizes) -> int:
    """How many streams a scenario runs: what its progress is measured against."""
    counts = {
        "consecutive": sizes.streams,
        "concurrent": sum(sizes.concurrency),
        "sweep": sum(sizes.sweep),
        "shared-prefix": 2 * sizes.sharers,
        "interference": 2 + sizes.running,
        "multi-turn": sizes.conversations * sizes.turns,
        "trimmed-history": sizes.histories * len(KINDS),
        "restart": sizes.conversations * (sizes.turns + 1),
        "priorities": 1 + sizes.per_priority * len(sizes.priorities),
    }
    return counts[name]

"""Requests of several priorities at once: how long each has to wait."""

from __future__ import annotations

from naiad.bench.client import Client
from naiad.bench.figures import Summary, percentile, summarize
from naiad.bench.load import Sizes, Tick, ask_all, ask_one, quiet
from naiad.bench.prompts import story_prompt
from naiad.bench.results import StreamResult
from naiad.bench.wire import Ask


async def priorities(client: Client, sizes: Sizes, tick: Tick = quiet) -> list[Summary]:
    """More requests than the server runs at once, all together and mixed; a line per priority.

    queue_wait is the time to first token beyond that of one such request alone, so it holds what
    a request waits in the queue and what sharing the engine costs it. Ask for more requests than
    the server has places, or nobody waits.
    """
    alone = await ask_one(client, _ask(sizes, min(sizes.priorities)), tick)
    order = [level for level in sizes.priorities for _ in range(sizes.per_priority)]
    sizes.rng.shuffle(order)
    results = await ask_all(client, [_ask(sizes, level) for level in order], tick)
    groups = {
        level: [got for at, got in zip(order, results, strict=True) if at == level]
        for level in sizes.priorities
    }
    return [
        summarize(f"priority {level}", got, extra=_waits(got, alone))
        for level, got in groups.items()
    ]


def _ask(sizes: Sizes, priority: int) -> Ask:
    text = story_prompt(sizes.rng, sizes.prompt_tokens)
    return Ask(text, sizes.tokens, "", sizes.ignore_eos, priority=priority)


def _waits(results: list[StreamResult], alone: StreamResult) -> dict[str, float | None]:
    """Milliseconds beyond the request alone; none when either side never said anything."""
    if alone.ttft is None:
        return {}
    waits = [1000 * (got.ttft - alone.ttft) for got in results if got.ttft is not None]
    if not waits:
        return {}
    return {
        "queue_wait_p50": round(percentile(waits, 50), 3),
        "queue_wait_max": round(max(waits), 3),
    }

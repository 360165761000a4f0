"""Grammar bombs beside running streams: their gaps with and without, in one run.

Streams run alone first, and then while one client sends bombs, one after another: nested groups,
huge repetitions, references in circles, catastrophic expressions, a schema of ten megabytes. Every
bomb has to be refused, or followed within its limits.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
from common import Figure, Server, conclude, options, parse, run, serve, starter

from naiad.bench.figures import percentile
from naiad.bench.load import Sizes, quiet, run_one
from naiad.bench.prompts import story_prompt
from naiad.bench.wire import Ask

GAP_GROWTH = 1.1
_TIMEOUT_S = 120.0


def bombs() -> list[dict[str, Any]]:
    """Fields of a request, each of which asks for too much."""
    circle = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
    many = {"type": "object", "properties": {f"p{i}": {} for i in range(4000)}}
    deep: dict[str, Any] = {}
    for _ in range(500):
        deep = {"properties": {"a": deep}}
    held = [{"type": "string", "pattern": f".*{c}.*"} for c in "abcdefghijklmnop"]
    return [
        {"grammar": "root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000},
        {"guided_regex": "(" * 60_000 + "a" + ")" * 60_000},
        {"grammar": 'root ::= "a"{1,100000000}'},
        {"guided_regex": "((a{1000}){1000}){1000}"},
        {"guided_regex": "(a|a)*(a*)*(a|b|ab)*c{50,90}(.*a.{20})"},
        {"guided_regex": "(.*a.{18}b.*c.{18}){5}"},
        {"grammar": 'root ::= root root | "a" | ""'},
        {"guided_json": {"$ref": "#"}},
        {"guided_json": {**circle, "$ref": "#/$defs/a"}},
        {"guided_json": many},
        {"guided_json": deep},
        {"guided_json": {"allOf": held}},
        {"guided_json": {"enum": ["x" * 10_000_000]}},
    ]


@dataclass
class Outcome:
    """What became of the bombs. seconds: of each."""

    refused: int = 0
    answered: int = 0
    other: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


async def throw(url: str, until: asyncio.Event, outcome: Outcome) -> None:
    """Send bombs one after another, all of them once at least, until the event is set."""
    bodies = [json.dumps({"prompt": "x", "max_tokens": 8, **one}).encode() for one in bombs()]
    async with httpx.AsyncClient(timeout=_TIMEOUT_S) as client:
        n = 0
        while n < len(bodies) or not until.is_set():
            began = time.perf_counter()
            answer = await client.post(f"{url}/v1/completions", content=bodies[n % len(bodies)])
            outcome.seconds.append(time.perf_counter() - began)
            outcome.refused += answer.status_code in (400, 413)
            outcome.answered += answer.status_code == 200
            if answer.status_code not in (200, 400, 413):
                outcome.other.append(f"{answer.status_code}: {answer.text[:200]}")
            n += 1


async def gaps(server: Server, sizes: Sizes, n_streams: int) -> list[float]:
    """Milliseconds between pieces of some streams at once."""
    client = server.client()
    asks = [
        Ask(story_prompt(sizes.rng, sizes.prompt_tokens), sizes.tokens, "", sizes.ignore_eos)
        for _ in range(n_streams)
    ]
    streams = await asyncio.gather(*(run_one(client, ask, quiet) for ask in asks))
    results = [stream.result() for stream in streams]
    failed = [result.error for result in results if result.error is not None]
    if failed:
        raise SystemExit(f"{len(failed)} streams failed: {failed[0]}")
    return [1000 * gap for result in results for gap in result.gaps]


async def measure(
    server: Server, sizes: Sizes, n_streams: int
) -> tuple[list[float], list[float], Outcome]:
    await gaps(server, sizes, n_streams)  # not counted
    alone = await gaps(server, sizes, n_streams)
    outcome, is_done = Outcome(), asyncio.Event()
    beside: list[float] = []
    async with asyncio.TaskGroup() as group:
        thrower = group.create_task(throw(server.url, is_done, outcome))
        while not thrower.done():
            beside += await gaps(server, sizes, n_streams)
            is_done.set()
    return alone, beside, outcome


def figures_of(alone: list[float], beside: list[float], outcome: Outcome) -> list[Figure]:
    before, during = percentile(alone, 99), percentile(beside, 99)
    return [
        Figure("p99 gap beside bombs over p99 alone", during / before, "", GAP_GROWTH),
        Figure("p99 gap alone", before, "ms"),
        Figure("p99 gap beside bombs", during, "ms"),
        Figure("longest gap beside bombs", max(beside), "ms"),
        Figure("bombs that were neither refused nor followed", len(outcome.other), "", 0),
        Figure("bombs refused", outcome.refused),
        Figure("bombs followed within their limits", outcome.answered),
        Figure("longest answer to a bomb", max(outcome.seconds), "s"),
    ]


def parser() -> argparse.ArgumentParser:
    made = options(__doc__)
    made.add_argument("--streams", type=int, default=4)
    made.add_argument("--tokens", type=int, default=400)
    return made


def main() -> int:
    args = parse(parser(), streams=2, tokens=40)
    sizes = Sizes(tokens=args.tokens)
    with serve(starter(), "--parallel", "8", "--ctx", "4096") as server:
        alone, beside, outcome = run(measure(server, sizes, args.streams))
    return conclude(figures_of(alone, beside, outcome), args, *outcome.other[:3])


if __name__ == "__main__":
    sys.exit(main())

"""P13: what a token costs the front, and how late it comes when a thousand streams run.

The scripted engine speaks at a fixed rate and costs next to nothing, so what is seen is the front.
Processor time is that of the server's own process, its children not counted. How late a token is:
its time after the stream's own schedule, which the stream's least late token fixes. The client runs
on the same machine and its delays count too, so the figure is an upper bound.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time

import psutil
from common import Figure, Server, conclude, options, parse, run, serve

from naiad.bench.client import Stream
from naiad.bench.figures import percentile
from naiad.bench.prompts import question
from naiad.bench.results import StreamResult
from naiad.bench.wire import Ask

#: Seconds over which the streams are started.
SPREAD_S = 2.0


async def speak(server: Server, n_streams: int, n_tokens: int) -> list[StreamResult]:
    """Run the streams, started one by one so that they do not march in step."""
    client = server.client("completions")
    rng = random.Random()

    async def one(delay: float) -> Stream:
        await asyncio.sleep(delay)
        return await client.run(Ask(question(rng), n_tokens))

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(SPREAD_S * i / n_streams)) for i in range(n_streams)]
    return [task.result().result() for task in tasks]


def lateness(result: StreamResult, rate: float) -> list[float]:
    """Seconds each text event came after its place in the stream's schedule.

    An event's place is that of its first word: events of several words come with the last of them.
    """
    places, said = [], 0
    for text in result.event_texts:
        places.append(said)
        said += max(1, len(text.split()))
    ahead = [at - place / rate for at, place in zip(result.event_times, places, strict=True)]
    return [value - min(ahead) for value in ahead]


def processor_s(pid: int) -> float:
    """Processor time that a process has used itself, without its children."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def measure(server: Server, n_streams: int, n_tokens: int, rate: float) -> dict[str, float]:
    run(speak(server, min(8, n_streams), 4))
    before, started = processor_s(server.pid), time.perf_counter()
    results = run(speak(server, n_streams, n_tokens))
    spent = processor_s(server.pid) - before
    wall = max(r.ended_at for r in results) - started
    failed = [r.error for r in results if r.is_failed]
    if failed:
        raise SystemExit(f"{len(failed)} of {n_streams} streams failed: {failed[0]}")
    said = sum(r.n_tokens for r in results)
    late = [value for r in results for value in lateness(r, rate)]
    return {
        "us_per_token": 1e6 * spent / said,
        "tokens_per_event": said / len(late),
        "late_ms": 1000 * percentile(late, 99),
        "share": spent / wall,
    }


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=20.0, help="tokens per second of a stream")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each stream")
    args = parse(parser, streams=20, seconds=0.5)
    n_tokens = max(2, round(args.rate * args.seconds))
    flags = ["--engine", "scripted", "--parallel", str(args.streams)]
    with serve(*flags, env={"NAIAD_SCRIPTED_RATE": str(args.rate)}) as server:
        got = measure(server, args.streams, n_tokens, args.rate)
    figures = [
        Figure("P13 front's processor time per token", got["us_per_token"], "us", 40, 25),
        Figure(f"P13 {args.streams} streams: added latency p99", got["late_ms"], "ms", 20, 10),
        Figure("tokens per event", got["tokens_per_event"]),
        Figure("front's share of one processor", got["share"]),
    ]
    return conclude(figures, args)


if __name__ == "__main__":
    sys.exit(main())

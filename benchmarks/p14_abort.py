"""P14: how soon a waiting request gets its first token after the running one's client hangs up.

The server runs one request at a time. A long request fills it, another one waits, the first client
hangs up, in decoding or in the middle of a long prompt; the time from there to the waiting
request's first token is set against the same request's time to first token alone.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys

from common import Figure, Server, conclude, options, parse, run, serve, starter, ttft_ms

from naiad.bench.client import Client
from naiad.bench.prompts import question, story_prompt
from naiad.bench.wire import Ask

LONG_ANSWER = 4000
#: Seconds that let a request arrive and wait, or its prompt be well under way.
SETTLE_S = 0.3
rng = random.Random()


def short_ask() -> Ask:
    return Ask(question(rng), 4)


async def alone_ms(client: Client, repeat: int) -> float:
    """Median time to first token of the short request on an idle server."""
    await client.ask(short_ask())
    return statistics.median([ttft_ms(await client.ask(short_ask())) for _ in range(repeat)])


async def after_hang_up_ms(client: Client, n_prompt: int, wait_for: int) -> float:
    """From hanging up on a request of n_prompt tokens to the waiting one's first token."""
    running = Ask(story_prompt(rng, n_prompt), LONG_ANSWER)
    async with client.open(running) as first, client.open(short_ask()) as waiting:
        if wait_for:
            await first.wait_events(wait_for)
        await asyncio.sleep(SETTLE_S)
        hung_up = client.clock()
        first.drop()
        await waiting.wait_ended()
    result = waiting.result()
    ttft_ms(result)
    if result.event_times[0] < hung_up:
        raise SystemExit("the waiting request did not wait: is the server run with --parallel 1?")
    return 1000 * (result.event_times[0] - hung_up)


def measure(server: Server, repeat: int) -> list[Figure]:
    client = server.client()
    alone = run(alone_ms(client, repeat))

    def median(n_prompt: int, wait_for: int) -> float:
        got = [run(after_hang_up_ms(client, n_prompt, wait_for)) for _ in range(repeat)]
        return statistics.median(got)

    decoding, prefilling = median(80, 8), median(3000, 0)
    return [
        Figure("P14 hang-up in decoding, over TTFT alone", decoding / alone, "", 1.3, 1.1),
        Figure("P14 hang-up in a prompt, over TTFT alone", prefilling / alone, "", 1.3, 1.1),
        Figure("TTFT alone", alone, "ms"),
        Figure("after hang-up in decoding", decoding, "ms"),
        Figure("after hang-up in a prompt", prefilling, "ms"),
    ]


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    args = parse(parser, repeat=1)
    with serve(starter(), "--parallel", "1") as server:
        figures = measure(server, args.repeat)
    return conclude(figures, args)


if __name__ == "__main__":
    sys.exit(main())

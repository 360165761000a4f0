"""P16: speed after 14 idle conversations of 1,000 tokens, over the same server's speed before them.

A finished conversation must not slow the ones that run: its cells must not stay where attention
looks. Both speeds are of a prompt of 500 tokens and 100 tokens of answer; of each the best counts.
"""

from __future__ import annotations

import random
import statistics
import sys
from dataclasses import dataclass

from common import Figure, Server, conclude, options, parse, run, serve, starter, ttft_ms

from naiad.bench.client import Client
from naiad.bench.prompts import story_prompt
from naiad.bench.wire import Ask

rng = random.Random()


@dataclass(frozen=True, slots=True)
class Speed:
    """Milliseconds of a prompt and of a step; of the very first request, and at best."""

    first_prompt: float
    prompt: float
    step: float


async def measure(client: Client, repeat: int) -> Speed:
    prompts, steps = [], []
    for _ in range(repeat):
        result = await client.ask(Ask(story_prompt(rng, 500), 100))
        prompts.append(ttft_ms(result))
        steps.append(1000 * statistics.median(result.gaps))
    return Speed(prompts[0], min(prompts), min(steps))


async def leave_idle(client: Client, conversations: int) -> None:
    for _ in range(conversations):
        ttft_ms(await client.ask(Ask(story_prompt(rng, 1000), 4)))


def compare(server: Server, repeat: int, conversations: int) -> list[Figure]:
    client = server.client()
    run(measure(client, 1))
    before = run(measure(client, repeat))
    run(leave_idle(client, conversations))
    after = run(measure(client, repeat))
    prefill, decode = before.prompt / after.prompt, before.step / after.step
    return [
        Figure("P16 prefill speed, after over before", prefill, "", 0.9, 0.97, at_least=True),
        Figure("P16 decode speed, after over before", decode, "", 0.9, 0.97, at_least=True),
        Figure("first TTFT afterwards, over before", after.first_prompt / before.prompt),
        Figure("step before", before.step, "ms"),
        Figure("step after", after.step, "ms"),
    ]


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--conversations", type=int, default=14)
    args = parse(parser, repeat=1, conversations=1)
    with serve(starter(), "--parallel", "16", "--ctx", "4096") as server:
        figures = compare(server, args.repeat, args.conversations)
    return conclude(figures, args)


if __name__ == "__main__":
    sys.exit(main())

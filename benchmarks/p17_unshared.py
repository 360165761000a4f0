"""P17: four long prompts with nothing in common, at once: the last one's first token, over bare.

Over four times the bare engine's time for one such prompt, with the server's settings: a server
that takes them in turn, or all together without loss, comes to 1. The best of the rounds counts.
"""

from __future__ import annotations

import argparse
import sys

from common import (
    Figure,
    Server,
    bare,
    conclude,
    must_be_right,
    options,
    parse,
    run,
    serve,
    starter,
)

from naiad.bench.load import Sizes
from naiad.bench.scenarios import concurrent


def measure(server: Server, sizes: Sizes, rounds: int) -> tuple[float, int]:
    """The last first token, ms, at its best, and how many tokens a prompt had."""
    client = server.client()
    run(concurrent(client, Sizes(concurrency=sizes.concurrency, tokens=8)))
    lines = [must_be_right(run(concurrent(client, sizes))[0]) for _ in range(rounds)]
    last = min(line.ttft.max for line in lines if line.ttft)
    return last, lines[0].prompt_tokens or sizes.prompt_tokens


def figures_of(last_ms: float, bare_ms: float, prompts: int) -> list[Figure]:
    ratio = last_ms / (prompts * bare_ms)
    return [
        Figure(f"P17 last of {prompts} first tokens, over bare prefills", ratio, "", 1.4, 1.1),
        Figure("last first token", last_ms, "ms"),
        Figure("one bare prefill", bare_ms, "ms"),
    ]


def parser() -> argparse.ArgumentParser:
    made = options(__doc__)
    made.add_argument("--prompts", type=int, default=4)
    made.add_argument("--prompt-tokens", type=int, default=1700)
    made.add_argument("--rounds", type=int, default=2)
    return made


def main() -> int:
    args = parse(parser(), prompts=2, prompt_tokens=150, rounds=1)
    sizes = Sizes(concurrency=(args.prompts,), prompt_tokens=args.prompt_tokens, tokens=16)
    model = starter()
    with serve(model, "--parallel", "16", "--ctx", "4096") as server:
        last, n_prompt = measure(server, sizes, args.rounds)
    engine = server.health["engine"]
    got = bare(model, engine, "--batch", "--prefill", str(n_prompt), "--repeat", "2")
    one = float(got["prefill"][str(n_prompt)]["best_ms"])
    return conclude(figures_of(last, one, args.prompts), args, f"settings: {engine}")


if __name__ == "__main__":
    sys.exit(main())

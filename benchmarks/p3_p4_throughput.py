"""P3, P4: tokens per second of 1 and 16 streams, prompts included, over the bare engine's.

The bare engine runs before and after the server, with the server's own settings, and the faster of
its two results counts; of the server, the best of the rounds. A shared machine only ever slows.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from common import (
    Figure,
    Server,
    bare,
    conclude,
    must_be_right,
    options,
    parse,
    prompt_length,
    run,
    serve,
    starter,
)

from naiad.bench.load import Sizes
from naiad.bench.scenarios import concurrent

STREAMS = (1, 16)


def measure(server: Server, prompt_tokens: int, tokens: int, rounds: int) -> dict[int, float]:
    """The best tokens per second of each number of streams, and the prompt's true length."""
    client = server.client()
    best = dict.fromkeys(STREAMS, 0.0)
    run(concurrent(client, Sizes(concurrency=STREAMS, tokens=16, prompt_tokens=prompt_tokens)))
    sizes = Sizes(concurrency=STREAMS, tokens=tokens, prompt_tokens=prompt_tokens)
    for _ in range(rounds):
        for n, line in zip(STREAMS, run(concurrent(client, sizes)), strict=True):
            best[n] = max(best[n], must_be_right(line).tokens_per_s)
    return best


def bare_rates(model: str, engine: Mapping[str, Any], prompt: int, tokens: int) -> dict[int, float]:
    batches = [str(n) for n in STREAMS]
    sizes = ["--prompt", str(prompt), "--tokens", str(tokens), "--batch", *batches]
    got = bare(model, engine, "--prefill", "--repeat", "2", *sizes)
    return {n: float(got["decode"][str(n)]["tok_s"]) for n in STREAMS}


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--prompt-tokens", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    args = parse(parser, prompt_tokens=20, tokens=4, rounds=1)
    model = starter()
    with serve(model, "--parallel", "16") as server:
        prompt = prompt_length(server.client(), args.prompt_tokens)
    engine = server.health["engine"]
    before = bare_rates(model, engine, prompt, args.tokens)
    with serve(model, "--parallel", "16") as server:
        best = measure(server, args.prompt_tokens, args.tokens, args.rounds)
    after = bare_rates(model, engine, prompt, args.tokens)
    ceiling = {n: max(before[n], after[n]) for n in STREAMS}
    figures = [
        Figure("P3 1 stream over bare", best[1] / ceiling[1], "", 0.95, 0.98, at_least=True),
        Figure("P4 16 streams over bare", best[16] / ceiling[16], "", 0.92, 0.97, at_least=True),
    ]
    figures += [Figure(f"{n} streams", best[n], "tok/s") for n in STREAMS]
    figures += [Figure(f"{n} streams, bare", ceiling[n], "tok/s") for n in STREAMS]
    return conclude(figures, args, f"settings: {engine}")


if __name__ == "__main__":
    sys.exit(main())

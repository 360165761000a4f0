"""P1, P2: what the server adds to the engine's own time to the first token, and around a stream.

P1 is the time to first token on an idle server, less the bare engine's prefill of a prompt of the
same length. P2 looks at streams back to back: the gap from one stream's last token to the next
one's first, less the time to first token; and the time from a stream's last token to its end. Where
there is a llama-server, the time to first token is also compared to that server's.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import (
    Figure,
    bare,
    conclude,
    must_be_right,
    options,
    parse,
    run,
    serve,
    starter,
)
from servers import Plan, add_llama_server, llama_server, missing

from naiad.bench.client import Client
from naiad.bench.figures import Summary
from naiad.bench.load import Sizes
from naiad.bench.scenarios import consecutive

#: The servers are compared in so many rounds.
ROUNDS = 6


def measure(client: Client, streams: int) -> Summary:
    """Streams back to back, after a few that are not counted."""
    run(consecutive(client, Sizes(streams=3)))
    (line,) = run(consecutive(client, Sizes(streams=streams)))
    return must_be_right(line)


def prefill_ms(model: str, engine: Mapping[str, Any], n_prompt: int) -> float:
    """The bare engine's time for one prompt of this length, at its median."""
    got = bare(model, engine, "--batch", "--prefill", str(n_prompt), "--repeat", "15")
    return float(got["prefill"][str(n_prompt)]["median_ms"])


def figures_of(line: Summary, floor_ms: float) -> list[Figure]:
    ttft, tail = line.ttft, line.tail
    handover = line.extra["last_token_to_next_first_p50"]
    assert ttft is not None
    assert tail is not None
    assert handover is not None
    return [
        Figure("P1 TTFT less bare prefill, p50", ttft.p50 - floor_ms, "ms", 5, 2),
        Figure("P1 TTFT less bare prefill, p99", ttft.p99 - floor_ms, "ms", 15, 5),
        Figure("P2 last token to next first, less TTFT, p50", handover - ttft.p50, "ms", 3, 1),
        Figure("P2 last token to end of stream, p50", tail.p50, "ms", 1, 0.3),
        Figure("TTFT p50", ttft.p50, "ms"),
        Figure("bare prefill", floor_ms, "ms"),
    ]


def ratio_to_llama_server(
    ours: Client, binary: Path, model: str, engine: Mapping[str, Any], streams: int
) -> Figure:
    """Median of the rounds' ratios of TTFT, each round one server right after the other.

    A machine's speed drifts by a tenth within minutes, and the bar is half of that.
    """
    plan = Plan(model, engine["threads"], ctx=2048, parallel=4)
    with llama_server(binary, plan, "-ngl", str(engine["gpu_layers"])) as theirs:
        ratios = [ttft_p50(ours, streams) / ttft_p50(theirs, streams) for _ in range(ROUNDS)]
    return Figure("P2 TTFT p50 over llama-server's", statistics.median(ratios), "", 1.05, 0.95)


def ttft_p50(client: Client, streams: int) -> float:
    """Milliseconds."""
    ttft = measure(client, max(3, streams // ROUNDS)).ttft
    assert ttft is not None
    return ttft.p50


def main() -> int:
    parser = options(__doc__)
    add_llama_server(parser)
    parser.add_argument("--streams", type=int, default=60)
    args = parse(parser, streams=3)
    model, absent, ratios = starter(), missing(args.llama_server), []
    with serve(model) as server:
        client, engine = server.client(), server.health["engine"]
        line = measure(client, args.streams)
        if not absent:
            ratio = ratio_to_llama_server(client, args.llama_server, model, engine, args.streams)
            ratios.append(ratio)
    assert line.prompt_tokens is not None
    figures = figures_of(line, prefill_ms(model, engine, line.prompt_tokens))
    return conclude([*ratios, *figures], args, *([absent] if absent else []))


if __name__ == "__main__":
    sys.exit(main())

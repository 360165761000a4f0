"""P5: tokens per second of 16 short unrelated streams, over llama-server's at its best.

Prompts are included. llama-server runs with the same type of KV cache and with each of its pool
layouts, and the best counts. The servers take turns, so that each has as many tries as the other:
the best of eight of one kind would beat the best of two of the same kind by chance alone. Once with
the default profile and once with the one that is made for this load.

Beside them runs the bare engine with naiad's settings, as often. It computes as many tokens of each
prompt as naiad did: how prompts begin, with the same lines of the template, both servers know from
the round before.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
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
from servers import (
    Plan,
    add_llama_server,
    add_llama_variants,
    llama_server,
    llama_variants,
    missing,
)

from naiad.bench.client import Client
from naiad.bench.figures import Summary
from naiad.bench.load import Sizes
from naiad.bench.scenarios import concurrent

CTX = 4096
#: The flags of each of naiad's profiles.
PROFILES = {"default": (), "throughput": ("--profile", "throughput")}
LIMITS = {"default": (0.8, 1.0), "throughput": (1.0, 1.1)}


@dataclass
class Rates:
    """The best tokens per second so far. variant: of llama-server, the flags that were best."""

    ours: float = 0.0
    theirs: float = 0.0
    bare: float = 0.0
    variant: str = ""

    def add(self, ours: float, theirs: float, bare: float, variant: str) -> None:
        self.ours, self.bare = max(self.ours, ours), max(self.bare, bare)
        if theirs > self.theirs:
            self.theirs, self.variant = theirs, variant


def round_of(client: Client, sizes: Sizes) -> Summary:
    """One round, after a short one that is not counted."""
    run(concurrent(client, Sizes(concurrency=sizes.concurrency, tokens=8)))
    (line,) = run(concurrent(client, sizes))
    return must_be_right(line)


def n_computed(line: Summary, n_asked: int) -> int:
    """Tokens of a prompt that had to be computed. n_asked: where the server tells no counts."""
    known = line.extra.get("cached_share") or 0.0
    return round((line.prompt_tokens or n_asked) * (1 - known))


def settings_of(model: str, *flags: str) -> dict[str, Any]:
    """What a server with these flags says about its engine."""
    with serve(model, *flags) as server:
        return dict(server.health["engine"])


def bare_rate(model: str, engine: dict[str, Any], prompt: int, sizes: Sizes) -> float:
    """Tokens per second of the same streams in the bare engine."""
    (streams,) = sizes.concurrency
    what = ["--prompt", str(prompt), "--tokens", str(sizes.tokens), "--batch", str(streams)]
    got = bare(model, engine, "--prefill", "--repeat", "1", *what)
    return float(got["decode"][str(streams)]["tok_s"])


def compare(
    profile: str, model: str, binary: Path, sizes: Sizes, rounds: int, only: str = ""
) -> tuple[Rates, str]:
    """The best rates, and with which settings they were reached."""
    (streams,) = sizes.concurrency
    flags = ("--parallel", str(streams), "--ctx", str(CTX), *PROFILES[profile])
    best = Rates()
    engine = settings_of(model, *flags)
    plan = Plan(model, engine["threads"], CTX, streams)
    for _ in range(rounds):
        for name, variant in llama_variants(engine["kv_type"], only).items():
            with serve(model, *flags) as server:
                line = round_of(server.client(), sizes)
            with llama_server(binary, plan, *variant) as client:
                got = round_of(client, sizes).tokens_per_s
            mine = line.tokens_per_s
            alone = bare_rate(model, engine, n_computed(line, sizes.prompt_tokens), sizes)
            told = f"{mine:.1f} tok/s; llama-server {got:.1f} with {name}; bare {alone:.1f}"
            print(told, file=sys.stderr)
            best.add(mine, got, alone, name)
    return best, f"{profile} profile: {engine}; llama-server was best with: {best.variant}"


def figures_of(profile: str, streams: int, best: Rates) -> list[Figure]:
    what = f"{streams} streams, {profile} profile"
    ratio = Figure(
        f"P5 {what}, over llama-server",
        best.ours / best.theirs,
        "",
        *LIMITS[profile],
        at_least=True,
    )
    return [
        ratio,
        Figure(f"{what}: the bare engine over llama-server", best.bare / best.theirs),
        Figure(f"{what}", best.ours, "tok/s"),
        Figure(f"{what}: llama-server", best.theirs, "tok/s"),
        Figure(f"{what}: the bare engine", best.bare, "tok/s"),
    ]


def parser() -> argparse.ArgumentParser:
    made = options(__doc__)
    add_llama_server(made)
    add_llama_variants(made)
    made.add_argument("--profiles", nargs="+", choices=list(PROFILES), default=list(PROFILES))
    made.add_argument("--streams", type=int, default=16)
    made.add_argument("--prompt-tokens", type=int, default=100)
    made.add_argument("--tokens", type=int, default=128)
    made.add_argument("--rounds", type=int, default=2)
    return made


def main() -> int:
    args = parse(parser(), streams=2, prompt_tokens=20, tokens=4, rounds=1)
    absent = missing(args.llama_server)
    if absent:
        return conclude([], args, absent)
    sizes = Sizes(concurrency=(args.streams,), tokens=args.tokens, prompt_tokens=args.prompt_tokens)
    figures, remarks, model = [], [], starter()
    for profile in args.profiles:
        best, settings = compare(
            profile, model, args.llama_server, sizes, args.rounds, args.llama_variants
        )
        figures += figures_of(profile, args.streams, best)
        remarks.append(settings)
    return conclude(figures, args, *remarks)


if __name__ == "__main__":
    sys.exit(main())

"""Several servers side by side, in one run: the same model, questions and client for all of them.

    python benchmarks/compare.py --servers naiad llama-server --llama-server PATH
    python benchmarks/compare.py --servers naiad koboldcpp ollama --model model.gguf --plot docs/img

Only one server runs at a time. The servers take turns in rounds, in one order and then in the
other, so that a machine that gets slower or faster favours none. Each start is fresh; a few streams
after it are not counted. docs/comparing.md says what to mind.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import psutil
from common import parse, run, starter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from servers import ADAPTERS, Adapter, Plan, client_of, find_program, start

from naiad.bench.client import Client
from naiad.bench.figures import Spread, Summary
from naiad.bench.load import Sizes, Tick
from naiad.bench.plot import draw
from naiad.bench.pooling import pool
from naiad.bench.scenarios import SCENARIOS, consecutive, num_streams

#: All but restart, which needs a server that stays on one port, and concurrent, which sweep covers.
DEFAULT_SCENARIOS = (
    *("consecutive", "sweep", "shared-prefix", "interference"),
    *("multi-turn", "trimmed-history"),
)
QUICK = Sizes(
    streams=4,
    sweep=(1, 2),
    tokens=6,
    sharers=2,
    prefix_tokens=60,
    running=1,
    long_tokens=80,
    conversations=2,
    turns=2,
    system_tokens=20,
    turn_tokens=10,
    histories=1,
    history_tokens=60,
)
Lines = list[Summary]
WIDTH = 120  # columns of the table in a file or a pipe


def measure(client: Client, scenarios: Sequence[str], sizes: Sizes, tick: Tick) -> Lines:
    """Every scenario once, after some streams that are not counted."""
    run(consecutive(client, Sizes(streams=2, tokens=4)))
    lines: Lines = []
    for name in scenarios:
        lines += run(_scenario(name, client, sizes, tick))
    return lines


async def _scenario(name: str, client: Client, sizes: Sizes, tick: Tick) -> Lines:
    return await SCENARIOS[name](client, sizes, tick)


def order_of(servers: Sequence[str], turn: int) -> list[str]:
    """Forwards in even rounds, backwards in odd ones: what drifts steadily then cancels out."""
    return list(servers) if turn % 2 == 0 else list(reversed(servers))


def sizes_of(quick: bool, seed: int) -> Sizes:
    """The sizes of one server's round; servers with the same seed get the same questions."""
    return replace(QUICK if quick else Sizes(), rng=random.Random(seed))


def measure_all(
    binaries: Mapping[str, str], plan: Plan, args: argparse.Namespace
) -> dict[str, list[Lines]]:
    """Every server's lines, one list for each round."""
    got: dict[str, list[Lines]] = {name: [] for name in binaries}
    seeds = random.Random(args.seed)
    streams = sum(num_streams(name, sizes_of(args.quick, 0)) for name in args.scenarios)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("starting", total=streams * len(binaries) * args.rounds)
        for turn in range(args.rounds):
            seed = seeds.randrange(1 << 62)
            for name in order_of(list(binaries), turn):
                progress.update(bar, description=f"round {turn + 1}, {name}")
                with start(ADAPTERS[name], binaries[name], plan) as server:
                    client = client_of(ADAPTERS[name], server)
                    sizes = sizes_of(args.quick, seed)
                    lines = measure(client, args.scenarios, sizes, lambda: progress.advance(bar))
                got[name].append(lines)
    return got


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _of(times: Spread | None, name: str) -> float | None:
    return None if times is None else float(getattr(times, name))


def row_values(line: Summary) -> dict[str, float | None]:
    """What the table shows of a line: speed where there are several streams, else times."""
    values = {"TTFT p50, ms": _of(line.ttft, "p50"), "TTFT p99, ms": _of(line.ttft, "p99")}
    if line.name == "running streams":
        return {"longest gap, ms": line.extra.get("gap_during_max")}
    if line.name.startswith(("sweep", "concurrent")):
        return {"tokens/s": line.tokens_per_s, **values, "gap p99, ms": _of(line.gap, "p99")}
    if line.name.startswith("shared prefix"):
        return {"total, s": line.wall_s, **values}
    if line.name == "consecutive":
        return {**values, "end of stream, ms": _of(line.tail, "p50")}
    return {"TTFT p50, ms": values["TTFT p50, ms"]}


def table(results: Mapping[str, Lines]) -> Table:
    """A row for each figure, a column for each server."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("scenario", ""):
        made.add_column(heading, no_wrap=True)
    for name in results:
        made.add_column(name, justify="right")
    by_name = {server: {line.name: line for line in lines} for server, lines in results.items()}
    first = next(iter(results.values()), [])
    for line in first:
        lines = [found.get(line.name) for found in by_name.values()]
        values = [row_values(found) if found else {} for found in lines]
        for i, figure in enumerate(row_values(line)):
            cells = [_cell(value.get(figure)) for value in values]
            made.add_row("" if i else line.name, figure, *cells)
        if any(found and found.failed for found in lines):
            made.add_row("", "failed streams", *[str(f.failed if f else 0) for f in lines])
    return made


def report(results: Mapping[str, Lines], plan: Plan, args: argparse.Namespace) -> dict[str, Any]:
    """Everything, for programs."""
    return {
        "unit": "milliseconds",
        "rounds": args.rounds,
        "model": Path(plan.model).name,
        "threads": plan.threads,
        "ctx": plan.ctx,
        "parallel": plan.parallel,
        "servers": {
            name: {
                "command": " ".join(ADAPTERS[name].command),
                "note": ADAPTERS[name].note,
                "results": msgspec.to_builtins(lines),
            }
            for name, lines in results.items()
        },
    }


def found_programs(names: Sequence[str], args: argparse.Namespace) -> dict[str, str]:
    """The path of each server's program; those that are not there are named and left out."""
    found: dict[str, str] = {}
    for name in names:
        program = ADAPTERS[name].program
        path = find_program(program, getattr(args, program.replace("-", "_"), None))
        if path is None:
            print(f"{name} is left out: no {program} found (--{program} PATH)", file=sys.stderr)
        else:
            found[name] = path
    return found


def describe(name: str, adapter: Adapter) -> str:
    env = "".join(f"{key}={value} " for key, value in adapter.env.items())
    note = f"    # {adapter.note}" if adapter.note else ""
    return f"{name}: {env}{' '.join(adapter.command)}{note}"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="servers: " + ", ".join(ADAPTERS) + "; --list shows how each is started",
    )
    add = made.add_argument
    add("--servers", nargs="+", choices=list(ADAPTERS), default=["naiad", "llama-server"])
    add("--scenarios", nargs="+", choices=_known_scenarios(), default=list(DEFAULT_SCENARIOS))
    for program in sorted({adapter.program for adapter in ADAPTERS.values()}):
        add(f"--{program}", metavar="PATH", help="its program, where it is not on the PATH")
    add("--model", help="a GGUF file (default: the starter model)")
    add("--rounds", type=int, default=2)
    add("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    add("--ctx", type=int, default=4608, help="tokens of each request")
    add("--parallel", type=int, default=16, help="requests at the same time")
    add("--seed", type=int, help="ask the same questions again (default: new ones)")
    add("--json", type=Path, help="also write everything to this file")
    add("--plot", type=Path, help="also draw PNG images into this folder; needs matplotlib")
    add("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    add("--list", action="store_true", help="show how each server is started, and end")
    return made


def _known_scenarios() -> list[str]:
    return [name for name in SCENARIOS if name != "restart"]


def main() -> int:
    args = parse(parser(), rounds=1, parallel=4, ctx=1024)
    if args.list:
        print("\n".join(describe(name, adapter) for name, adapter in ADAPTERS.items()))
        return 0
    binaries = found_programs(args.servers, args)
    if not binaries:
        raise SystemExit("none of the servers is there")
    plan = Plan(args.model or starter(), args.threads, args.ctx, args.parallel)
    rounds = measure_all(binaries, plan, args)
    results = {name: pool(lines) for name, lines in rounds.items()}
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table(results))
    for name, lines in results.items():
        for error in sorted({error for line in lines for error in line.errors}):
            console.print(f"{name}: error: {error}", markup=False)
    if args.json is not None:
        args.json.write_text(json.dumps(report(results, plan, args), indent=1) + "\n")
    if args.plot is not None:
        for path in draw(results, args.plot):
            console.print(f"drawn: {path}")
    return int(any(line.failed or line.wrong for lines in results.values() for line in lines))


if __name__ == "__main__":
    sys.exit(main())

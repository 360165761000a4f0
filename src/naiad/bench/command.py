"""`naiad bench`: point it at any OpenAI-compatible or Kobold server."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from naiad.bench.client import Client, Target
    from naiad.bench.figures import Summary
    from naiad.bench.load import Restart, Sizes, Tick
    from naiad.errors import NaiadError

#: What `all` runs; with a restart command that scenario too.
_ALL = (
    *("consecutive", "concurrent", "shared-prefix", "interference"),
    *("multi-turn", "trimmed-history", "priorities"),
)
_NAMES = (*_ALL, "sweep", "restart")
_COUNT = click.IntRange(1, 10_000)
_WIDTH = 110  # columns of the table in a file or a pipe
_LENGTH = click.IntRange(1, 1_000_000)


def _numbers(
    low: int, high: int
) -> Callable[[click.Context, click.Parameter, str], tuple[int, ...]]:
    """Reads whole numbers with commas between, each within bounds: "1,4,16"."""

    def read(_context: click.Context, _param: click.Parameter, value: str) -> tuple[int, ...]:
        try:
            numbers = tuple(int(part) for part in value.split(","))
        except ValueError as error:
            message = "must be numbers with commas between, such as 1,4,16"
            raise click.BadParameter(message) from error
        if not all(low <= number <= high for number in numbers):
            raise click.BadParameter(f"each number must be from {low} to {high}")
        return numbers

    return read


_STEPS = _numbers(1, 4096)
_LEVELS = _numbers(-1000, 1000)


@click.command(context_settings={"show_default": True})
@click.argument(
    "scenario", type=click.Choice([*_NAMES, "all"]), default="all", metavar="[SCENARIO]"
)
@click.option("--url", default="http://127.0.0.1:5001", help="The server to ask.")
@click.option("--dialect", type=click.Choice(["openai", "completions", "kobold"]), default="openai")
@click.option("--key", default="", envvar="NAIAD_BENCH_KEY", help="API key, if it needs one.")
@click.option("--model", default="default", help="Model name to send.")
@click.option("--streams", type=_COUNT, default=30, help="consecutive: how many.")
@click.option("--concurrency", callback=_STEPS, default="1,4,16", help="concurrent: steps.")
@click.option("--sweep", callback=_STEPS, default="1,2,4,8,16,32", help="sweep: steps.")
@click.option("--prompt-tokens", type=_LENGTH, default=80, help="Prompt length, about.")
@click.option("--tokens", type=_LENGTH, default=64, help="Answer length.")
@click.option("--sharers", type=_COUNT, default=16, help="shared-prefix: how many at once.")
@click.option("--prefix-tokens", type=_LENGTH, default=1700, help="shared-prefix: shared length.")
@click.option("--running", type=_COUNT, default=4, help="interference: streams that run.")
@click.option("--long-tokens", type=_LENGTH, default=2000, help="interference: newcomer's prompt.")
@click.option("--conversations", type=_COUNT, default=6, help="multi-turn, restart: how many.")
@click.option("--turns", type=_COUNT, default=5, help="multi-turn, restart: of each.")
@click.option("--system-tokens", type=_LENGTH, default=300, help="Conversations: system prompt.")
@click.option("--turn-tokens", type=_LENGTH, default=60, help="Conversations: a user's turn.")
@click.option("--histories", type=_COUNT, default=3, help="trimmed-history: how many.")
@click.option("--history-tokens", type=_LENGTH, default=1500, help="trimmed-history: of each.")
@click.option("--priorities", callback=_LEVELS, default="0,5,10", help="priorities: those sent.")
@click.option("--per-priority", type=_COUNT, default=8, help="priorities: requests of each.")
@click.option("--restart-command", help="restart: run in a shell; returns when it is done.")
@click.option("--ignore-eos/--no-ignore-eos", default=True, help="Ask for full-length answers.")
@click.option("--seed", type=int, help="Ask the same questions again.  [default: new ones]")
@click.option("--timeout", type=click.FloatRange(1, 3600), default=300.0, help="Per request, s.")
@click.option("--time-limit", type=click.FloatRange(1, 86400), default=1800.0, help="In all, s.")
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Also write the report as JSON; - for standard output.",
)
@click.option(
    "--plot",
    "plot_folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Also draw the report as PNG images into this folder; needs naiad[plot].",
)
def bench(
    scenario: str,
    url: str,
    dialect: str,
    key: str,
    model: str,
    timeout: float,
    time_limit: float,
    seed: int | None,
    json_path: Path | None,
    plot_folder: Path | None,
    restart_command: str | None,
    **counts: Any,
) -> None:
    """Load a server with streams and report what a client sees.

    \b
    consecutive      one after the other
    concurrent       several at once, in steps
    shared-prefix    prompts that begin alike
    interference     a long prompt comes while others stream
    multi-turn       conversations that go on
    trimmed-history  conversations that lose their beginning
    priorities       requests of several priorities
    all              all of these, and restart where --restart-command is given
    sweep            concurrent, in finer steps
    restart          conversations before and after --restart-command

    Times are taken at the socket. Exits with 1 when any stream failed or was wrong, or when the
    time limit was reached; Ctrl-C ends it early with what there is, and 130.
    """
    from naiad.bench.client import Client, parse_target
    from naiad.bench.load import Sizes
    from naiad.errors import ConfigError, NaiadError

    try:
        target = parse_target(url, dialect=dialect, model=model, key=key, timeout_s=timeout)
    except ConfigError as error:
        raise click.UsageError(error.message) from error
    if scenario == "restart" and not restart_command:
        raise click.UsageError("the restart scenario needs --restart-command")
    client = Client(target)
    restart = _restart(client, restart_command, timeout) if restart_command else None
    sizes = Sizes(rng=random.Random(seed), restart=restart, **counts)
    names = (*_ALL, *(["restart"] if restart else [])) if scenario == "all" else (scenario,)
    lines, cut = _run(client, names, sizes, time_limit)
    _show(target, lines, json_path)
    if plot_folder is not None:
        _draw(target, lines, plot_folder)
    if isinstance(cut, KeyboardInterrupt | NaiadError):
        raise cut
    if cut is not None:
        click.echo(f"stopped at the time limit of {time_limit:g} s", err=True)
    if cut is not None or any(line.failed or line.wrong for line in lines):
        sys.exit(1)


def _restart(client: Client, command: str, within_s: float) -> Restart:
    from naiad.bench.restarting import restart_by

    return lambda: restart_by(command, client, within_s)


def _run(
    client: Client, names: Sequence[str], sizes: Sizes, time_limit: float
) -> tuple[list[Summary], TimeoutError | KeyboardInterrupt | NaiadError | None]:
    """Run the scenarios under a progress bar: those that were ended, and what cut them short."""
    import asyncio

    import uvloop
    from rich.console import Console
    from rich.progress import Progress

    from naiad.bench.scenarios import num_streams
    from naiad.errors import NaiadError

    lines: list[Summary] = []
    with (
        Progress(console=Console(stderr=True), transient=True) as progress,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        bar = progress.add_task("starting", total=sum(num_streams(n, sizes) for n in names))

        def tick() -> None:
            progress.advance(bar)

        def announce(name: str) -> None:
            progress.update(bar, description=name)

        try:
            runner.run(_scenarios(client, names, sizes, lines, tick, announce, time_limit))
        except (TimeoutError, KeyboardInterrupt, NaiadError) as cut:
            return lines, cut
    return lines, None


async def _scenarios(
    client: Client,
    names: Sequence[str],
    sizes: Sizes,
    lines: list[Summary],
    tick: Tick,
    announce: Callable[[str], None],
    time_limit: float,
) -> None:
    import asyncio

    from naiad.bench.scenarios import SCENARIOS

    async with asyncio.timeout(time_limit):
        for name in names:
            announce(name)
            lines += await SCENARIOS[name](client, sizes, tick)


def _show(target: Target, lines: Sequence[Summary], json_path: Path | None) -> None:
    """The table on standard output, or on standard error when the JSON takes that place."""
    from rich.console import Console

    from naiad.bench.report import as_json, notes, table

    to_stdout = json_path is not None and str(json_path) == "-"
    console = Console(stderr=to_stdout)
    if not console.is_terminal:
        console.width = _WIDTH
    if lines:
        console.print(table(lines))
    for note in notes(lines):
        console.print(note, markup=False, highlight=False)
    if json_path is None:
        return
    if to_stdout:
        click.echo(as_json(target, lines).decode(), nl=False)
    else:
        json_path.write_bytes(as_json(target, lines))


def _draw(target: Target, lines: Sequence[Summary], folder: Path) -> None:
    from naiad.bench.plot import draw

    for path in draw({f"{target.host}:{target.port}": lines}, folder):
        click.echo(f"drawn: {path}", err=True)

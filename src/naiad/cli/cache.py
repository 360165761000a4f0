"""`naiad cache`: the finished prompts that are kept on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click

from naiad.cli.options import config_option, json_option, settings_options
from naiad.cli.processes import at_once, glance
from naiad.cli.progress import mebibytes
from naiad.cli.running import running
from naiad.cli.settings import load
from naiad.engine.disk_folder import Summary, cache_dir, clear, summaries
from naiad.errors import ConfigError


@click.command()
@click.option("--clear", "is_clearing", is_flag=True, help="Delete all of it.")
@json_option
@settings_options("disk_cache_dir")
@config_option
def cache(is_clearing: bool, as_json: bool, disk_cache_dir: str | None, config: str | None) -> None:
    """Show the finished prompts that are kept on disk, or delete them with --clear.

    Each line is one model in one build of the engine. Servers that run tell what they have used of
    theirs. Clearing is safe while servers run.
    """
    settings = load({"disk_cache_dir": disk_cache_dir}, file=config)
    root = cache_dir(settings.engine.disk_cache_dir)
    if is_clearing:
        _clear(root)
        return
    found = summaries(root)
    if as_json:
        click.echo(json.dumps([_row(summary) for summary in found], indent=2))
        return
    if found:
        _print_table(found)
    else:
        click.echo(f"Nothing is cached in {root}.")
    for line in _told_by_servers():
        click.echo(line)


def _clear(root: Path) -> None:
    try:
        n_bytes = clear(root)
    except OSError as error:
        raise ConfigError(f"The cache in {root} cannot be cleared: {error.strerror}.") from error
    click.echo(f"Deleted {mebibytes(n_bytes)} from {root}.", err=True)


def _row(summary: Summary) -> dict[str, str | int | None]:
    return {
        "model": summary.model,
        "path": str(summary.path),
        "n_blocks": summary.n_blocks,
        "size_bytes": summary.n_bytes,
        "last_used": _utc(summary.used_at).isoformat() if summary.used_at else None,
    }


def _print_table(found: list[Summary]) -> None:
    width = max(len(_name(summary)) for summary in found)
    for summary in found:
        used = f"{_utc(summary.used_at).astimezone():%Y-%m-%d %H:%M}" if summary.used_at else "-"
        click.echo(
            f"{_name(summary):<{width}}  {summary.n_blocks:>7,} blocks  "
            f"{mebibytes(summary.n_bytes):>10}  {used:<16}  {summary.path}"
        )
    if len(found) > 1:
        click.echo(f"{mebibytes(sum(summary.n_bytes for summary in found))} in all.")


def _told_by_servers() -> Iterator[str]:
    """What became of the caches of those that run and answer."""
    servers = running()
    for server, told in zip(servers, at_once(glance, servers), strict=True):
        counts = told.get("cache")
        if counts:
            yield (
                f"{server.name} at {server.url}: {counts['n_saved']:,} saved, reused "
                f"{counts['n_from_memory']:,} from memory and {counts['n_from_disk']:,} from disk, "
                f"{mebibytes(counts['n_bytes_in_memory'])} in memory."
            )


def _name(summary: Summary) -> str:
    return summary.model or "unknown model"


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=0)

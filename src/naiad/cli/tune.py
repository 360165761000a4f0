"""`naiad tune`: measure which settings suit this machine, and keep what was found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from naiad.cli.options import config_option, elsewhere, json_option, settings_options
from naiad.cli.progress import reporter
from naiad.cli.settings import load
from naiad.config import Tuning
from naiad.errors import ModelFileError, NaiadError
from naiad.models.catalogue import find
from naiad.models.catalogue import models_dir as folder_of

if TYPE_CHECKING:
    from naiad.tune.record import LaneResult, Measured, Record

#: Below this ratio, what did not win was faster, but not steadily.
UNSTEADY = 0.95


@click.command()
@click.argument("model", required=False)
@click.option("--quick", is_flag=True, help="Half a minute instead of several.")
@click.option("--if-needed", is_flag=True, help="Do nothing when there is a result already.")
@click.option("--quiet", is_flag=True, help="Print what was chosen, and nothing if nothing is new.")
@click.option("--anyway", is_flag=True, help="Even while other programs keep the machine busy.")
@json_option
@settings_options("models_dir")
@config_option
def tune(
    model: str | None,
    quick: bool,
    if_needed: bool,
    quiet: bool,
    anyway: bool,
    as_json: bool,
    models_dir: str | None,
    config: str | None,
) -> None:
    """Measure which settings suit this machine best, with MODEL or with the starter model.

    The result is used from the next start on, for this model; that of the starter model for every
    model without its own. Let the machine rest meanwhile, and expect a few minutes.
    """
    settings = load({"models_dir": models_dir}, file=config)
    path = find(model, folder_of(settings.models_dir), elsewhere(settings))
    before = known(path)
    if before is not None and if_needed:
        if not quiet:
            click.echo(f"Measured already, {before.measured_at}; once more: naiad tune", err=True)
            click.echo(as_text(before, as_json))
        return
    if before is not None and not quiet:
        click.echo(f"Measured before, {before.measured_at}; that stays until this ends.", err=True)
    record = run(path, quick, anyway)
    click.echo("\n".join(chosen(record)) if quiet else as_text(record, as_json))
    where = keep(record, anyway)
    if not quiet:
        click.echo(
            f"Kept for {record.model} and this engine, from the next start on: {where}", err=True
        )


def known(path: Path) -> Record | None:
    """This very model's result for this build and machine, if there is one."""
    from naiad.tune import record as records

    return records.load(records.model_fingerprint(path), records.build_fingerprint())


def run(path: Path, is_quick: bool, anyway: bool) -> Record:
    """Measure. Raises NaiadError."""
    from naiad.tune.measure import FULL_EFFORT, QUICK_EFFORT, measure

    effort = QUICK_EFFORT if is_quick else FULL_EFFORT
    try:
        with reporter(in_bytes=False) as progress:
            progress.update("Measuring", 0.0, 1.0)
            return measure(
                path,
                effort,
                lambda now, done: progress.update("Measuring", done, 1.0, now),
                anyway=anyway,
            )
    except KeyboardInterrupt:
        click.echo("Stopped; nothing was kept, and earlier results stay as they are.", err=True)
        raise


def keep(record: Record, anyway: bool) -> Path:
    """Save the result, and return where. Raises NaiadError if it misleads or cannot be written."""
    from naiad.tune.record import save

    if record.was_busy and not anyway:
        raise NaiadError(
            "The result is not kept, since other programs were at work meanwhile; "
            "measure when the machine rests, or with --anyway."
        )
    try:
        return save(record)
    except OSError as error:
        raise NaiadError(f"The result cannot be kept: {error}") from error


def as_text(record: Record, as_json: bool) -> str:
    """The record as JSON or as a table."""
    import msgspec

    if as_json:
        return msgspec.json.format(msgspec.json.encode(record), indent=2).decode()
    return "\n".join(table(record))


def table(record: Record) -> Iterator[str]:
    """What was measured, what was chosen, and why."""
    kind = "quick" if record.is_quick else "full"
    yield f"{record.model}, {kind} run of {record.seconds:.0f} s, {record.measured_at}"
    yield ""
    yield f"  {'profile':<11}{'tried':<22}{'speed':>8}  {'verdict':<10}in detail"
    yield from (f"  {_row(one)}" for one in record.measured)
    if record.lane is not None:
        yield from ("", f"  {_lane(record.lane)}")
    for note in record.notes:
        yield f"  {note}"
    yield ""
    yield from chosen(record)


def chosen(record: Record) -> Iterator[str]:
    """The settings of each profile."""
    for profile, tuning in record.profiles.items():
        yield f"  {profile:<11}{describe(tuning)}"


def _row(one: Measured) -> str:
    head = f"{one.profile:<11}{one.what:<22}"
    if one.ratio is None:
        return f"{head}{'-':>8}  failed    {one.crashed}"
    verdict = "chosen" if one.won else "slower" if one.ratio >= 1.1 else "no gain"
    if not one.won and one.ratio < UNSTEADY:
        verdict = "unsteady"  # faster in all, but not each time
    detail = ", ".join(f"{name} {1 / ratio:.2f}x" for name, ratio in one.detail.items())
    return f"{head}{1 / one.ratio:>7.2f}x  {verdict:<10}{detail}"


def _lane(lane: LaneResult) -> str:
    from naiad.tune.search import lane_pays

    verdict = "worth it" if lane_pays(lane) else "not worth it"
    return (
        f"a lane for long prompts is {verdict}: longest gap {lane.gap_lane_ms:.0f} ms instead of "
        f"{lane.gap_chunks_ms:.0f}, its prompt takes {lane.ttft_lane_ms:.0f} ms instead of "
        f"{lane.ttft_chunks_ms:.0f} (alone {lane.ttft_alone_ms:.0f})"
    )


def describe(tuning: Tuning) -> str:
    """The settings in one line."""
    parts = [
        f"{tuning.threads} threads",
        f"micro-batch {tuning.n_ubatch}",
        f"flash attention {'on' if tuning.flash_attention else 'off'}",
        "one pool" if tuning.kv_unified else "streams apart",
        f"KV {tuning.kv_type}",
        f"extra buffers {'on' if tuning.extra_buffers else 'off'}",
    ]
    if tuning.wait_policy:
        parts.append(f"OpenMP waits {tuning.wait_policy}ly")
    if tuning.lane is not None:
        parts.append("long prompts in a lane" if tuning.lane else "no lane")
    return ", ".join(parts)


def tuning_of(model: Path, models_folder: Path) -> Record | None:
    """The result that applies to a model; see `naiad.tune.record.find`."""
    from naiad.tune.record import find as find_record

    try:
        starter: Path | None = find(None, models_folder)
    except ModelFileError:
        starter = None
    return find_record(model, starter)

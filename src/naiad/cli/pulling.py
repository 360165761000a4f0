"""`naiad pull hf:` and `https://`: what to take, and the bar while it comes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from naiad.cli.fitting import free_bytes
from naiad.cli.progress import mebibytes, reporter
from naiad.errors import ModelFileError
from naiad.models import hub, web
from naiad.models.quants import Proposal, Variant, choose, propose, variants


def pull_from(name: str, folder: Path, sha256: str, *, is_quiet: bool, asks: bool) -> Path:
    """Fetch what a name with a scheme means. Raises ModelFileError."""
    named = hub.hub_name(name)
    if named is None and name.startswith("hf:"):
        raise ModelFileError(f"{name!r} must be hf:OWNER/REPO or hf:OWNER/REPO:QUANTISATION.")
    if named is not None:
        path = _from_hub(named, is_quiet=is_quiet, asks=asks)
    else:
        with reporter(in_bytes=True, is_quiet=is_quiet) as progress:
            path = web.fetch(name, folder, sha256, progress.update)
    if not is_quiet:
        click.echo(f"Ready: {path}", err=True)
        click.echo(f"Talk to it: naiad run {path.stem}", err=True)
    return path


def _from_hub(named: hub.HubName, *, is_quiet: bool, asks: bool) -> Path:
    listing = hub.look_up(named.repo)
    found = variants(listing.files)
    if not found:
        raise ModelFileError(
            f"{named.repo} holds no GGUF file; look for a repository whose name ends with -GGUF."
        )
    variant = choose(found, named.wanted) if named.wanted else _chosen(found, is_quiet, asks)
    paths = [_fetched(listing, variant, number, is_quiet) for number in range(len(variant.files))]
    return paths[0]


def _chosen(found: Sequence[Variant], is_quiet: bool, asks: bool) -> Variant:
    """The proposed variant, or what somebody at a terminal prefers."""
    proposal = propose(found, free_bytes())
    if not is_quiet:
        click.echo("\n".join(table(found, proposal)), err=True)
    if asks and len(found) > 1 and sys.stdin.isatty() and sys.stderr.isatty():
        default = proposal.variant.quant or proposal.variant.name
        return choose(found, click.prompt("Which one", default=default, err=True))
    return proposal.variant


def table(found: Sequence[Variant], proposal: Proposal) -> list[str]:
    """What there is, with the proposed one marked and the reason for it."""
    names = [variant.quant or variant.name for variant in found]
    width = max(map(len, names))
    lines = []
    for name, variant in zip(names, found, strict=True):
        mark = "->" if variant is proposal.variant else "  "
        lines.append(f"{mark} {name:<{width}}  {mebibytes(variant.n_bytes):>10}")
    return [*lines, f"Proposed: {names[found.index(proposal.variant)]}, {proposal.reason}."]


def _fetched(listing: hub.Listing, variant: Variant, number: int, is_quiet: bool) -> Path:
    file = variant.files[number]
    if there := hub.cached(listing.repo, file):
        return there
    of = f", part {number + 1} of {len(variant.files)}" if len(variant.files) > 1 else ""
    if not is_quiet:
        click.echo(f"Fetching {file.name} ({mebibytes(file.n_bytes)}{of})", err=True)
    with reporter(in_bytes=True, is_quiet=is_quiet) as progress:
        return hub.fetch(listing, file, progress.update)

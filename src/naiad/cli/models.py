"""`naiad pull`, `list`, `show` and `rm`: the models folder from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from naiad.cli.options import config_option, json_option, models_folder, settings_options
from naiad.cli.progress import mebibytes, reporter
from naiad.errors import ModelFileError
from naiad.models.catalogue import find, installed


@click.command()
@click.argument("name")
@settings_options("models_dir")
@config_option
def pull(name: str, models_dir: str | None, config: str | None) -> None:
    """Fetch the model NAME into the models folder.

    NAME is `starter` (SmolLM2 135M Instruct) or `gemma3` (Gemma 3 270M). Nothing is done when the
    model is already there.
    """
    fetch(name, models_folder(models_dir, config))


def fetch(name: str, folder: Path) -> Path:
    """Fetch a model with progress on the terminal, and return where it is."""
    from naiad.models.pull import pull as pull_model
    from naiad.models.pull import source_named

    source = source_named(name)
    path = folder / source.filename
    if not path.exists():
        about = f"{source.title}, {mebibytes(source.n_bytes)}, {source.license}"
        click.echo(f"Fetching {about} into {folder}", err=True)
    with reporter(in_bytes=True) as progress:
        pulled = pull_model(source, folder, progress.update)
    click.echo(f"{'Already here' if pulled.was_there else 'Ready'}: {pulled.path}", err=True)
    return pulled.path


@click.command("list")
@json_option
@settings_options("models_dir")
@config_option
def list_models(as_json: bool, models_dir: str | None, config: str | None) -> None:
    """List the models in the models folder."""
    folder = models_folder(models_dir, config)
    models = installed(folder)
    if as_json:
        rows = [{"name": m.name, "path": str(m.path), "size_bytes": m.n_bytes} for m in models]
        click.echo(json.dumps(rows, indent=2))
        return
    if not models:
        click.echo(f"No models in {folder}. Fetch the starter model with: naiad pull starter")
        return
    width = max(len(model.name) for model in models)
    for model in models:
        click.echo(f"{model.name:<{width}}  {mebibytes(model.n_bytes):>10}  {model.path}")


@click.command()
@click.argument("name")
@json_option
@settings_options("models_dir")
@config_option
def show(name: str, as_json: bool, models_dir: str | None, config: str | None) -> None:
    """Tell what the model NAME (an installed model, or a path) says about itself."""
    path = find(name, models_folder(models_dir, config))
    facts, problem = look_at(path)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        for key, value in facts.items():
            click.echo(f"{key + ':':<20}{_for_people(key, value)}")
    if problem is not None:
        raise problem


@click.command("rm")
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@settings_options("models_dir")
@config_option
def remove(name: str, yes: bool, models_dir: str | None, config: str | None) -> None:
    """Delete the installed model NAME. Files outside the models folder are left alone."""
    folder = models_folder(models_dir, config)
    path = find(name, folder)
    if path.parent != folder:
        raise ModelFileError(f"{path} is not in the models folder {folder}; delete it yourself.")
    size = mebibytes(path.stat().st_size)
    if not yes:
        click.confirm(f"Delete {path} ({size})?", abort=True)
    path.unlink()
    click.echo(f"Deleted {path} ({size}).", err=True)


def look_at(path: Path) -> tuple[dict[str, Any], ModelFileError | None]:
    """What `show` prints, and what is wrong with the file, if anything is."""
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
    return facts, None


def _for_people(key: str, value: Any) -> str:
    if key == "size_bytes":
        return mebibytes(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if value in (None, "") else str(value)

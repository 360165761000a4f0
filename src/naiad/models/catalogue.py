"""The models folder, and how a name on the command line becomes a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from naiad.errors import ModelFileError
from naiad.models.sources import SOURCES, STARTER

MODELS_DIR_ENV = "NAIAD_MODELS_DIR"


@dataclass(frozen=True, slots=True)
class Installed:
    """A model file in the models folder."""

    name: str  # file stem
    path: Path
    n_bytes: int


def models_dir(override: str | Path | None = None, env: Mapping[str, str] = os.environ) -> Path:
    """The models folder: the override, else NAIAD_MODELS_DIR, else the user's data folder."""
    chosen = override or env.get(MODELS_DIR_ENV)
    if chosen:
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_data_dir("naiad")) / "models"


def installed(folder: Path) -> list[Installed]:
    """The models in the folder, by name; a folder that does not exist holds none."""
    if not folder.is_dir():
        return []
    files = (p for p in folder.iterdir() if p.suffix.lower() == ".gguf" and p.is_file())
    found = [Installed(p.stem, p, p.stat().st_size) for p in files if not p.name.startswith(".")]
    return sorted(found, key=lambda model: model.name.lower())


def find(name: str | None, folder: Path) -> Path:
    """The file that a MODEL argument means; None and "starter" are the starter model.

    A name is a path when such a file exists or it looks like one (a separator, or .gguf at its
    end); else the stem of an installed file, in any case, or a name that `naiad pull` knows.

    Raises:
        ModelFileError: there is no such file or model; the message says what to do.
    """
    name = name or STARTER.name
    if name in SOURCES:
        return _fetched(name, folder)
    path = Path(name).expanduser()
    if path.is_file():
        return path.absolute()
    if match := named(name, folder):
        return match
    if path.is_dir():
        raise ModelFileError(f"{path} is a folder; name the GGUF file in it.")
    if len(path.parts) > 1 or path.suffix.lower() == ".gguf":
        raise ModelFileError(f"There is no model file {name}, nor one of that name in {folder}.")
    raise ModelFileError(f"There is no model {name!r} in {folder}. {_what_there_is(folder)}")


def named(name: str, folder: Path) -> Path | None:
    """The installed model of that name, or None; whatever the name is, it is never taken as a path.

    Names are the stem of a file, with or without .gguf and in any case, and those of `naiad pull`.
    """
    wanted = SOURCES[name].filename.lower() if name in SOURCES else name.lower()
    return next(
        (m.path for m in installed(folder) if wanted in (m.name.lower(), m.path.name.lower())), None
    )


def _fetched(name: str, folder: Path) -> Path:
    path = folder / SOURCES[name].filename
    if not path.is_file():
        raise ModelFileError(
            f"The {name} model is not in {folder} yet; fetch it with: naiad pull {name}"
        )
    return path


def _what_there_is(folder: Path) -> str:
    names = [model.name for model in installed(folder)]
    if names:
        return f"Installed: {', '.join(names)}."
    return "Nothing is installed yet; fetch the starter model with: naiad pull starter"

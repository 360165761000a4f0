"""The models folder, and how a name on the command line becomes a file."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from naiad.errors import ModelFileError
from naiad.models.places import MAX_DEPTH, Place, model_files
from naiad.models.quants import quant_of
from naiad.models.sources import SOURCES, STARTER

MODELS_DIR_ENV = "NAIAD_MODELS_DIR"


#: The first part of a model in several files, and its further ones; llama.cpp is given the first.
_PART = re.compile(r"-(\d{5})-of-(\d{5})$")


@dataclass(frozen=True, slots=True)
class Installed:
    """A model file. place: the program whose folder it lies in; repo: OWNER/REPO where known.

    n_bytes: of all its parts, when it comes in several files.
    """

    name: str  # file stem
    path: Path
    n_bytes: int
    place: str = ""
    repo: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """What it can be called by, in lower case."""
        short = _PART.sub("", self.name)
        names = (self.name, self.path.name, short, *self._hub_names())
        return tuple(name.lower() for name in names)

    def _hub_names(self) -> tuple[str, ...]:
        if not self.repo:
            return ()
        quant = quant_of(self.path.name)
        told = (self.repo, f"{self.repo}:{self.path.name}", f"{self.repo}:{quant}")
        return (*told, *(f"hf:{name}" for name in told))


def models_dir(override: str | Path | None = None, env: Mapping[str, str] = os.environ) -> Path:
    """The models folder: the override, else NAIAD_MODELS_DIR, else the user's data folder."""
    chosen = override or env.get(MODELS_DIR_ENV)
    if chosen:
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_data_dir("naiad")) / "models"


def installed(folder: Path, elsewhere: Sequence[Place] = ()) -> list[Installed]:
    """The models in the folder by name, then those of other places, each file once.

    A folder that does not exist holds none. Projectors of pictures are left out: they are no
    models by themselves.
    """
    own = sorted(_of(Place(folder), 1), key=lambda model: model.name.lower())
    found = {model.path.resolve(): model for model in own}
    for place in elsewhere:
        for model in _of(place, MAX_DEPTH):
            found.setdefault(model.path.resolve(), model)
    return list(found.values())


def _of(place: Place, depth: int) -> Iterator[Installed]:
    for path, repo in model_files(place, depth):
        part = _PART.search(path.stem)
        is_model = (not part or int(part[1]) == 1) and not path.name.startswith("mmproj")
        if is_model and path.is_file():
            yield Installed(path.stem, path, _n_bytes(path), place.title, repo)


def _n_bytes(path: Path) -> int:
    return sum(part.stat().st_size for part in parts_of(path) if part.is_file())


def parts_of(path: Path) -> list[Path]:
    """The files of the model that begins with this one: itself, unless its name counts parts."""
    part = _PART.search(path.stem)
    if not part:
        return [path]
    stem, n = path.stem[: part.start()], int(part[2])
    return [path.with_name(f"{stem}-{i:05}-of-{n:05}{path.suffix}") for i in range(1, n + 1)]


def find(name: str | None, folder: Path, elsewhere: Sequence[Place] = ()) -> Path:
    """The file that a MODEL argument means; None and "starter" are the starter model.

    A name is a path when such a file exists or it looks like one (a separator, or .gguf at its
    end); else the stem of an installed file, in any case, or a name that `naiad pull` knows.

    Raises:
        ModelFileError: there is no such file or model; the message says what to do. Details:
            `unknown`, the name, when it looks like no path and nothing is known by it.
    """
    name = name or STARTER.name
    if name in SOURCES:
        return _fetched(name, folder)
    path = Path(name).expanduser()
    if path.is_file():
        return path.absolute()
    if match := named(name, folder, elsewhere):
        return match
    if name.startswith(("hf:", "https://")):
        raise ModelFileError(f"{name} is not on this machine yet; fetch it with: naiad pull {name}")
    if path.is_dir():
        raise ModelFileError(f"{path} is a folder; name the GGUF file in it.")
    if len(path.parts) > 1 or path.suffix.lower() == ".gguf":
        raise ModelFileError(f"There is no model file {name}, nor one of that name in {folder}.")
    told = _what_there_is(name, folder, elsewhere)
    raise ModelFileError(f"There is no model {name!r} in {folder}. {told}", unknown=name)


def named(name: str, folder: Path, elsewhere: Sequence[Place] = ()) -> Path | None:
    """The installed model of that name, or None; whatever the name is, it is never taken as a path.

    Names are the stem of a file, with or without .gguf and in any case, those of `naiad pull`, and
    OWNER/REPO[:QUANT] for files that came from a repository.
    """
    wanted = SOURCES[name].filename.lower() if name in SOURCES else name.lower()
    return next((m.path for m in installed(folder, elsewhere) if wanted in m.names), None)


def _fetched(name: str, folder: Path) -> Path:
    path = folder / SOURCES[name].filename
    if not path.is_file():
        raise ModelFileError(
            f"The {name} model is not in {folder} yet; fetch it with: naiad pull {name}"
        )
    return path


def _what_there_is(name: str, folder: Path, elsewhere: Sequence[Place]) -> str:
    names = [model.name for model in installed(folder, elsewhere)]
    if not names:
        return "Nothing is installed yet; fetch the starter model with: naiad pull starter"
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"Installed: {', '.join(names)}.{hint}"

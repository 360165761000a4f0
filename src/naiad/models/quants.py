"""Which of a repository's files to take: quantisations by name, and a proposal with its reason."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from naiad.errors import ModelFileError

#: As they stand in file names: Q4_K_M, IQ3_XXS, BF16, MXFP4, TQ1_0; "UD-" names are unsloth's.
_QUANT = re.compile(
    r"(?<![A-Z0-9])((?:UD-)?(?:I?Q[1-8](?:_[0-9A-Z]+)*|TQ[12]_0|MXFP4(?:_MOE)?|BF16|F16|FP16|F32|FP32))"
    r"(?![A-Z0-9])",
    re.IGNORECASE,
)
_PART = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)", re.IGNORECASE)
#: Best first where all of them fit: four bits cost little quality and half the memory of eight.
PREFERRED = ("Q4_K_M", "UD-Q4_K_XL", "Q4_K_S", "IQ4_XS", "IQ4_NL", "MXFP4", "MXFP4_MOE", "Q4_0")
#: Beside the weights: the cache of a conversation, and what else runs.
HEADROOM = 0.75
_NO_MODELS = ("mmproj", "imatrix")


@dataclass(frozen=True, slots=True)
class RepoFile:
    """A file of a repository. sha256: "" where the hub does not tell."""

    name: str
    n_bytes: int
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Variant:
    """One model of a repository: its file, or its parts in order. quant: "" when unnamed."""

    quant: str
    files: tuple[RepoFile, ...]

    @property
    def name(self) -> str:
        """The name of its first file."""
        return self.files[0].name

    @property
    def n_bytes(self) -> int:
        return sum(file.n_bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class Proposal:
    """What to take, and why, as a sentence."""

    variant: Variant
    reason: str


def quant_of(filename: str) -> str:
    """The quantisation that a file's name tells, in upper case; "" when it tells none."""
    found = _QUANT.findall(filename)
    return str(found[-1]).upper() if found else ""


def variants(files: Sequence[RepoFile]) -> list[Variant]:
    """The models among a repository's files, the smallest first; parts are put together."""
    groups: dict[str, list[RepoFile]] = {}
    for file in sorted(files, key=lambda file: file.name):
        base = file.name.rpartition("/")[2].lower()
        if base.endswith(".gguf") and not any(word in base for word in _NO_MODELS):
            groups.setdefault(_PART.sub("", file.name), []).append(file)
    whole = [
        v for name, group in groups.items() if _is_whole(v := Variant(quant_of(name), tuple(group)))
    ]
    return sorted(whole, key=lambda variant: variant.n_bytes)


def _is_whole(variant: Variant) -> bool:
    part = _PART.search(variant.name)
    return part is None or int(part[2]) == len(variant.files)


def propose(found: Sequence[Variant], free_bytes: int) -> Proposal:
    """The variant that suits this machine: four bits where that fits, else the largest that does.

    free_bytes: memory that a model may use. found: not empty, the smallest first.
    """
    room = int(free_bytes * HEADROOM)
    fitting = [variant for variant in found if variant.n_bytes <= room]
    told = f"{_gib(room)} of memory can hold weights here"
    if len(found) == 1:
        fits = "it fits" if fitting else "and it does not fit"
        return Proposal(found[0], f"the only one there is; {told}, {fits}")
    if not fitting:
        return Proposal(found[0], f"the smallest there is, and yet too large: {told}")
    for name in PREFERRED:
        for variant in fitting:
            if variant.quant == name:
                return Proposal(variant, f"four bits: little loss, little memory; {told}")
    below = [v for v in fitting if v.quant not in {"F16", "FP16", "BF16", "F32", "FP32"}]
    best = (below or fitting)[-1]
    return Proposal(best, f"the largest quantisation that fits; {told}")


def choose(found: Sequence[Variant], wanted: str) -> Variant:
    """The variant of that quantisation or file name, in any case.

    Raises ModelFileError that lists what there is.
    """
    wanted = wanted.lower()
    exact = [v for v in found if wanted in {v.quant.lower(), *_file_names(v)}]
    loose = [v for v in found if v.quant.lower().removeprefix("ud-") == wanted]
    for matches in (exact, loose):
        if matches:
            return matches[0]
    told = ", ".join(v.quant or v.name for v in found)
    raise ModelFileError(f"There is no {wanted!r} in this repository; there is: {told}.")


def _file_names(variant: Variant) -> set[str]:
    names = {file.name.lower() for file in variant.files}
    return names | {name.rpartition("/")[2] for name in names}


def _gib(n_bytes: float) -> str:
    return f"{n_bytes / (1 << 30):.1f} GiB"

"""What `naiad doctor` says of measured settings."""

from __future__ import annotations

from pathlib import Path

from naiad.cli.tune import describe, tuning_of
from naiad.config import Profile
from naiad.errors import ModelFileError
from naiad.models.catalogue import find

TODO = "Measure what suits this machine: naiad tune"


def look_at_tuning(
    model: str | None, folder: Path, profile: Profile
) -> tuple[bool, str, str] | None:
    """Whether measured settings apply to a model, what they are, and what to do; None: no model."""
    try:
        path = find(model, folder)
    except ModelFileError:
        return None
    record = tuning_of(path, folder)
    if record is None:
        return False, f"nothing was measured on this machine with this build for {path.stem}", TODO
    tuning = record.profiles.get(profile)
    if tuning is None:
        return False, f"the {profile} profile was not measured ({record.measured_at})", TODO
    kind = "quick" if record.is_quick else "full"
    whose = "" if record.model == path.stem else f" (of {record.model}; {path.stem} has none)"
    text = f"{describe(tuning)}; {kind} run of {record.measured_at}{whose}"
    todo = "The machine was busy then; measure when it rests: naiad tune"
    return True, text, todo if record.was_busy else ""

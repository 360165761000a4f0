"""Build and install the engine: `python -m naiad.setup.engine [--gpu cuda|vulkan|metal|none]`.

Does nothing, in a moment, when what is installed is already the build that this machine needs.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
from pathlib import Path

from naiad.setup.build import Progress, build_wheel, cache_folder, cached_wheel
from naiad.setup.failure import SetupError
from naiad.setup.gpu import default_gpu
from naiad.setup.plan import PACKAGE, BuildPlan, make_plan
from naiad.setup.record import (
    BuildRecord,
    is_current,
    libraries_digest,
    load_record,
    save_record,
)

_LOAD = "import llama_cpp; print(llama_cpp.llama_print_system_info().decode())"


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description="Build and install naiad's engine.")
    parser.add_argument("--gpu", default="", help="cuda, vulkan, metal or none; default: as before")
    parser.add_argument("--check", action="store_true", help="only load the installed engine")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            _say(f"The engine loads. {system_info()}")
        else:
            set_up(options.gpu)
    except SetupError as error:
        print(error.message, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def set_up(gpu: str, cache: Path | None = None) -> BuildRecord:
    """Bring the right engine into this environment; "" keeps the GPU choice of last time.

    Raises:
        SetupError: it cannot be built or installed; the message says what to do.
    """
    record = load_record()
    plan = make_plan(gpu or (record.gpu if record else default_gpu()))
    if record is not None and is_current(record, plan):
        _say(f"The engine is up to date: {describe(record)}.")
        return record
    cache = cache or cache_folder()
    wheel = cached_wheel(plan, cache) or _build(plan, cache)
    return _install(plan, wheel)


def describe(record: BuildRecord) -> str:
    """One line that says which build it is."""
    flags = f" with {record.cxx_flags}" if record.cxx_flags else ""
    gpu = "" if record.gpu == "none" else f", {record.gpu}"
    return f"{PACKAGE} {record.version}, {record.compiler}{flags}{gpu}, for {record.cpu}"


def system_info() -> str:
    """llama.cpp's own line about the features it was built with.

    Raises:
        SetupError: the engine is not installed or does not load.
    """
    command = [sys.executable, "-P", "-c", _LOAD]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        lines = answer.stderr.strip().splitlines() or [f"exit status {answer.returncode}"]
        raise SetupError(f"The engine does not load: {lines[-1]}. Build it with: make setup")
    return answer.stdout.strip().rstrip("| ")


def _build(plan: BuildPlan, cache: Path) -> Path:
    flags = f" with {plan.cxx_flags}" if plan.cxx_flags else ""
    _say(f"Compiling the engine ({plan.requirement}, {plan.compiler}{flags}, GPU: {plan.gpu})")
    _say("  for this machine; once, a few minutes.")
    return build_wheel(plan, cache, Progress(_write, sys.stdout.isatty()))


def _install(plan: BuildPlan, wheel: Path) -> BuildRecord:
    _say(f"Installing {wheel.name}.")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-index"]
    command += ["--no-deps", "--force-reinstall", str(wheel)]
    if subprocess.run(command, check=False).returncode != 0:
        raise SetupError(f"pip could not install {wheel}.")
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record = BuildRecord.of(plan, libraries_digest(), now)
    save_record(record)
    return record


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _say(text: str) -> None:
    _write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())

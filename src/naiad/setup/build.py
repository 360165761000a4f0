"""Run the build, show how far it is, and keep the wheel under its fingerprint.

pip's own cache is kept out of it (`--no-cache-dir`, `--no-binary`): a wheel of the same version
that was built elsewhere, or without the flags, looks the same to pip and is another engine.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from naiad.setup.failure import SetupError
from naiad.setup.plan import PACKAGE, BuildPlan

_STEP = re.compile(r"^\s*\[(\d+)/(\d+)\]")
#: Lines of the log that are shown when the build fails.
LAST_LINES = 25


def cache_folder() -> Path:
    """Where finished wheels are kept: the user's cache folder."""
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "naiad" / "engine"


def cached_wheel(plan: BuildPlan, cache: Path) -> Path | None:
    """The finished wheel of exactly this plan, if there is one; damaged ones are deleted."""
    for wheel in (cache / plan.fingerprint).glob("*.whl"):
        if _is_sound(wheel):
            return wheel
        wheel.unlink()
    return None


def _is_sound(wheel: Path) -> bool:
    """Every file in it has its checksum: a full disk or a lost power line leaves less."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error):
        return False


def build_wheel(plan: BuildPlan, cache: Path, progress: Progress) -> Path:
    """Build the wheel and keep it in the cache; takes minutes.

    Raises:
        SetupError: the build failed; its last lines have been shown, and the log is kept.
    """
    cache.mkdir(parents=True, exist_ok=True)
    log = cache / "build.log"
    with tempfile.TemporaryDirectory(prefix="build-", dir=cache) as scratch:
        _run_build(plan, Path(scratch), log, progress)
        if not list(Path(scratch).glob("*.whl")):
            raise SetupError(f"pip built no wheel of {PACKAGE}; see {log}.")
        return _keep(Path(scratch), cache / plan.fingerprint)


def _run_build(plan: BuildPlan, folder: Path, log: Path, progress: Progress) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-cache-dir"]
    command += ["--no-binary", PACKAGE, "--no-input", "-w", str(folder), plan.requirement]
    try:
        for line in _lines_of(command, plan.environment(os.environ), log):
            progress.saw(line)
    except subprocess.CalledProcessError:
        progress.end()
        raise SetupError(f"{_last_lines(log)}\n{_advice(log)} The whole log: {log}") from None
    progress.end()


def _lines_of(command: list[str], env: dict[str, str], log: Path) -> Iterator[str]:
    """Run a command, give its lines as they come, and keep them in the log."""
    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                yield line
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)


def _keep(built: Path, target: Path) -> Path:
    """Give the folder its final name; another build of the same plan may have been faster."""
    target.mkdir(exist_ok=True)
    for wheel in built.glob("*.whl"):
        wheel.replace(target / wheel.name)
    return next(target.glob("*.whl"))


def _last_lines(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(line[:200] for line in lines[-LAST_LINES:])


#: what the log says -> what to do about it; the first match counts
_ADVICE = (
    (r"Could not find a version|No matching distribution", "pip could not find the source of "
     f"{PACKAGE}: check the network and the package index that pip is set to."),
    (r"No space left on device", "The disk is full: the build needs about 1 GiB."),
    (r"Killed signal|internal compiler error: Killed", "The compiler ran out of memory: close "
     "programs, or set CMAKE_BUILD_PARALLEL_LEVEL=1 and try again."),
    (r"CMAKE_CXX_COMPILER|No CMAKE_C_COMPILER|compiler.*not able to compile", "The C++ compiler "
     "does not work: install g++ or clang, with the C library's headers (libc6-dev)."),
    (r"SPIRV", "The Vulkan build needs the SPIR-V headers: install spirv-headers."),
)  # fmt: skip


def _advice(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace")
    for pattern, advice in _ADVICE:
        if re.search(pattern, text):
            return advice
    return "The engine could not be compiled; a current g++ (12 or later) or clang is needed."


@dataclass(slots=True)
class Progress:
    """Shows compiler steps: a line that redraws itself on a terminal, else every tenth part."""

    write: Callable[[str], object]
    is_terminal: bool
    clock: Callable[[], float] = time.monotonic
    _began: float = -1.0
    _tenth: int = -1
    _open: bool = False

    def saw(self, line: str) -> None:
        """Take a line of the build's output."""
        if self._began < 0:
            self._began = self.clock()
        if match := _STEP.match(line):
            self._step(int(match[1]), int(match[2]))

    def end(self) -> None:
        """Finish a line that is still being redrawn."""
        if self._open:
            self.write("\n")
            self._open = False

    def _step(self, done: int, total: int) -> None:
        seconds = int(self.clock() - self._began)
        text = f"  compiling [{done}/{total}] {seconds // 60}:{seconds % 60:02}"
        tenth = done * 10 // max(total, 1)
        if self.is_terminal:
            self.write(f"\r{text}")
            self._open = True
        elif tenth > self._tenth:
            self.write(f"{text}\n")
        self._tenth = tenth

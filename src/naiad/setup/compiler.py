"""Find the C++ compiler, and know the one defect that matters.

On x86-64, GCC before 12.4 (and 13.0 to 13.2) takes only the first eight bytes of the tile
configuration as an input of `_tile_loadconfig` and drops the other stores as dead. An engine built
so faults at its first AMX instruction. Both dead-store passes off keep the stores, at no measurable
cost; either one alone is not enough.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from naiad.setup.failure import SetupError

KEEP_TILE_STORES = ("-fno-tree-dse", "-fno-dse")
CANDIDATES = ("c++", "g++", "clang++")

HOW_TO_GET_ONE = (
    "There is no C++ compiler. Install one: `apt-get install g++` (Debian, Ubuntu), "
    "`dnf install gcc-c++` (Fedora), `xcode-select --install` (macOS); "
    "or name one in the environment variable CXX."
)


@dataclass(frozen=True, slots=True)
class Compiler:
    """kind: "gcc" or "clang"; cxx, cc: the commands for C++ and C; banner: how it names itself."""

    kind: str
    version: tuple[int, ...]
    cxx: str
    cc: str
    banner: str

    def __str__(self) -> str:
        return f"{self.kind} {'.'.join(map(str, self.version))} ({self.cxx})"


def find_compiler(env: Mapping[str, str] = os.environ) -> Compiler:
    """The compiler that CXX names, else the first of c++, g++, clang++ on the path.

    Raises:
        SetupError: there is none, or the named one does not run.
    """
    if named := env.get("CXX"):
        return identify(named, env)
    for name in CANDIDATES:
        if shutil.which(name):
            return identify(name, env)
    raise SetupError(HOW_TO_GET_ONE)


def identify(
    cxx: str, env: Mapping[str, str] = os.environ, ask: Callable[..., str] | None = None
) -> Compiler:
    """Ask a compiler what it is. Raises SetupError when it does not run."""
    ask = ask or _ask
    banner = ask(cxx, "--version").partition("\n")[0].strip()
    kind = "clang" if "clang" in banner.lower() else "gcc"
    told = ask(cxx, "-dumpversion") if kind == "clang" else ask(cxx, "-dumpfullversion")
    match = re.search(r"\d+(\.\d+)*", told)
    if match is None:
        raise SetupError(f"The compiler {cxx} does not tell its version; set CXX to GCC or clang.")
    version = tuple(int(number) for number in match[0].split("."))
    return Compiler(kind, version, cxx, env.get("CC") or c_compiler_for(cxx), banner)


def c_compiler_for(cxx: str) -> str:
    """The C compiler that belongs to a C++ compiler: g++-12 has gcc-12, clang++ has clang."""
    folder, name = str(Path(cxx).parent), Path(cxx).name
    for plus, plain in (("clang++", "clang"), ("g++", "gcc"), ("c++", "cc")):
        if plus in name:
            name = name.replace(plus, plain)
            break
    return name if folder == "." else str(Path(folder) / name)


def drops_tile_stores(compiler: Compiler, machine: str | None = None) -> bool:
    """True when this compiler breaks AMX unless it is told not to drop stores."""
    if compiler.kind != "gcc" or (machine or platform.machine()) not in ("x86_64", "AMD64"):
        return False
    major = compiler.version[0]
    minor = compiler.version[1] if len(compiler.version) > 1 else 0
    return major < 12 or (major == 12 and minor < 4) or (major == 13 and minor < 3)


def _ask(cxx: str, question: str) -> str:
    try:
        answer = subprocess.run([cxx, question], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError(f"The C++ compiler {cxx} does not run: {error}") from None
    return answer.stdout

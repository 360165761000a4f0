"""What is to be built, as one value with a fingerprint: equal fingerprints, equal engines."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from naiad.setup.compiler import KEEP_TILE_STORES, drops_tile_stores, find_compiler
from naiad.setup.cpu import processor
from naiad.setup.gpu import cmake_switches, require_toolkit

PACKAGE = "llama-cpp-python"
#: The binding's C structs match the library of this very release.
VERSION = "0.3.36"
CMAKE_ARGS = (
    "-DGGML_NATIVE=ON",
    "-DLLAVA_BUILD=OFF",
    "-DLLAMA_BUILD_TOOLS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
)


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """Everything that decides what the compiled engine is.

    cxx_flags: what the environment asks for in CXXFLAGS, and what the compiler needs.
    cpu_features: a native build is for one processor, so another processor is another build.
    """

    version: str
    compiler: str
    compiler_banner: str
    cxx: str
    cc: str
    cxx_flags: str
    c_flags: str
    cmake_args: tuple[str, ...]
    gpu: str
    cpu: str
    cpu_features: tuple[str, ...]
    python: str
    platform: str

    @property
    def requirement(self) -> str:
        return f"{PACKAGE}=={self.version}"

    @property
    def fingerprint(self) -> str:
        """32 hex digits."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """The environment the build runs in."""
        build = {"CMAKE_ARGS": " ".join(self.cmake_args), "CXX": self.cxx, "CC": self.cc}
        flags = {"CXXFLAGS": self.cxx_flags, "CFLAGS": self.c_flags}
        # FORCE_CMAKE and friends of the caller must not reach the build: they are not in the plan.
        kept = {k: v for k, v in env.items() if k not in ("FORCE_CMAKE", "SKBUILD_CMAKE_ARGS")}
        return kept | build | {name: value for name, value in flags.items() if value}


def make_plan(gpu: str, env: Mapping[str, str] = os.environ) -> BuildPlan:
    """Decide how to build the engine here.

    Raises:
        SetupError: no compiler, or the GPU's toolkit is missing.
    """
    require_toolkit(gpu, env)
    compiler, cpu = find_compiler(env), processor()
    cured = KEEP_TILE_STORES if drops_tile_stores(compiler, cpu.machine) else ()
    asked = env.get("CXXFLAGS", "").split()
    return BuildPlan(
        version=VERSION,
        compiler=f"{compiler.kind} {'.'.join(map(str, compiler.version))}",
        compiler_banner=compiler.banner,
        cxx=compiler.cxx,
        cc=compiler.cc,
        cxx_flags=" ".join([*asked, *cured]),
        c_flags=env.get("CFLAGS", ""),
        cmake_args=(*CMAKE_ARGS, *cmake_switches(gpu, env), *env.get("CMAKE_ARGS", "").split()),
        gpu=gpu,
        cpu=cpu.name,
        cpu_features=cpu.features,
        python=str(sys.implementation.cache_tag),
        platform=sysconfig.get_platform(),
    )

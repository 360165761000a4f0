"""Which GPU back end to build, and whether the toolkit it needs is here."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from naiad.setup.failure import SetupError

#: back end -> the switch of llama.cpp's build that turns it on
SWITCHES = {
    "none": "",
    "cuda": "-DGGML_CUDA=ON",
    "vulkan": "-DGGML_VULKAN=ON",
    "metal": "-DGGML_METAL=ON",
}
NVCC_HOME = Path("/usr/local/cuda/bin/nvcc")
HEADER_FOLDERS = ("/usr/include", "/usr/local/include", "/opt/homebrew/include")


def require_toolkit(gpu: str, env: Mapping[str, str] = os.environ) -> None:
    """Check that a back end can be built here.

    Raises:
        SetupError: unknown name, or the toolkit is missing; the message says what to install.
    """
    if gpu not in SWITCHES:
        raise SetupError(f"GPU={gpu} is unknown; it must be one of: {', '.join(SWITCHES)}.")
    missing = {"cuda": _missing_cuda, "vulkan": _missing_vulkan, "metal": _missing_metal}
    if gpu in missing and (complaint := missing[gpu](env)):
        raise SetupError(complaint)


def default_gpu() -> str:
    """What is built when nobody says: Metal on macOS, where it needs no toolkit; else none."""
    return "metal" if sys.platform == "darwin" else "none"


def cmake_switches(gpu: str, env: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The switches for a back end; Metal is on by itself on macOS and has to be turned off."""
    switches = [SWITCHES[gpu]] if SWITCHES[gpu] else []
    if gpu == "cuda":
        switches.append(f"-DCMAKE_CUDA_COMPILER={nvcc(env)}")
    if sys.platform == "darwin" and gpu != "metal":
        switches.append("-DGGML_METAL=OFF")
    return tuple(switches)


def nvcc(env: Mapping[str, str] = os.environ) -> str | None:
    """The CUDA compiler: CUDACXX, on the path, or in the toolkit's usual place."""
    usual = str(NVCC_HOME) if NVCC_HOME.exists() else None
    return env.get("CUDACXX") or shutil.which("nvcc", path=env.get("PATH")) or usual


def _missing_cuda(env: Mapping[str, str]) -> str:
    if nvcc(env):
        return ""
    return (
        "GPU=cuda needs the CUDA toolkit and its compiler nvcc was not found; install it from "
        "https://developer.nvidia.com/cuda-downloads, or set CUDACXX to the path of nvcc."
    )


def _missing_vulkan(env: Mapping[str, str]) -> str:
    sdk = env.get("VULKAN_SDK")
    folders = [*HEADER_FOLDERS, *([f"{sdk}/include"] if sdk else [])]
    has_headers = any((Path(folder) / "vulkan" / "vulkan.h").exists() for folder in folders)
    if shutil.which("glslc", path=env.get("PATH")) and has_headers:
        return ""
    return (
        "GPU=vulkan needs the Vulkan headers and the shader compiler glslc; install "
        "`libvulkan-dev glslc spirv-headers` (Debian, Ubuntu), `vulkan-headers glslc` (Fedora) "
        "or the Vulkan SDK from https://vulkan.lunarg.com."
    )


def _missing_metal(env: Mapping[str, str]) -> str:
    del env
    return "" if sys.platform == "darwin" else "GPU=metal exists on macOS only."

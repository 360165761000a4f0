"""Deciding how the engine is built: compiler, flags, processor, GPU, and what is recorded."""

from __future__ import annotations

import ast
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from naiad.setup import compiler as compiling
from naiad.setup import cpu, gpu, plan, record
from naiad.setup.compiler import Compiler, c_compiler_for, drops_tile_stores, find_compiler
from naiad.setup.failure import SetupError
from naiad.setup.plan import BuildPlan, make_plan
from naiad.setup.record import BuildRecord, folder_digest, is_current, load_record, save_record

SETUP = Path(record.__file__).parent


def test_this_room_needs_nothing_that_is_installed() -> None:
    for path in SETUP.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                known = name.split(".")[0] in sys.stdlib_module_names
                assert known or name.startswith(("naiad.setup", "naiad.errors")), (path, name)


# --- the compiler


def compiler(kind: str, *version: int) -> Compiler:
    return Compiler(kind, version, "c++", "cc", "banner")


@pytest.mark.parametrize(
    ("kind", "version", "drops"),
    [
        ("gcc", (11, 4, 0), True),
        ("gcc", (12, 2, 0), True),
        ("gcc", (12, 3, 0), True),
        ("gcc", (12, 4, 0), False),
        ("gcc", (13,), True),
        ("gcc", (13, 2, 0), True),
        ("gcc", (13, 3, 0), False),
        ("gcc", (14, 1, 0), False),
        ("gcc", (15, 0, 1), False),
        ("clang", (11, 0, 0), False),
        ("clang", (19, 1, 7), False),
    ],
)
def test_which_compilers_drop_the_tile_stores(
    kind: str, version: tuple[int, ...], drops: bool
) -> None:
    assert drops_tile_stores(compiler(kind, *version), "x86_64") is drops
    assert not drops_tile_stores(compiler(kind, *version), "aarch64")


GCC = {"--version": "c++ (Debian 12.2.0-14) 12.2.0\nCopyright", "-dumpfullversion": "12.2.0\n"}
CLANG = {"--version": "Debian clang version 19.1.7 (3)\nTarget: x", "-dumpversion": "19.1.7\n"}
APPLE = {"--version": "Apple clang version 16.0.0 (clang-1600)", "-dumpversion": "16.0.0"}


@pytest.mark.parametrize(
    ("answers", "kind", "version"),
    [(GCC, "gcc", (12, 2, 0)), (CLANG, "clang", (19, 1, 7)), (APPLE, "clang", (16, 0, 0))],
)
def test_compilers_are_known_by_what_they_say(
    answers: dict[str, str], kind: str, version: tuple[int, ...]
) -> None:
    found = compiling.identify("c++", {}, lambda cxx, question: answers[question])
    assert (found.kind, found.version, found.cc) == (kind, version, "cc")
    assert kind in str(found)


def test_a_compiler_without_a_version_is_refused() -> None:
    with pytest.raises(SetupError, match="does not tell its version"):
        compiling.identify("odd", {}, lambda cxx, question: "odd")


@pytest.mark.parametrize(
    ("cxx", "cc"),
    [
        ("c++", "cc"),
        ("g++", "gcc"),
        ("g++-12", "gcc-12"),
        ("clang++-19", "clang-19"),
        ("/opt/gcc/bin/x86_64-linux-g++", "/opt/gcc/bin/x86_64-linux-gcc"),
        ("icpx", "icpx"),
    ],
)
def test_a_cxx_compiler_has_its_c_compiler(cxx: str, cc: str) -> None:
    assert c_compiler_for(cxx) == cc


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_the_named_compiler_is_taken_and_the_first_on_the_path_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = script(tmp_path / "my-g++", "echo 14.2.0")
    script(tmp_path / "g++", "echo 13.1.0")
    monkeypatch.setenv("PATH", str(tmp_path))
    env = {"CXX": str(named), "CC": "my-cc"}
    assert find_compiler(env).version == (14, 2, 0)
    assert find_compiler(env).cc == "my-cc"
    assert find_compiler({}).cxx == "g++"


def test_without_a_compiler_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match=r"There is no C\+\+ compiler\. Install one: `apt-get"):
        find_compiler({})
    with pytest.raises(SetupError, match="does not run"):
        find_compiler({"CXX": str(tmp_path / "none")})


# --- the processor


def test_features_are_read_from_cpuinfo() -> None:
    x86 = (
        "processor\t: 0\nmodel name\t: Some Xeon\nflags\t\t: fpu avx2 amx_tile\n\nprocessor\t: 1\n"
    )
    told = cpu.from_cpuinfo(x86, "x86_64")
    assert (told.name, told.features) == ("Some Xeon", ("amx_tile", "avx2", "fpu"))
    assert told.telling_features == ("avx2", "amx_tile")
    arm = cpu.from_cpuinfo("processor\t: 0\nFeatures\t: fp asimd i8mm\n", "aarch64")
    assert (arm.name, arm.telling_features) == ("aarch64", ("asimd", "i8mm"))
    assert cpu.from_cpuinfo("", "riscv64").features == ()


def test_features_are_read_from_sysctl() -> None:
    told = cpu._from_sysctl(
        "machdep.cpu.brand_string: Apple M2\nhw.optional.arm.FEAT_I8MM: 1\n"
        "hw.optional.arm.FEAT_SME: 0\nmachdep.cpu.features: FMA AVX\n"
    )
    assert told.name == "Apple M2"
    assert told.features == ("avx", "fma", "i8mm")


def test_this_machine_has_a_processor() -> None:
    assert cpu.processor().machine


# --- the GPU


def test_no_gpu_needs_no_toolkit() -> None:
    gpu.require_toolkit("none", {})
    assert gpu.default_gpu() in ("none", "metal")


def test_an_unknown_gpu_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SetupError, match="it must be one of: none, cuda, vulkan, metal"):
        gpu.require_toolkit("rocm", {})


@pytest.mark.parametrize(
    ("name", "told"),
    [("cuda", "nvcc was not found"), ("vulkan", "glslc"), ("metal", "macOS only")],
)
def test_a_missing_toolkit_is_one_sentence(
    name: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "NVCC_HOME", tmp_path / "nvcc")
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(SetupError, match=told):
        gpu.require_toolkit(name, {"PATH": str(tmp_path)})


def test_a_toolkit_that_is_there_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    nvcc, glslc = script(tmp_path / "nvcc", ""), script(tmp_path / "glslc", "")
    (tmp_path / "include" / "vulkan").mkdir(parents=True)
    (tmp_path / "include" / "vulkan" / "vulkan.h").touch()
    env = {"PATH": str(tmp_path), "VULKAN_SDK": str(tmp_path)}
    gpu.require_toolkit("cuda", env)
    gpu.require_toolkit("vulkan", env)
    expected = ("-DGGML_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}")
    assert gpu.cmake_switches("cuda", env) == expected
    assert gpu.cmake_switches("vulkan", env) == ("-DGGML_VULKAN=ON",)
    assert gpu.cmake_switches("none", env) == ()
    assert glslc.exists()


def test_on_macos_metal_is_built_unless_it_is_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert gpu.default_gpu() == "metal"
    gpu.require_toolkit("metal", {})
    assert gpu.cmake_switches("metal", {}) == ("-DGGML_METAL=ON",)
    assert gpu.cmake_switches("none", {}) == ("-DGGML_METAL=OFF",)


# --- the plan


@pytest.fixture
def old_gcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment whose compiler is GCC 12.2, on x86-64."""
    monkeypatch.setattr(plan, "processor", lambda: cpu.Processor("P", "x86_64", ("amx_int8",)))
    return {"CXX": str(script(tmp_path / "g++", "echo 12.2.0")), "PATH": str(tmp_path)}


def test_an_old_gcc_gets_both_flags_beside_those_asked_for(old_gcc: dict[str, str]) -> None:
    made = make_plan("none", old_gcc | {"CXXFLAGS": "-g", "CMAKE_ARGS": "-DX=1"})
    assert made.cxx_flags == "-g -fno-tree-dse -fno-dse"
    env = made.environment({"CMAKE_ARGS": "old", "FORCE_CMAKE": "1", "HOME": "/h"})
    assert env["CXXFLAGS"] == made.cxx_flags
    assert env["CXX"] == old_gcc["CXX"]
    assert "-DGGML_NATIVE=ON" in env["CMAKE_ARGS"]
    assert env["CMAKE_ARGS"].endswith("-DX=1")
    assert env["HOME"] == "/h"
    assert "FORCE_CMAKE" not in env
    assert "CFLAGS" not in env


def test_a_current_gcc_gets_no_flags(old_gcc: dict[str, str], tmp_path: Path) -> None:
    script(tmp_path / "g++", "echo 13.3.0")
    assert make_plan("none", old_gcc).cxx_flags == ""


def test_whatever_changes_the_engine_changes_the_fingerprint(old_gcc: dict[str, str]) -> None:
    made = make_plan("none", old_gcc)
    assert made.fingerprint == make_plan("none", old_gcc).fingerprint
    seen = {made.fingerprint}
    for name, value in asdict(made).items():
        other = (*value, "other") if isinstance(value, tuple) else value + "other"
        change: dict[str, Any] = {name: other}
        changed = replace(made, **change)
        assert changed.fingerprint not in seen, name
        seen.add(changed.fingerprint)


# --- the record


def a_plan() -> BuildPlan:
    return BuildPlan(
        version="1",
        compiler="gcc 12.2.0",
        compiler_banner="gcc",
        cxx="c++",
        cc="cc",
        cxx_flags="-g",
        c_flags="",
        cmake_args=("-DA=1",),
        gpu="none",
        cpu="P",
        cpu_features=("avx2",),
        python="cpython-311",
        platform="linux-x86_64",
    )


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    written = BuildRecord.of(a_plan(), "digest", "2026-01-01T00:00:00+00:00")
    save_record(written, path)
    assert load_record(path) == written
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"fingerprint": "x", "new": 1}'])
def test_a_record_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "record.json"
    assert load_record(path) is None
    path.write_text(text)
    assert load_record(path) is None


def test_a_build_is_current_while_plan_and_libraries_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(record, "libraries_digest", lambda: "digest")
    made = a_plan()
    written = BuildRecord.of(made, "digest", "now")
    assert is_current(written, made)
    assert not is_current(None, made)
    assert not is_current(written, replace(made, cpu_features=("avx2", "amx_int8")))
    monkeypatch.setattr(record, "libraries_digest", lambda: "foreign wheel")
    assert not is_current(written, made)


def test_the_digest_covers_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "liba.so").write_bytes(b"1")
    first = folder_digest(tmp_path)
    (tmp_path / "liba.so").write_bytes(b"2")
    second = folder_digest(tmp_path)
    (tmp_path / "liba.so").rename(tmp_path / "libb.so")
    assert len({first, second, folder_digest(tmp_path)}) == 3

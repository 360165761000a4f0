"""Running the build, with a script in pip's place: progress, failures, the cache, the install."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from naiad.setup import engine
from naiad.setup.build import Progress, build_wheel, cache_folder, cached_wheel
from naiad.setup.failure import SetupError
from naiad.setup.plan import BuildPlan
from naiad.setup.record import BuildRecord
from test_setup import a_plan

FakePip = Callable[[str], None]

BUILD = """
folder = pathlib.Path(sys.argv[sys.argv.index('-w') + 1])
for n in (1, 2, 3, 4):
    print(f'  [{n}/4] c++ something')
import zipfile
zipfile.ZipFile(folder / 'llama_cpp_python-1-py3-none-any.whl', 'w').close()
"""


@pytest.fixture
def fake_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    """Make `python -m pip` run this body."""

    def install(body: str) -> None:
        module = tmp_path / "modules" / "pip.py"
        module.parent.mkdir(exist_ok=True)
        module.write_text(f"import os, pathlib, sys\n{body}\n")
        monkeypatch.setenv("PYTHONPATH", str(module.parent))

    return install


def quiet() -> Progress:
    return Progress(lambda text: None, is_terminal=False)


def test_a_build_is_kept_under_its_fingerprint(tmp_path: Path, fake_pip: FakePip) -> None:
    fake_pip(BUILD)
    cache, plan = tmp_path / "cache", a_plan()
    assert cached_wheel(plan, cache) is None
    wheel = build_wheel(plan, cache, quiet())
    assert wheel == cache / plan.fingerprint / "llama_cpp_python-1-py3-none-any.whl"
    assert cached_wheel(plan, cache) == wheel
    assert sorted(p.name for p in cache.iterdir()) == sorted(["build.log", plan.fingerprint])


def test_pip_is_told_to_trust_no_wheel_it_has(tmp_path: Path, fake_pip: FakePip) -> None:
    check = (
        "assert '--no-cache-dir' in sys.argv and '--no-deps' in sys.argv\n"
        "assert sys.argv[sys.argv.index('--no-binary') + 1] == 'llama-cpp-python'\n"
        "assert sys.argv[-1] == 'llama-cpp-python==1'\n"
        "assert os.environ['CXXFLAGS'] == '-g' and os.environ['CMAKE_ARGS'] == '-DA=1'\n"
    )
    fake_pip(check + BUILD)
    assert build_wheel(a_plan(), tmp_path, quiet()).exists()


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("ERROR: No matching distribution found", "check the network and the package index"),
        ("fatal error: No space left on device", "The disk is full"),
        ("c++: fatal error: Killed signal terminated program", "ran out of memory"),
        ("No CMAKE_C_COMPILER could be found", "install g\\+\\+ or clang"),
        ("Could NOT find SPIRV-Headers", "spirv-headers"),
        ("something else", "a current g\\+\\+"),
    ],
)
def test_a_failed_build_shows_its_end_and_what_to_do(
    tmp_path: Path, fake_pip: FakePip, said: str, advice: str
) -> None:
    fake_pip(f"print('early')\nfor n in range(40): print('line', n)\nprint({said!r}); sys.exit(1)")
    with pytest.raises(SetupError, match=advice) as caught:
        build_wheel(a_plan(), tmp_path, quiet())
    assert said in caught.value.message
    assert "early" not in caught.value.message
    assert "early" in (tmp_path / "build.log").read_text()
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["modules"]


def test_a_build_without_a_wheel_is_a_failure(tmp_path: Path, fake_pip: FakePip) -> None:
    fake_pip("print('done')")
    with pytest.raises(SetupError, match="built no wheel"):
        build_wheel(a_plan(), tmp_path, quiet())


def test_an_interrupted_build_leaves_nothing_running(tmp_path: Path, fake_pip: FakePip) -> None:
    fake_pip(  # it would end with a killed test, too
        "import os, time\nparent = os.getppid()\nprint('[1/9] x', flush=True)\n"
        "while os.getppid() == parent: time.sleep(0.01)"
    )

    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_wheel(a_plan(), tmp_path, Progress(interrupt, is_terminal=False))


def test_progress_is_a_line_for_each_tenth_in_a_log() -> None:
    lines: list[str] = []
    progress = Progress(lines.append, is_terminal=False, clock=iter([0, *range(0, 600)]).__next__)
    for n in range(1, 101):
        progress.saw(f"  [{n}/100] c++ -c file.cpp\n")
        progress.saw("  warning: something\n")
    progress.end()
    assert len(lines) == 11
    assert lines[-1] == "  compiling [100/100] 1:39\n"


def test_progress_is_one_redrawn_line_on_a_terminal() -> None:
    written: list[str] = []
    progress = Progress(written.append, is_terminal=True, clock=lambda: 5.0)
    progress.saw("Building wheel\n")
    progress.end()
    assert written == []
    progress.saw("[1/2] x")
    progress.saw("[2/2] x")
    progress.end()
    assert written == ["\r  compiling [1/2] 0:00", "\r  compiling [2/2] 0:00", "\n"]


def test_the_cache_lies_where_the_system_keeps_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_folder() == tmp_path / "naiad" / "engine"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder().parts[-4:] == ("Library", "Caches", "naiad", "engine")


# --- the whole of it


class Machine:
    """A virtual environment in memory: what is installed, and what was done to it."""

    def __init__(self) -> None:
        self.record: BuildRecord | None = None
        self.libraries = ""
        self.asked_gpu: list[str] = []

    def make_plan(self, gpu: str) -> BuildPlan:
        self.asked_gpu.append(gpu)
        return a_plan()

    def save_record(self, record: BuildRecord) -> None:
        self.record = record


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(engine, "load_record", lambda: made.record)
    monkeypatch.setattr(engine, "save_record", made.save_record)
    monkeypatch.setattr(engine, "make_plan", made.make_plan)
    monkeypatch.setattr(engine, "libraries_digest", lambda: "digest")
    monkeypatch.setattr("naiad.setup.record.libraries_digest", lambda: "digest")
    monkeypatch.setattr(engine, "default_gpu", lambda: "none")
    return made


def test_the_first_time_builds_and_installs_and_the_second_does_nothing(
    tmp_path: Path, machine: Machine, fake_pip: FakePip, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_pip("if 'wheel' in sys.argv:" + BUILD.replace("\n", "\n    "))
    record = engine.set_up("", tmp_path)
    assert record == machine.record
    assert "Compiling the engine" in capsys.readouterr().out
    fake_pip("sys.exit('pip was run again')")
    assert engine.set_up("", tmp_path) == record
    assert "up to date" in capsys.readouterr().out


def test_a_wheel_in_the_cache_is_installed_without_a_build(
    tmp_path: Path, machine: Machine, fake_pip: FakePip
) -> None:
    kept = tmp_path / a_plan().fingerprint
    kept.mkdir()
    a_wheel(kept / "llama_cpp_python-1-py3-none-any.whl")
    fake_pip(
        "assert sys.argv[1] == 'install' and '--force-reinstall' in sys.argv\n"
        f"assert sys.argv[-1].startswith({str(kept)!r})\n"
    )
    assert engine.set_up("none", tmp_path).fingerprint == a_plan().fingerprint


def a_wheel(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("llama_cpp/lib/libllama.so", b"native code " * 1000)
    return path.read_bytes()


@pytest.mark.parametrize("damage", ["empty", "cut", "one bit"])
def test_a_damaged_wheel_in_the_cache_is_built_anew(tmp_path: Path, damage: str) -> None:
    kept = tmp_path / a_plan().fingerprint
    kept.mkdir()
    wheel = kept / "llama_cpp_python-1-py3-none-any.whl"
    whole = a_wheel(wheel)
    assert cached_wheel(a_plan(), tmp_path) == wheel
    flipped = whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:]
    wheel.write_bytes({"empty": b"", "cut": whole[:5000], "one bit": flipped}[damage])
    assert cached_wheel(a_plan(), tmp_path) is None
    assert not wheel.exists()


def test_the_gpu_of_last_time_is_kept_until_another_is_named(
    tmp_path: Path, machine: Machine, fake_pip: FakePip
) -> None:
    fake_pip("if 'wheel' in sys.argv:" + BUILD.replace("\n", "\n    "))
    engine.set_up("", tmp_path)
    assert machine.record is not None
    engine.set_up("vulkan", tmp_path)
    engine.set_up("", tmp_path)
    assert machine.asked_gpu == ["none", "vulkan", "none"]  # the record says what the plan said


def test_a_failed_install_records_nothing(
    tmp_path: Path, machine: Machine, fake_pip: FakePip
) -> None:
    fake_pip("if 'wheel' in sys.argv:" + BUILD.replace("\n", "\n    ") + "\nelse: sys.exit(1)")
    with pytest.raises(SetupError, match="pip could not install"):
        engine.set_up("", tmp_path)
    assert machine.record is None


def test_the_commands_status_and_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(gpu: str) -> BuildRecord:
        raise SetupError("There is no compiler.")

    def interrupt(gpu: str) -> BuildRecord:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "set_up", fail)
    assert engine.main([]) == 1
    assert capsys.readouterr().err == "There is no compiler.\n"
    monkeypatch.setattr(engine, "set_up", interrupt)
    assert engine.main([]) == 130
    monkeypatch.setattr(engine, "system_info", lambda: "AVX2 = 1")
    assert engine.main(["--check"]) == 0
    assert "AVX2 = 1" in capsys.readouterr().out


def test_an_engine_that_does_not_load_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise OSError('libgomp.so.1 is missing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SetupError, match=r"does not load: OSError: libgomp\.so\.1 is missing"):
        engine.system_info()


def test_it_runs_before_anything_is_installed() -> None:
    source = Path(engine.__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-S", "-m", "naiad.setup.engine", "--help"],
        env={"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0
    assert "--gpu" in run.stdout

"""The Makefile and `.ci/run` as they behave, with stand-ins for Python, pip, apt and naiad.

The stand-ins write down what they are asked, so that these tests are about which steps run, in
which order, and what a person reads when one cannot.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKE = shutil.which("make")

pytestmark = pytest.mark.skipif(MAKE is None, reason="make is not installed")

#: A Python that makes virtual environments whose programs write down how they were called.
PYTHON = """#!/bin/sh
case "$*" in
  "-m venv "*)
    echo "venv" >> "$CALLS"
    [ -n "$NO_VENV" ] && exit 1
    mkdir -p "$3/bin"
    for program in python naiad ruff mypy; do
      printf '#!/bin/sh\\necho "%s $*" >> "$CALLS"\\n[ "$FAIL" = "%s $*" ] && exit 1\\nexit 0\\n' \\
        $program $program > "$3/bin/$program"
      chmod +x "$3/bin/$program"
    done ;;
  --version) echo "Python 3.12.1" ;;
  *) exit ${OLD_PYTHON:-0} ;;
esac
"""

ENGINE = "python -m naiad.setup.engine --gpu "
INSTALL = "python -m naiad.setup.packages ."
CHECK = "python -m naiad.setup.engine --check"
STARTER = "naiad pull starter"
TUNE = "naiad tune --quick --if-needed --quiet"
APT = "apt-get -o Acquire::Retries=5 -o DPkg::Lock::Timeout=300"
#: Asked before every step that needs pip, and no step itself.
LOOK = "python -c import pip"


class Checkout:
    """A folder with the project's Makefile and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls_file = folder / "calls"
        shutil.copy(ROOT / "Makefile", folder)
        (folder / "pyproject.toml").touch()
        script(folder / "python", PYTHON)

    def make(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        # The suite may be run by a make of its own, whose arguments are in the environment.
        ours = {"ARGS", "CALLS", "FAIL", "GPU", "NO_VENV", "OLD_PYTHON", "PYTHON"}
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k not in ours}
        command = [str(MAKE), f"PYTHON={self.folder / 'python'}", *arguments]
        return subprocess.run(
            command,
            cwd=self.folder,
            env=kept | {"CALLS": str(self.calls_file)} | env,
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[str]:
        """What was run since the last look."""
        if not self.calls_file.exists():
            return []
        lines = self.calls_file.read_text().splitlines()
        self.calls_file.unlink()
        return [line for line in lines if line != LOOK]


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_setup_runs_every_step_in_order_and_the_second_time_only_looks(
    checkout: Checkout,
) -> None:
    assert checkout.make("setup").returncode == 0
    assert checkout.calls() == ["venv", ENGINE, INSTALL, CHECK, STARTER, TUNE]
    assert checkout.make("setup").returncode == 0
    assert checkout.calls() == [ENGINE, STARTER, TUNE]


def test_setup_says_what_it_does(checkout: Checkout) -> None:
    out = checkout.make("setup").stdout
    assert "Creating .venv with Python 3.12.1." in out
    assert "Installing naiad" in out
    assert out.endswith("Ready: .venv/bin/naiad serve\n")


@pytest.mark.parametrize("chore", ["setup", "serve"])
def test_settings_that_cannot_be_measured_do_not_stop_the_chore(
    checkout: Checkout, chore: str
) -> None:
    done = checkout.make(chore, FAIL=TUNE)
    assert done.returncode == 0
    assert "could not be measured" in done.stderr
    assert "naiad tune" in done.stderr


def test_the_gpu_is_passed_on(checkout: Checkout) -> None:
    assert checkout.make("setup", "GPU=cuda").returncode == 0
    assert ENGINE + "cuda" in checkout.calls()


def test_serve_sets_up_first_and_passes_its_arguments(checkout: Checkout) -> None:
    assert checkout.make("serve", "ARGS=--port 8080").returncode == 0
    assert checkout.calls()[-3:] == [STARTER, TUNE, "naiad serve --port 8080"]
    assert checkout.make("serve").returncode == 0
    assert checkout.calls() == [ENGINE, STARTER, TUNE, "naiad serve"]


def test_test_installs_what_tests_need_and_runs_every_check(checkout: Checkout) -> None:
    assert checkout.make("test").returncode == 0
    calls = checkout.calls()
    assert calls.index("python -m naiad.setup.packages .[dev]") > 0
    assert calls[-4:] == ["ruff check .", "ruff format --check .", "mypy ", "python -m pytest"]
    assert "naiad pull gemma3" in calls
    assert "python tests/ui/axe.py" in calls
    assert "python tests/schema_suite.py" in calls
    assert checkout.make("test").returncode == 0
    assert not [call for call in checkout.calls() if "pip" in call]


def test_clients_of_others_find_the_models_they_need(checkout: Checkout) -> None:
    assert checkout.make("test-clients", "ARGS=openai_client").returncode == 0
    *before, last = checkout.calls()
    assert last == "python tests/clients/run.py openai_client"
    assert {STARTER, "naiad pull gemma3"} <= set(before)


def test_a_model_that_cannot_be_fetched_skips_its_tests_only(checkout: Checkout) -> None:
    done = checkout.make("test", FAIL="naiad pull gemma3")
    assert done.returncode == 0
    assert "gemma3 could not be fetched: the tests that need it will be skipped" in done.stderr
    assert checkout.calls()[-1] == "python -m pytest"


@pytest.mark.parametrize("check", ["ruff check .", "mypy ", "python -m pytest"])
def test_a_check_that_fails_fails_the_whole(checkout: Checkout, check: str) -> None:
    assert checkout.make("test", FAIL=check).returncode != 0
    assert checkout.calls()[-1] == check


def test_a_failed_step_is_tried_again(checkout: Checkout) -> None:
    assert checkout.make("setup", FAIL=INSTALL).returncode != 0
    assert checkout.calls() == ["venv", ENGINE, INSTALL]
    assert checkout.make("setup").returncode == 0
    assert checkout.calls() == [ENGINE, INSTALL, CHECK, STARTER, TUNE]


def test_an_engine_that_cannot_be_built_stops_everything(checkout: Checkout) -> None:
    assert checkout.make("serve", FAIL=ENGINE).returncode != 0
    assert checkout.calls() == ["venv", ENGINE]


def test_new_requirements_are_installed(checkout: Checkout) -> None:
    checkout.make("setup")
    checkout.calls()
    later = (checkout.folder / ".venv" / ".stamp-installed").stat().st_mtime + 10
    os.utime(checkout.folder / "pyproject.toml", (later, later))
    assert checkout.make("setup").returncode == 0
    assert checkout.calls() == [ENGINE, INSTALL, CHECK, STARTER, TUNE]


def test_an_old_python_is_refused_with_a_sentence(checkout: Checkout) -> None:
    done = checkout.make("setup", OLD_PYTHON="1")
    assert done.returncode != 0
    assert "naiad needs Python 3.11 or later" in done.stderr
    assert checkout.calls() == []
    missing = checkout.make("setup", "PYTHON=/no/python")
    assert "naiad needs Python 3.11 or later as /no/python" in missing.stderr


def test_a_python_without_venv_is_refused_with_a_sentence(checkout: Checkout) -> None:
    done = checkout.make("setup", NO_VENV="1")
    assert done.returncode != 0
    assert "apt-get install python3-venv" in done.stderr
    assert not (checkout.folder / ".venv").exists()


def test_an_environment_without_pip_is_told_of_with_a_way_out(checkout: Checkout) -> None:
    checkout.make("setup")
    checkout.calls()
    done = checkout.make("setup", FAIL=LOOK)
    assert done.returncode != 0
    assert "make clean setup" in done.stderr
    assert checkout.calls() == []
    (checkout.folder / ".venv" / "bin" / "python").unlink()  # the system's Python was replaced
    assert "make clean setup" in checkout.make("setup").stderr
    assert checkout.make("clean", "setup").returncode == 0


def test_unit_runs_the_quick_tests_and_tells_which_took_longest(checkout: Checkout) -> None:
    checkout.make("unit", "ARGS=-x")
    *before, tests = checkout.calls()
    assert not [call for call in before if call.startswith(("ruff", "mypy", "naiad tune"))]
    assert tests.startswith("python -m pytest -q -m not engine and not model and not soak")
    assert tests.endswith("--durations=5 -x")


def test_clean_removes_what_was_made(checkout: Checkout) -> None:
    checkout.make("setup")
    assert checkout.make("clean").returncode == 0
    left = {path.name for path in checkout.folder.iterdir()}
    assert left == {"Makefile", "pyproject.toml", "python", "calls"}


def test_help_names_the_chores(checkout: Checkout) -> None:
    out = checkout.make("help").stdout
    for chore in ("make setup", "make serve", "make unit", "make test", "make lint"):
        assert chore in out
    assert checkout.make().stdout == out


def test_the_makefile_needs_no_more_than_make_3_81() -> None:
    text = (ROOT / "Makefile").read_text()
    newer = (r"^\.ONESHELL", r"^\.SHELLFLAGS", r"!=", r"\$\(file ", r"\$\(intcmp", r"&:")
    assert not [pattern for pattern in newer if re.search(pattern, text, re.MULTILINE)]


# --- .ci/run


class Runner:
    """A machine that has only the programs it is given; each writes down how it was called."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()
        (folder / ".ci").mkdir()
        shutil.copy(ROOT / ".ci" / "run", folder / ".ci")
        for name in ("bash", "dirname", "env"):
            (self.bin / name).symlink_to(str(shutil.which(name)))
        self.give("id", "echo 0")

    def give(self, name: str, body: str = "") -> None:
        shell = shutil.which("sh")
        script(self.bin / name, f'#!{shell}\necho "{name} $*" >> "$CALLS"\n{body}\n')

    def run(self, *arguments: str) -> tuple[int, str, list[str]]:
        """Run `.ci/run`: status, standard error, what was called."""
        calls = self.folder / "calls"
        calls.unlink(missing_ok=True)
        done = subprocess.run(
            [self.folder / ".ci" / "run", *arguments],
            env={"PATH": str(self.bin), "CALLS": str(calls)},
            capture_output=True,
            text=True,
            check=False,
        )
        lines = calls.read_text().splitlines() if calls.exists() else []
        return done.returncode, done.stderr, [line for line in lines if not line.startswith("id")]


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def test_with_everything_there_only_the_tests_run(runner: Runner) -> None:
    for name in ("c++", "make", "python3", "apt-get", "chromium"):
        runner.give(name)
    status, _, calls = runner.run("ARGS=-x")
    assert status == 0
    assert calls == ["python3 -c import ensurepip, venv", "make test ARGS=-x"]


def test_a_browser_is_installed_where_none_is_and_missing_one_is_no_failure(runner: Runner) -> None:
    for name in ("c++", "make", "python3"):
        runner.give(name)
    runner.give("apt-get", "exit 1")
    status, told, calls = runner.run()
    assert status == 0
    assert "skipped" in told
    assert calls[-1] == "make test"
    assert any("chromium" in call for call in calls)


@pytest.mark.parametrize("lacking", ["c++", "venv", "make"])
def test_what_is_missing_is_installed(runner: Runner, lacking: str) -> None:
    """apt-get brings make, since a machine without it could not go on."""
    shell = shutil.which("sh")
    make = f'printf \'#!{shell}\\necho "make $*" >> "$CALLS"\\n\' > {runner.bin}/make'
    chmod = f"{shutil.which('chmod')} +x {runner.bin}/make"
    runner.give("apt-get", f'case "$*" in *install*) {make}; {chmod};; esac\nexit 0')
    for name in {"c++", "make"} - {lacking}:
        runner.give(name)
    runner.give("python3", "exit 1" if lacking == "venv" else "")
    status, err, calls = runner.run()
    assert (status, err) == (0, "")
    assert f"{APT} update -qq" in calls
    assert f"{APT} install -y -qq g++ make python3-venv" in calls
    assert calls[-1] == "make test"


def test_lists_of_packages_that_cannot_be_renewed_may_do(runner: Runner) -> None:
    shell = shutil.which("sh")
    make = f'printf \'#!{shell}\necho "make $*" >> "$CALLS"\n\' > {runner.bin}/make'
    chmod = f"{shutil.which('chmod')} +x {runner.bin}/make"
    is_update = 'case "$*" in *update*) exit 1;; esac'
    runner.give("apt-get", f"{is_update}\n{make}; {chmod}")
    for name in ("c++", "python3", "chromium-browser"):
        runner.give(name)
    status, _, calls = runner.run()
    assert (status, calls[-1]) == (0, "make test")
    assert not [call for call in calls if "chromium" in call]


def test_without_a_package_manager_it_says_what_is_needed(runner: Runner) -> None:
    runner.give("python3")
    status, err, calls = runner.run()
    assert status == 1
    assert "Needed: a C++ compiler, make, and Python 3.11" in err
    assert "make test" not in calls


def test_the_tests_status_is_the_runs(runner: Runner) -> None:
    runner.give("make", "exit 7")
    for name in ("g++", "python3"):
        runner.give(name)
    assert runner.run()[0] == 7


def test_the_workflow_runs_the_same_and_pins_what_it_uses() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "- run: .ci/run" in text
    used = re.findall(r"uses: (\S+)", text)
    assert used
    assert [name for name in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", name)] == []
    for system in ("ubuntu-24.04,", "ubuntu-24.04-arm,", "macos-15,"):
        assert f"os: {system}" in text


def test_the_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text()

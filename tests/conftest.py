"""Models for the tests: two tiny exact ones, built once, and the real ones when installed."""

from __future__ import annotations

import gc
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings

from naiad.engine.disk_folder import DIR_ENV
from naiad.errors import ModelFileError
from naiad.models.catalogue import find, models_dir
from naiad.testing.exact_models import exact_model

_BUILT = Path(tempfile.gettempdir()) / f"naiad-exact-models-{os.getuid()}"
_test_numbers = itertools.count()

#: Left out of the quick run by `-m "not soak"`: real processes, sockets, many random cases, or
#: packages of others that take longer to import than all their tests.
_SLOW = {
    "test_bench_command.py",
    "test_bench_compare.py",
    "test_bench_plot.py",
    "test_cli.py",
    "test_cli_serve.py",
    "test_client_contract.py",
    "test_client_faults.py",
    "test_client_unload.py",
    "test_dialect_anthropic.py",
    "test_dialect_channels.py",
    "test_dialect_choices.py",
    "test_dialect_fuzz.py",
    "test_dialect_logprobs_served.py",
    "test_dialect_ollama.py",
    "test_dialect_ollama_embeddings.py",
    "test_dialect_responses.py",
    "test_dialect_sdk.py",
    "test_dialect_sdk_embeddings.py",
    "test_dialect_sdk_progress.py",
    "test_dialect_unions.py",
    "test_engine_disk_cache.py",
    "test_engine_exact.py",
    "test_engine_gemma_cache.py",
    "test_engine_lane.py",
    "test_engine_machine.py",
    "test_engine_overflow.py",
    "test_engine_parts.py",
    "test_engine_vetting.py",
    "test_engine_whole_machine.py",
    "test_exact_models.py",
    "test_http_serve.py",
    "test_http_socket.py",
    "test_models_download.py",
    "test_models_hub.py",
    "test_quick_run.py",
    "test_renderer.py",
    "test_scripted.py",
    "test_service_rechunking.py",
    "test_setup_build.py",
    "test_setup_chores.py",
    "test_talk_terminal.py",
    "test_tune_measure.py",
    "test_ui_markdown.py",
    "test_worker.py",
}

#: Rooms whose tests all carry these marks.
_ROOMS = {"ui": {"browser", "soak"}}
_MODULE_MARKS = re.compile(r"^pytestmark = (.*)$", re.MULTILINE)

# No case has a time limit: a machine that is busy with something else is no fault of ours. Nor has
# a run that changed nothing new cases; `--hypothesis-profile=searching` looks for some.
settings.register_profile("searching", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "whole", settings.get_profile("searching"), derandomize=True, database=None
)
settings.register_profile("quick", settings.get_profile("whole"), max_examples=25)


def _left_out(config: pytest.Config) -> set[str]:
    """The marks that `-m` leaves out, when it does nothing else."""
    terms = [term.strip() for term in config.option.markexpr.split(" and ")]
    names = {term.removeprefix("not ") for term in terms if re.fullmatch(r"not \w+", term)}
    return names if len(names) == len(terms) else set()


def _marks(path: Path) -> set[str]:
    """The marks of every test in the file, known without importing it."""
    found = _MODULE_MARKS.search(path.read_text(encoding="utf-8"))
    marks = set(re.findall(r"pytest\.mark\.(\w+)", found[1])) if found else set()
    slow = {"soak"} if path.name in _SLOW else set()
    return marks | slow | _ROOMS.get(path.parent.name, set())


def _is_quick(config: pytest.Config) -> bool:
    return "soak" in _left_out(config)


def pytest_configure(config: pytest.Config) -> None:
    chosen = config.getoption("--hypothesis-profile", None)
    settings.load_profile(chosen or ("quick" if _is_quick(config) else "whole"))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import what the marks leave out: that takes longer than many tests."""
    if collection_path.suffix != ".py" or not collection_path.name.startswith("test_"):
        return None
    return True if _marks(collection_path) & _left_out(config) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in _SLOW:
            item.add_marker(pytest.mark.soak)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported stays: the garbage collector need not look at it again and again."""
    gc.freeze()
    if _is_quick(session.config):  # small objects only, and nobody's memory hangs on them
        gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope="session", autouse=True)
def _state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Servers of the tests are no servers of the user's, and the other way round."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NAIAD_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        for name in ("no_proxy", "NO_PROXY"):  # a proxy does not lead back to this machine
            patch.setenv(name, "127.0.0.1,localhost,::1")
        yield


@pytest.fixture(scope="session")
def _disk_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("disk-caches")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def _disk_cache_of_the_module(_disk_caches: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """Servers that a whole module shares have a disk cache of their own, not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DIR_ENV, str(_disk_caches / request.module.__name__))
        yield


@pytest.fixture(autouse=True)
def _disk_cache_of_the_test(_disk_caches: Path, _disk_cache_of_the_module: None) -> Iterator[None]:
    """No test finds what another one computed."""
    before = os.environ[DIR_ENV]
    os.environ[DIR_ENV] = f"{_disk_caches}/test-{next(_test_numbers)}"
    yield
    os.environ[DIR_ENV] = before


@pytest.fixture
def steady_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time that passes only when the engine's core looks, so that no pause changes an order.

    Who waits, what a step costs and how much is tidied all go by the clock.
    """
    from naiad.engine import core, intake, lane, sequence

    looks = itertools.count(1_000_000)

    def now() -> float:
        return next(looks) / 1000

    clock = SimpleNamespace(monotonic=now, perf_counter=now)
    for module in (core, intake, lane, sequence):
        monkeypatch.setattr(module, "time", clock)


def _installed(name: str) -> Path:
    try:
        return find(name, models_dir())
    except ModelFileError as error:
        pytest.skip(error.message)


@pytest.fixture(scope="session")
def watermark() -> Path:
    return exact_model("watermark", _BUILT)


@pytest.fixture(scope="session")
def brief() -> Path:
    return exact_model("brief", _BUILT)


@pytest.fixture(scope="session")
def lookback() -> Path:
    return exact_model("lookback", _BUILT)


@pytest.fixture(scope="session")
def hybrid() -> Path:
    return exact_model("hybrid", _BUILT)


@pytest.fixture(scope="session")
def recurrent() -> Path:
    return exact_model("recurrent", _BUILT)


@pytest.fixture(scope="session")
def lookback_400() -> Path:
    return exact_model("lookback-400", _BUILT)


@pytest.fixture(scope="session")
def starter() -> Path:
    return _installed("starter")


@pytest.fixture(scope="session")
def gemma() -> Path:
    return _installed("gemma3")

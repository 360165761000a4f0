"""Models for the tests: two tiny exact ones, built once, and the real ones when installed."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from naiad.engine.disk_folder import DIR_ENV
from naiad.errors import ModelFileError
from naiad.models.catalogue import find, models_dir
from naiad.testing.exact_models import exact_model

_BUILT = Path(tempfile.gettempdir()) / f"naiad-exact-models-{os.getuid()}"
_test_numbers = itertools.count()

#: Real processes, sockets, or many random cases: left out of the quick run by `-m "not soak"`.
_SLOW = {
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
    "test_dialect_ollama.py",
    "test_dialect_responses.py",
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
    "test_renderer.py",
    "test_scripted.py",
    "test_setup_build.py",
    "test_setup_chores.py",
    "test_talk_terminal.py",
    "test_tune_measure.py",
    "test_ui_markdown.py",
    "test_worker.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in _SLOW:
            item.add_marker(pytest.mark.soak)


@pytest.fixture(scope="session", autouse=True)
def _state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Servers of the tests are no servers of the user's, and the other way round."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NAIAD_STATE_DIR", str(tmp_path_factory.mktemp("state")))
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
def _disk_cache_of_the_test(
    _disk_caches: Path, _disk_cache_of_the_module: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test finds what another one computed."""
    monkeypatch.setenv(DIR_ENV, str(_disk_caches / f"test-{next(_test_numbers)}"))


def _installed(name: str) -> Path:
    try:
        return find(name, models_dir())
    except ModelFileError as error:
        pytest.skip(error.message)


@pytest.fixture(scope="session")
def watermark() -> Path:
    return exact_model("watermark", _BUILT)


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

"""Which files a loaded model may read: those of this very model, build and kind of context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from naiad.config import EngineConfig
from naiad.engine.base import CoreJob
from naiad.engine.disk_tier import open_store
from naiad.engine.llama import LlamaBackend, load
from naiad.native import library
from naiad.native.context import ContextParams
from naiad.native.model import Model
from naiad.testing.lookback import lookback_text
from naiad.types import SamplingParams

pytestmark = pytest.mark.engine


class StandInModel:
    def __init__(self, path: Path, original_context: str | None = None) -> None:
        self.path = path
        self.n_swa = 0
        self.n_layer = 2
        self.original_context = original_context

    has_long_rope = Model.has_long_rope

    def metadata(self, key: str) -> str | None:
        facts = {"general.architecture": "phi3"}
        return facts.get(key, self.original_context if "original_context" in key else None)


class StandInContext:
    def __init__(self, n_cells: int = 4096, **changes: Any) -> None:
        given: dict[str, Any] = {"n_ctx": n_cells, "n_seq_max": 4} | changes
        self.params = ContextParams(**given)
        self.n_cells = n_cells


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + bytes(1000))
    return path


def folder(model: Any, context: Any, tmp_path: Path) -> str:
    config = EngineConfig(disk_cache_dir=str(tmp_path / "cache"))
    store = open_store(config, model, context)
    assert store is not None
    assert store.capacity == config.disk_cache_mib << 20
    return store.folder.name


def test_whatever_a_state_depends_on_has_a_folder_of_its_own(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = StandInModel(model_file)
    contexts = [
        StandInContext(),
        StandInContext(flash_attention=False),
        StandInContext(kv_type="q8_0"),
        StandInContext(kv_unified=False),
        StandInContext(kv_unified=False, n_seq_max=5),
    ]
    found = [folder(model, context, tmp_path) for context in contexts]
    monkeypatch.setattr(library, "version", lambda: "0.0.1")
    found.append(folder(model, contexts[0], tmp_path))
    assert len(set(found)) == len(found)


def test_what_a_state_does_not_depend_on_has_not(model_file: Path, tmp_path: Path) -> None:
    model = StandInModel(model_file)
    contexts = [StandInContext(), StandInContext(8192, n_seq_max=9, threads=3, n_ubatch=64)]
    assert len({folder(model, context, tmp_path) for context in contexts}) == 1


def test_two_sets_of_rotary_factors_are_two_folders(model_file: Path, tmp_path: Path) -> None:
    model = StandInModel(model_file, original_context="4096")
    found = [folder(model, StandInContext(n), tmp_path) for n in (2048, 4096, 4097, 9000)]
    assert found[0] == found[1] != found[2] == found[3]


@pytest.mark.parametrize("changes", [{"disk_cache": False}, {"disk_cache_mib": 0}])
def test_it_can_be_switched_off(model_file: Path, changes: dict[str, Any]) -> None:
    config = msgspec.structs.replace(EngineConfig(), **changes)
    model: Any = StandInModel(model_file)
    context: Any = StandInContext()
    assert open_store(config, model, context) is None


def test_a_model_file_that_is_gone_means_no_cache(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model: Any = StandInModel(tmp_path / "gone.gguf")
    context: Any = StandInContext()
    assert open_store(EngineConfig(), model, context) is None
    assert "no disk cache" in caplog.text


def open_backend(path: Path, **changes: Any) -> LlamaBackend:
    config = EngineConfig(
        model=str(path), parallel=2, ctx=1024, threads=1, check_integrity=True, **changes
    )
    backend = load(config)(lambda _: None)
    assert isinstance(backend, LlamaBackend)
    return backend


def answer(backend: LlamaBackend, prompt: str, namespace: str = "") -> tuple[str, int]:
    ids = backend.tokenizer.encode(prompt, add_special=True, parse_special=True)
    core = backend.core
    core.add(CoreJob(1, tuple(ids), 20, SamplingParams(temperature=0), namespace))
    items = []
    while core.has_work():
        items += core.step()
    while core.idle_slice():
        pass
    return b"".join(item.data for item in items).decode(), items[0].n_cached


def close(backend: LlamaBackend) -> None:
    assert backend.flush(20)
    backend.core.close()
    backend.model.close()


def test_a_loaded_model_takes_up_what_the_last_one_left(lookback: Path, tmp_path: Path) -> None:
    prompt = "".join(chr(0x4E00 + i * 7 % 300) for i in range(400))
    own = str(tmp_path / "own")
    n_cached = []
    for more in ({}, {}, {"flash_attention": False}, {"disk_cache": False}):
        settings = {"flash_attention": True, "disk_cache_dir": own} | more
        backend = open_backend(lookback, **settings)
        text, n = answer(backend, prompt)
        assert text == lookback_text(prompt, 20)
        n_cached.append(n)
        close(backend)
    assert n_cached == [0, 400, 0, 0]


def test_a_small_memory_reads_from_disk_again_and_again(lookback: Path, tmp_path: Path) -> None:
    prompts = ["".join(chr(0x4E00 + (i * k) % 300) for i in range(300)) for k in (7, 11, 13)]
    backend = open_backend(lookback, host_cache_mib=0)
    for _ in range(2):
        found = [answer(backend, prompt) for prompt in prompts]
        assert [text for text, _ in found] == [lookback_text(prompt, 20) for prompt in prompts]
    assert min(n for _, n in found) == 300
    assert answer(backend, prompts[0], "somebody else")[1] == 0
    close(backend)


def test_the_library_says_what_it_is() -> None:
    assert library.version()[0].isdigit()
    assert any("llama" in path.name for path in library.files())

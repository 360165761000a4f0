"""The arithmetic against what the engine really takes, and refusals before it takes it."""

from __future__ import annotations

import ctypes
import logging
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp as lib
import pytest

from naiad.config import EngineConfig, Tuning
from naiad.engine import llama, memory_fit
from naiad.engine.base import CoreJob
from naiad.engine.llama import LlamaBackend
from naiad.engine.memory_fit import MIB, ModelShape, Wish
from naiad.errors import ConfigError
from naiad.native import library
from naiad.native.context import Context, ContextParams
from naiad.native.model import Model
from naiad.testing.exact_models import N_CHARACTERS, character
from naiad.testing.lookback import lookback_text
from naiad.types import SamplingParams

pytestmark = pytest.mark.engine

_SIZE = re.compile(r"(compute|KV) buffer size =\s*([\d.]+) MiB")


@pytest.fixture(scope="module")
def model(lookback: Path) -> Iterator[Model]:
    model = Model(lookback)
    yield model
    model.close()


def shape_of(model: Model) -> ModelShape:
    return ModelShape(
        mapped_bytes=model.size_bytes,
        bytes_per_cell=model.kv_bytes_per_cell(2.0),
        n_ctx_train=model.n_ctx_train,
        n_vocab=model.vocab.n_tokens,
        n_embd=model.n_embd,
        n_head=model.n_head,
        has_window=model.n_swa > 0,
    )


def taken(model: Model, **params: Any) -> dict[str, float]:
    """MiB of each kind of buffer, as llama.cpp logs them."""
    heard: list[str] = []
    listen = lib.llama_log_callback(lambda _level, text, _data: heard.append(text.decode()))
    lib.llama_log_set(listen, ctypes.c_void_p(0))
    try:
        Context(model, ContextParams(**params)).close()
    finally:
        lib.llama_log_set(library.start().callback, ctypes.c_void_p(0))
    found: dict[str, float] = {"compute": 0.0, "KV": 0.0}
    for kind, size in _SIZE.findall("".join(heard)):
        found[kind] += float(size)
    return found


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize(("n_cells", "n_ubatch"), [(4096, 512), (32768, 512), (32768, 64)])
def test_what_is_reckoned_is_what_is_taken(
    model: Model, flash: bool, n_cells: int, n_ubatch: int
) -> None:
    real = taken(model, n_ctx=n_cells, n_seq_max=9, n_ubatch=n_ubatch, flash_attention=flash)
    shape = shape_of(model)
    wish = Wish(parallel=4, most_parked=4, n_ubatch=n_ubatch, flash_attention=flash)
    reckoned = memory_fit.compute_bytes(shape, wish, n_cells) / MIB
    assert real["compute"] <= reckoned <= 1.4 * real["compute"] + 8
    assert real["KV"] == pytest.approx(n_cells * shape.bytes_per_cell / MIB, rel=0.01)


def open_backend(path: Path, **changes: Any) -> LlamaBackend:
    config = EngineConfig(**{"model": str(path), "parallel": 2, "threads": 1, **changes})
    backend = llama.load(config)(lambda _: None)
    assert isinstance(backend, LlamaBackend)
    return backend


def close(backend: LlamaBackend) -> None:
    backend.core.close()
    backend.model.close()


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_fit, "free_memory", lambda _: 200 * MIB)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"ctx": 1 << 20}, "ctx"),
        ({"ctx": 256, "host_cache_mib": 400}, "host_cache_mib"),
        ({"ctx": 4096, "parallel": 200, "profile": "throughput"}, "parallel"),
    ],
)
def test_what_cannot_fit_is_refused_at_load(
    lookback: Path, changes: dict[str, Any], param: str
) -> None:
    with pytest.raises(ConfigError, match=r"does not fit into memory: model \d+ MiB") as caught:
        open_backend(lookback, **changes)
    assert caught.value.param == param


@pytest.mark.usefixtures("little_memory")
def test_without_wishes_a_small_machine_gets_a_small_context(lookback: Path) -> None:
    backend = open_backend(lookback)
    assert 256 <= backend.info.engine.n_ctx < backend.info.n_ctx_train
    assert backend.apart.params.stock_bytes == 200 * MIB // 32
    close(backend)


@pytest.mark.parametrize("ctx", [256, 300])
def test_streams_apart_each_hold_a_whole_request(lookback: Path, ctx: int) -> None:
    backend = open_backend(lookback, ctx=ctx, profile="throughput")
    engine = backend.info.engine
    assert (engine.profile, engine.kv_unified, engine.kv_type) == ("throughput", False, "q8_0")
    assert (engine.n_ctx, engine.tuned) == (ctx, False)
    assert engine.pool_cells >= ctx * engine.parallel
    close(backend)


def test_streams_apart_answer_exactly(lookback: Path) -> None:
    """More requests than places, of all lengths, some alike."""
    backend = open_backend(lookback, ctx=400, parallel=4, profile="throughput")
    rng = random.Random(5)
    alike = [character(rng.randrange(N_CHARACTERS)) for _ in range(300)]
    prompts = {uid: "".join([*alike[: 50 + 20 * uid], *alike[uid : uid + 45]]) for uid in range(9)}
    for uid, prompt in prompts.items():
        ids = backend.tokenizer.encode(prompt, add_special=True, parse_special=True)
        backend.core.add(CoreJob(uid, tuple(ids), 25, SamplingParams(temperature=0)))
    said = dict.fromkeys(prompts, b"")
    while backend.core.has_work():
        for item in backend.core.step():
            said[item.uid] += item.data
    want = {uid: lookback_text(prompt, 25) for uid, prompt in prompts.items()}
    assert {uid: data.decode() for uid, data in said.items()} == want
    close(backend)


def test_what_was_measured_is_applied_and_told(
    lookback: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tuning = Tuning(n_ubatch=64, flash_attention=False, extra_buffers=False, source="measured")
    with caplog.at_level(logging.DEBUG, "naiad.engine"):
        backend = open_backend(lookback, ctx=300, tuning=tuning, disk_cache=False)
    engine = backend.info.engine
    assert (engine.n_ubatch, engine.flash_attention, engine.extra_buffers) == (64, False, False)
    assert (engine.tuned, engine.threads) == (True, 1)
    assert "1 threads (asked), micro-batch 64 (measured)" in caplog.text
    close(backend)


@pytest.mark.model
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells")
def test_what_grammars_keep_of_a_vocabulary_is_what_is_reckoned(starter: Path) -> None:
    """In a process of its own: elsewhere, memory that was free already would be used."""
    model = str(starter)
    told = subprocess.run(
        [sys.executable, "-c", _TREE, model], capture_output=True, check=True, text=True
    )
    n_tokens, n_bytes = map(int, told.stdout.split())
    assert 0.7 * memory_fit.TREE_BYTES < n_bytes / n_tokens <= 1.15 * memory_fit.TREE_BYTES


_TREE = """
import gc, re, sys
from pathlib import Path
from naiad.native import library
from naiad.native.model import Model
from naiad.engine.grammar.vocabulary import SharedTokenizer
import llguidance

def own():
    told = Path("/proc/self/smaps_rollup").read_text()
    parts = re.findall(r"^(?:Private_Dirty|Swap): *([0-9]+)", told, re.MULTILINE)
    return 1024 * sum(map(int, parts))

library.start()
vocab = Model(Path(sys.argv[1]), gpu_layers=0, extra_buffers=False).vocab
gc.collect()
before = own()
tokenizer = SharedTokenizer(vocab)
while tokenizer.prepare():
    pass
gc.collect()
print(vocab.n_tokens, own() - before)
"""

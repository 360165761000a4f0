"""The core and the native room over the real engine, with models that have one right answer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from naiad.config import EngineConfig
from naiad.engine.base import CoreJob
from naiad.engine.llama import LlamaBackend, load
from naiad.errors import ConfigError, ContextExceeded, InvalidRequest, ModelFileError
from naiad.native.batch import Batch
from naiad.native.context import Context, ContextParams, DecodeOutcome
from naiad.native.model import Model
from naiad.testing.exact_models import N_CHARACTERS, character
from naiad.testing.lookback import lookback_text
from naiad.testing.watermark import watermark_text
from naiad.types import FinishReason, SamplingParams

pytestmark = pytest.mark.engine

GREEDY = SamplingParams(temperature=0)


def open_backend(path: Path, **changes: object) -> LlamaBackend:
    settings: dict[str, object] = {
        "model": str(path),
        "parallel": 4,
        "threads": 1,
        "ctx": 2048,
        "check_integrity": True,
    }
    config = EngineConfig(**{**settings, **changes})  # type: ignore[arg-type]
    backend = load(config)(lambda _: None)
    assert isinstance(backend, LlamaBackend)
    return backend


@pytest.fixture(scope="module")
def backend(lookback: Path) -> Iterator[LlamaBackend]:
    backend = open_backend(lookback)
    yield backend
    backend.core.close()
    backend.model.close()


def text_of(backend: LlamaBackend, prompts: dict[int, str], n: int) -> dict[int, str]:
    for uid, prompt in prompts.items():
        ids = backend.tokenizer.encode(prompt, add_special=True, parse_special=True)
        backend.core.add(CoreJob(uid, tuple(ids), n, GREEDY))
    said = dict.fromkeys(prompts, b"")
    while backend.core.has_work():
        for item in backend.core.step():
            said[item.uid] += item.data
    return {uid: data.decode() for uid, data in said.items()}


def fresh(rng: random.Random, n: int) -> str:
    return "".join(character(rng.randrange(N_CHARACTERS)) for _ in range(n))


def settle(backend: LlamaBackend) -> None:
    while backend.core.idle_slice():
        pass


def test_watermark_is_exact(watermark: Path) -> None:
    backend = open_backend(watermark)
    prompts = {uid: character(uid * 97) for uid in range(9)}
    said = text_of(backend, prompts, 50)
    assert said == {uid: watermark_text(uid * 97, 50) for uid in prompts}
    backend.core.close()
    backend.model.close()


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_lookback_through_every_kind_of_reuse(lookback: Path, flash: bool, kv_type: str) -> None:
    backend = open_backend(lookback, flash_attention=flash, kv_type=kv_type)
    rng = random.Random(1)
    base = fresh(rng, 300)
    first = {1: base, 2: base + fresh(rng, 30), 3: base[:200] + fresh(rng, 60), 4: fresh(rng, 90)}
    assert text_of(backend, first, 60) == {u: lookback_text(p, 60) for u, p in first.items()}
    settle(backend)
    again = {5: base + fresh(rng, 9), 6: base[:150] + fresh(rng, 50), 7: first[4] + fresh(rng, 5)}
    assert text_of(backend, again, 60) == {u: lookback_text(p, 60) for u, p in again.items()}
    assert backend.info.engine.flash_attention == (flash or kv_type == "q8_0")
    backend.core.close()
    backend.model.close()


def test_a_planted_foreign_prefix_shows(backend: LlamaBackend) -> None:
    """Negative control: what the cache says is not what the cells hold."""
    rng = random.Random(2)
    right, wrong = fresh(rng, 256), fresh(rng, 256)
    text_of(backend, {11: wrong}, 2)
    settle(backend)
    ids = backend.tokenizer.encode(right, add_special=True, parse_special=True)
    for block in backend.core._prefix.host._blocks():
        if block.end <= len(ids):
            block.tokens = ids[block.start : block.end]
    prompt = right + fresh(rng, 20)
    assert text_of(backend, {12: prompt}, 30)[12] != lookback_text(prompt, 30)
    backend.core._prefix.host.clear()


@pytest.mark.parametrize("fault", ["none", "foreign", "hole", "dirty"])
def test_a_fault_planted_while_sharing_shows(
    backend: LlamaBackend, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Negative controls: one wrong way to share cells, and the same check fails."""
    rng = random.Random(f"{fault} fault")
    core, memory = backend.core, backend.core._executor.memory
    share = core._pool.share
    right, foreign = fresh(rng, 120), fresh(rng, 120)
    foreign_slot = -1

    def faulty(source: int, target: int, n: int) -> int:
        if fault == "dirty":
            memory.share(foreign_slot, target, 0, n)
        length = share(foreign_slot if fault == "foreign" else source, target, n)
        if fault == "hole":
            memory.remove(target, n - 20, n - 18)
        return length

    said: dict[int, bytes] = dict.fromkeys((41, 42, 43), b"")

    def add(uid: int, prompt: str) -> None:
        ids = backend.tokenizer.encode(prompt, add_special=True, parse_special=True)
        core.add(CoreJob(uid, tuple(ids), 45, GREEDY))

    add(41, right)
    add(42, foreign)
    while not all(said[uid] for uid in (41, 42)):
        for item in core.step():
            said[item.uid] += item.data
    foreign_slot = next(s.slot for s in core._running if s.uid == 42)
    monkeypatch.setattr(core._pool, "share", faulty)
    branch = right[:100] + fresh(rng, 5)
    add(43, branch)
    while core.has_work():
        for item in core.step():
            said[item.uid] += item.data
    settle(backend)
    assert said[41].decode() == lookback_text(right, 45)
    assert said[42].decode() == lookback_text(foreign, 45)
    assert (said[43].decode() == lookback_text(branch, 45)) == (fault == "none")


def test_an_interrupted_prefill_leaves_the_pool_right(backend: LlamaBackend) -> None:
    rng = random.Random(3)
    prompt = fresh(rng, 1500)
    ids = backend.tokenizer.encode(prompt, add_special=True, parse_special=True)
    backend.core.add(CoreJob(21, tuple(ids), 5, GREEDY))
    backend.core.step()
    backend.core.cancel_hint(21)
    assert backend.core.step() == []
    backend.core.abort(21)
    [item] = backend.core.step()
    assert item.finish is FinishReason.CANCELLED
    again = prompt[:1400] + fresh(rng, 50)
    assert text_of(backend, {22: again}, 45)[22] == lookback_text(again, 45)


def test_limits_are_checked_before_anything_runs(backend: LlamaBackend) -> None:
    assert backend.check([1] * 2000, None) == 48
    assert backend.check([1] * 2000, 10) == 10
    assert backend.check([1] * 2047, 10) == 1
    with pytest.raises(ContextExceeded, match=r"2048 tokens.*holds 2048") as caught:
        backend.check([1] * 2048, 10)
    assert caught.value.details == {"n_prompt_tokens": 2048, "n_ctx": 2048}
    with pytest.raises(InvalidRequest, match="empty"):
        backend.check([], 5)
    with pytest.raises(InvalidRequest, match="0 to 4095"):
        backend.check([5000], 5)


def test_tokeniser_round_trip_and_bos_once(backend: LlamaBackend) -> None:
    vocab = backend.tokenizer
    ids = vocab.encode("一丁丂aé🙂", add_special=True, parse_special=True)
    assert ids[0] == vocab.bos
    assert vocab.decode(ids, special=False).decode() == "一丁丂aé🙂"
    assert vocab.encode("<s>一", add_special=True, parse_special=True).count(vocab.bos) == 1
    assert vocab.encode("", add_special=False, parse_special=True) == []
    with pytest.raises(InvalidRequest, match="outside"):
        vocab.decode([-1], special=True)


def test_info_tells_what_runs(backend: LlamaBackend) -> None:
    info = backend.info
    assert info.architecture == "llama"
    assert info.engine.n_ctx == 2048
    assert info.engine.pool_cells == 4 * 2048
    assert info.engine.parallel == 4
    assert info.chat_template
    assert "CPU" in info.engine.build


def test_a_context_too_large_for_memory_is_refused(lookback: Path) -> None:
    with pytest.raises(ConfigError, match="tokens fit"):
        open_backend(lookback, ctx=2**31)


@pytest.mark.parametrize("kind", ["missing", "foreign", "empty", "truncated", "folder"])
def test_bad_model_files_are_named(tmp_path: Path, watermark: Path, kind: str) -> None:
    path = tmp_path / "bad.gguf"
    if kind == "foreign":
        path.write_bytes(b"PK\x03\x04" + bytes(100))
    elif kind == "empty":
        path.touch()
    elif kind == "truncated":
        path.write_bytes(watermark.read_bytes()[:2_000_000])
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(ModelFileError) as caught:
        open_backend(path)
    assert "bad.gguf" in caught.value.message


def test_native_owners_close_twice(watermark: Path) -> None:
    model = Model(watermark)
    context = Context(model, ContextParams(n_ctx=256, n_seq_max=2))
    context.close()
    context.close()
    model.close()
    model.close()


def test_no_room_is_a_value_and_changes_nothing(watermark: Path) -> None:
    model = Model(watermark)
    context = Context(model, ContextParams(n_ctx=256, n_seq_max=2, n_batch=512))
    batch = Batch(512)
    batch.add(0, [300] * 200, 0, n_logits=1)
    assert context.decode(batch) is DecodeOutcome.DONE
    batch.clear()
    batch.add(1, [300] * 100, 0, n_logits=1)
    assert context.decode(batch) is DecodeOutcome.NO_ROOM
    assert context.memory.pos_max(1) == -1
    assert context.memory.pos_max(0) == 199
    context.close()
    model.close()


def test_a_state_from_elsewhere_is_not_taken(watermark: Path) -> None:
    model = Model(watermark)
    context = Context(model, ContextParams(n_ctx=256, n_seq_max=2))
    assert not context.memory.load(0, np.zeros(64, np.uint8))
    context.close()
    model.close()

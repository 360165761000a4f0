"""The loader: what is tried, what is checked, what is told, and what is freed when it fails."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from naiad.config import EngineConfig
from naiad.engine import llama, sizing
from naiad.engine.base import CoreJob
from naiad.engine.executor import DecodeOutcome, Run
from naiad.engine.llama import LlamaBackend
from naiad.errors import ConfigError, ModelFileError, SelfTestFailed
from naiad.native import library
from naiad.native.context import Context
from naiad.native.model import Model
from naiad.testing.exact_models import character
from naiad.testing.lookback import lookback_text
from naiad.testing.watermark import watermark_text
from naiad.types import SamplingParams

pytestmark = pytest.mark.engine


def config(path: Path, **changes: Any) -> EngineConfig:
    settings = {"model": str(path), "parallel": 2, "ctx": 512, "threads": 1}
    return EngineConfig(**{**settings, **changes})


def open_backend(path: Path, **changes: Any) -> LlamaBackend:
    backend = llama.load(config(path, **changes))(lambda _: None)
    assert isinstance(backend, LlamaBackend)
    return backend


def close(backend: LlamaBackend) -> None:
    backend.core.close()
    backend.model.close()


def answers(backend: LlamaBackend, prompts: dict[int, str], n: int) -> dict[int, str]:
    for uid, prompt in prompts.items():
        ids = backend.tokenizer.encode(prompt, add_special=True, parse_special=True)
        backend.core.add(CoreJob(uid, tuple(ids), n, SamplingParams(temperature=0)))
    said = dict.fromkeys(prompts, b"")
    while backend.core.has_work():
        for item in backend.core.step():
            said[item.uid] += item.data
    return {uid: data.decode() for uid, data in said.items()}


def text(seed: int, n: int) -> str:
    rng = random.Random(seed)
    return "".join(character(rng.randrange(3000)) for _ in range(n))


@pytest.fixture
def owners(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The order in which native owners are closed."""
    closed: list[str] = []
    for owner in (Model, Context):
        close_it: Callable[[Any], None] = owner.close

        def close_and_tell(self: Any, close_it: Callable[[Any], None] = close_it) -> None:
            if self.handle:
                closed.append(type(self).__name__)
            close_it(self)

        monkeypatch.setattr(owner, "close", close_and_tell)
    return closed


# -- which layers go where --------------------------------------------------------------------


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine with a GPU that holds `room` layers of a model of 32."""
    state: dict[str, Any] = {"room": 33, "tried": [], "counted": []}

    def load(_config: EngineConfig, gpu_layers: int, _progress: object) -> int:
        state["tried"].append(gpu_layers)
        if gpu_layers > state["room"]:
            raise ModelFileError("cannot make a context: out of device memory")
        return gpu_layers

    def count(_config: EngineConfig) -> int:
        state["counted"].append(True)
        return 32

    monkeypatch.setattr(library, "has_gpu", lambda: True)
    monkeypatch.setattr(llama, "_load", load)
    monkeypatch.setattr(llama, "_count_layers", count)
    return state


@pytest.mark.parametrize(
    ("room", "tried"), [(33, [33]), (32, [33, 24]), (10, [33, 24, 16, 8]), (0, [33, 24, 16, 8, 0])]
)
def test_the_whole_model_is_tried_first_then_less(
    layers: dict[str, Any], room: int, tried: list[int], watermark: Path
) -> None:
    layers["room"] = room
    loaded: object = llama.load(config(watermark))(lambda _: None)
    assert loaded == tried[-1]
    assert layers["tried"] == tried


def test_a_number_of_layers_is_taken_at_its_word(layers: dict[str, Any], watermark: Path) -> None:
    layers["room"] = 10
    with pytest.raises(ModelFileError, match="out of device memory"):
        llama.load(config(watermark, gpu_layers=20))(lambda _: None)
    assert layers["tried"] == [20]


def test_without_a_gpu_nothing_is_counted_or_tried_twice(
    layers: dict[str, Any], monkeypatch: pytest.MonkeyPatch, watermark: Path
) -> None:
    monkeypatch.setattr(library, "has_gpu", lambda: False)
    llama.load(config(watermark, gpu_layers=20))(lambda _: None)
    assert (layers["tried"], layers["counted"]) == ([0], [])


def test_layers_are_counted_without_a_gpu_and_given_back(
    watermark: Path, owners: list[str]
) -> None:
    assert llama._count_layers(config(watermark)) == 1
    assert owners == ["Model"]


@pytest.mark.parametrize(("gpu_layers", "target_s"), [(0, 0.08), (33, math.inf)])
def test_steps_beside_streams_are_bounded_in_time_only_on_a_processor(
    gpu_layers: int, target_s: float, watermark: Path
) -> None:
    wished = config(watermark, n_ubatch=128)
    choice = sizing.choose(wished, llama._machine(gpu_layers))
    budget = llama._budget(wished, choice, gpu_layers)
    assert (budget.alone, budget.target_s) == (128, target_s)


@pytest.mark.parametrize(
    ("profile", "n_targets", "share"), [("default", 3, 0.25), ("throughput", 24, 1.0)]
)
def test_only_the_throughput_profile_computes_prompts_that_come_together_in_one_go(
    profile: str, n_targets: int, share: float, watermark: Path
) -> None:
    wished = config(watermark, profile=profile)
    budget = llama._budget(wished, sizing.choose(wished, llama._machine(0)), gpu_layers=0)
    assert (budget.most_targets, budget.share) == (n_targets, share)


# -- the self-test ----------------------------------------------------------------------------


class FakeNative:
    """As much of an executor as the self-test looks at."""

    def __init__(self, outcomes: list[DecodeOutcome], rows: list[float]) -> None:
        self.outcomes, self.rows = outcomes, rows
        self.runs: list[Run] = []
        self.removed: list[int] = []
        self.memory = SimpleNamespace(remove=self.removed.append)

    def decode(self, runs: list[Run]) -> DecodeOutcome:
        self.runs += runs
        return self.outcomes[len(self.runs) - 1]

    def logits(self, _run: int) -> npt.NDArray[np.float32]:
        return np.array([0.0, self.rows[len(self.runs) - 1]], np.float32)


VOCAB: Any = SimpleNamespace(bos=-1, n_tokens=90)
DONE = [DecodeOutcome.DONE, DecodeOutcome.DONE]


def test_the_self_test_prefills_decodes_and_cleans_up() -> None:
    native = FakeNative(DONE, [1.0, 1.0])
    llama._self_test(native, VOCAB)  # type: ignore[arg-type]
    prefill, decode = native.runs
    assert len(prefill.tokens) > 32
    assert all(0 <= t < 90 for t in prefill.tokens)
    assert (len(decode.tokens), decode.start) == (1, len(prefill.tokens))
    assert native.removed == [0]


@pytest.mark.parametrize("rows", [[np.nan, 1.0], [1.0, np.nan]])
def test_the_self_test_sees_nan_in_either_kind_of_step(rows: list[float]) -> None:
    with pytest.raises(SelfTestFailed, match="NaN"):
        llama._self_test(FakeNative(DONE, rows), VOCAB)  # type: ignore[arg-type]


@pytest.mark.parametrize("outcome", [DecodeOutcome.FATAL, DecodeOutcome.NO_ROOM])
def test_the_self_test_says_what_became_of_the_decode(outcome: DecodeOutcome) -> None:
    with pytest.raises(SelfTestFailed, match=outcome.name):
        llama._self_test(FakeNative([outcome], [1.0]), VOCAB)  # type: ignore[arg-type]


# -- what a failure leaves behind -------------------------------------------------------------


def test_a_failed_self_test_frees_the_context_and_then_its_model(
    watermark: Path, owners: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other order is a use after free; a context left behind keeps a GPU's memory."""

    def fail(*_: object) -> None:
        raise SelfTestFailed("NaN")

    monkeypatch.setattr(llama, "_self_test", fail)
    with pytest.raises(SelfTestFailed):
        open_backend(watermark)
    assert owners == ["Context", "Model"]


def test_a_journal_that_cannot_be_written_frees_both(
    watermark: Path, owners: list[str], tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError):
        open_backend(watermark, journal=str(tmp_path / "no" / "such" / "folder"))
    assert owners == ["Context", "Model"]


def test_a_model_that_does_not_generate_is_refused(
    watermark: Path, owners: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "can_generate", False)
    with pytest.raises(ModelFileError, match="not a model that generates text"):
        open_backend(watermark)
    assert owners == ["Model"]


def test_more_sequences_than_the_engine_holds_are_refused(
    watermark: Path, owners: list[str]
) -> None:
    most = library.max_sequences() - 1
    with pytest.raises(ConfigError, match=rf"parallel is {most + 1}.*at most {most} sequences"):
        open_backend(watermark, parallel=most + 1)
    assert owners == ["Model"]


@pytest.mark.parametrize(("parallel", "parked"), [(1, 1), (64, 64), (200, 55), (255, 0)])
def test_ids_left_over_hold_finished_sequences(
    parallel: int, parked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "max_sequences", lambda: 256)
    assert llama._count_parked(parallel) == parked


# -- what reuse a model allows ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("can_cut", "n_swa", "want"),
    [(True, 0, True), (False, 0, False), (True, 512, True), (True, 128, True), (True, 64, False)],
)
def test_reuse_needs_a_past_that_can_be_cut_and_blocks_no_longer_than_the_window(
    can_cut: bool, n_swa: int, want: bool
) -> None:
    model: Any = SimpleNamespace(can_cut=can_cut, n_swa=n_swa)
    assert llama._can_cut(model) is want


def test_reuse_can_be_switched_off(lookback: Path) -> None:
    backend = open_backend(lookback, prefix_cache=False)
    prompt = text(1, 60)
    for uid in (1, 2):
        assert answers(backend, {uid: prompt}, 5) == {uid: lookback_text(prompt, 5)}
        assert not backend.core.idle_slice()
    assert backend.core._prefix.host.n_bytes == 0
    close(backend)


# -- sizes ------------------------------------------------------------------------------------


def test_what_runs_is_what_is_told(watermark: Path) -> None:
    backend = open_backend(watermark, parallel=3, ctx=300, kv_type="q8_0", n_ubatch=64)
    info, engine = backend.info, backend.info.engine
    assert (info.name, info.n_vocab, info.n_ctx_train) == (watermark.stem, 4096, 32768)
    assert (info.bos_token, info.eos_token, info.add_bos) == ("<s>", "</s>", True)
    assert (engine.n_ctx, engine.pool_cells, engine.parallel) == (300, 1024, 3)
    assert (engine.kv_type, engine.flash_attention, engine.kv_unified) == ("q8_0", True, True)
    assert (engine.threads, engine.n_ubatch, engine.gpu_layers) == (1, 64, 0)
    assert engine.build == library.system_info()
    close(backend)


def test_the_machine_is_what_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "system_info", lambda: "CPU : AMX_INT8 = 1")
    machine = llama._machine(3)
    assert 1 <= machine.logical <= (os.cpu_count() or 1)
    assert machine.physical >= 1
    assert (machine.on_gpu, machine.has_amx) == (True, True)
    monkeypatch.setattr(library, "system_info", lambda: "CPU : AVX2 = 1")
    machine = llama._machine(0)
    assert (machine.on_gpu, machine.has_amx) == (False, False)


def test_a_micro_batch_larger_than_the_usual_batch_fits(lookback: Path) -> None:
    backend = open_backend(lookback, ctx=3000, n_ubatch=2600, parallel=4)
    prompts = {1: text(1, 2500), 2: text(2, 80), 3: text(3, 60)}
    assert answers(backend, prompts, 3) == {u: lookback_text(p, 3) for u, p in prompts.items()}
    close(backend)


def test_a_pool_smaller_than_a_batch_fits(lookback: Path) -> None:
    backend = open_backend(lookback, ctx=120, parallel=2, check_integrity=True)
    assert backend.info.engine.pool_cells == 256
    prompts = {uid: text(uid, 100) for uid in range(6)}
    assert answers(backend, prompts, 9) == {u: lookback_text(p, 9) for u, p in prompts.items()}
    close(backend)


def test_64_streams_at_once_share_and_branch_exactly(lookback: Path) -> None:
    backend = open_backend(lookback, parallel=64, check_integrity=True)
    base = text(1, 90)
    prompts = {u: (base[: 50 + u % 40] if u % 2 else "") + text(100 + u, 45) for u in range(64)}
    want = {u: lookback_text(p, 12) for u, p in prompts.items()}
    assert answers(backend, prompts, 12) == want
    assert len(backend.core._prefix.parked) <= 64
    close(backend)


def test_as_many_streams_as_the_engine_holds(watermark: Path) -> None:
    most = library.max_sequences() - 1
    backend = open_backend(watermark, parallel=most, ctx=256)
    prompts = {uid: character(uid) for uid in range(most)}
    assert answers(backend, prompts, 3) == {u: watermark_text(u, 3) for u in prompts}
    assert not backend.core.idle_slice()
    close(backend)


def test_the_last_place_of_the_context_is_one_token(lookback: Path) -> None:
    backend = open_backend(lookback, ctx=256)
    prompt = text(5, 254)  # and the beginning-of-text token
    ids = backend.tokenizer.encode(prompt, add_special=True, parse_special=True)
    assert len(ids) == 255
    assert backend.check(ids, None) == 1
    assert answers(backend, {1: prompt}, 1) == {1: lookback_text(prompt, 1)}
    close(backend)

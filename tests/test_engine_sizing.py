"""Which settings are chosen, by whom, and what fits into memory: plain numbers in and out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.config import EngineConfig, Tuning
from naiad.engine import memory_fit, sizing
from naiad.engine.memory_fit import MIB, USABLE_SHARE, MemoryFit, ModelShape, Wish, fit
from naiad.engine.sizing import Machine, choose
from naiad.errors import ConfigError

GIB = 1 << 30
PLAIN = Machine(logical=8, physical=4)
AMX = Machine(logical=8, physical=4, has_amx=True)
GPU = Machine(logical=8, physical=4, on_gpu=True)
MEASURED = Tuning(
    threads=3,
    n_ubatch=128,
    flash_attention=False,
    kv_unified=False,
    kv_type="f16",
    extra_buffers=True,
    lane=True,
)


def config(**changes: Any) -> EngineConfig:
    return EngineConfig(model="any.gguf", **changes)


# -- rules of thumb ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "logical", "physical", "want"),
    [(3, 8, 4, 3), (None, 2, 1, 2), (None, 16, 8, 8), (None, 1, 1, 1), (None, 6, 12, 6)],
)
def test_threads(asked: int | None, logical: int, physical: int, want: int) -> None:
    assert sizing.choose_threads(asked, logical=logical, physical=physical) == want


def test_flash_attention_by_machine() -> None:
    def chosen(asked: bool | None, kv: str, gpu: bool, amx: bool) -> bool:
        return sizing.choose_flash_attention(asked, kv_type=kv, on_gpu=gpu, uses_amx=amx)

    assert chosen(None, "f16", False, False)
    assert not chosen(None, "f16", False, True)
    assert chosen(None, "f16", True, True)
    assert chosen(False, "q8_0", False, True)  # a quantised cache cannot do without
    assert not chosen(False, "f16", True, False)


def test_gpu_layers_are_tried_whole_model_first() -> None:
    assert sizing.gpu_layer_tries("auto", n_layer=32, has_gpu=True) == [33, 24, 16, 8, 0]
    assert sizing.gpu_layer_tries(5, n_layer=32, has_gpu=True) == [5]
    assert sizing.gpu_layer_tries(99, n_layer=32, has_gpu=True) == [33]
    assert sizing.gpu_layer_tries(99, n_layer=32, has_gpu=False) == [0]


# -- asked for, measured, rule ----------------------------------------------------------------


def test_without_measurements_rules_decide() -> None:
    choice = choose(config(), PLAIN)
    assert (choice.threads, choice.n_ubatch, choice.flash_attention) == (4, 512, True)
    assert (choice.kv_type, choice.kv_unified, choice.extra_buffers) == ("f16", True, True)
    assert (choice.lane, choice.is_tuned, set(choice.why.values())) == (None, False, {"rule"})


def test_what_was_measured_beats_the_rules() -> None:
    choice = choose(config(tuning=MEASURED), PLAIN)
    assert (choice.threads, choice.n_ubatch, choice.flash_attention) == (3, 128, False)
    assert (choice.lane, choice.is_tuned) == (True, True)


def test_what_was_asked_for_beats_what_was_measured() -> None:
    asked = config(threads=7, n_ubatch=64, flash_attention=True, kv_type="q8_0", tuning=MEASURED)
    choice = choose(asked, PLAIN)
    assert (choice.threads, choice.n_ubatch, choice.flash_attention) == (7, 64, True)
    assert choice.kv_type == "q8_0"
    assert choice.why["threads"] == choice.why["kv_type"] == "asked"


def test_amx_turns_flash_attention_off_unless_safe_mode_does_without_it() -> None:
    assert not choose(config(), AMX).flash_attention
    assert choose(config(extra_buffers=False), AMX).flash_attention
    assert choose(config(profile="throughput"), AMX).flash_attention


def test_safe_mode_takes_only_threads_from_a_measurement_with_repacked_weights() -> None:
    choice = choose(config(extra_buffers=False, tuning=MEASURED), PLAIN)
    assert (choice.threads, choice.n_ubatch, choice.flash_attention) == (3, 512, True)
    assert (choice.extra_buffers, choice.lane) == (False, None)


def test_repacked_weights_are_known_before_anything_is_loaded() -> None:
    without = Tuning(extra_buffers=False)
    assert sizing.uses_extra_buffers(config())
    assert not sizing.uses_extra_buffers(config(tuning=without))
    assert sizing.uses_extra_buffers(config(tuning=without, extra_buffers=True))
    assert not sizing.uses_extra_buffers(config(extra_buffers=False))
    for machine in (PLAIN, AMX, GPU):
        for asked in (None, True, False):
            wished = config(extra_buffers=asked, tuning=without)
            assert choose(wished, machine).extra_buffers == sizing.uses_extra_buffers(wished)


def test_the_throughput_profile_keeps_streams_apart() -> None:
    choice = choose(config(profile="throughput"), PLAIN)
    assert (choice.kv_unified, choice.kv_type, choice.flash_attention) == (False, "q8_0", True)
    on_gpu = choose(config(profile="throughput"), GPU)
    assert (on_gpu.kv_unified, on_gpu.kv_type) == (False, "f16")  # q8_0 decodes slower there
    measured = choose(config(profile="throughput", tuning=Tuning(kv_unified=True)), PLAIN)
    assert measured.kv_unified


def test_the_default_profile_always_shares() -> None:
    assert choose(config(tuning=MEASURED), PLAIN).kv_unified


def test_refused_flash_attention_keeps_the_cache_unquantised() -> None:
    wished = config(profile="throughput", flash_attention=False, tuning=Tuning(kv_type="q8_0"))
    choice = choose(wished, PLAIN)
    assert (choice.kv_type, choice.flash_attention) == ("f16", False)


def test_a_choice_explains_itself() -> None:
    text = choose(config(threads=2, tuning=MEASURED), PLAIN).explained()
    assert "2 threads (asked)" in text
    assert "flash attention off (measured)" in text
    assert "one pool (rule)" in text


# -- memory -----------------------------------------------------------------------------------

SMALL = ModelShape(mapped_bytes=0, bytes_per_cell=1000, n_ctx_train=8192)
LARGE = ModelShape(
    mapped_bytes=4 * GIB,
    bytes_per_cell=128 << 10,
    n_ctx_train=131072,
    n_vocab=128_000,
    n_embd=4096,
    n_head=32,
)


def test_a_shared_pool_is_told_in_one_line() -> None:
    room = fit(SMALL, Wish(parallel=16, ctx=16384), 64 * GIB)
    assert room.n_cells == 32768
    told = memory_fit.sharing_of(room, 16)
    assert "16 requests share 32768 cells: 2 of 16384 tokens at a time" in told


def test_the_pool_is_at_most_parallel_times_ctx() -> None:
    room = fit(SMALL, Wish(parallel=4, ctx=1024), 16 * GIB)
    assert (room.n_ctx, room.n_cells, room.lane_cells) == (1024, 4096, 0)
    assert room.host_cache_bytes == 1 * GIB


def test_cells_take_a_quarter_of_what_the_weights_leave() -> None:
    room = fit(LARGE, Wish(parallel=8), 20 * GIB)
    assert room.n_ctx == room.n_cells
    budget = (20 * GIB - LARGE.mapped_bytes) // 4
    assert 0.8 * budget < room.n_cells * LARGE.bytes_per_cell < budget


def test_a_small_model_on_a_large_machine_stops_at_enough() -> None:
    for parallel, cells in ((2, 16_384), (16, 32_768), (48, 49_152), (255, 65_536)):
        room = fit(SMALL, Wish(parallel=parallel), 500 * GIB)
        assert (room.n_ctx, room.n_cells) == (8192, cells)


def test_what_was_asked_for_may_take_most_of_the_memory() -> None:
    room = fit(LARGE, Wish(parallel=1, ctx=70_001), 20 * GIB)
    assert (room.n_ctx, room.n_cells) == (70_001, 70_144)


def test_what_grammars_keep_of_a_vocabulary_is_counted() -> None:
    few = ModelShape(100 * MIB, 40_000, 8192, n_vocab=2000, n_embd=576, n_head=9)
    many = replace(few, n_vocab=262_144)
    room = fit(many, Wish(4, ctx=8192), 4 * GIB)
    assert "+ vocabulary for grammars 112 MiB" in room.arithmetic
    assert "grammars" not in fit(few, Wish(4, ctx=8192), 4 * GIB).arithmetic
    with pytest.raises(ConfigError, match="vocabulary for grammars 112 MiB"):
        fit(many, Wish(4, ctx=65536), 2 * GIB)


def test_what_cannot_fit_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(ConfigError) as caught:
        fit(LARGE, Wish(parallel=1, ctx=200_000), 20 * GIB)
    message = caught.value.message
    assert caught.value.param == "ctx"
    assert message.startswith("a context of 200000 tokens does not fit into memory: model 4096 MiB")
    assert "200192 cells x 131072 bytes = 25024 MiB" in message
    assert "20480 MiB is free" in message
    most = int(message.partition("at most ")[2].split()[0])
    assert fit(LARGE, Wish(parallel=1, ctx=most), 20 * GIB).n_ctx == most
    with pytest.raises(ConfigError):
        fit(LARGE, Wish(parallel=1, ctx=most + 1), 20 * GIB)


def test_a_host_cache_that_cannot_fit_is_refused_for_what_it_is() -> None:
    with pytest.raises(
        ConfigError, match=r"host cache of 30000 MiB.*at most \d+ MiB fit"
    ) as caught:
        fit(LARGE, Wish(parallel=1, ctx=1024, host_cache_mib=30_000), 20 * GIB)
    assert caught.value.param == "host_cache_mib"
    fits = int(caught.value.message.rpartition("at most ")[2].split()[0])
    room = fit(LARGE, Wish(parallel=1, ctx=1024, host_cache_mib=fits - 1), 20 * GIB)
    assert room.host_cache_mib == fits - 1


#: As Gemma 3 270M: small, with a vocabulary whose logits are most of what a step needs.
WORDY = ModelShape(250 * MIB, 18 * 1024, 32768, 262_144, 640, 4, has_window=True)


@pytest.mark.parametrize("shape", [SMALL, WORDY])
@pytest.mark.parametrize("has_lane", [False, True])
def test_more_free_memory_is_never_less_context(shape: ModelShape, has_lane: bool) -> None:
    wish = Wish(parallel=8, has_lane=has_lane)
    rooms = [fit(shape, wish, n * GIB // 2) for n in range(4, 49)]
    contexts, cells = [room.n_ctx for room in rooms], [room.n_cells for room in rooms]
    assert (contexts, cells) == (sorted(contexts), sorted(cells))
    assert contexts[-1] == shape.n_ctx_train


def test_the_buffers_of_a_large_vocabulary_leave_a_context() -> None:
    """They are no choice: what the cells may take is a share of what is left behind them."""
    contexts = [fit(WORDY, Wish(8, has_lane=True), n * GIB).n_ctx for n in (2, 5, 8)]
    assert contexts[0] >= 2048
    assert contexts[1] >= 16384
    assert contexts[2] == 32768


def test_a_host_cache_nobody_asked_for_shrinks_to_what_is_left() -> None:
    room = fit(LARGE, Wish(parallel=1, ctx=1024), 6 * GIB)
    assert 0 < room.host_cache_mib < 1024
    assert fit(LARGE, Wish(parallel=1, ctx=1024, host_cache_mib=0), 6 * GIB).host_cache_bytes == 0


def test_weights_that_do_not_fit_are_told() -> None:
    with pytest.raises(ConfigError, match="not even 256 tokens fit"):
        fit(LARGE, Wish(parallel=1), 4 * GIB)


def test_a_lane_has_cells_of_its_own() -> None:
    room = fit(SMALL, Wish(parallel=4, ctx=1000, has_lane=True), 16 * GIB)
    assert room.lane_cells == 1024
    assert "1024 of them of the prefill lane" in room.arithmetic
    alone = fit(LARGE, Wish(parallel=1), 20 * GIB)
    assert fit(LARGE, Wish(parallel=1, has_lane=True), 20 * GIB).n_ctx < alone.n_ctx * 0.6


def test_memory_prepared_for_saved_states_is_counted_for_each_context() -> None:
    small, large = fit(SMALL, Wish(parallel=1), 1 * GIB), fit(SMALL, Wish(parallel=1), 16 * GIB)
    assert (small.stock_bytes, large.stock_bytes) == (32 * MIB, memory_fit.MOST_STOCK)
    assert "+ buffers of saved states 128 MiB" in large.arithmetic
    both = fit(SMALL, Wish(parallel=1, has_lane=True), 16 * GIB)
    assert "+ buffers of saved states 256 MiB" in both.arithmetic


def test_streams_apart_need_cells_for_each_request() -> None:
    wish = Wish(parallel=4, ctx=1000, most_parked=4, kv_unified=False)
    room = fit(SMALL, wish, 16 * GIB)
    assert (room.n_ctx, room.n_parked) == (1000, 4)
    assert room.n_cells == 1024 * (4 + 4)  # llama.cpp divides them by the sequences
    modest = fit(LARGE, Wish(parallel=4, most_parked=4, kv_unified=False), 20 * GIB)
    assert modest.n_cells % (4 + modest.n_parked) == 0
    assert modest.n_cells // (4 + modest.n_parked) >= modest.n_ctx


def test_too_many_streams_apart_are_refused_with_what_fits_of_both() -> None:
    with pytest.raises(ConfigError) as caught:
        fit(LARGE, Wish(parallel=16, ctx=8192, kv_unified=False), 20 * GIB)
    message = caught.value.message
    assert "16 requests with a context of 8192 tokens each" in message
    tokens = int(message.partition("at most ")[2].split()[0])
    requests = int(message.partition("at a time, ")[2].split()[0])
    for wish in (Wish(16, tokens, kv_unified=False), Wish(requests, 8192, kv_unified=False)):
        assert fit(LARGE, wish, 20 * GIB).n_ctx == wish.ctx


def spent(shape: ModelShape, wish: Wish, room: MemoryFit) -> int:
    cells = (room.n_cells + room.lane_cells) * shape.bytes_per_cell
    in_sight = room.n_cells if wish.kv_unified else room.n_ctx
    stock = room.stock_bytes * (2 if room.lane_cells else 1)
    return shape.mapped_bytes + cells + stock + memory_fit.compute_bytes(shape, wish, in_sight)


@given(
    free_mib=st.integers(100, 60_000),
    parallel=st.integers(1, 64),
    ctx=st.none() | st.integers(16, 100_000),
    cache=st.none() | st.integers(0, 4000),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    shape=st.sampled_from([SMALL, LARGE]),
)
def test_whatever_is_chosen_fits(
    free_mib: int,
    parallel: int,
    ctx: int | None,
    cache: int | None,
    flags: tuple[bool, bool, bool],
    shape: ModelShape,
) -> None:
    flash, unified, has_lane = flags
    wish = Wish(
        parallel=parallel,
        ctx=ctx,
        host_cache_mib=cache,
        most_parked=parallel,
        flash_attention=flash,
        kv_unified=unified,
        has_lane=has_lane and unified,
    )
    try:
        room = fit(shape, wish, free_mib * MIB)
    except ConfigError as error:
        assert error.param in {"ctx", "parallel", "host_cache_mib"}
        return
    assert spent(shape, wish, room) + room.host_cache_bytes <= free_mib * MIB * USABLE_SHARE
    assert room.n_ctx == (ctx or room.n_ctx) <= room.n_cells
    assert room.n_cells % memory_fit.CELL_STEP == 0
    assert room.host_cache_mib == (room.host_cache_mib if cache is None else cache)


# -- what is free -----------------------------------------------------------------------------


def container(folder: Path, limit: str, used: int, cached: int) -> Path:
    (folder / "memory.max").write_text(limit + "\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\nactive_file 1\n")
    return folder


def test_a_container_has_no_more_than_its_limit_leaves(tmp_path: Path) -> None:
    assert memory_fit.free_memory(10_000, container(tmp_path, "4000", 3000, 1499)) == 2500
    assert memory_fit.free_memory(2000, container(tmp_path, "4000", 3000, 1499)) == 2000
    assert memory_fit.free_memory(2000, container(tmp_path, "4000", 9000, 0)) == 0
    assert memory_fit.free_memory(2000, container(tmp_path, "max", 9000, 0)) == 2000


def test_without_a_limit_that_can_be_read_the_system_is_believed(tmp_path: Path) -> None:
    assert memory_fit.free_memory(10_000, tmp_path / "none") == 10_000
    container(tmp_path, "4000", 3000, 0)
    (tmp_path / "memory.stat").write_text("odd")
    assert memory_fit.free_memory(10_000, tmp_path) == 10_000

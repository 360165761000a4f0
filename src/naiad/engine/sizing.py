"""How large contexts and the pool are, and which settings suit this machine: one place.

Pure functions of plain numbers, so that every choice can be tested and explained.
"""

from __future__ import annotations

from dataclasses import dataclass

from naiad.errors import ConfigError

#: llama.cpp rounds contexts up to this many cells.
CELL_STEP = 256
#: Without --ctx or many parallel requests asking for more, the pool stops here: it is filled with
#: zeros at start, which costs about a second per three gigabytes, and operations scan it.
POOL_ENOUGH = 65536
#: The share of free memory that the pool may take when nobody said otherwise.
POOL_SHARE = 0.25
#: Bytes of one cached key or value, by type (q8_0: 34 bytes for 32 values).
KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32}


@dataclass(frozen=True, slots=True)
class PoolSize:
    """n_ctx: tokens one request may use; n_cells: cells that all requests share."""

    n_ctx: int
    n_cells: int


def choose_pool(
    *, ctx: int | None, n_ctx_train: int, parallel: int, bytes_per_cell: int, free_bytes: int
) -> PoolSize:
    """Size the pool: at most parallel x ctx cells and a quarter of the free memory.

    A context the user asked for is honoured up to three quarters of the free memory.
    Raises ConfigError when it cannot be held at all.
    """
    affordable = _round_down(int(free_bytes * POOL_SHARE) // max(bytes_per_cell, 1))
    n_ctx = ctx if ctx is not None else min(n_ctx_train, max(affordable, CELL_STEP))
    most = int(free_bytes * 0.75) // max(bytes_per_cell, 1)
    if n_ctx > most:
        raise ConfigError(
            f"a context of {n_ctx} tokens needs {n_ctx * bytes_per_cell >> 20} MiB of memory, "
            f"but only {free_bytes >> 20} MiB is free: at most {_round_down(most)} tokens fit",
            param="ctx",
        )
    n_cells = min(parallel * n_ctx, affordable, max(n_ctx, POOL_ENOUGH))
    return PoolSize(n_ctx, _round_up(max(n_cells, n_ctx)))


def _round_down(n: int) -> int:
    return n - n % CELL_STEP


def _round_up(n: int) -> int:
    return _round_down(n + CELL_STEP - 1)


def choose_threads(asked: int | None, *, logical: int, physical: int) -> int:
    """Threads for decoding: the physical cores, since more than one thread a core only contends.

    With four logical processors or fewer all are used: virtual machines count threads as cores
    and the other way round, and one thread instead of two halves everything.
    """
    if asked is not None:
        return asked
    return logical if logical <= 4 else max(1, min(physical, logical))


def choose_flash_attention(
    asked: bool | None, *, kv_type: str, on_gpu: bool, uses_amx: bool
) -> bool:
    """Measured: with AMX, decoding many long contexts is 5x faster without; elsewhere it pays.

    A quantised cache cannot be read without it.
    """
    if kv_type != "f16":
        return True
    if asked is not None:
        return asked
    return on_gpu or not uses_amx


def gpu_layer_tries(asked: int | str, *, n_layer: int, has_gpu: bool) -> list[int]:
    """Layer counts to try in order: the whole model first, then less, at last none."""
    everything = n_layer + 1
    if not has_gpu:
        return [0]
    if asked != "auto":
        return [min(int(asked), everything)]
    return [everything, n_layer * 3 // 4, n_layer // 2, n_layer // 4, 0]

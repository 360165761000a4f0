"""How fast a model will be, by its header."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from naiad.cli.fitting import cost_of_file
from naiad.errors import ModelFileError
from naiad.models.cost import Cost, cost_of
from naiad.models.gguf import GgufHeader, Tensor
from naiad.models.speed import READ_SHARE, SLOW_BYTES_PER_S, Machine, pace

MACHINE = Machine(4.12e10, 2)
LARGE = Cost(
    10**10, 10**10, 65_536, 8192, 49_152, 4096, 32, n_layers=32, attended=32 * 32 * 256
)  # fmt: skip
PLAIN = {
    "general.architecture": "llama",
    "llama.block_count": 6,
    "llama.embedding_length": 512,
    "llama.attention.head_count": 8,
    "llama.attention.head_count_kv": 2,
}
Q4_0, Q4_1, F32 = 2, 3, 0


def header(*tensors: tuple[str, int, int], arch: str = "llama", **more: object) -> GgufHeader:
    """A header of six layers with tensors of (name, type, bytes)."""
    told = {key.replace("llama", arch): value for key, value in PLAIN.items()}
    told["general.architecture"] = arch
    told |= {f"{arch}.attention.{key}": value for key, value in more.items()}
    table = tuple(Tensor(name, kind, 0, n, 0) for name, kind, n in tensors)
    return GgufHeader(3, told, len(table), 0, sum(one.n_bytes for one in table), tensors=table)


def test_a_large_model_waits_for_memory() -> None:
    told = pace(LARGE, "f16", MACHINE)
    assert told.weights_s == pytest.approx(10**10 / (4.12e10 * READ_SHARE))
    assert told.weights_s > 0.95 / told.tokens_per_s(0)
    twice = replace(MACHINE, bytes_per_s=8.24e10)
    assert pace(LARGE, "f16", twice).tokens_per_s(0) > 1.9 * told.tokens_per_s(0)


def test_slow_types_are_bound_by_cores() -> None:
    slow = replace(LARGE, slow_bytes=10**10)
    assert pace(slow, "f16", MACHINE).weights_s == pytest.approx(10**10 / (2 * SLOW_BYTES_PER_S))
    many = replace(MACHINE, n_cores=64)
    assert pace(slow, "f16", many).weights_s == pace(LARGE, "f16", many).weights_s


def test_context_costs_arithmetic_and_windows_bound_it() -> None:
    plain = pace(LARGE, "f16", MACHINE)
    assert plain.tokens_per_s(0) > plain.tokens_per_s(1000) > plain.tokens_per_s(2000)
    assert pace(LARGE, "q8_0", MACHINE).past_s > plain.past_s
    windowed = replace(LARGE, attended=0, attended_in_window=LARGE.attended, window=512)
    told = pace(windowed, "f16", MACHINE)
    assert told.tokens_per_s(512) == plain.tokens_per_s(512)
    assert told.tokens_per_s(8192) == told.tokens_per_s(512)


def test_only_what_a_token_reads_is_counted() -> None:
    shared = header(("token_embd.weight", F32, 1000), ("blk.0.ffn_up.weight", Q4_1, 300))
    told = cost_of(shared, 1300)
    assert (told.token_bytes, told.slow_bytes) == (1300, 300)
    apart = header(("token_embd.weight", F32, 1000), ("output.weight", Q4_0, 500))
    assert cost_of(apart, 1500).token_bytes == 500
    assert cost_of(header(), 700).token_bytes == 700


def test_of_a_model_in_parts_only_layers_are_in_the_others() -> None:
    first = header(
        ("token_embd.weight", F32, 1000),
        ("output.weight", Q4_1, 500),
        ("blk.0.ffn_up.weight", Q4_1, 100),
        ("blk.0.ffn_up_exps.weight", Q4_0, 100),
    )
    experts = {"llama.expert_count": 4, "llama.expert_used_count": 1}
    told = cost_of(replace(first, metadata=first.metadata | experts), 1700 + 1800)
    assert told.slow_bytes == 500 + 10 * 100
    assert told.token_bytes == 500 + 10 * 100 + 10 * 100 // 4


def test_only_layers_with_kv_heads_attend() -> None:
    arrays: dict[str, tuple[int, ...]] = {"llama.attention.head_count_kv": (0, 0, 2, 0, 0, 2)}
    plain = cost_of(replace(header(), arrays=arrays), 1000)
    assert (plain.attended, plain.attended_in_window) == (2 * 8 * 128, 0)
    windowed = header(sliding_window=512, sliding_window_pattern=6)
    told = cost_of(replace(windowed, arrays=arrays), 1000)
    assert (told.attended, told.attended_in_window) == (8 * 128, 8 * 128)


@pytest.mark.parametrize("key", ["sliding_window_pattern", "sliding_window", "head_count_kv"])
def test_negative_numbers_are_refused(key: str) -> None:
    more = {"sliding_window": 512, key: -3}
    with pytest.raises(ModelFileError, match=f"llama.attention.{key} is -3"):
        cost_of(header(arch="llama", **more), 1000)


@pytest.mark.parametrize(
    ("arch", "more", "n_full"),
    [
        ("llama", {}, 6),
        ("llama", {"sliding_window": 512}, 6),
        ("gemma3", {"sliding_window": 512}, 1),
        ("gemma3", {"sliding_window": 512, "sliding_window_pattern": 3}, 2),
    ],
)
def test_layers_with_a_window_are_told_apart(arch: str, more: dict[str, int], n_full: int) -> None:
    told = cost_of(header(arch=arch, **more), 1000)
    met = 8 * (64 + 64)
    assert told.attended == n_full * met
    assert told.attended_in_window == (6 - n_full) * met


def test_a_pattern_for_each_layer_is_followed() -> None:
    one = header(arch="cohere2", sliding_window=512)
    pattern: dict[str, tuple[int, ...]] = {
        "cohere2.attention.sliding_window_pattern": (1, 1, 0, 1, 1, 0)
    }
    assert cost_of(replace(one, arrays=pattern), 1000).attended == 2 * 8 * 128


@pytest.mark.model
@pytest.mark.parametrize(("n_past", "real"), [(5, 148.9), (3000, 69.7), (6000, 43.8)])
def test_the_starters_speed_was_met(starter: Path, n_past: int, real: float) -> None:
    """What was measured where the constants come from: a change of formula has to keep it."""
    told = pace(cost_of_file(starter), "f16", MACHINE).tokens_per_s(n_past)
    assert told == pytest.approx(real, rel=0.2)


@pytest.mark.model
@pytest.mark.parametrize(("n_past", "real"), [(6, 77.9), (3001, 67.7), (6001, 62.9)])
def test_gemmas_speed_was_met(gemma: Path, n_past: int, real: float) -> None:
    told = pace(cost_of_file(gemma), "f16", MACHINE).tokens_per_s(n_past)
    assert told == pytest.approx(real, rel=0.2)

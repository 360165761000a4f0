"""How large a model is called."""

from __future__ import annotations

import pytest

from naiad.native.naming import short_count, with_count


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("llama 256M Q4_1", "llama 135M Q4_1"),
        ("llama ?B Q4_K - Medium", "llama 135M Q4_K - Medium"),
        ("llama4 17Bx16E (Scout) Q4_0", "llama4 135M Q4_0"),
        ("gemma3 270M Q4_0 (guessed)", "gemma3 135M Q4_0 (guessed)"),
        ("qwen3moe 30B.A3B IQ2_XXS - 2.0625 bpw", "qwen3moe 135M IQ2_XXS - 2.0625 bpw"),
        ("llama", "llama"),
        ("", ""),
    ],
)
def test_the_size_is_counted_and_the_rest_stays(said: str, told: str) -> None:
    assert with_count(said, 134_515_008) == told


def test_a_model_that_tells_no_count_keeps_its_description() -> None:
    assert with_count("llama 256M Q4_1", 0) == "llama 256M Q4_1"


@pytest.mark.parametrize(
    ("n", "told"),
    [
        (999, "999"),
        (134_515_008, "135M"),
        (999_900_000, "1B"),
        (1_235_814_400, "1.24B"),
        (70_553_706_496, "70.6B"),
        (1_040_000_000_000, "1.04T"),
    ],
)
def test_counts_are_short(n: int, told: str) -> None:
    assert short_count(n) == told

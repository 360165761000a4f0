"""The watermark model: the next character is always the one after the last.

Attention and feed-forward add nothing, so what reaches the output is the last token's own code, and
the output row of its successor is that code. The answer to any prompt is therefore fixed by the
prompt's last character, whatever lies in the KV cache: the model shows what happens to *streams*.
"""

from __future__ import annotations

from pathlib import Path

from naiad.testing.exact_models import (
    N_CHANNELS,
    Weights,
    character,
    successor_rows,
    unit_codes,
    write_model,
)


def watermark_text(start: int, n: int) -> str:
    """The only right answer of n characters to a prompt that ends with `character(start)`."""
    return "".join(character(start + 1 + i) for i in range(n))


def build_watermark(path: Path) -> Path:
    """Write the watermark model to `path` and return it. Deterministic; 9 MB; needs `gguf`."""
    import numpy as np

    codes = unit_codes(N_CHANNELS)
    zero = np.zeros((N_CHANNELS, N_CHANNELS), np.float32)
    # Attention does real work on real numbers, and its result is then thrown away.
    mixing = np.random.default_rng(8).standard_normal(zero.shape).astype(np.float32) * np.float32(
        0.02
    )
    weights = Weights(codes, successor_rows(codes), mixing, mixing, mixing, zero)
    write_model(path, "watermark", weights)
    return path

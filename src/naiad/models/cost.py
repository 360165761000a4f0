"""What a model costs in memory and time, from its header alone.

Formulas: a cell holds, for each layer, keys of (KV heads x key length) and values of (KV heads x
value length) numbers; a token reads all weights once, of a mixture's experts the used share, and
the cells before it. Reading memory bounds the speed of one stream, not arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

from naiad.errors import ModelFileError
from naiad.models.gguf import GgufHeader

#: Bytes of a number in the KV cache; q8_0 packs 32 of them with a scale into 34.
KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32}


@dataclass(frozen=True, slots=True)
class Cost:
    """A model's sizes. kv_values: numbers in one cell, all layers. n_ctx_train: 0 when untold.

    weight_bytes: of the whole file; token_bytes: of the weights that one token reads.
    """

    weight_bytes: int
    token_bytes: int
    kv_values: int
    n_ctx_train: int
    n_vocab: int
    n_embd: int
    n_head: int
    has_window: bool = False
    is_recurrent: bool = False

    def bytes_per_cell(self, kv_type: str) -> int:
        """Bytes that one token of context takes. kv_type: f16 or q8_0."""
        return round(self.kv_values * KV_BYTES[kv_type])

    def tokens_per_s(self, bytes_per_s: float, n_past: int, kv_type: str) -> float:
        """The most tokens a second that one stream can reach behind so many tokens."""
        n_bytes = self.token_bytes + n_past * self.bytes_per_cell(kv_type)
        return bytes_per_s / max(n_bytes, 1)


def cost_of(header: GgufHeader, n_bytes: int) -> Cost:
    """The costs of a model; n_bytes: size of its file or files.

    Raises ModelFileError when the header does not say how large its layers are.
    """
    arch = header.architecture
    n_layers = _number(header, f"{arch}.block_count")
    n_embd = _number(header, f"{arch}.embedding_length")
    heads = _each(header, f"{arch}.attention.head_count", n_layers)
    if not n_layers or not n_embd:
        raise ModelFileError(
            f"The file does not say how many layers it has or how wide they are ({arch or 'no'} "
            "architecture), so its memory cannot be told beforehand."
        )
    n_head = max(heads, default=0)
    kv_heads = _each(header, f"{arch}.attention.head_count_kv", n_layers) or heads
    width = n_embd // n_head if n_head else 0
    key = _number(header, f"{arch}.attention.key_length") or width
    value = _number(header, f"{arch}.attention.value_length") or width
    return Cost(
        weight_bytes=n_bytes,
        token_bytes=_token_bytes(header, n_bytes),
        kv_values=sum(kv_heads) * (key + value),
        n_ctx_train=header.context_length or 0,
        n_vocab=_number(header, "tokenizer.ggml.tokens"),
        n_embd=n_embd,
        n_head=n_head,
        has_window=bool(_number(header, f"{arch}.attention.sliding_window")),
        is_recurrent=any(".ssm." in key or ".wkv." in key for key in header.metadata),
    )


def _token_bytes(header: GgufHeader, n_bytes: int) -> int:
    """Bytes of weights that one token reads: of the experts only those that it is sent to."""
    n_experts = _number(header, f"{header.architecture}.expert_count")
    n_used = _number(header, f"{header.architecture}.expert_used_count")
    idle = 1 - n_used / n_experts if 0 < n_used < n_experts else 0
    return n_bytes - int(min(header.expert_bytes, n_bytes) * idle)


def _number(header: GgufHeader, key: str) -> int:
    value = header.metadata.get(key)
    return value if isinstance(value, int) else 0


def _each(header: GgufHeader, key: str, n_layers: int) -> tuple[int, ...]:
    """A number for each layer; files give one for all or an array. () when they give none."""
    if key in header.arrays:
        return header.arrays[key]
    n = _number(header, key)
    return (n,) * min(n_layers, 4096) if n else ()

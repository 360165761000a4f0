"""What a model costs in memory and time, from its header alone.

Formulas: a cell holds, for each layer, keys of (KV heads x key length) and values of (KV heads x
value length) numbers; a token reads all weights once, of a mixture's experts the used share, of a
table of embeddings its own row, and attends to the cells before it.
"""

from __future__ import annotations

from dataclasses import dataclass

from naiad.errors import ModelFileError
from naiad.models.gguf import GgufHeader, Tensor

#: Bytes of a number in the KV cache; q8_0 packs 32 of them with a scale into 34.
KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32}
#: Tensor types that llama.cpp reads as fast as memory gives them: floats, and those with kernels
#: for repacked weights (Q4_0, Q8_0, Q2_K, Q4_K, IQ4_NL).
_FAST_KINDS = frozenset({0, 1, 30, 2, 8, 10, 12, 20})
#: One layer in so many attends to the whole context, where files leave that to the architecture.
_FULL_EVERY = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "gpt-oss": 2, "cohere2": 4}
_EMBEDDINGS, _PER_LAYER = "token_embd.weight", "per_layer_token_embd.weight"


@dataclass(frozen=True, slots=True)
class Cost:
    """A model's sizes. kv_values: numbers in one cell, all layers. n_ctx_train: 0 when untold.

    weight_bytes: of the whole file; token_bytes: of the weights that one token reads, slow_bytes:
    of these, what takes more arithmetic than waiting. attended: numbers of keys and values that a
    token meets in each cell, all query heads of all layers; attended_in_window: in those layers
    that look back no further than window tokens.
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
    n_layers: int = 0
    slow_bytes: int = 0
    attended: int = 0
    attended_in_window: int = 0
    window: int = 0

    def bytes_per_cell(self, kv_type: str) -> int:
        """Bytes that one token of context takes. kv_type: f16 or q8_0."""
        return round(self.kv_values * KV_BYTES[kv_type])


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
    token_bytes, slow_bytes = _token_bytes(header, n_bytes)
    window = _number(header, f"{arch}.attention.sliding_window")
    # Layers of other kinds, as hybrid models have, attend to nothing and have no KV heads.
    attends = [n > 0 for n in kv_heads]
    n_full = sum(_are_full(header, attends)) if window else sum(attends)
    met = n_head * (key + value)
    return Cost(
        weight_bytes=n_bytes,
        token_bytes=token_bytes,
        kv_values=sum(kv_heads) * (key + value),
        n_ctx_train=header.context_length or 0,
        n_vocab=_number(header, "tokenizer.ggml.tokens"),
        n_embd=n_embd,
        n_head=n_head,
        has_window=bool(window),
        is_recurrent=any(".ssm." in key or ".wkv." in key for key in header.metadata),
        n_layers=n_layers,
        slow_bytes=slow_bytes,
        attended=n_full * met,
        attended_in_window=(sum(attends) - n_full) * met,
        window=window,
    )


def _token_bytes(header: GgufHeader, n_bytes: int) -> tuple[int, int]:
    """Bytes of weights that one token reads, and of these the slow ones.

    In a model of several files the first one's layers stand for all; what belongs to no layer, such
    as the embeddings, is there once.
    """
    named = sum(tensor.n_bytes for tensor in header.tensors)
    if not named:
        return n_bytes, 0
    n_experts = _number(header, f"{header.architecture}.expert_count")
    n_used = _number(header, f"{header.architecture}.expert_used_count")
    of_experts = n_used / n_experts if 0 < n_used < n_experts else 1.0
    tables = _tables(header)
    in_layers = sum(tensor.n_bytes for tensor in header.tensors if _is_in_layer(tensor))
    scale = max(1 + (n_bytes - header.data_end) / in_layers, 1.0) if in_layers else 1.0
    unread = slow = 0.0
    for tensor in header.tensors:
        share = of_experts if "_exps." in tensor.name else float(tensor.name not in tables)
        n = tensor.n_bytes * (scale if _is_in_layer(tensor) else 1.0)
        unread += (1 - share) * n
        slow += 0 if tensor.kind in _FAST_KINDS else share * n
    return n_bytes - int(unread), int(slow)


def _is_in_layer(tensor: Tensor) -> bool:
    return tensor.name.startswith("blk.")


def _tables(header: GgufHeader) -> set[str]:
    """Tensors of which a token reads one row; the embeddings too, if they are not the output."""
    has_output = any(tensor.name == "output.weight" for tensor in header.tensors)
    return {_PER_LAYER, _EMBEDDINGS} if has_output else {_PER_LAYER}


def _are_full(header: GgufHeader, attends: list[bool]) -> list[bool]:
    """For each layer, whether it attends, and without a window as other layers have."""
    arch = header.architecture
    key = f"{arch}.attention.sliding_window_pattern"
    if key in header.arrays:  # for each layer: has it a window?
        pattern = header.arrays[key]
        return [one and not w for one, w in zip(attends, pattern, strict=False)]
    every = max(1, _number(header, key) or _FULL_EVERY.get(arch, 1))
    return [one and i % every == every - 1 for i, one in enumerate(attends)]


def _number(header: GgufHeader, key: str) -> int:
    """A number of the header, 0 when it is not there. Raises ModelFileError when it is negative."""
    value = header.metadata.get(key)
    return _counted(key, value) if isinstance(value, int) else 0


def _counted(key: str, value: int) -> int:
    if value < 0:
        raise ModelFileError(f"The file says that its {key} is {value}, which cannot be negative.")
    return value


def _each(header: GgufHeader, key: str, n_layers: int) -> tuple[int, ...]:
    """A number for each layer; files give one for all or an array. () when they give none."""
    if key in header.arrays:
        return tuple(_counted(key, n) for n in header.arrays[key][:n_layers])
    n = _number(header, key)
    return (n,) * min(n_layers, 4096) if n else ()

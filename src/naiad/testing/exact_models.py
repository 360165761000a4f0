"""Tiny models whose only right answer is known, to check a server's streams to the last token.

All are GGUF files of a few megabytes that run in the real engine. Every word of
their vocabulary is one CJK character, U+4E00 + n, so a prompt's tokens can be counted by eye, the
tokeniser needs no merges, and every token is three bytes long on the wire.

- `watermark` (watermark.py): the next character is the one after the last. A lost, repeated, stale
  or foreign token shows at once; a wrong cell of the KV cache does not.
- `lookback` (lookback.py): the next character is the one after the character K places back, fetched
  by attention. A wrong, missing, shifted or foreign cell of the KV cache shows as a wrong token.
- `hybrid` and `recurrent` (recurrent.py): a recurrent state besides attention, or nothing else, so
  their past cannot be cut. A wrong state shows like a wrong cell.
- `brief` (brief.py): a short answer that ends by itself, the same to every chat, and cheap also
  after a very long prompt, for programs that want to talk.

Building needs the `gguf` package, which is a development dependency.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from naiad.errors import InvalidRequest

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFWriter
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

SPECIAL = ("<unk>", "<s>", "</s>")
N_BYTES = 256
N_VOCAB = 4096
#: Ids below this are special and byte tokens; id FIRST_CHARACTER + n is character U+4E00 + n.
FIRST_CHARACTER = len(SPECIAL) + N_BYTES
N_CHARACTERS = N_VOCAB - FIRST_CHARACTER
N_CHANNELS = 256
N_HEADS = 4
HEAD_SIZE = N_CHANNELS // N_HEADS
N_CTX = 32768
#: Logit of the right next token; any other token's is a random product of unit codes times this.
RIGHT_LOGIT = 40.0
_FIRST_CODE_POINT = 0x4E00
_TYPE_NORMAL, _TYPE_UNKNOWN, _TYPE_CONTROL, _TYPE_BYTE = 1, 2, 3, 6
#: Nothing but the texts, so that a test says what the prompt is.
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
#: Part of the cached file's name: raise it when a builder's output changes.
_FORMAT = 2


def character(n: int) -> str:
    """The n-th character of the cycle; n is taken modulo N_CHARACTERS."""
    return chr(_FIRST_CODE_POINT + n % N_CHARACTERS)


def place(text: str) -> int:
    """A character's place on the cycle, 0 to N_CHARACTERS - 1. Raises ValueError for any other."""
    n = ord(text) - _FIRST_CODE_POINT
    if not 0 <= n < N_CHARACTERS:
        raise ValueError(f"{text!r} is no character of the exact models")
    return n


def successor(text: str) -> str:
    """The character after this one on the cycle."""
    return character(place(text) + 1)


def token_id(text: str) -> int:
    """The token id of a character."""
    return FIRST_CHARACTER + place(text)


def unit_codes(n_channels: int) -> Matrix:
    """One random direction per token, always the same ones; rows have length 1."""
    import numpy as np

    rows = np.random.default_rng(7).standard_normal((N_VOCAB, n_channels)).astype(np.float32)
    unit: Matrix = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def successor_rows(codes: Matrix) -> Matrix:
    """Output rows under which a character's code gives its successor a logit of RIGHT_LOGIT.

    The norm before the output scales its input to length sqrt(N_CHANNELS), hence the divisor.
    """
    import numpy as np

    rows = np.zeros_like(codes)
    characters = codes[FIRST_CHARACTER:] * np.float32(RIGHT_LOGIT / N_CHANNELS**0.5)
    rows[FIRST_CHARACTER:] = np.roll(characters, 1, axis=0)
    return rows


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """The matrices in which the models differ; the rest is fixed by `write_model`.

    n_heads: of the attention; query, key and value have as many rows as all heads together.
    """

    embedding: Matrix
    output: Matrix
    query: Matrix
    key: Matrix
    value: Matrix
    attention_output: Matrix
    n_heads: int = N_HEADS

    @property
    def head_size(self) -> int:
        return len(self.query) // self.n_heads


def write_model(
    path: Path,
    name: str,
    weights: Weights,
    rope_base: float = 10000.0,
    template: str = TEMPLATE,
) -> None:
    """Write a one-layer llama model without feed-forward effect. The same input, the same bytes.

    The file appears under its name only when it is complete.
    """
    import gguf

    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    writer = gguf.GGUFWriter(str(part), "llama")
    _describe(writer, name, rope_base, weights)
    writer.add_chat_template(template)
    add_vocabulary(writer)
    for tensor, matrix in _tensors(weights).items():
        writer.add_tensor(f"{tensor}.weight", matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(path)


def _describe(writer: GGUFWriter, name: str, rope_base: float, weights: Weights) -> None:
    writer.add_name(name)
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(N_CHANNELS)
    writer.add_block_count(1)
    writer.add_feed_forward_length(N_CHANNELS)
    writer.add_head_count(weights.n_heads)
    writer.add_head_count_kv(weights.n_heads)
    if weights.head_size * weights.n_heads != N_CHANNELS:
        writer.add_key_length(weights.head_size)
        writer.add_value_length(weights.head_size)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(weights.head_size)
    writer.add_rope_freq_base(rope_base)
    writer.add_vocab_size(N_VOCAB)
    writer.add_file_type(0)


def add_vocabulary(writer: GGUFWriter) -> None:
    """The words of all exact models: special ones, bytes, characters."""
    n_fixed = len(SPECIAL)
    byte_tokens = [f"<0x{value:02X}>" for value in range(N_BYTES)]
    characters = [character(n) for n in range(N_CHARACTERS)]
    types = [_TYPE_UNKNOWN] + [_TYPE_CONTROL] * (n_fixed - 1)
    types += [_TYPE_BYTE] * N_BYTES + [_TYPE_NORMAL] * N_CHARACTERS
    writer.add_tokenizer_model("llama")
    writer.add_token_list([t.encode() for t in (*SPECIAL, *byte_tokens, *characters)])
    writer.add_token_scores([0.0] * FIRST_CHARACTER + [-float(n) for n in range(N_CHARACTERS)])
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)


def _tensors(weights: Weights) -> dict[str, Matrix]:
    import numpy as np

    ones = np.ones(N_CHANNELS, np.float32)
    zero = np.zeros((N_CHANNELS, N_CHANNELS), np.float32)
    layer = {
        "attn_norm": ones,
        "attn_q": weights.query,
        "attn_k": weights.key,
        "attn_v": weights.value,
        "attn_output": weights.attention_output,
        "ffn_norm": ones,
        "ffn_gate": zero,
        "ffn_up": zero,
        "ffn_down": zero,
    }
    top = {"token_embd": weights.embedding, "output": weights.output, "output_norm": ones}
    return top | {f"blk.0.{name}": matrix for name, matrix in layer.items()}


def exact_model(name: str, directory: Path) -> Path:
    """The path of an exact model in `directory`, built on first use.

    Args:
        name: "watermark", "brief", "hybrid", "recurrent", "lookback" (40 places back) or
            "lookback-K", K from 1 to 2000.

    Raises:
        InvalidRequest: there is no model of that name.
    """
    from naiad.testing.brief import build_brief
    from naiad.testing.lookback import build_lookback
    from naiad.testing.recurrent import build_hybrid, build_recurrent
    from naiad.testing.watermark import build_watermark

    kind, _, back = name.partition("-")
    path = directory / f"{name}.v{_FORMAT}.gguf"
    fixed = {
        "watermark": build_watermark,
        "brief": build_brief,
        "hybrid": build_hybrid,
        "recurrent": build_recurrent,
    }
    if name not in fixed and (kind != "lookback" or (back and not back.isdecimal())):
        raise InvalidRequest(
            f"no exact model is named {name!r}: "
            "watermark, brief, hybrid, recurrent, lookback, lookback-K"
        )
    if path.exists():
        return path
    directory.mkdir(parents=True, exist_ok=True)
    if name in fixed:
        return fixed[name](path)
    return build_lookback(path, int(back or 40))

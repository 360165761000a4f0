"""The hybrid model: half of each answer comes out of a recurrent state, half out of attention.

A character is a pair: its row (place // 64) and its column (place % 64), each a channel of its own.
A convolution over the last tokens, which keeps them in a recurrent state as LFM2 models do, fetches
the row of the character ROW_BACK places back; one attention layer, as in the look-back model,
fetches the column of the one COLUMN_BACK places back. The answer is the successor of both.

So a state that is stale, of another sequence or of another position shows in the text, and so does
a wrong cell beside a right state: neither half can be right by itself.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from naiad.testing.exact_models import (
    FIRST_CHARACTER,
    HEAD_SIZE,
    N_CHANNELS,
    N_CTX,
    N_HEADS,
    N_VOCAB,
    RIGHT_LOGIT,
    add_vocabulary,
    character,
    place,
)
from naiad.testing.lookback import ROPE_BASE, SHARPNESS

if TYPE_CHECKING:
    from gguf import GGUFWriter

    from naiad.testing.exact_models import Matrix

N_COLUMNS = 64
N_ROWS = 59
#: Characters the model knows: prompts are made of those with smaller places.
N_PAIRS = N_ROWS * N_COLUMNS
ROW_BACK = 40
COLUMN_BACK = 60
# Channels: the constant, what a token is, what the two layers have fetched.
_ROW, _COLUMN = 1, 1 + N_ROWS
_FETCHED_ROW, _FETCHED_COLUMN = _COLUMN + N_COLUMNS, _COLUMN + N_COLUMNS + N_ROWS


def hybrid_text(prompt: str, n: int) -> str:
    """The only right answer of n characters to a prompt of more than COLUMN_BACK characters.

    Raises:
        ValueError: the prompt is too short, or has characters the model does not know.
    """
    places = [place(each) for each in prompt]
    if len(places) <= COLUMN_BACK or max(places) >= N_PAIRS:
        raise ValueError(f"a prompt is more than {COLUMN_BACK} of the first {N_PAIRS} characters")
    for _ in range(n):
        row = places[-1 - ROW_BACK] // N_COLUMNS + 1
        column = places[-1 - COLUMN_BACK] % N_COLUMNS + 1
        places.append(row % N_ROWS * N_COLUMNS + column % N_COLUMNS)
    return "".join(character(each) for each in places[len(prompt) :])


def build_hybrid(path: Path) -> Path:
    """Write the hybrid model to `path` and return it. Deterministic; 14 MB; needs `gguf`."""
    import gguf

    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    writer = gguf.GGUFWriter(str(part), "lfm2")
    _describe(writer)
    add_vocabulary(writer)
    for name, matrix in (_top() | _convolution() | _attention()).items():
        writer.add_tensor(f"{name}.weight", matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(path)
    return path


def _describe(writer: GGUFWriter) -> None:
    writer.add_name("hybrid")
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(N_CHANNELS)
    writer.add_block_count(2)
    writer.add_feed_forward_length(N_CHANNELS)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv([0, N_HEADS])  # a layer without any is a convolution
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_shortconv_l_cache(ROW_BACK + 1)
    writer.add_vocab_size(N_VOCAB)
    writer.add_file_type(0)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")


def _top() -> dict[str, Matrix]:
    import numpy as np

    embedding, output = np.zeros((2, N_VOCAB, N_CHANNELS), np.float32)
    embedding[:, 0] = 1.0
    ids = np.arange(N_PAIRS) + FIRST_CHARACTER
    rows, columns = np.divmod(np.arange(N_PAIRS), N_COLUMNS)
    embedding[ids, _ROW + rows] = 1.0
    embedding[ids, _COLUMN + columns] = 1.0
    output[ids, _FETCHED_ROW + (rows - 1) % N_ROWS] = RIGHT_LOGIT / N_CHANNELS**0.5
    output[ids, _FETCHED_COLUMN + (columns - 1) % N_COLUMNS] = RIGHT_LOGIT / N_CHANNELS**0.5
    norm = np.ones(N_CHANNELS, np.float32)
    return {"token_embd": embedding, "output": output, "token_embd_norm": norm}


def _feed_forward(layer: int) -> dict[str, Matrix]:
    """Norms, and a feed-forward part that adds nothing."""
    import numpy as np

    zero: Matrix = np.zeros((N_CHANNELS, N_CHANNELS), np.float32)
    ones: Matrix = np.ones(N_CHANNELS, np.float32)
    parts = dict.fromkeys(("ffn_gate", "ffn_up", "ffn_down"), zero)
    parts |= {"attn_norm": ones, "ffn_norm": ones}
    return {f"blk.{layer}.{name}": matrix for name, matrix in parts.items()}


def _convolution() -> dict[str, Matrix]:
    """Both gates open; the kernel keeps the oldest of its tokens and no other."""
    import numpy as np

    scale = np.float32((3 / N_CHANNELS) ** 0.5)  # undoes the norm: embeddings have length sqrt(3)
    gate, rows = np.zeros((2, N_CHANNELS, N_CHANNELS), np.float32)
    gate[:, 0] = scale
    for i in range(N_ROWS):
        rows[_FETCHED_ROW + i, _ROW + i] = scale
    kernel = np.zeros((N_CHANNELS, ROW_BACK + 1), np.float32)
    kernel[:, 0] = 1.0
    return _feed_forward(0) | {
        "blk.0.shortconv.in_proj": np.concatenate([gate, gate, rows]),
        "blk.0.shortconv.conv": kernel,
        "blk.0.shortconv.out_proj": np.eye(N_CHANNELS, dtype=np.float32),
    }


def _attention() -> dict[str, Matrix]:
    """The look-back model's, with rotary pairs half a head apart and norms of query and key."""
    import numpy as np

    half = HEAD_SIZE // 2
    theta = ROPE_BASE ** (-2.0 * np.arange(half) / HEAD_SIZE)
    query, key, value = np.zeros((3, N_CHANNELS, N_CHANNELS), np.float32)
    angles = -theta * COLUMN_BACK
    query[:, 0] = np.tile(np.concatenate([np.cos(angles), np.sin(angles)]), N_HEADS)
    key[:, 0] = np.tile(np.concatenate([np.ones(half), np.zeros(half)]), N_HEADS)
    for i in range(N_COLUMNS):
        value[_FETCHED_COLUMN + i, _COLUMN + i] = 2 / N_CHANNELS**0.5
    # The norm gives both pairs' length a root mean square of 1, so each pair a length of sqrt(2).
    sharpness = np.full(HEAD_SIZE, SHARPNESS / 2**0.5, np.float32)
    layer = {
        "attn_q": query,
        "attn_k": key,
        "attn_v": value,
        "attn_output": np.eye(N_CHANNELS, dtype=np.float32),
        "attn_q_norm": sharpness,
        "attn_k_norm": sharpness,
    }
    return _feed_forward(1) | {f"blk.1.{name}": matrix for name, matrix in layer.items()}

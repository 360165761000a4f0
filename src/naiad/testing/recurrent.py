"""Models whose answers come out of a recurrent state: all of each answer, or half of it.

A character is a pair: its row (place // 64) and its column (place % 64), each a channel of its own.
The answer is the successor of a row and of a column that stood some places back.

*hybrid*, of the LFM2 kind: a convolution over the last tokens, which keeps them in a recurrent
state, fetches the row of the character ROW_BACK places back; one attention layer, as in the
look-back model, fetches the column of the one COLUMN_BACK places back.

*recurrent*, of the Mamba kind, without attention: the convolution before its state space fetches
both from ROW_BACK places back. The state space itself stays at zero.

So a state that is stale, of another sequence or of another position shows in the text, and so does
a wrong cell beside a right state: neither half can be right by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
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
# Of the state space: its width, which is twice the model's in every Mamba, and its states.
_N_INNER, _N_STATE = 2 * N_CHANNELS, 16
_FETCHED_ROW, _FETCHED_COLUMN = _COLUMN + N_COLUMNS, _COLUMN + N_COLUMNS + N_ROWS


def hybrid_text(prompt: str, n: int) -> str:
    """The hybrid's only right answer of n characters to a prompt of more than COLUMN_BACK.

    Raises:
        ValueError: the prompt is too short, or has characters the model does not know.
    """
    return _text(prompt, n, COLUMN_BACK)


def recurrent_text(prompt: str, n: int) -> str:
    """The same for the recurrent model, and a prompt of more than ROW_BACK characters."""
    return _text(prompt, n, ROW_BACK)


def _text(prompt: str, n: int, column_back: int) -> str:
    places = [place(each) for each in prompt]
    if len(places) <= column_back or max(places) >= N_PAIRS:
        raise ValueError(f"a prompt is more than {column_back} of the first {N_PAIRS} characters")
    for _ in range(n):
        row = places[-1 - ROW_BACK] // N_COLUMNS + 1
        column = places[-1 - column_back] % N_COLUMNS + 1
        places.append(row % N_ROWS * N_COLUMNS + column % N_COLUMNS)
    return "".join(character(each) for each in places[len(prompt) :])


def build_hybrid(path: Path) -> Path:
    """Write the hybrid model to `path` and return it. Deterministic; 14 MB; needs `gguf`."""
    top = _top()
    top["token_embd_norm"] = top.pop("output_norm")
    tensors = {f"{n}.weight": m for n, m in (top | _convolution() | _attention()).items()}
    return _write(path, "lfm2", _describe_hybrid, tensors)


def build_recurrent(path: Path) -> Path:
    """Write the recurrent model to `path` and return it. Deterministic; 11 MB; needs `gguf`."""
    tensors = {f"{name}.weight": matrix for name, matrix in _top().items()}
    return _write(path, "mamba", _describe_recurrent, tensors | _state_space())


def _write(
    path: Path, arch: str, describe: Callable[[GGUFWriter], None], tensors: dict[str, Matrix]
) -> Path:
    """The file appears under its name only when it is complete."""
    import gguf

    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    writer = gguf.GGUFWriter(str(part), arch)
    describe(writer)
    _describe(writer)
    add_vocabulary(writer)
    for name, matrix in tensors.items():
        writer.add_tensor(name, matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(path)
    return path


def _describe_hybrid(writer: GGUFWriter) -> None:
    writer.add_name("hybrid")
    writer.add_block_count(2)
    writer.add_feed_forward_length(N_CHANNELS)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv([0, N_HEADS])  # a layer without any is a convolution
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_shortconv_l_cache(ROW_BACK + 1)


def _describe_recurrent(writer: GGUFWriter) -> None:
    writer.add_name("recurrent")
    writer.add_block_count(1)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(ROW_BACK + 1)
    writer.add_ssm_inner_size(_N_INNER)
    writer.add_ssm_state_size(_N_STATE)
    writer.add_ssm_time_step_rank(_N_STATE)


def _describe(writer: GGUFWriter) -> None:
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(N_CHANNELS)
    writer.add_layer_norm_rms_eps(1e-5)
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
    return {"token_embd": embedding, "output": output, "output_norm": norm}


def _state_space() -> dict[str, Matrix]:
    """Its convolution keeps the oldest of its tokens and no other; the gate is as good as open, and
    what it and the activation take away, all channels lose alike.
    """
    import numpy as np

    scale = np.float32((3 / N_CHANNELS) ** 0.5)  # undoes the norm: embeddings have length sqrt(3)
    taken, gate = np.zeros((2, _N_INNER, N_CHANNELS), np.float32)
    out = np.zeros((N_CHANNELS, _N_INNER), np.float32)
    gate[:, 0] = 10 * scale
    for i in range(N_ROWS + N_COLUMNS):
        taken[i, _ROW + i] = 10 * scale
        out[_FETCHED_ROW + i, i] = 0.01
    kernel = np.zeros((_N_INNER, ROW_BACK + 1), np.float32)
    kernel[:, 0] = 1.0
    nothing = np.zeros(_N_INNER, np.float32)
    tensors = {
        "attn_norm.weight": np.ones(N_CHANNELS, np.float32),
        "ssm_in.weight": np.concatenate([taken, gate]),
        "ssm_conv1d.weight": kernel,
        "ssm_conv1d.bias": nothing,
        "ssm_x.weight": np.zeros((3 * _N_STATE, _N_INNER), np.float32),
        "ssm_dt.weight": np.zeros((_N_INNER, _N_STATE), np.float32),
        "ssm_dt.bias": nothing,
        "ssm_a": np.full((_N_INNER, _N_STATE), -1, np.float32),
        "ssm_d": np.ones(_N_INNER, np.float32),
        "ssm_out.weight": out,
    }
    return {f"blk.0.{name}": matrix for name, matrix in tensors.items()}


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

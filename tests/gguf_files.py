"""GGUF files made by hand, byte by byte, so that each field can be made wrong."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

UINT32, STRING, ARRAY, UINT64 = 4, 8, 9, 10


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key: str, value: Any) -> bytes:
    """A key and its value: a str, an int (uint32), or a list of either."""
    if isinstance(value, str):
        return text(key) + struct.pack("<I", STRING) + text(value)
    if isinstance(value, list):
        kind, items = STRING, [text(item) for item in value if isinstance(item, str)]
        if not items:
            kind, items = UINT32, [struct.pack("<I", item) for item in value]
        head = struct.pack("<IIQ", ARRAY, kind, len(value))
        return text(key) + head + b"".join(items)
    return text(key) + struct.pack("<II", UINT32, value)


def tensor(name: str, shape: Sequence[int], kind: int, offset: int) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


def head(n_tensors: int, n_pairs: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_pairs)


def small_model() -> bytes:
    """A file with two tensors: 64 weights of F32 (256 bytes) and 64 of Q8_0 (68 bytes)."""
    pairs = [
        pair("general.architecture", "llama"),
        pair("general.name", "Tiny"),
        pair("general.license", "mit"),
        pair("llama.context_length", 2048),
        pair("tokenizer.ggml.tokens", ["<s>", "水", "c"]),
        pair("tokenizer.ggml.token_type", [1, 2, 3]),
        pair("tokenizer.chat_template", "{{ messages }}"),
        pair("general.file_type", 7),
    ]
    tensors = [tensor("a", (32, 2), 0, 0), tensor("b", (64,), 8, 256)]
    header = head(len(tensors), len(pairs)) + b"".join(pairs) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + bytes(256 + 68)

"""Read the header of a GGUF file in plain Python, believing nothing it says about itself.

The worker opens model files with native code; this reader exists to look at a file without that
risk, and to refuse a damaged one with a sentence before a process is started for it. Every count
and length is checked against the bytes the file really has before it is used, so a hostile header
costs a bounded amount of memory and time.
"""

from __future__ import annotations

import functools
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from naiad.errors import ModelFileError

MAGIC = b"GGUF"
#: A vocabulary of a million long tokens stays far below this.
MAX_HEADER_BYTES = 256 * 1024 * 1024
MAX_NAME_BYTES = 65_535
MAX_DIMS = 8
#: Arrays of up to so many integers are kept: one for each layer of any model.
MAX_KEPT = 1024
DEFAULT_ALIGNMENT = 32

#: value type in the file -> struct format; strings and arrays are read by hand.
SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
STRING, ARRAY = 8, 9

#: tensor type -> (weights in a block, bytes of a block)
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    9: (32, 40), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18),
    21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8),
    28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip

#: general.file_type -> what the quantisation is called
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M",
    30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of the tensor table. kind: its type's number; n_bytes: 0 for a type not known here.

    end: where its data ends within the data section.
    """

    name: str
    kind: int
    weights: int
    n_bytes: int
    end: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says about itself.

    metadata: scalars and strings by key; an array is given as its length only.
    arrays: the values of short arrays of numbers, such as one for each layer.
    n_params: weights, counted from the tensor table.
    tensors: the tensor table.
    data_end: bytes the file must have for its tensors to be complete (tensor types that this
        reader does not know are counted as empty).
    """

    version: int
    metadata: dict[str, Any]
    n_tensors: int
    n_params: int
    data_end: int
    arrays: dict[str, tuple[int, ...]] = field(default_factory=dict)
    tensors: tuple[Tensor, ...] = ()

    @property
    def architecture(self) -> str:
        return self._text("general.architecture")

    @property
    def name(self) -> str:
        return self._text("general.name")

    @property
    def license(self) -> str:
        return self._text("general.license")

    @property
    def context_length(self) -> int | None:
        """Tokens the model was trained for; None when the file does not say."""
        value = self.metadata.get(f"{self.architecture}.context_length")
        return value if isinstance(value, int) else None

    @property
    def has_chat_template(self) -> bool:
        return bool(self._text("tokenizer.chat_template"))

    @property
    def quantisation(self) -> str:
        """The usual name of the file's quantisation, e.g. "Q4_K_M"; "" when it does not say."""
        kind = self.metadata.get("general.file_type")
        return FILE_TYPES.get(kind, f"type {kind}") if isinstance(kind, int) else ""

    def _text(self, key: str) -> str:
        value = self.metadata.get(key, "")
        return value if isinstance(value, str) else ""


_TOO_SHORT = "it ends at byte {} in the middle of its header"


class _Damaged(Exception):
    """The header contradicts itself or the file; the argument finishes "it is damaged: ..."."""


class _Cursor:
    """Reads forward through a file; memory grows with what is really there, up to the cap."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._buffer = b""
        self.position = 0
        self.limit = min(size, MAX_HEADER_BYTES)

    @property
    def left(self) -> int:
        return self.limit - self.position

    def skip(self, n: int) -> int:
        """Move past n bytes and return where they begin. Raises _Damaged at the end of the file."""
        start = self.position
        if n > self.left:
            raise _Damaged(_TOO_SHORT.format(self.limit))
        self.position += n
        return start

    def take(self, n: int) -> bytes:
        start = self.skip(n)
        self._fill()
        return self._buffer[start : self.position]

    def scalar(self, code: str) -> Any:
        return _struct(code).unpack(self.take(_struct(code).size))[0]

    def text(self, limit: int | None = None) -> str:
        n = self.scalar("Q")
        if limit is not None and n > limit:
            raise _Damaged(f"a name of {n} bytes is longer than {limit}")
        return self.take(n).decode("utf-8", "replace")

    def skip_texts(self, count: int) -> None:
        """Move past `count` strings; the loop calls nothing more than needed, for vocabularies are
        long."""
        unpack = _struct("Q").unpack_from
        position, limit = self.position, self.limit
        for _ in range(count):
            if position + 8 > len(self._buffer):
                self.position = position
                self.skip(8)
                self._fill()
            position += 8 + unpack(self._buffer, position)[0]
            if position > limit:
                raise _Damaged(_TOO_SHORT.format(limit))
        self.position = position

    def _fill(self) -> None:
        missing = self.position - len(self._buffer)
        if missing > 0:
            # Doubling keeps the copying linear in the length of the header.
            wanted = max(missing, len(self._buffer), 1 << 20)
            self._buffer += self._file.read(min(wanted, self.limit - len(self._buffer)))
        if self.position > len(self._buffer):
            raise _Damaged("it shrank while it was read")


@functools.cache
def _struct(code: str) -> struct.Struct:
    return struct.Struct("<" + code)


def is_gguf(path: Path) -> bool:
    """True when the file can be read and begins as a GGUF file does."""
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def read_header(path: Path) -> GgufHeader:
    """Read and check the header of a GGUF file.

    Raises:
        ModelFileError: missing, unreadable, not a GGUF file, damaged, or shorter than its tensors.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            header = _read(_Cursor(file, size))
    except FileNotFoundError:
        raise ModelFileError(f"There is no model file {path}.") from None
    except IsADirectoryError:
        raise ModelFileError(f"{path} is a folder; name the GGUF file in it.") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}.") from None
    except _Damaged as error:
        raise ModelFileError(f"{path} is not a usable GGUF file: {error}.") from None
    if size < header.data_end:
        raise ModelFileError(
            f"{path} is truncated: its tensors need {header.data_end} bytes and it has {size}; "
            "copy or download it again."
        )
    return header


def _read(cursor: _Cursor) -> GgufHeader:
    if cursor.left < 4 or cursor.take(4) != MAGIC:
        raise _Damaged("it does not begin with the letters GGUF")
    version = cursor.scalar("I")
    if version not in (2, 3):
        raise _Damaged(f"its version is {version} and versions 2 and 3 can be read")
    n_tensors, n_pairs = cursor.scalar("Q"), cursor.scalar("Q")
    # A tensor's entry takes at least 32 bytes, a key and its value at least 13.
    if n_tensors * 32 + n_pairs * 13 > cursor.left:
        raise _Damaged(f"it claims {n_tensors} tensors and {n_pairs} keys, more than it can hold")
    arrays: dict[str, tuple[int, ...]] = {}
    metadata = dict(_pair(cursor, arrays) for _ in range(n_pairs))
    tensors = [_tensor(cursor) for _ in range(n_tensors)]
    return GgufHeader(
        version=version,
        metadata=metadata,
        n_tensors=n_tensors,
        n_params=sum(tensor.weights for tensor in tensors),
        data_end=_data_start(cursor.position, metadata) + max(tensor.end for tensor in tensors)
        if tensors
        else cursor.position,
        arrays=arrays,
        tensors=tuple(tensors),
    )


def _pair(cursor: _Cursor, arrays: dict[str, tuple[int, ...]]) -> tuple[str, Any]:
    key = cursor.text(MAX_NAME_BYTES)
    kind = cursor.scalar("I")
    if kind == ARRAY:
        return key, _skip_array(cursor, key, arrays)
    if kind == STRING:
        return key, cursor.text()
    if kind not in SCALARS:
        raise _Damaged(f"the value of {key!r} has the unknown type {kind}")
    return key, cursor.scalar(SCALARS[kind])


def _skip_array(cursor: _Cursor, key: str, arrays: dict[str, tuple[int, ...]]) -> int:
    """Move past an array and return its length; a short one of integers is kept."""
    kind, n = cursor.scalar("I"), cursor.scalar("Q")
    if SCALARS.get(kind, "d") not in "fd" and n <= MAX_KEPT and not key.startswith("tokenizer."):
        arrays[key] = tuple(int(cursor.scalar(SCALARS[kind])) for _ in range(n))
    elif kind in SCALARS:
        cursor.skip(n * _struct(SCALARS[kind]).size)
    elif kind == STRING:
        if n * 8 > cursor.left:
            raise _Damaged(f"{key!r} claims {n} strings, more than the file can hold")
        cursor.skip_texts(n)
    else:
        raise _Damaged(f"{key!r} is an array of the unknown type {kind}")
    return int(n)


def _tensor(cursor: _Cursor) -> Tensor:
    name = cursor.text(MAX_NAME_BYTES)
    n_dims = cursor.scalar("I")
    if n_dims > MAX_DIMS:
        raise _Damaged(f"the tensor {name!r} has {n_dims} dimensions")
    weights = math.prod(cursor.scalar("Q") for _ in range(n_dims))
    kind, offset = cursor.scalar("I"), cursor.scalar("Q")
    per_block, block_bytes = BLOCKS.get(kind, (1, 0))
    n_bytes = weights // per_block * block_bytes
    return Tensor(name, kind, weights, n_bytes, offset + n_bytes)


def _data_start(position: int, metadata: dict[str, Any]) -> int:
    step = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(step, int) or step < 1:
        raise _Damaged(f"its alignment is {step!r}")
    return -(-position // step) * step

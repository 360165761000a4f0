"""One block of the cache as a file: a header that says what it is, then the state's bytes.

Little-endian: magic and version, fingerprint, key of the block before it, first position, number of
tokens, bytes of state, CRC-32 of the state; the token ids; CRC-32 of all that. A file is named by
its key, a hash over the block's own tokens and the key before it, and so over everything the state
depends on. The first key of a chain is a hash of fingerprint and namespace: files name neither the
namespace nor any text.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import replace

from naiad.engine.blocks import BLOCK, Entry

#: Bytes of a key and of a fingerprint.
N_KEY = 16
MAGIC = b"naiadKV\x01"  # the last byte is the version: change it with anything in this file
_FIXED = struct.Struct(f"<8s{N_KEY}s{N_KEY}sIIQI")
_CRC = struct.Struct("<I")
#: No header of a block is longer; that of a whole sequence, which begins at 0, may be.
N_HEADER_MOST = _FIXED.size + 4 * BLOCK + _CRC.size


class Damaged(ValueError):
    """The file is no block that can be used here; the text says why."""


def n_header(n_tokens: int) -> int:
    """Bytes of the header of a block of so many tokens."""
    return _FIXED.size + 4 * n_tokens + _CRC.size


def n_file(entry: Entry) -> int:
    """Bytes of the whole file of a block."""
    return n_header(len(entry.tokens)) + entry.n_bytes


def n_header_of(data: bytes) -> int:
    """Bytes of the header that begins with `data`, at most a BLOCK's if too little is there."""
    if len(data) < _FIXED.size:
        return N_HEADER_MOST
    return n_header(_FIXED.unpack_from(data)[4])


def root_key(fingerprint: bytes, namespace: str) -> bytes:
    """The key that a namespace's first blocks have for a parent."""
    raw = namespace.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(raw, digest_size=N_KEY, key=fingerprint, person=b"naiad-root").digest()


def block_key(parent: bytes, tokens: list[int]) -> bytes:
    """The key of the block with these tokens after the block `parent`."""
    return hashlib.blake2b(
        _pack_tokens(tokens), digest_size=N_KEY, key=parent, person=b"naiad-block"
    ).digest()


def _pack_tokens(tokens: list[int]) -> bytes:
    return struct.pack(f"<{len(tokens)}i", *tokens)


def pack_header(entry: Entry, fingerprint: bytes, state: memoryview) -> bytes:
    """The header of a file that holds this state."""
    head = _FIXED.pack(
        MAGIC,
        fingerprint,
        entry.parent,
        entry.start,
        len(entry.tokens),
        entry.n_bytes,
        zlib.crc32(state),
    )
    head += _pack_tokens(entry.tokens)
    return head + _CRC.pack(zlib.crc32(head))


def parse_header(data: bytes, key: bytes, fingerprint: bytes, size: int, used_ns: int) -> Entry:
    """Read the header at the beginning of a file named `key`, of `size` bytes.

    Raises Damaged when it is not a whole header, or not of this file.
    """
    return replace(_parse(data, key, fingerprint, size)[0], used_ns=used_ns)


def parse_file(data: bytes, key: bytes, fingerprint: bytes) -> memoryview:
    """The state in a whole file. Raises Damaged when any byte of it is not as it was written."""
    entry, crc = _parse(data, key, fingerprint, len(data))
    state = memoryview(data)[n_header(len(entry.tokens)) :]
    if zlib.crc32(state) != crc:
        raise Damaged("the checksum of its state is wrong")
    return state


def _parse(data: bytes, key: bytes, fingerprint: bytes, size: int) -> tuple[Entry, int]:
    if len(data) < _FIXED.size:
        raise Damaged("it is too short")
    magic, written_for, parent, start, n_tokens, n_bytes, crc = _FIXED.unpack_from(data)
    if magic != MAGIC or written_for != fingerprint:
        raise Damaged("it is of another format, model or build")
    n_head = n_header(n_tokens)
    is_possible = n_tokens > 0 and start % BLOCK == 0 and (n_tokens <= BLOCK or start == 0)
    if not is_possible or size != n_head + n_bytes or len(data) < n_head:
        raise Damaged("its length is not the one it had")
    if zlib.crc32(data[: n_head - _CRC.size]) != _CRC.unpack_from(data, n_head - _CRC.size)[0]:
        raise Damaged("the checksum of its header is wrong")
    tokens = list(struct.unpack_from(f"<{n_tokens}i", data, _FIXED.size))
    if block_key(parent, tokens) != key:
        raise Damaged("its name is not its own")
    return Entry(key, parent, start, tokens, n_bytes), crc

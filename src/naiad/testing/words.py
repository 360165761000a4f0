"""The scripted engine's vocabulary: 256 bytes, 65,536 words, and an end token.

A word is a space and two syllables. Every syllable is one consonant and then a rime that begins
with a vowel, so a word can be cut into its syllables in one way only: no two are spelled alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

BYTES = 256
N_WORDS = 65_536
EOS = BYTES + N_WORDS
N_VOCAB = EOS + 1

_ONSETS = "bdfghjklmnprstvz"
_RIMES = ("a", "e", "i", "o", "u", "an", "en", "in", "on", "un", "ar", "er", "or", "al", "el", "is")
_SYLLABLES = [onset + rime for onset in _ONSETS for rime in _RIMES]


def word_id(number: int) -> int:
    """The id of word 0 to 65,535."""
    return BYTES + number


@lru_cache(maxsize=N_VOCAB)
def decode_token(token: int, *, special: bool = False) -> bytes:
    """The bytes of an id below N_VOCAB; the end token has none unless `special`."""
    if token < BYTES:
        return bytes([token])
    if token == EOS:
        return b"<|end|>" if special else b""
    first, second = divmod(token - BYTES, len(_SYLLABLES))
    return f" {_SYLLABLES[first]}{_SYLLABLES[second]}".encode()


def expected_tokens(prompt: str | Sequence[int], n: int) -> list[int]:
    """The first n token ids of the answer to a prompt without a script, however long it is."""
    key = key_of(encode(prompt) if isinstance(prompt, str) else prompt)
    return [word_at(key, i) for i in range(n)]


def expected_text(prompt: str | Sequence[int], n: int) -> str:
    """The text of `expected_tokens`."""
    return b"".join(decode_token(token) for token in expected_tokens(prompt, n)).decode()


def natural_length(prompt: str | Sequence[int]) -> int:
    """Words before the answer's own end, 20 to 200; the end token comes after them."""
    return length_of(key_of(encode(prompt) if isinstance(prompt, str) else prompt))


def encode(text: str) -> list[int]:
    """One id per UTF-8 byte."""
    return list(text.encode())


def key_of(prompt: Sequence[int]) -> bytes:
    return blake2b(b"".join(token.to_bytes(4, "little") for token in prompt)).digest()[:32]


def word_at(key: bytes, place: int) -> int:
    digest = blake2b(place.to_bytes(8, "little"), key=key, digest_size=2).digest()
    return word_id(int.from_bytes(digest, "little"))


def length_of(key: bytes) -> int:
    return 20 + int.from_bytes(key[:4], "little") % 181

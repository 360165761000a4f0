"""The scripted engine's vocabulary: 256 bytes, 65,536 words, and an end token.

A word is a space and two syllables. Every syllable is one consonant and then a rime that begins
with a vowel, so a word can be cut into its syllables in one way only: no two are spelled alike.
"""

from __future__ import annotations

from functools import lru_cache

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

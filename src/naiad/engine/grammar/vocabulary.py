"""llguidance's view of a vocabulary, made once: in the quiet after a start, or by a first grammar.

Its tree of all tokens is built in one call that does not let go of the interpreter: 0.1 s for
49,000 tokens, 0.6 s for 262,000, in which no stream goes on. So it is best built before there is
one. What it takes stays: 0.4 KiB of memory a token, which `naiad.engine.memory_fit` counts.
"""

from __future__ import annotations

import threading
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from naiad.errors import EngineFailed, InvalidRequest

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_SLICE = 2_000  # tokens that are read in about 5 ms


class Vocabulary(Protocol):
    """What is needed of a vocabulary; see `naiad.native.vocab.Vocab`."""

    n_tokens: int
    eog: frozenset[int]

    def piece(self, token: int, *, special: bool = False) -> bytes: ...

    def fresh_piece(self, token: int, *, special: bool = False) -> bytes: ...

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...


class SharedTokenizer:
    """One vocabulary's. Thread-safe."""

    def __init__(self, vocab: Vocabulary) -> None:
        self._vocab = vocab
        self._pieces: _Pieces | None = None
        self._made: LLTokenizer | None = None
        self._lock = threading.Lock()

    def get(self) -> LLTokenizer:
        """Made now, if need be."""
        while (made := self._made) is None:
            self.prepare()
        return made

    def prepare(self) -> bool:
        """A part of the work; the last is the one that takes its time. False: nothing is left."""
        with self._lock:
            if self._made is not None:
                return False
            if not self._vocab.eog:
                raise InvalidRequest(
                    "this model has no token that ends a text, so no grammar can hold its answers"
                )
            self._pieces = self._pieces or _Pieces(self._vocab)
            if not self._pieces.read_on(_SLICE):
                self._made = _built(self._pieces)
            return self._made is None


def _built(pieces: _Pieces) -> LLTokenizer:
    """The bytes of each token, and which are no text."""
    from llguidance import LLTokenizer, TokenizerWrapper

    eog = sorted(pieces.vocab.eog)
    try:
        made = LLTokenizer(TokenizerWrapper(pieces), n_vocab=pieces.vocab.n_tokens, eos_token=eog)
    except (Exception, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library, which is written in Rust
        raise EngineFailed(f"no grammar can use this model's vocabulary: {error}") from None
    pieces.tokens.clear()  # the wrapper stays, and nobody reads them again
    return made


class _Pieces:
    """A vocabulary in the shape that llguidance asks for."""

    def __init__(self, vocab: Vocabulary) -> None:
        self.vocab = vocab
        self.eos_token_id = min(vocab.eog)
        self.bos_token_id = None
        self.tokens: list[bytes] = []
        self.special_token_ids: list[int] = []
        self._rest = iter(range(vocab.n_tokens))

    def read_on(self, n_tokens: int) -> bool:
        """Read so many more. False when all have been read."""
        vocab = self.vocab
        for token in islice(self._rest, n_tokens):
            piece = vocab.fresh_piece(token)
            if not piece or token in vocab.eog:
                self.special_token_ids.append(token)
                piece = vocab.fresh_piece(token, special=True)
            self.tokens.append(piece)
        return len(self.tokens) < vocab.n_tokens

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        return self.vocab.encode(text, add_special=False, parse_special=False)

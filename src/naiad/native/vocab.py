"""The vocabulary: text to token ids and back. Thread-safe: the native side only reads."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import llama_cpp as lib

from naiad.errors import InvalidRequest

if TYPE_CHECKING:
    from naiad.native.model import Model


class Vocab:
    """Token ids of one model; lives as long as the model."""

    def __init__(self, model: Model) -> None:
        self._model = model  # keeps the native vocabulary alive
        self._handle = lib.llama_model_get_vocab(model.handle)
        self.n_tokens = int(lib.llama_vocab_n_tokens(self._handle))
        self.bos = int(lib.llama_vocab_bos(self._handle))
        self.eos = int(lib.llama_vocab_eos(self._handle))
        self.add_bos = bool(lib.llama_vocab_get_add_bos(self._handle))
        self.eog = frozenset(
            t for t in range(self.n_tokens) if lib.llama_vocab_is_eog(self._handle, t)
        )
        self._pieces: tuple[dict[int, bytes], dict[int, bytes]] = ({}, {})  # without, with special

    @property
    def infill(self) -> tuple[str, str, str] | None:
        """The tokens before a prefix, before a suffix and before what is to be filled in; None for
        models without them."""
        native = (lib.llama_vocab_fim_pre, lib.llama_vocab_fim_suf, lib.llama_vocab_fim_mid)
        before, behind, middle = (self.text_of(int(of(self._handle))) for of in native)
        return (before, behind, middle) if before and behind and middle else None

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`; BOS comes first exactly once when the model wants one.

        A chat template often writes BOS itself, so a doubled one is dropped.
        """
        raw = text.encode("utf-8", "replace")
        ids = self._tokenize(raw, add_special, parse_special)
        if self.add_bos and add_special and ids[:2] == [self.bos, self.bos]:
            del ids[0]
        return ids

    def _tokenize(self, raw: bytes, add_special: bool, parse_special: bool) -> list[int]:
        room = len(raw) // 2 + 16
        while True:
            buffer = (lib.llama_token * room)()
            n = lib.llama_tokenize(
                self._handle, raw, len(raw), buffer, room, add_special, parse_special
            )
            if n >= 0:
                return list(buffer[:n])
            room = -n

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token; control tokens are empty unless `special`."""
        pieces = self._pieces[special]
        found = pieces.get(token)
        if found is None:
            found = pieces[token] = self._token_to_piece(token, special)
        return found

    def fresh_piece(self, token: int, *, special: bool = False) -> bytes:
        """The same as `piece`, not remembered: for who reads the whole vocabulary once."""
        return self._token_to_piece(token, special)

    def _token_to_piece(self, token: int, special: bool) -> bytes:
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            n = lib.llama_token_to_piece(self._handle, token, buffer, room, 0, special)
            if n >= 0:
                return bytes(buffer.raw[:n])
            room = -n

    def decode(self, ids: list[int], *, special: bool) -> bytes:
        """The bytes of several tokens. Raises InvalidRequest for an id outside the vocabulary."""
        for token in ids:
            if not 0 <= token < self.n_tokens:
                raise InvalidRequest(
                    f"token id {token} is outside this model's vocabulary, 0 to {self.n_tokens - 1}"
                )
        return b"".join(self.piece(token, special=special) for token in ids)

    def text_of(self, token: int) -> str:
        """A token as text, control tokens included; "" for the id -1 (the model has none)."""
        return "" if token < 0 else self.piece(token, special=True).decode("utf-8", "replace")

"""A loaded model file: weights, metadata, vocabulary."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import llama_cpp as lib

from naiad.errors import ModelFileError
from naiad.native import library
from naiad.native.naming import with_count
from naiad.native.vocab import Vocab

_GGUF_MAGIC = b"GGUF"
ALL_LAYERS = 999


def _check_is_gguf(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelFileError(f"cannot read the model file {path}: {error.strerror}") from error
    if magic != _GGUF_MAGIC:
        raise ModelFileError(f"{path} is not a GGUF file (it does not begin with 'GGUF')")


class Model:
    """Owner of a native model.

    Args:
        path: the GGUF file.
        gpu_layers: how many layers to put on a GPU; ALL_LAYERS for the whole model.
        extra_buffers: use repacked weights (AMX and friends) where the processor has them.
        on_progress: called with 0 to 1 while the weights load.

    Raises ModelFileError when the file is missing, no GGUF, damaged, or unknown to the engine.
    """

    def __init__(
        self,
        path: Path,
        *,
        gpu_layers: int = 0,
        extra_buffers: bool = True,
        on_progress: Callable[[float], None] = lambda _: None,
    ) -> None:
        relay = library.start()
        _check_is_gguf(path)
        relay.recent_errors.clear()
        self.path = path
        self._resources = contextlib.ExitStack()
        self.handle = self._load(gpu_layers, extra_buffers, on_progress)
        self._resources.callback(lib.llama_model_free, self.handle)

    def _load(
        self, gpu_layers: int, extra_buffers: bool, on_progress: Callable[[float], None]
    ) -> Any:
        def report(progress: float, _user_data: Any) -> bool:
            on_progress(progress)
            return True

        params = lib.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        params.use_extra_bufts = extra_buffers
        params.progress_callback = callback = lib.llama_progress_callback(report)
        handle = lib.llama_model_load_from_file(str(self.path).encode(), params)
        del callback  # alive until the load is over, not longer
        if not handle:
            why = "; ".join(library.recent_errors()[:2]) or "the engine gave no reason"
            raise ModelFileError(f"cannot load {self.path.name}: {why}")
        return handle

    def close(self) -> None:
        """Free the weights. Contexts of this model must be closed first. Safe to call twice."""
        self._resources.close()
        self.handle = None

    @cached_property
    def vocab(self) -> Vocab:
        return Vocab(self)

    @property
    def n_ctx_train(self) -> int:
        return int(lib.llama_model_n_ctx_train(self.handle))

    @property
    def n_layer(self) -> int:
        return int(lib.llama_model_n_layer(self.handle))

    @property
    def n_head(self) -> int:
        return int(lib.llama_model_n_head(self.handle))

    @property
    def n_embd(self) -> int:
        return int(lib.llama_model_n_embd(self.handle))

    @property
    def n_swa(self) -> int:
        """The sliding window in tokens; 0 when the model has none."""
        return int(lib.llama_model_n_swa(self.handle))

    @property
    def n_params(self) -> int:
        return int(lib.llama_model_n_params(self.handle))

    @property
    def size_bytes(self) -> int:
        return int(lib.llama_model_size(self.handle))

    def has_long_rope(self, n_cells: int) -> bool:
        """Whether a context of n_cells takes the rotary factors for long contexts, of models that
        have two sets. It goes by the context's size, see `get_rope_factors` in llama-model.cpp.
        """
        arch = self.metadata("general.architecture")
        original = self.metadata(f"{arch}.rope.scaling.original_context_length")
        return original is not None and original.isdigit() and n_cells > int(original)

    @property
    def can_cut(self) -> bool:
        """True when positions can be dropped from the end of a sequence (plain attention)."""
        return not (
            lib.llama_model_is_recurrent(self.handle) or lib.llama_model_is_hybrid(self.handle)
        )

    @property
    def can_generate(self) -> bool:
        """False for encoders, diffusion models and others that do not predict a next token."""
        return bool(
            lib.llama_model_has_decoder(self.handle)
            and not lib.llama_model_has_encoder(self.handle)
            and not lib.llama_model_is_diffusion(self.handle)
        )

    @property
    def pooling(self) -> str:
        """How the file says that embeddings are made of its hidden states: none, mean, cls, last or
        rank; "" when it says nothing.
        """
        said = self.metadata(f"{self.metadata('general.architecture')}.pooling_type")
        kinds = ("none", "mean", "cls", "last", "rank")
        is_known = said is not None and said.isdigit() and int(said) < len(kinds)
        return kinds[int(said or 0)] if is_known else ""

    @property
    def description(self) -> str:
        """Architecture, weights as they are counted, and their type, e.g. "llama 135M Q4_1"."""
        buffer = ctypes.create_string_buffer(256)
        lib.llama_model_desc(self.handle, buffer, len(buffer))
        return with_count(buffer.value.decode("utf-8", "replace"), self.n_params)

    @property
    def chat_template(self) -> str | None:
        raw = lib.llama_model_chat_template(self.handle, None)
        return raw.decode("utf-8", "replace") if raw else None

    def metadata(self, key: str) -> str | None:
        """A metadata value as text (at most 4 KiB), or None when the file has no such key."""
        buffer = ctypes.create_string_buffer(4096)
        n = lib.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if n >= 0 else None

    def kv_bytes_per_cell(self, bytes_per_value: float) -> int:
        """Bytes of keys and values that one cell of the pool takes, all layers together."""
        arch = self.metadata("general.architecture") or ""

        def number(name: str, default: int) -> int:
            text = self.metadata(f"{arch}.attention.{name}")
            return int(text) if text and text.isdigit() else default

        n_head_kv = int(lib.llama_model_n_head_kv(self.handle)) or self.n_head
        head = self.n_embd // max(self.n_head, 1)
        values = number("key_length", head) + number("value_length", head)
        return int(self.n_layer * n_head_kv * values * bytes_per_value)

"""A context: the pool of cells that sequences share, and decoding over it."""

from __future__ import annotations

import contextlib
import ctypes
import enum
from dataclasses import dataclass
from typing import Any

import llama_cpp as lib
import numpy as np
import numpy.typing as npt

from naiad.errors import ModelFileError
from naiad.native import library
from naiad.native.batch import Batch
from naiad.native.buffers import TouchedBuffers
from naiad.native.model import Model

#: A saved sequence: opaque, good only in a context of equal flash attention, KV type and streams.
State = npt.NDArray[np.uint8]

_KV_TYPES = {"f16": 1, "q8_0": 8}


class DecodeOutcome(enum.Enum):
    """What became of a decode. None of them is an exception: no room is normal."""

    DONE = enum.auto()
    NO_ROOM = enum.auto()  # nothing was changed; a smaller batch or an emptier pool may fit
    ABORTED = enum.auto()  # finished micro-batches stay: reconcile by Memory.pos_max
    FATAL = enum.auto()


_OUTCOMES = {0: DecodeOutcome.DONE, 1: DecodeOutcome.NO_ROOM, 2: DecodeOutcome.ABORTED}


@dataclass(frozen=True, slots=True)
class ContextParams:
    """How a context is made. n_ctx: cells of the pool; n_batch, n_ubatch: tokens.

    embeddings: the hidden states of tokens can be read as well, each for itself.
    stock_bytes: memory that may be prepared for saved states; see TouchedBuffers.
    """

    n_ctx: int
    n_seq_max: int
    n_batch: int = 2048
    n_ubatch: int = 512
    threads: int = 1
    flash_attention: bool = True
    kv_type: str = "f16"
    kv_unified: bool = True
    embeddings: bool = False
    stock_bytes: int = 0


class AbortFlag:
    """Interrupts a running decode from any thread, at no cost to the decode.

    llama.cpp calls `bool f(void *data)` between graph nodes. A Python callback would take the
    interpreter's lock hundreds of times a step, so the callback is the C library's own strlen over
    a two-byte buffer of ours: "" is 0 (go on), "\\x01" is 1 (stop).
    """

    def __init__(self) -> None:
        self._buffer = ctypes.create_string_buffer(2)
        strlen = ctypes.CDLL(None).strlen
        self.callback = ctypes.cast(strlen, lib.ggml_abort_callback)
        self.data = ctypes.cast(self._buffer, ctypes.c_void_p)

    def set(self) -> None:
        self._buffer[0] = b"\x01"

    def clear(self) -> None:
        self._buffer[0] = b"\x00"


class Context:
    """Owner of a native context. Close it before its model. One thread, but for `abort`."""

    def __init__(self, model: Model, params: ContextParams) -> None:
        self.params = params
        self.model = model
        self.abort = AbortFlag()
        self._log = library.start()
        self._resources = contextlib.ExitStack()
        native = self._native_params(params)
        self.handle = lib.llama_init_from_model(model.handle, native)
        if not self.handle:
            why = "; ".join(library.recent_errors()[:2]) or "not enough memory"
            raise ModelFileError(f"cannot make a context of {params.n_ctx} cells: {why}")
        self._resources.callback(lib.llama_free, self.handle)
        self.buffers = TouchedBuffers(params.stock_bytes)
        self._resources.callback(self.buffers.close)
        self.memory = Memory(self)
        self._n_vocab = model.vocab.n_tokens
        self._rows: dict[int, npt.NDArray[np.float32]] = {}  # by address: they stay where they are

    def _native_params(self, params: ContextParams) -> Any:
        native = lib.llama_context_default_params()
        native.n_ctx = params.n_ctx
        native.n_seq_max = params.n_seq_max
        native.n_batch = params.n_batch
        native.n_ubatch = params.n_ubatch
        native.n_threads = native.n_threads_batch = params.threads
        native.flash_attn_type = int(params.flash_attention)
        native.type_k = native.type_v = _KV_TYPES[params.kv_type]
        native.kv_unified = params.kv_unified
        native.swa_full = True  # cutting and sharing are exact only while the whole window is kept
        native.embeddings = params.embeddings
        if params.embeddings:
            native.pooling_type = lib.LLAMA_POOLING_TYPE_NONE
        native.abort_callback = self.abort.callback
        native.abort_callback_data = self.abort.data
        return native

    @property
    def n_cells(self) -> int:
        return int(lib.llama_n_ctx(self.handle))

    @property
    def n_batch(self) -> int:
        """The most tokens of one decode: at most as many as there are cells."""
        return int(lib.llama_n_batch(self.handle))

    @property
    def can_shift(self) -> bool:
        """True when positions of cached tokens can be moved; see Memory.shift."""
        return bool(lib.llama_memory_can_shift(lib.llama_get_memory(self.handle)))

    def set_threads(self, n_threads: int) -> None:
        """Threads of the next decodes; not while one runs."""
        lib.llama_set_n_threads(self.handle, n_threads, n_threads)

    def decode(self, batch: Batch) -> DecodeOutcome:
        """Run the batch and wait until its logits can be read."""
        with self._log.holding() as held:  # an interrupted decode is logged as an error
            code = lib.llama_decode(self.handle, batch.native())
            outcome = _OUTCOMES.get(code, DecodeOutcome.FATAL)
            held.is_expected = outcome is not DecodeOutcome.FATAL
        if outcome is DecodeOutcome.DONE:
            lib.llama_synchronize(self.handle)
            self.memory.shifted.clear()
        return outcome

    def logits(self, index: int) -> npt.NDArray[np.float32]:
        """The logits of batch token `index`, shape (n_vocab,), read in place.

        Valid until the next decode. The token must have been added with n_logits.
        """
        row = lib.llama_get_logits_ith(self.handle, index)
        address = ctypes.addressof(row.contents)
        view = self._rows.get(address)  # making a view takes longer than reading the maximum
        if view is None:
            view = self._rows[address] = np.ctypeslib.as_array(row, shape=(self._n_vocab,))
        return view

    def close(self) -> None:
        """Free the pool. Safe to call twice."""
        self._resources.close()
        self.handle = None


class Memory:
    """The cells of a context, by sequence. Positions are half-open ranges; -1 is open-ended.

    shifted: sequences that may own cells whose shift no decode has applied yet.
    """

    def __init__(self, context: Context) -> None:
        self.shifted: set[int] = set()
        self._ctx = context.handle
        self._has_streams = not context.params.kv_unified
        self._log = library.start()
        self._buffers = context.buffers
        self._handle = lib.llama_get_memory(context.handle)

    def pos_min(self, seq: int) -> int:
        """The first position the sequence holds, -1 when it is empty."""
        return int(lib.llama_memory_seq_pos_min(self._handle, seq))

    def pos_max(self, seq: int) -> int:
        """The last position the sequence holds, -1 when it is empty."""
        return int(lib.llama_memory_seq_pos_max(self._handle, seq))

    def remove(self, seq: int, start: int = -1, end: int = -1) -> None:
        """Drop positions [start, end) of a sequence."""
        if start <= 0 and end < 0:
            self.shifted.discard(seq)
        lib.llama_memory_seq_rm(self._handle, seq, start, end)

    def share(self, source: int, target: int, start: int, end: int) -> None:
        """Let `target` own the cells of `source` in [start, end) too; no bytes are copied.

        Positions of the target must be empty there: a copy onto others corrupts silently.

        Where sequences have streams of their own, the bytes are copied and the target loses all it
        had. The library can only copy whole streams (anything else ends the process), and does so
        at the next decode, whatever the source has become by then; so this goes by a saved state.
        """
        if self._has_streams:
            state = self.save(source)
            if state is None or not self.load(target, state):
                self.remove(target)
            self.remove(target, -1, start)
            self.remove(target, end, -1)
            return
        lib.llama_memory_seq_cp(self._handle, source, target, start, end)
        if source in self.shifted:
            self.shifted.add(target)

    def shift(self, seq: int, start: int, end: int, delta: int) -> None:
        """Move positions [start, end) of a sequence by delta, for every owner of those cells.

        The next decode that is done applies it; until then nothing of the sequence can be saved.
        """
        lib.llama_memory_seq_add(self._handle, seq, start, end, delta)
        self.shifted.add(seq)

    def save(self, seq: int) -> State | None:
        """The state of all cells of a sequence; None when it failed, or while a shift waits."""
        if seq in self.shifted:
            return None  # it would hold the new positions and the old contents
        size = int(lib.llama_state_seq_get_size(self._ctx, seq))
        state: State = self._buffers.take(size)
        n = lib.llama_state_seq_get_data(self._ctx, _bytes_pointer(state), size, seq)
        return state if 0 < n == size else None

    def load(self, seq: int, state: State) -> bool:
        """Replace a sequence by a saved state. False: no room, or the state does not fit here."""
        self.shifted.discard(seq)
        with self._log.holding() as held:
            held.is_expected = True  # "no room" is logged as an error, which it is not
            n = lib.llama_state_seq_set_data(self._ctx, _bytes_pointer(state), state.size, seq)
        return bool(0 < n == state.size)


def _bytes_pointer(state: State) -> Any:
    return ctypes.cast(state.ctypes.data, ctypes.POINTER(ctypes.c_uint8))

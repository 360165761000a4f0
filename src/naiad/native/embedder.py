"""Embeddings of texts, in a context of their own on the weights of a loaded model.

Every token's last hidden state comes out of the model; how they become one vector is ours: their
mean, the first or the last of them, as the model's file says ("pooling_type"), and the mean where
it says nothing. For models that look back only, that is what pooling inside the engine gives, and
it lets a text be longer than one micro-batch.
"""

from __future__ import annotations

import ctypes

import llama_cpp as lib
import numpy as np
import numpy.typing as npt

from naiad.errors import EngineFailed, EngineUnavailable, ModelFileError
from naiad.native.batch import Batch
from naiad.native.context import Context, ContextParams, DecodeOutcome
from naiad.native.model import Model

Vector = npt.NDArray[np.float32]

#: A context begins with so many cells and grows with what it is asked to hold.
_LEAST_CELLS = 512
#: The engine also computes every token's logits, which nobody reads: they shall not take more.
_LOGITS_BYTES = 64 << 20


class Embedder:
    """One text after another. For one thread at a time; makes its context when first needed.

    Args:
        params: of the model's main context, whose kind this one shares.
        pooling: mean, cls (the first token's) or last.
    """

    def __init__(self, model: Model, params: ContextParams, pooling: str) -> None:
        self._model = model
        self._params = params
        self._pooling = pooling
        self._context: Context | None = None
        self._n_chunk = max(16, min(512, _LOGITS_BYTES // (4 * model.vocab.n_tokens)))
        self._batch = Batch(self._n_chunk)

    def embed(self, tokens: list[int]) -> Vector:
        """The vector of these tokens (at least one), shape (n_embd,), of length 1.

        Raises EngineUnavailable when there is no memory for it, EngineFailed.
        """
        context = self._context_for(len(tokens))
        total = np.zeros(self._model.n_embd, np.float64)
        for start in range(0, len(tokens), self._n_chunk):
            chunk = tokens[start : start + self._n_chunk]
            states = self._states(context, chunk, start)
            if self._pooling == "last":
                total[:] = states[-1]
            elif self._pooling != "cls":
                total += states.sum(axis=0, dtype=np.float64)
            elif start == 0:
                total[:] = states[0]
        context.memory.remove(0)
        length = float(np.linalg.norm(total))
        if not np.isfinite(length):
            raise EngineFailed("the model computed numbers that are no numbers (NaN)")
        return (total / (length or 1.0)).astype(np.float32)

    def close(self) -> None:
        """Free the context. Safe to call twice."""
        if self._context is not None:
            self._context.close()
            self._context = None

    def _states(self, context: Context, tokens: list[int], start: int) -> Vector:
        """The hidden states of these tokens, shape (n_tokens, n_embd)."""
        self._batch.clear()
        self._batch.add(0, tokens, start, n_logits=len(tokens))
        if context.decode(self._batch) is not DecodeOutcome.DONE:
            self.close()  # its state is not known now
            raise EngineFailed("the engine could not compute this text")
        n_embd = self._model.n_embd
        rows = [lib.llama_get_embeddings_ith(context.handle, i) for i in range(len(tokens))]
        return np.stack([np.ctypeslib.as_array(_floats(row), (n_embd,)) for row in rows])

    def _context_for(self, n_tokens: int) -> Context:
        if self._context is not None and self._context.n_cells >= n_tokens:
            return self._context
        self.close()
        n_cells = _LEAST_CELLS
        while n_cells < n_tokens:
            n_cells *= 2
        params = ContextParams(
            n_ctx=n_cells,
            n_seq_max=1,
            n_batch=self._n_chunk,
            n_ubatch=self._n_chunk,
            threads=max(1, self._params.threads // 2),  # streams go on meanwhile
            flash_attention=self._params.flash_attention,
            embeddings=True,
        )
        try:
            self._context = Context(self._model, params)
        except ModelFileError as error:
            raise EngineUnavailable(
                f"there is no memory to embed {n_tokens} tokens: {error.message}", retry_after=10
            ) from None
        return self._context


def _floats(row: object) -> ctypes._Pointer[ctypes.c_float]:
    if not row:
        raise EngineFailed("the engine gave no embedding")
    return row  # type: ignore[return-value]

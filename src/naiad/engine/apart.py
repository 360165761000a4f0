"""Contexts for requests that run alone (`naiad.engine.solo`): how large, and whether they fit."""

from __future__ import annotations

from dataclasses import dataclass, replace

from naiad.engine import memory_fit
from naiad.engine.base import CoreJob
from naiad.engine.core import CoreLimits, EngineCore
from naiad.engine.executor import NativeExecutor
from naiad.engine.scheduler import StepBudget
from naiad.engine.sizing import KV_BYTES
from naiad.engine.solo import CHUNK
from naiad.errors import EngineUnavailable, ModelFileError
from naiad.native.context import Context, ContextParams
from naiad.native.model import Model

import psutil  # isort: skip  (after llama_cpp)

_RETRY_S = 5


def n_threads_apart(n_threads: int) -> int:
    """Half of the processor: always the same, since sums may depend on it."""
    return max(1, n_threads // 2)


@dataclass(frozen=True, slots=True)
class Apart:
    """Makes them, for one model. params, limits: of the context that all other requests share."""

    model: Model
    params: ContextParams
    limits: CoreLimits

    def check_room(self, job: CoreJob) -> None:
        """Any thread. Raises EngineUnavailable where there is no memory for it now."""
        needed, free = self._bytes(self._n_cells(job)), _free_bytes()
        if needed > free * memory_fit.USABLE_SHARE:
            raise EngineUnavailable(
                f"a deterministic request computes in a context of its own, which needs "
                f"{needed // memory_fit.MIB} MiB for this prompt and max_tokens; "
                f"{free // memory_fit.MIB} MiB is free",
                retry_after=_RETRY_S,
            )

    def core(self, job: CoreJob) -> EngineCore:
        """Raises EngineUnavailable."""
        n_cells = self._n_cells(job)
        try:
            context = Context(self.model, self._params(n_cells))
        except ModelFileError as error:
            raise EngineUnavailable(
                f"no context of its own for this deterministic request: {error.message}",
                retry_after=_RETRY_S,
            ) from None
        limits = replace(
            self.limits,
            pool_cells=context.n_cells,
            parallel=1,
            n_parked=0,
            host_cache_bytes=0,
            can_reuse=False,
            can_shift=False,
            drafts=False,
            budget=StepBudget(alone=CHUNK, beside=CHUNK),
        )
        return EngineCore(NativeExecutor(context), self.model.vocab, limits)

    def _n_cells(self, job: CoreJob) -> int:
        """Those of its longest answer; of a whole context where positions depend on the size."""
        whole = memory_fit.round_up(self.limits.n_ctx)
        needed = min(memory_fit.round_up(len(job.prompt) + job.max_tokens), whole)
        is_same = self.model.has_long_rope(needed) == self.model.has_long_rope(whole)
        return needed if is_same else whole

    def _params(self, n_cells: int) -> ContextParams:
        return replace(
            self.params,
            n_ctx=n_cells,
            n_seq_max=1 + int(self.params.kv_unified and self.limits.can_cut),
            n_batch=CHUNK,
            n_ubatch=CHUNK,
            threads=n_threads_apart(self.params.threads),
            stock_bytes=0,  # nothing is saved
        )

    def _bytes(self, n_cells: int) -> int:
        """Keys, values and the buffers of a step, as naiad.engine.memory_fit reckons."""
        model = self.model
        shape = memory_fit.ModelShape(
            mapped_bytes=0,
            bytes_per_cell=model.kv_bytes_per_cell(KV_BYTES[self.params.kv_type]),
            n_ctx_train=model.n_ctx_train,
            n_vocab=model.vocab.n_tokens,
            n_embd=model.n_embd,
            n_head=model.n_head,
            has_window=model.n_swa > 0,
        )
        wish = memory_fit.Wish(1, n_ubatch=CHUNK, flash_attention=self.params.flash_attention)
        step = memory_fit.compute_bytes(shape, wish, n_cells)
        return n_cells * shape.bytes_per_cell + step


def _free_bytes() -> int:
    return memory_fit.free_memory(psutil.virtual_memory().available)

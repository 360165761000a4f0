"""The llama.cpp engine: a model file becomes a backend for the worker."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from naiad.config import EngineConfig
from naiad.engine import sizing
from naiad.engine.base import Loader
from naiad.engine.core import CoreLimits, EngineCore
from naiad.engine.executor import DecodeOutcome, NativeExecutor, Run
from naiad.engine.host_cache import BLOCK
from naiad.engine.journal import Journal
from naiad.engine.scheduler import StepBudget
from naiad.errors import (
    ConfigError,
    ContextExceeded,
    InvalidRequest,
    ModelFileError,
    SelfTestFailed,
)
from naiad.native import library
from naiad.native.context import Context, ContextParams
from naiad.native.model import Model
from naiad.native.vocab import Vocab
from naiad.types import EngineSettings, ModelInfo

import numpy as np  # isort: skip  (after llama_cpp)
import psutil  # isort: skip

logger = logging.getLogger("naiad.engine")

#: Room for the largest step: a whole micro-batch of prefill beside one token of each stream.
_N_BATCH_LEAST = 2048
_SELF_TEST_TOKENS = 40  # more than one row of every matrix kernel, less than a noticeable wait


@dataclass(frozen=True, slots=True)
class LlamaBackend:
    """A loaded model as the worker sees it; see `naiad.engine.base.EngineBackend`."""

    info: ModelInfo
    tokenizer: Vocab
    core: EngineCore
    model: Model

    def check(self, prompt: list[int], max_tokens: int | None) -> int:
        n_ctx, n = self.info.engine.n_ctx, len(prompt)
        if n == 0:
            raise InvalidRequest("the prompt is empty: at least one token is needed")
        for token in prompt:
            if not 0 <= token < self.tokenizer.n_tokens:
                raise InvalidRequest(
                    f"token id {token} is outside this model's vocabulary, "
                    f"0 to {self.tokenizer.n_tokens - 1}"
                )
        if n >= n_ctx:
            raise ContextExceeded(
                f"the prompt has {n} tokens, but the context holds {n_ctx} "
                f"and needs room for at least one more",
                n_prompt_tokens=n,
                n_ctx=n_ctx,
            )
        left = n_ctx - n
        return left if max_tokens is None else min(max_tokens, left)


def load(config: EngineConfig) -> Loader:
    """A loader for the worker. Raises (when called) ModelFileError, ConfigError, SelfTestFailed."""

    def loader(on_progress: Callable[[float], None]) -> LlamaBackend:
        library.start()
        return _load_first_that_fits(config, on_progress)

    return loader


def _load_first_that_fits(
    config: EngineConfig, on_progress: Callable[[float], None]
) -> LlamaBackend:
    tries = [0]
    if library.has_gpu():
        n_layer = _count_layers(config)
        tries = sizing.gpu_layer_tries(config.gpu_layers, n_layer=n_layer, has_gpu=True)
    for gpu_layers in tries[:-1]:
        try:
            return _load(config, gpu_layers, on_progress)
        except ModelFileError as error:
            logger.warning("%d layers do not fit on the GPU: %s", gpu_layers, error.message)
    return _load(config, tries[-1], on_progress)


def _count_layers(config: EngineConfig) -> int:
    model = Model(Path(config.model), gpu_layers=0, extra_buffers=False)
    try:
        return model.n_layer
    finally:
        model.close()


def _load(
    config: EngineConfig, gpu_layers: int, on_progress: Callable[[float], None]
) -> LlamaBackend:
    model = Model(
        Path(config.model),
        gpu_layers=gpu_layers,
        extra_buffers=config.extra_buffers,
        on_progress=on_progress,
    )
    try:
        if not model.can_generate:
            raise ModelFileError(f"{model.path.name} is not a model that generates text")
        return _build(config, model, gpu_layers)
    except BaseException:
        model.close()
        raise


def _build(config: EngineConfig, model: Model, gpu_layers: int) -> LlamaBackend:
    pool = sizing.choose_pool(
        ctx=config.ctx,
        n_ctx_train=model.n_ctx_train,
        parallel=config.parallel,
        bytes_per_cell=model.kv_bytes_per_cell(sizing.KV_BYTES[config.kv_type]),
        free_bytes=psutil.virtual_memory().available,
    )
    n_parked = _count_parked(config.parallel)
    context = Context(
        model,
        ContextParams(
            n_ctx=pool.n_cells,
            n_seq_max=config.parallel + n_parked + 1,
            n_batch=max(_N_BATCH_LEAST, config.n_ubatch + config.parallel),
            n_ubatch=config.n_ubatch,
            threads=_threads(config),
            flash_attention=_flash_attention(config, gpu_layers),
            kv_type=config.kv_type,
        ),
    )
    try:
        executor = NativeExecutor(context)
        _self_test(executor, model.vocab)
        info = _describe(config, model, context, pool, gpu_layers)
        limits = CoreLimits(
            n_ctx=pool.n_ctx,
            pool_cells=context.n_cells,
            parallel=config.parallel,
            n_parked=n_parked,
            host_cache_bytes=config.host_cache_mib << 20,
            can_reuse=config.prefix_cache and _can_reuse(model),
            window=model.n_swa,
            budget=_budget(config, gpu_layers),
            check_integrity=config.check_integrity,
        )
        journal = Journal(Path(config.journal)) if config.journal else None
        core = EngineCore(executor, model.vocab, limits, journal)
    except BaseException:
        context.close()  # before its model, and before another try needs the memory
        raise
    return LlamaBackend(info, model.vocab, core, model)


def _can_reuse(model: Model) -> bool:
    """Whether a sequence's past can be cut and saved in blocks.

    A saved state leaves out what its own last position cannot look at: a block must be no longer
    than the sliding window.
    """
    return model.can_cut and not 0 < model.n_swa < BLOCK


def _count_parked(parallel: int) -> int:
    """Finished sequences that may wait in the pool: as many as run, or what ids are left for."""
    most = library.max_sequences() - 1  # one id is the scratch sequence
    if parallel > most:
        raise ConfigError(
            f"parallel is {parallel}, but this engine holds at most {most} sequences at once",
            param="parallel",
        )
    return min(parallel, most - parallel)


def _threads(config: EngineConfig) -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    logical = usable or os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or logical
    return sizing.choose_threads(config.threads, logical=logical, physical=physical)


def _flash_attention(config: EngineConfig, gpu_layers: int) -> bool:
    return sizing.choose_flash_attention(
        config.flash_attention,
        kv_type=config.kv_type,
        on_gpu=gpu_layers > 0,
        uses_amx=config.extra_buffers and "AMX_INT8 = 1" in library.system_info(),
    )


def _budget(config: EngineConfig, gpu_layers: int) -> StepBudget:
    """Chunks beside running streams: small on a processor; a GPU starves below 512."""
    beside = config.n_ubatch if gpu_layers else max(config.n_ubatch // 2, 1)
    return StepBudget(alone=config.n_ubatch, beside=beside)


def _self_test(executor: NativeExecutor, vocab: Vocab) -> None:
    """Decode a short prompt and one more token, and look at the numbers.

    A build that does not suit the processor dies here (and the supervisor starts the worker again
    in safe mode) or computes NaN, rather than in somebody's stream.
    """
    token = vocab.bos if vocab.bos >= 0 else 0
    prompt = [token] + [(7 * i) % vocab.n_tokens for i in range(1, _SELF_TEST_TOKENS)]
    for tokens, start in ((prompt, 0), ([token], len(prompt))):
        outcome = executor.decode([Run(0, tokens, start, wants_logits=True)])
        if outcome is not DecodeOutcome.DONE:
            raise SelfTestFailed(f"the engine's self-test could not decode ({outcome.name})")
        if not np.isfinite(executor.logits(0)).any() or np.isnan(executor.logits(0)).any():
            raise SelfTestFailed("the engine's self-test computed NaN")
    executor.memory.remove(0)


def _describe(
    config: EngineConfig, model: Model, context: Context, pool: sizing.PoolSize, gpu_layers: int
) -> ModelInfo:
    vocab = model.vocab
    return ModelInfo(
        name=model.path.stem,
        description=model.description,
        architecture=model.metadata("general.architecture") or "",
        n_params=model.n_params,
        size_bytes=model.size_bytes,
        n_ctx_train=model.n_ctx_train,
        n_vocab=vocab.n_tokens,
        chat_template=model.chat_template,
        bos_token=vocab.text_of(vocab.bos),
        eos_token=vocab.text_of(vocab.eos),
        add_bos=vocab.add_bos,
        engine=EngineSettings(
            threads=context.params.threads,
            flash_attention=context.params.flash_attention,
            kv_type=context.params.kv_type,
            kv_unified=context.params.kv_unified,
            n_ubatch=context.params.n_ubatch,
            gpu_layers=gpu_layers,
            n_ctx=pool.n_ctx,
            pool_cells=context.n_cells,
            parallel=config.parallel,
            extra_buffers=config.extra_buffers,
            build=library.system_info(),
        ),
    )

"""The llama.cpp engine: a model file becomes a backend for the worker."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from naiad.config import EngineConfig
from naiad.engine import memory_fit, sizing
from naiad.engine.apart import Apart, n_threads_apart
from naiad.engine.base import CoreJob, Loader
from naiad.engine.core import CoreLimits, EngineCore
from naiad.engine.disk_cache import DiskCache
from naiad.engine.disk_tier import open_store
from naiad.engine.draft_loading import load_draft, open_draft
from naiad.engine.draft_model import DraftModel
from naiad.engine.executor import DecodeOutcome, NativeExecutor, Run, State
from naiad.engine.grammar.compiler import GrammarCompiler
from naiad.engine.grammar.follower import Follower
from naiad.engine.host_cache import BLOCK
from naiad.engine.journal import Journal
from naiad.engine.lane import Lane
from naiad.engine.scheduler import StepBudget
from naiad.engine.solo import CoreWithSolo, Solo
from naiad.errors import (
    ConfigError,
    ContextExceeded,
    InvalidRequest,
    ModelFileError,
    SelfTestFailed,
    Unsupported,
)
from naiad.native import library
from naiad.native.context import Context, ContextParams
from naiad.native.embedder import Embedder
from naiad.native.model import Model
from naiad.native.vocab import Vocab
from naiad.types import EngineSettings, Grammar, ModelInfo

import numpy as np  # isort: skip  (after llama_cpp)
import psutil  # isort: skip

logger = logging.getLogger("naiad.engine")

#: Room for the largest step: a whole micro-batch of prefill beside one token of each stream.
_N_BATCH_LEAST = 2048
#: Where throughput is asked for, a step in which streams begin takes all that is left of their
#: prompts, within so many targets. Small chunks cost more: of 16 streams that came together the
#: last began after 8.6 s where steps took a share, 6.1 s in whole micro-batches (a run of each).
_TARGETS_FOR_THROUGHPUT = 24
_SELF_TEST_TOKENS = 40  # more than one row of every matrix kernel, less than a noticeable wait


@dataclass(frozen=True, slots=True)
class LlamaBackend:
    """A loaded model as the worker sees it; see `naiad.engine.base.EngineBackend`."""

    info: ModelInfo
    tokenizer: Vocab
    core: EngineCore
    model: Model
    grammars: GrammarCompiler
    embedder: Embedder
    apart: Apart
    store: DiskCache[State] | None = None

    def check(self, prompt: list[int], max_tokens: int | None) -> int:
        n_ctx, n = self.info.engine.n_ctx, len(prompt)
        self._check_ids(prompt)
        if n >= n_ctx:
            raise ContextExceeded(
                f"the prompt has {n} tokens, but the context holds {n_ctx} "
                f"and needs room for at least one more",
                n_prompt_tokens=n,
                n_ctx=n_ctx,
            )
        left = n_ctx - n
        return left if max_tokens is None else min(max_tokens, left)

    def _check_ids(self, prompt: list[int]) -> None:
        if not prompt:
            raise InvalidRequest("the prompt is empty: at least one token is needed")
        for token in prompt:
            if not 0 <= token < self.tokenizer.n_tokens:
                raise InvalidRequest(
                    f"token id {token} is outside this model's vocabulary, "
                    f"0 to {self.tokenizer.n_tokens - 1}"
                )

    def embed(self, tokens: list[int]) -> bytes:
        """See `naiad.engine.base.Embeds`."""
        n_ctx, n = self.info.engine.n_ctx, len(tokens)
        self._check_ids(tokens)
        if n > n_ctx:
            raise ContextExceeded(
                f"the input has {n} tokens, but the context holds {n_ctx}",
                n_prompt_tokens=n,
                n_ctx=n_ctx,
            )
        if self.info.pooling == "rank":
            raise Unsupported("this model ranks texts and makes no embeddings")
        return self.embedder.embed(tokens).astype("<f4").tobytes()

    def close_embedder(self) -> None:
        self.embedder.close()

    def check_room(self, job: CoreJob) -> None:
        if job.is_deterministic:
            self.apart.check_room(job)

    def prepare(self) -> bool:
        return self.grammars.prepare()

    def cached_grammar(self, grammar: Grammar) -> Follower | None:
        return self.grammars.cached(grammar)

    def compile_grammar(self, grammar: Grammar) -> Follower:
        return self.grammars.compile(grammar)

    def close_grammars(self) -> None:
        self.grammars.close()

    def flush(self, timeout_s: float) -> bool:
        """Write to disk what was saved, for at most so long; see `naiad.engine.worker`."""
        return self.store is None or self.store.flush(timeout_s)


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
    free_before = memory_fit.free_memory(psutil.virtual_memory().available)
    model = Model(
        Path(config.model),
        gpu_layers=gpu_layers,
        extra_buffers=sizing.uses_extra_buffers(config),
        on_progress=on_progress,
    )
    draft: Model | None = None
    try:
        if not model.can_generate:
            raise ModelFileError(f"{model.path.name} is not a model that generates text")
        draft = load_draft(config, model, gpu_layers, can_cut=_can_cut(model))
        return _build(config, model, draft, gpu_layers, free_before)
    except BaseException:
        if draft is not None:
            draft.close()
        model.close()
        raise


def _build(
    config: EngineConfig, model: Model, draft: Model | None, gpu_layers: int, free_before: int
) -> LlamaBackend:
    choice = sizing.choose(config, _machine(gpu_layers))
    room = _fit(config, choice, model, draft, gpu_layers, free_before)
    logger.debug("profile %s: %s; %s", choice.profile, choice.explained(), room.arithmetic)
    if config.ctx is not None and room.n_cells < config.parallel * room.n_ctx:
        logger.info("%s", memory_fit.sharing_of(room, config.parallel))
    context = Context(model, _context_params(config, choice, room, can_cut=_can_cut(model)))
    try:
        executor = NativeExecutor(context)
        _self_test(executor, model.vocab)
        info = _describe(config, choice, model, context, room, gpu_layers)
        limits = CoreLimits(
            n_ctx=room.n_ctx,
            pool_cells=context.n_cells,
            parallel=config.parallel,
            n_parked=room.n_parked,
            host_cache_bytes=room.host_cache_bytes,
            can_reuse=config.prefix_cache,
            can_cut=_can_cut(model),
            kv_unified=choice.kv_unified,
            drafts=config.drafts and _can_cut(model),
            can_shift=config.context_shift and context.can_shift,
            window=model.n_swa,
            can_interrupt=gpu_layers == 0,
            budget=_budget(config, choice, gpu_layers),
            check_integrity=config.check_integrity,
        )
        journal = Journal(Path(config.journal)) if config.journal else None
        store = _open_store(config, model, context, limits)
        lane = _make_lane(context, room)
        second = None
        if draft is not None:
            second = open_draft(draft, context.params, config.parallel, room.draft_cells)
        apart = Apart(model, context.params, limits)
        share = _sharing(context.params, executor, lane, second)
        core = CoreWithSolo(
            executor,
            model.vocab,
            limits,
            journal,
            lane,
            store,
            second,
            solo=Solo(apart.core),
            share=share,
        )
    except BaseException:
        context.close()  # before its model, and before another try needs the memory
        raise
    grammars = GrammarCompiler(model.vocab)
    embedder = Embedder(model, context.params, model.pooling)
    return LlamaBackend(info, model.vocab, core, model, grammars, embedder, apart, store)


def _shape(model: Model, choice: sizing.Choice, gpu_layers: int) -> memory_fit.ModelShape:
    return memory_fit.ModelShape(
        mapped_bytes=0 if gpu_layers else model.size_bytes,
        bytes_per_cell=model.kv_bytes_per_cell(sizing.KV_BYTES[choice.kv_type]),
        n_ctx_train=model.n_ctx_train,
        n_vocab=model.vocab.n_tokens,
        n_embd=model.n_embd,
        n_head=model.n_head,
        has_window=model.n_swa > 0,
    )


def _fit(
    config: EngineConfig,
    choice: sizing.Choice,
    model: Model,
    draft: Model | None,
    gpu_layers: int,
    free_before: int,
) -> memory_fit.MemoryFit:
    """What fits. Weights on the processor are mapped, and count as free until they are read.

    Streams apart have none to spare for what is finished: it stays in its stream until another
    needs it, and those in use stay side by side, which is how a step computes them together.
    """
    n_parked = _count_parked(config.parallel)
    wish = memory_fit.Wish(
        parallel=config.parallel,
        ctx=config.ctx,
        host_cache_mib=config.host_cache_mib,
        most_parked=n_parked if choice.kv_unified else 0,
        n_ubatch=choice.n_ubatch,
        flash_attention=choice.flash_attention,
        kv_unified=choice.kv_unified,
        can_cut=_can_cut(model),
        has_lane=_has_lane(config, choice, gpu_layers) and _can_cut(model),
        draft=_shape(draft, choice, gpu_layers) if draft else None,
    )
    return memory_fit.fit(_shape(model, choice, gpu_layers), wish, free_before)


def _context_params(
    config: EngineConfig, choice: sizing.Choice, room: memory_fit.MemoryFit, *, can_cut: bool
) -> ContextParams:
    return ContextParams(
        n_ctx=room.n_cells,
        n_seq_max=config.parallel + room.n_parked + int(choice.kv_unified and can_cut),
        n_batch=max(_N_BATCH_LEAST, choice.n_ubatch + config.parallel),
        n_ubatch=choice.n_ubatch,
        threads=choice.threads,
        flash_attention=choice.flash_attention,
        kv_type=choice.kv_type,
        kv_unified=choice.kv_unified,
        stock_bytes=room.stock_bytes,
    )


def _has_lane(config: EngineConfig, choice: sizing.Choice, gpu_layers: int) -> bool:
    """Whether long prompts are computed in a context of their own; see naiad.engine.lane.

    It needs a second thread, states that fit both contexts, and a processor: a GPU computes large
    chunks in the same step faster than two contexts side by side.
    """
    wanted = choice.lane if config.lane is None else config.lane
    is_possible = choice.threads > 1 and choice.kv_unified and not gpu_layers
    return is_possible and wanted is not False


def _make_lane(context: Context, room: memory_fit.MemoryFit) -> Lane | None:
    if not room.lane_cells:
        return None
    model = context.model
    if model.has_long_rope(room.lane_cells) != model.has_long_rope(context.n_cells):
        logger.info("no prefill lane: this model's positions depend on the size of the context")
        return None
    own = Context(model, replace(context.params, n_ctx=room.lane_cells, n_seq_max=2))
    return Lane(NativeExecutor(own), own.n_cells, window=model.n_swa, threads=own.params.threads)


def _sharing(
    params: ContextParams, *contexts: NativeExecutor | Lane | DraftModel | None
) -> Callable[[bool], None]:
    """Threads of the pool, the lane and the draft model beside a request that runs alone."""
    left = max(1, params.threads - n_threads_apart(params.threads))

    def share(is_running: bool) -> None:
        for each in contexts:
            if each is not None:
                each.limit_threads(left if is_running else params.threads)

    return share


def _open_store(
    config: EngineConfig, model: Model, context: Context, limits: CoreLimits
) -> DiskCache[State] | None:
    if not limits.can_reuse:
        return None
    return open_store(config, model, context, is_whole=not limits.is_in_blocks)


def _can_cut(model: Model) -> bool:
    """Whether a sequence's past can be cut and saved in blocks, and not as a whole only.

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


def _machine(gpu_layers: int) -> sizing.Machine:
    has_amx = "AMX_INT8 = 1" in library.system_info()
    return sizing.this_machine(on_gpu=gpu_layers > 0, has_amx=has_amx)


def _budget(config: EngineConfig, choice: sizing.Choice, gpu_layers: int) -> StepBudget:
    """Chunks beside running streams go by time on a processor; a GPU starves below 512.

    Who asks for throughput would rather have streams wait at their beginning than all take longer.
    """
    n = choice.n_ubatch
    target_s = math.inf if gpu_layers else config.gap_target_ms / 1000
    budget = StepBudget(alone=n, beside=n, target_s=target_s)
    if config.profile == "throughput":
        return replace(budget, most_targets=_TARGETS_FOR_THROUGHPUT, share=1.0)
    return budget


def _self_test(executor: NativeExecutor, vocab: Vocab) -> None:
    """Decode a short prompt and one more token, and look at the numbers.

    A build that does not suit the processor dies here (and the supervisor starts the worker again
    in safe mode) or computes NaN, rather than in somebody's stream.
    """
    token = vocab.bos if vocab.bos >= 0 else 0
    prompt = [token] + [(7 * i) % vocab.n_tokens for i in range(1, _SELF_TEST_TOKENS)]
    for tokens, start in ((prompt, 0), ([token], len(prompt))):
        outcome = executor.decode([Run(0, tokens, start, n_logits=1)])
        if outcome is not DecodeOutcome.DONE:
            raise SelfTestFailed(f"the engine's self-test could not decode ({outcome.name})")
        if not np.isfinite(executor.logits(0)).any() or np.isnan(executor.logits(0)).any():
            raise SelfTestFailed("the engine's self-test computed NaN")
    executor.memory.remove(0)


def _describe(
    config: EngineConfig,
    choice: sizing.Choice,
    model: Model,
    context: Context,
    room: memory_fit.MemoryFit,
    gpu_layers: int,
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
        infill=vocab.infill,
        n_embd=model.n_embd,
        pooling=model.pooling,
        engine=EngineSettings(
            threads=context.params.threads,
            flash_attention=context.params.flash_attention,
            kv_type=context.params.kv_type,
            kv_unified=context.params.kv_unified,
            n_ubatch=context.params.n_ubatch,
            gpu_layers=gpu_layers,
            n_ctx=room.n_ctx,
            pool_cells=context.n_cells,
            parallel=config.parallel,
            extra_buffers=choice.extra_buffers,
            profile=choice.profile,
            tuned=choice.is_tuned,
            build=library.system_info(),
        ),
    )

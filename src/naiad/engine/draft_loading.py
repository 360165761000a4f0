"""The draft model of one loaded model: whether it can serve, and its context."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from naiad.config import EngineConfig
from naiad.engine import sizing
from naiad.engine.draft_model import DraftModel
from naiad.engine.executor import NativeExecutor
from naiad.errors import ConfigError
from naiad.native.context import Context, ContextParams
from naiad.native.model import Model

logger = logging.getLogger("naiad.engine")


def load_draft(
    config: EngineConfig, model: Model, gpu_layers: int, *, can_cut: bool
) -> Model | None:
    """The second model, when one was asked for. can_cut: of `model`, see CoreLimits.

    Raises:
        ConfigError: it can be of no use to `model`, and why.
        ModelFileError: its file cannot be loaded.
    """
    if config.draft_model is None:
        return None
    if not config.drafts:
        raise _refused("is of no use while drafts are switched off")
    if not can_cut:
        raise _refused(f"is of no use to {model.path.stem}, which cannot take a guess back")
    path = Path(config.draft_model)
    extra_buffers = sizing.uses_extra_buffers(config)
    draft = Model(path, gpu_layers=gpu_layers, extra_buffers=extra_buffers)
    try:
        _must_suit(draft, model)
    except BaseException:
        draft.close()
        raise
    return draft


def _must_suit(draft: Model, model: Model) -> None:
    name, its, ours = draft.path.stem, draft.vocab, model.vocab
    if not (draft.can_generate and draft.can_cut):
        raise _refused(f"{name} cannot guess: it must generate text and be able to take it back")
    if its.n_tokens != ours.n_tokens:
        raise _refused(
            f"{name} has another vocabulary than {model.path.stem}: "
            f"{its.n_tokens} tokens instead of {ours.n_tokens}"
        )
    for token in range(ours.n_tokens):
        texts = [vocab.fresh_piece(token, special=True) for vocab in (its, ours)]
        if texts[0] != texts[1]:
            raise _refused(
                f"{name} has another vocabulary than {model.path.stem}: "
                f"its token {token} is {texts[0]!r} instead of {texts[1]!r}"
            )


def _refused(why: str) -> ConfigError:
    return ConfigError(f"draft_model {why}", param="draft_model")


def open_draft(draft: Model, params: ContextParams, parallel: int, n_cells: int) -> DraftModel:
    """The draft model in a context of its own. params: of the model's own context.

    Raises ModelFileError when there is no memory for it.
    """
    own = replace(params, n_ctx=n_cells, n_seq_max=parallel, kv_unified=True, stock_bytes=0)
    context = Context(draft, own)
    logger.info("draft model: %s, %d cells", draft.path.stem, context.n_cells)
    return DraftModel(NativeExecutor(context), parallel, context.n_cells, draft.close)

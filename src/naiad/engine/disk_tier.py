"""The disk cache of one loaded model: where it lies, and what its files are good for."""

from __future__ import annotations

import logging

from naiad.config import EngineConfig
from naiad.engine.disk_cache import DiskCache
from naiad.engine.disk_folder import cache_dir
from naiad.engine.executor import State
from naiad.engine.fingerprint import fingerprint
from naiad.native import library
from naiad.native.context import Context
from naiad.native.model import Model

import numpy as np  # isort: skip  (after llama_cpp)

logger = logging.getLogger(__name__)


def open_store(
    config: EngineConfig, model: Model, context: Context, *, is_whole: bool = False
) -> DiskCache[State] | None:
    """The store for this model in this context; None when it is switched off or impossible.

    is_whole: states of whole sequences, not of blocks.
    """
    if not config.disk_cache or config.disk_cache_mib == 0:
        return None
    try:
        facts = _facts(config, model, context) | {"is_whole": is_whole}
        mark = fingerprint(model.path, library.files(), facts)
    except OSError as error:
        logger.warning("no disk cache: the model's file cannot be looked at: %s", error)
        return None
    return DiskCache[State](
        cache_dir(config.disk_cache_dir),
        mark,
        config.disk_cache_mib << 20,
        lambda data: np.frombuffer(data, np.uint8),
        {"model": model.path.stem, "file": str(model.path)},
    )


def _facts(
    config: EngineConfig, model: Model, context: Context
) -> dict[str, str | int | bool | None]:
    """What a state depends on besides the files."""
    params = context.params
    return {
        "version": library.version(),
        "build": library.system_info(),
        "flash_attention": params.flash_attention,
        "kv_type": params.kv_type,
        "n_streams": 1 if params.kv_unified else params.n_seq_max,
        "n_swa": model.n_swa,
        "n_layer": model.n_layer,
        "is_long": model.has_long_rope(context.n_cells),
        "has_shifted": config.context_shift,  # shifted states are not exact: switched off, unused
    }

"""The model and the engine that runs it."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


@dataclass(frozen=True, slots=True)
class Residency:
    """Is the model in memory? expires_in_s: seconds until it leaves unused; None: it stays."""

    is_loaded: bool
    expires_in_s: float | None


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine really runs with, as /health reports it under `engine`."""

    threads: int = 0
    flash_attention: bool = False
    kv_type: str = "f16"
    kv_unified: bool = True
    n_ubatch: int = 512
    gpu_layers: int = 0
    n_ctx: int = 0  # each request's limit, tokens
    pool_cells: int = 0  # cells that all requests share
    parallel: int = 0  # sequences in one batch
    extra_buffers: bool = True  # repacked weights (AMX and friends) in use
    profile: str = "default"  # what the settings are chosen for: default or throughput
    tuned: bool = False  # some of them were measured on this machine
    build: str = ""  # llama.cpp's system-info line


class CacheCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the prefix cache since the engine was started, as /health reports it.

    Counted in states: blocks of up to 128 tokens, or whole sequences where blocks cannot be.
    """

    n_from_memory: int = 0  # states that prompts were begun with, from host memory
    n_from_disk: int = 0  # states that were read from disk for a prompt
    n_bytes_from_disk: int = 0
    n_lost: int = 0  # states that should have been on disk and were not, or were damaged
    n_saved: int = 0
    n_bytes_in_memory: int = 0  # now
    n_bytes_on_disk: int = 0  # now, of this model and build


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the front needs to know of the loaded model."""

    name: str  # file stem, e.g. "SmolLM2-135M-Instruct.Q4_1"
    description: str = ""  # e.g. "llama 135M Q4_1"
    architecture: str = ""
    n_params: int = 0
    size_bytes: int = 0
    n_ctx_train: int = 0
    n_vocab: int = 0
    n_embd: int = 0  # numbers in an embedding
    pooling: str = ""  # of embeddings: none, mean, cls, last, rank; "" if the file names none
    chat_template: str | None = None
    bos_token: str = ""
    eos_token: str = ""
    add_bos: bool = False
    infill: tuple[str, str, str] | None = None  # tokens before a prefix, a suffix, what to fill in
    engine: EngineSettings = msgspec.field(default_factory=EngineSettings)

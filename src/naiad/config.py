"""What naiad can be told, as two frozen structs; flags, environment and file fill them in.

A bad value is an error, never ignored. Ranges, help texts and where a value may come from stand in
one table, `naiad.cli.settings`.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker needs to start; passed to it as JSON on its command line.

    ctx: tokens one request may use; None for the model's own, at most what memory holds.
    """

    engine: Literal["llama", "scripted"] = "llama"
    model: str = ""  # path of the GGUF file; "" for the scripted engine
    parallel: int = 8  # sequences in one batch; llama.cpp holds up to 255
    ctx: int | None = None
    gpu_layers: int | Literal["auto"] = "auto"
    threads: int | None = None  # None: the physical cores this process may use
    kv_type: Literal["f16", "q8_0"] = "f16"
    flash_attention: bool | None = None  # None: measured default for this machine
    n_ubatch: int = 512
    extra_buffers: bool = True  # False: safe mode, no repacked weights (AMX and friends)
    host_cache_mib: int = 1024  # finished sequences kept in host memory
    prefix_cache: bool = True
    journal: str | None = None  # path: one JSON line per sampled token, for tests
    check_integrity: bool = False  # verify the pool after every step, for tests


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything `naiad serve` can be told."""

    engine: EngineConfig = msgspec.field(default_factory=EngineConfig)
    host: str = "127.0.0.1"
    port: int = 5001
    api_key: str | None = None
    no_auth: bool = False
    allow_host: tuple[str, ...] = ()
    allow_origin: tuple[str, ...] = ()
    strict_model: bool = False
    models_dir: str | None = None  # None: the user's data folder
    max_queue: int = 256
    max_body_bytes: int = 32 * 1024 * 1024
    heartbeat_s: float = 10.0
    stalled_s: float = 30.0  # a client that takes no byte of its stream for this long is gone
    max_connections_per_host: int = 256  # of one other machine; this one's own are not counted
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_json: bool = False

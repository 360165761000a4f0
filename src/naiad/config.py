"""What naiad can be told, as two frozen structs; flags, environment and file fill them in.

A bad value is an error, never ignored. Ranges, help texts and where a value may come from stand in
one table, `naiad.cli.settings`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

#: MiB of finished sequences kept in host memory when nobody said otherwise.
DEFAULT_HOST_CACHE_MIB = 1024

Profile = Literal["default", "throughput"]


class Tuning(msgspec.Struct, frozen=True, kw_only=True):
    """What measuring on this machine found best; None for what was not measured.

    lane: whether long prompts are better computed in a second context, by threads of their own.
    wait_policy: OMP_WAIT_POLICY of the worker.
    source: where it comes from, for people: the model that was measured and when.
    """

    threads: int | None = None
    n_ubatch: int | None = None
    flash_attention: bool | None = None
    kv_unified: bool | None = None
    kv_type: Literal["f16", "q8_0"] | None = None
    extra_buffers: bool | None = None
    wait_policy: Literal["active", "passive"] | None = None
    lane: bool | None = None
    source: str = ""


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker needs to start; passed to it as JSON on its command line.

    None means that nobody said: what was measured here decides, else a rule of thumb.

    ctx: tokens one request may use; None for the model's own, at most what memory holds.
    host_cache_mib: None for DEFAULT_HOST_CACHE_MIB, or less where memory is short.
    """

    engine: Literal["llama", "scripted"] = "llama"
    model: str = ""  # path of the GGUF file; "" for the scripted engine
    parallel: int = 8  # sequences in one batch; llama.cpp holds up to 255
    ctx: int | None = None
    gpu_layers: int | Literal["auto"] = "auto"
    threads: int | None = None  # None: the physical cores this process may use
    kv_type: Literal["f16", "q8_0"] | None = None
    flash_attention: bool | None = None
    n_ubatch: int | None = None
    extra_buffers: bool | None = None  # False: safe mode, no repacked weights (AMX and friends)
    host_cache_mib: int | None = None  # finished sequences kept in host memory
    profile: Profile = "default"
    tuning: Tuning | None = None  # found by the front; no setting
    prefix_cache: bool = True
    context_shift: bool = True  # reuse what is left of trimmed prompts, at other positions
    lane: bool | None = None  # long prompts in a context of their own; None: as measured
    drafts: bool = True  # guess tokens that repeat earlier text, where it pays
    draft_model: str | None = None  # path of a small model with the same vocabulary, which guesses
    gap_target_ms: int = 80  # what a step beside streams may take
    disk_cache: bool = True
    disk_cache_mib: int = 4096  # of all models together
    disk_cache_dir: str | None = None  # None: in the user's cache folder
    journal: str | None = None  # path: one JSON line per sampled token, for tests
    check_integrity: bool = False  # verify the pool after every step, for tests


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the `naiad` command can be told, most of it for `naiad serve`."""

    engine: EngineConfig = msgspec.field(default_factory=EngineConfig)
    host: str = "127.0.0.1"
    port: int = 5001
    api_key: str | None = None
    admin_key: str | None = None  # opens what api_key opens, and what concerns everybody
    no_auth: bool = False
    allow_host: tuple[str, ...] = ()
    allow_origin: tuple[str, ...] = ()
    strict_model: bool = False
    share_cache: bool = False  # prompts of one key may reuse the work done for another's
    models_dir: str | None = None  # None: the user's data folder
    saves_dir: str | None = None  # None: in the user's data folder
    preload_story: str | None = None  # path of a story, as JSON, that KoboldAI Lite opens at first
    multiplayer: bool = False  # players may share one story
    more_models: tuple[str, ...] = ()  # further folders, which are only read
    foreign_models: bool = True  # those of LM Studio and the Hugging Face cache can be named too
    server: str | None = None  # what `naiad run` and `chat` talk to; None: whatever runs
    quiet: bool = False  # print what was asked for, and errors
    max_queue: int = 256
    max_queue_tokens: int = 1 << 20  # of prompts that wait to be computed: 256 of 4096 tokens
    max_body_bytes: int = 32 * 1024 * 1024
    responses_file: str | None = None  # of stored responses; None: in the user's data folder
    responses_most: int = 10_000  # stored responses; 0: none is kept
    responses_days: int = 30  # how long they are kept
    max_per_key: int = 0  # requests of one key in progress or waiting; 0: no limit of its own
    requests_per_minute: int = 0  # of one key; 0: no limit
    idle_unload_s: float = 0.0  # 0: the model stays loaded
    heartbeat_s: float = 10.0
    stalled_s: float = 30.0  # a client that takes no byte of its stream for this long is gone
    max_connections_per_host: int = 256  # of one other machine; this one's own are not counted
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_json: bool = False

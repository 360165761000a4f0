"""The one table of settings, and how they are gathered: default < file < environment < flag.

A setting `kv_type` is the flag `--kv-type`, the environment variable `NAIAD_KV_TYPE` and the key
`kv_type` of the settings file; its type is that of the struct field of the same name. Whatever its
source, a value goes through the same check, and an unknown key or a bad value is a ConfigError that
names the source and says what would be accepted.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from naiad.config import Config, EngineConfig
from naiad.errors import ConfigError

#: Names the settings file; read before the settings themselves.
CONFIG_ENV = "NAIAD_CONFIG"
PREFIX = "NAIAD_"
#: Variables of that prefix that are no settings of the server.
NOT_SETTINGS = {CONFIG_ENV, "NAIAD_BENCH_KEY", "NAIAD_SCRIPTED_RATE", "NAIAD_STATE_DIR"}

_HINTS: dict[str, Any] = {**get_type_hints(Config), **get_type_hints(EngineConfig)}
_DEFAULTS: dict[str, Any] = {
    **msgspec.structs.asdict(Config()),
    **msgspec.structs.asdict(EngineConfig()),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. low and high bound numbers, both included; hidden ones are for tests.

    is_of_client: for what talks to a server; `naiad serve` has no such flag.
    """

    name: str
    help: str
    low: float | None = None
    high: float | None = None
    secret: bool = False
    hidden: bool = False
    is_of_client: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def env(self) -> str:
        return PREFIX + self.name.upper()

    @property
    def default(self) -> Any:
        return _DEFAULTS[self.name]

    @property
    def hint(self) -> Any:
        """The type of the struct field."""
        return _HINTS[self.name]

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The type's alternatives without None: `int | Literal["auto"] | None` has two."""
        is_union = get_origin(self.hint) in (Union, UnionType)
        alternatives = get_args(self.hint) if is_union else (self.hint,)
        return tuple(kind for kind in alternatives if kind is not NoneType)

    @property
    def choices(self) -> tuple[str, ...]:
        return tuple(
            c for kind in self.kinds if get_origin(kind) is Literal for c in get_args(kind)
        )

    @property
    def is_bool(self) -> bool:
        return bool in self.kinds

    @property
    def is_list(self) -> bool:
        return get_origin(self.hint) is tuple

    @property
    def accepts(self) -> str:
        """What a value may be, in words."""
        if self.is_bool:
            return "true or false"
        if self.is_list:
            return "a list of names"
        number = {int: "a whole number", float: "a number"}
        words = [f"{number[k]}{self._range()}" for k in self.kinds if k in number]
        return " or ".join([*words, *self.choices]) or "a text that is not empty"

    def _range(self) -> str:
        return f" from {self.low:.10g} to {self.high:.10g}"


SETTINGS: tuple[Setting, ...] = (
    Setting("host", "Address to listen on."),
    Setting("port", "Port to listen on; 0 takes any free one.", 0, 65_535),
    Setting("model", "Path or name of the model."),
    Setting("models_dir", "Folder of the models."),
    Setting("more_models", "Further folder with models, which is only read; repeatable."),
    Setting("foreign_models", "Also know the models of LM Studio and the Hugging Face cache."),
    Setting("server", "Address of the server that run and chat use.", is_of_client=True),
    Setting("quiet", "Print what was asked for and errors, nothing else."),
    Setting("parallel", "Requests that run at the same time.", 1, 4096),
    Setting("ctx", "Tokens one request may use (default: the model's own).", 16, 1 << 24),
    Setting("gpu_layers", "Layers computed by the GPU; auto for all that fit.", 0, 9_999),
    Setting("threads", "Threads that compute (default: the physical cores).", 1, 512),
    Setting("profile", "What to be good at: few streams that share, or many unrelated ones."),
    Setting("kv_type", "Type of the KV cache; q8_0 turns flash attention on."),
    Setting("flash_attention", "Fused attention (default: what suits this machine)."),
    Setting("extra_buffers", "Weights repacked for this processor, AMX among them."),
    Setting("prefix_cache", "Reuse the work of prompts that begin alike."),
    Setting("context_shift", "Reuse what is left of trimmed prompts, shifted; not exact."),
    Setting("lane", "Compute long prompts in a context of their own (default: as measured)."),
    Setting("drafts", "Guess text that repeats itself and check it in one step, where it pays."),
    Setting(
        "draft_model", "Path or name of a small model with the same vocabulary, which guesses."
    ),
    Setting(
        "gap_target_ms",
        "Milliseconds a step may take beside streams; more while all of them begin.",
        1,
        60_000,
    ),
    Setting("host_cache_mib", "MiB of memory that keep finished prompts.", 0, 1 << 24),
    Setting("disk_cache", "Keep finished prompts on disk too, across restarts."),
    Setting("disk_cache_mib", "MiB of disk that keep finished prompts.", 0, 1 << 24),
    Setting("disk_cache_dir", "Folder of the disk cache (default: in the user's cache folder)."),
    Setting("api_key", "Key that requests must show.", secret=True),
    Setting("admin_key", "Key of the administrator, who may do more.", secret=True),
    Setting("no_auth", "Ask for no key, even when bound beyond this machine."),
    Setting("allow_host", "Further name allowed in the Host header; repeatable."),
    Setting("allow_origin", "Web origin that may call from a browser; repeatable."),
    Setting("share_cache", "Reuse work between callers of different keys, who can notice it."),
    Setting("strict_model", "Refuse requests that name another model."),
    Setting("engine", "llama.cpp, or a scripted stand-in for work on interfaces."),
    Setting("saves_dir", "Folder of the stories that clients save here."),
    Setting("preload_story", "Story, as a JSON file, that KoboldAI Lite opens at first."),
    Setting("multiplayer", "Let players share one story."),
    Setting("max_queue", "Requests that may wait for their turn.", 0, 1_000_000),
    Setting("max_queue_tokens", "Prompt tokens that may wait to be computed.", 1, 1 << 40),
    Setting("max_body_bytes", "Largest request body, bytes.", 1_024, 1 << 32),
    Setting("responses_file", "File of stored responses (default: in the user's data folder)."),
    Setting("responses_most", "Responses that are stored; 0 for none.", 0, 10_000_000),
    Setting("responses_days", "Days that they are stored.", 1, 36_500),
    Setting("max_per_key", "Requests one key may have in progress or waiting; 0: any.", 0, 1e6),
    Setting("requests_per_minute", "Requests one key may send in a minute; 0: any.", 0, 1e6),
    Setting("idle_unload_s", "Seconds without work until the model is unloaded; 0: never.", 0, 1e9),
    Setting("heartbeat_s", "Seconds of silence before a stream's heartbeat.", 0.1, 3_600),
    Setting("stalled_s", "Seconds without reading after which a client is gone.", 1, 86_400),
    Setting(
        "max_connections_per_host", "Connections that one other machine may hold.", 1, 1_000_000
    ),
    Setting("log_level", "Least severe log line shown."),
    Setting("log_json", "Write log lines as JSON."),
    Setting("n_ubatch", "Tokens computed in one go.", 16, 8_192, hidden=True),
    Setting("journal", "File that gets one JSON line per token.", hidden=True),
    Setting("check_integrity", "Verify the KV pool after every step.", hidden=True),
)
BY_NAME = {setting.name: setting for setting in SETTINGS}

#: title -> the settings that help and documentation show under it; every one that is not hidden.
GROUPS: dict[str, tuple[str, ...]] = {
    "Models": (
        "model", "models_dir", "more_models", "foreign_models", "draft_model", "strict_model",
        "idle_unload_s", "engine",
    ),
    "Address and keys": (
        "host", "port", "server", "api_key", "admin_key", "no_auth", "allow_host", "allow_origin",
    ),
    "Context and memory": ("ctx", "parallel", "gpu_layers", "kv_type"),
    "Speed": (
        "profile", "threads", "flash_attention", "extra_buffers", "lane", "drafts", "gap_target_ms",
    ),
    "Cache": (
        "prefix_cache", "context_shift", "share_cache", "host_cache_mib", "disk_cache",
        "disk_cache_mib", "disk_cache_dir",
    ),
    "Limits": (
        "max_queue", "max_queue_tokens", "max_per_key", "requests_per_minute", "max_body_bytes",
        "max_connections_per_host", "stalled_s", "heartbeat_s",
    ),
    "What clients store here": (
        "responses_file", "responses_most", "responses_days", "saves_dir", "preload_story",
        "multiplayer",
    ),
    "Output": ("quiet", "log_level", "log_json"),
}  # fmt: skip


def default_file() -> Path:
    """Where the settings file lies unless --config or NAIAD_CONFIG names another."""
    import platformdirs

    return Path(platformdirs.user_config_dir("naiad")) / "naiad.toml"


def load(
    flags: Mapping[str, Any], *, file: str | None = None, env: Mapping[str, str] = os.environ
) -> Config:
    """Gather the settings.

    Args:
        flags: by setting name, as given on the command line; None means not given.
        file: the settings file that --config names; it must then exist.
        env: the environment. An empty variable counts as not set.

    Raises:
        ConfigError: an unknown key, a bad value, or values that contradict each other. Its detail
            `source` is "flag", "environment" or "file".
    """
    values = _from_file(file or env.get(CONFIG_ENV)) | _from_env(env) | _from_flags(flags)
    of_engine = {name: values[name] for name in EngineConfig.__struct_fields__ if name in values}
    of_server = {name: value for name, value in values.items() if name not in of_engine}
    return _checked(Config(engine=EngineConfig(**of_engine), **of_server))


def _from_file(named: str | None) -> dict[str, Any]:
    path = Path(named).expanduser() if named else default_file()
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if named:
            raise ConfigError(f"There is no settings file {path}.", source="file") from None
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", source="file") from None
    return {key: _file_value(key, value, path) for key, value in table.items()}


def _file_value(key: str, value: Any, path: Path) -> Any:
    _require_known(key, BY_NAME, f"{path} has the unknown key {key}", "file")
    return _convert(BY_NAME[key], value, f"{key} in {path}", "file")


def _from_env(env: Mapping[str, str]) -> dict[str, Any]:
    by_env = {setting.env: setting for setting in SETTINGS}
    values: dict[str, Any] = {}
    for key in sorted(env):
        if not key.startswith(PREFIX) or key in NOT_SETTINGS or not env[key]:
            continue
        _require_known(key, by_env, f"The environment variable {key} is no setting", "environment")
        setting = by_env[key]
        raw: Any = env[key].split(",") if setting.is_list else env[key]
        values[setting.name] = _convert(setting, raw, key, "environment")
    return values


def _from_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _convert(BY_NAME[name], value, BY_NAME[name].flag, "flag")
        for name, value in flags.items()
        if value not in (None, ())
    }


def _require_known(key: str, known: Mapping[str, Setting], complaint: str, source: str) -> None:
    if key in known:
        return
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known are: {', '.join(sorted(known))}."
    raise ConfigError(f"{complaint}; {hint}", source=source)


def _convert(setting: Setting, raw: Any, label: str, source: str) -> Any:
    """Give the value the field's type; texts may stand for numbers except in the file."""
    try:
        value = msgspec.convert(raw, setting.hint, strict=source == "file")
    except msgspec.ValidationError:
        value = None
    if value is None or not _in_range(setting, value):
        shown = "not accepted" if setting.secret else f"{raw!r}"
        message = f"{label} is {shown}; it must be {setting.accepts}."
        raise ConfigError(message, param=setting.name, source=source)
    return value


def _in_range(setting: Setting, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value != ""
    low, high = setting.low, setting.high
    return (low is None or value >= low) and (high is None or value <= high)


def _checked(config: Config) -> Config:
    """Refuse values that contradict each other, and draw what follows from one value."""
    if config.api_key and config.no_auth:
        raise ConfigError("A key is given and --no-auth says to ask for none; choose one.")
    if config.admin_key and config.admin_key == config.api_key:
        raise ConfigError(
            "--admin-key and --api-key are the same; everybody would be an administrator."
        )
    engine = config.engine
    if engine.kv_type == "q8_0":
        if engine.flash_attention is False:
            raise ConfigError(
                "--kv-type q8_0 needs flash attention; leave out --no-flash-attention."
            )
        engine = msgspec.structs.replace(engine, flash_attention=True)
    return msgspec.structs.replace(config, engine=engine)

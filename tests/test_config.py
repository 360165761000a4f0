"""Settings: four sources, one check, and errors that say where and what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from naiad.cli import settings
from naiad.cli.options import setting_option
from naiad.cli.settings import BY_NAME, SETTINGS, Setting, load
from naiad.config import Config, EngineConfig
from naiad.errors import ConfigError

FIELDS = {*Config.__struct_fields__, *EngineConfig.__struct_fields__}


@pytest.fixture(autouse=True)
def no_settings_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "default_file", lambda: Path("/none/naiad.toml"))


@pytest.fixture
def settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the usual settings file would be; it does not exist yet."""
    file = tmp_path / "naiad.toml"
    monkeypatch.setattr(settings, "default_file", lambda: file)
    return file


def value_of(config: Config, name: str) -> Any:
    return getattr(config.engine if name in EngineConfig.__struct_fields__ else config, name)


#: For each setting: a value as text, and what it becomes.
EXAMPLES: dict[str, tuple[str, Any]] = {
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("8080", 8080),
    "model": ("some.gguf", "some.gguf"),
    "models_dir": ("/srv/models", "/srv/models"),
    "more_models": ("/srv/more", ("/srv/more",)),
    "foreign_models": ("false", False),
    "server": ("http://box:5001", "http://box:5001"),
    "quiet": ("true", True),
    "parallel": ("16", 16),
    "ctx": ("4096", 4096),
    "gpu_layers": ("12", 12),
    "threads": ("3", 3),
    "profile": ("throughput", "throughput"),
    "kv_type": ("q8_0", "q8_0"),
    "flash_attention": ("false", False),
    "extra_buffers": ("false", False),
    "prefix_cache": ("false", False),
    "context_shift": ("false", False),
    "lane": ("true", True),
    "gap_target_ms": ("40", 40),
    "drafts": ("false", False),
    "draft_model": ("small.gguf", "small.gguf"),
    "host_cache_mib": ("0", 0),
    "disk_cache": ("false", False),
    "disk_cache_mib": ("64", 64),
    "disk_cache_dir": ("/srv/cache", "/srv/cache"),
    "api_key": ("secret", "secret"),
    "admin_key": ("s3cret", "s3cret"),
    "no_auth": ("true", True),
    "allow_host": ("box", ("box",)),
    "allow_origin": ("http://a", ("http://a",)),
    "share_cache": ("true", True),
    "strict_model": ("true", True),
    "engine": ("scripted", "scripted"),
    "saves_dir": ("/srv/saves", "/srv/saves"),
    "preload_story": ("story.json", "story.json"),
    "multiplayer": ("true", True),
    "max_queue": ("1", 1),
    "max_queue_tokens": ("4096", 4096),
    "max_body_bytes": ("2048", 2048),
    "responses_file": ("/srv/responses.db", "/srv/responses.db"),
    "responses_most": ("7", 7),
    "responses_days": ("3", 3),
    "max_per_key": ("4", 4),
    "requests_per_minute": ("60", 60),
    "idle_unload_s": ("300", 300.0),
    "heartbeat_s": ("2.5", 2.5),
    "stalled_s": ("5", 5.0),
    "max_connections_per_host": ("9", 9),
    "log_level": ("debug", "debug"),
    "log_json": ("true", True),
    "n_ubatch": ("128", 128),
    "journal": ("/tmp/j", "/tmp/j"),
    "check_integrity": ("true", True),
}


def test_the_table_has_every_field_of_the_config() -> None:
    named_twice = {"engine"}  # the nested struct, and the engine's kind within it
    found_out = {"tuning"}  # by measuring, see naiad.tune
    assert {s.name for s in SETTINGS} | named_twice | found_out == FIELDS
    assert set(EXAMPLES) == {s.name for s in SETTINGS}


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_each_setting_has_a_flag_a_variable_and_a_key(setting: Setting) -> None:
    assert setting.flag == "--" + setting.name.replace("_", "-")
    assert setting.env == "NAIAD_" + setting.name.upper()
    command = setting_option(setting)(lambda: None)
    (option,) = command.__click_params__  # type: ignore[attr-defined]
    assert setting.flag in option.opts
    assert option.name == setting.name


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_each_setting_is_taken_from_the_environment(setting: Setting) -> None:
    text, value = EXAMPLES[setting.name]
    assert value_of(load({}, env={setting.env: text}), setting.name) == value


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_each_setting_is_taken_from_a_flag(setting: Setting) -> None:
    text, value = EXAMPLES[setting.name]
    given = (text,) if setting.is_list else text
    assert value_of(load({setting.name: given}, env={}), setting.name) == value


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_each_setting_is_taken_from_the_file(setting: Setting, settings_file: Path) -> None:
    _, value = EXAMPLES[setting.name]
    toml = msgspec.json.encode(value).decode()  # JSON scalars and lists are TOML too
    settings_file.write_text(f"{setting.name} = {toml}\n")
    assert value_of(load({}, env={}), setting.name) == value


def test_without_anything_the_defaults_hold() -> None:
    assert load({}, env={}) == Config()


def test_flag_beats_environment_beats_file(settings_file: Path) -> None:
    settings_file.write_text("port = 1\nparallel = 2\nthreads = 3\n")
    env = {"NAIAD_PARALLEL": "20", "NAIAD_THREADS": "30"}
    config = load({"threads": "300"}, env=env)
    assert (config.port, config.engine.parallel, config.engine.threads) == (1, 20, 300)


def test_a_named_file_is_read_instead_of_the_usual_one(tmp_path: Path, settings_file: Path) -> None:
    settings_file.write_text("port = 1\n")
    other = tmp_path / "other.toml"
    other.write_text("parallel = 9\n")
    for config in (load({}, file=str(other), env={}), load({}, env={"NAIAD_CONFIG": str(other)})):
        assert (config.port, config.engine.parallel) == (5001, 9)


def test_a_flag_not_given_and_an_empty_variable_change_nothing() -> None:
    flags: dict[str, Any] = {"port": None, "allow_host": ()}
    assert load(flags, env={"NAIAD_PORT": "", "OTHER": "x"}) == Config()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"port": "70000"}, "--port is '70000'; it must be a whole number from 0 to 65535."),
        ({"parallel": "0"}, "--parallel is '0'; it must be a whole number from 1 to 4096."),
        ({"parallel": "many"}, "--parallel is 'many'; it must be a whole number from 1 to 4096."),
        ({"kv_type": "q4_0"}, "--kv-type is 'q4_0'; it must be f16 or q8_0."),
        ({"gpu_layers": "-1"}, "--gpu-layers is '-1'; it must be a whole number from 0 to 9999"),
        ({"ctx": "2.5"}, "--ctx is '2.5'; it must be a whole number from 16"),
        ({"ctx": "null"}, "--ctx is 'null'"),
        ({"heartbeat_s": "nan"}, "--heartbeat-s is 'nan'; it must be a number from 0.1 to 3600."),
        ({"models_dir": ""}, "--models-dir is ''; it must be a text that is not empty."),
    ],
)
def test_a_bad_flag_is_refused_with_its_range(flags: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(flags, env={})
    assert told in caught.value.message
    assert caught.value.details["source"] == "flag"
    assert caught.value.param == next(iter(flags))


def test_a_bad_variable_is_refused_by_its_name() -> None:
    with pytest.raises(ConfigError, match="NAIAD_NO_AUTH is 'yes'; it must be true or false"):
        load({}, env={"NAIAD_NO_AUTH": "yes"})


def test_a_bad_value_in_the_file_is_refused_with_key_and_path(settings_file: Path) -> None:
    settings_file.write_text('parallel = "8"\n')
    with pytest.raises(ConfigError, match=r"parallel in .*naiad\.toml is '8'"):
        load({}, env={})


@pytest.mark.parametrize("text", ["paralel = 8", "[engine]\nthreads = 2"])
def test_an_unknown_key_in_the_file_is_refused(settings_file: Path, text: str) -> None:
    settings_file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load({}, env={})
    assert caught.value.details["source"] == "file"


def test_an_unknown_key_gets_the_nearest_name_for_a_hint(settings_file: Path) -> None:
    settings_file.write_text("paralel = 8")
    with pytest.raises(ConfigError, match="unknown key paralel; did you mean parallel"):
        load({}, env={})
    settings_file.unlink()
    with pytest.raises(ConfigError, match="NAIAD_PROT is no setting; did you mean NAIAD_PORT"):
        load({}, env={"NAIAD_PROT": "1"})


def test_variables_of_other_commands_are_let_be() -> None:
    assert load({}, env={"NAIAD_BENCH_KEY": "k"}) == Config()


def test_a_file_that_is_no_toml_or_is_missing_is_refused(
    tmp_path: Path, settings_file: Path
) -> None:
    with pytest.raises(ConfigError, match="There is no settings file"):
        load({}, file=str(tmp_path / "none.toml"), env={})
    settings_file.write_text("port 5001")
    with pytest.raises(ConfigError, match="cannot be read"):
        load({}, env={})


def test_a_bad_key_is_never_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        settings._convert(BY_NAME["api_key"], ["s3cret"], "--api-key", "flag")
    assert "s3cret" not in caught.value.message
    assert "must be a text" in caught.value.message


def test_q8_0_turns_flash_attention_on() -> None:
    assert load({"kv_type": "q8_0"}, env={}).engine.flash_attention is True
    assert load({"kv_type": "f16"}, env={}).engine.flash_attention is None


@pytest.mark.parametrize(
    "flags",
    [
        {"kv_type": "q8_0", "flash_attention": False},
        {"api_key": "k", "no_auth": True},
        {"api_key": "k", "admin_key": "k"},
    ],
)
def test_values_that_contradict_each_other_are_refused(flags: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        load(flags, env={})


def test_lists_from_the_environment_have_commas() -> None:
    config = load({}, env={"NAIAD_ALLOW_HOST": "a,b"})
    assert config.allow_host == ("a", "b")


def test_the_engine_config_survives_the_trip_to_the_worker() -> None:
    engine = load({"ctx": "64", "threads": "2", "gpu_layers": "auto"}, env={}).engine
    assert msgspec.json.decode(msgspec.json.encode(engine), type=EngineConfig) == engine

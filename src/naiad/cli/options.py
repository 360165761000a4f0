"""Options of commands, made from the table of settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from naiad.cli.settings import BY_NAME, SETTINGS, Setting, load
from naiad.config import Config
from naiad.errors import ConfigError, ModelFileError
from naiad.models.catalogue import find, installed, models_dir

if TYPE_CHECKING:
    from naiad.models.places import Place

F = TypeVar("F", bound=Callable[..., Any])

config_option = click.option(
    "--config", metavar="FILE", help="Settings file (default: naiad.toml in the config folder)."
)
#: Flags with a letter beside their name.
SHORT = {"quiet": ("-q",)}
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
#: What a text is, by the last word of its setting's name.
_KINDS = {"dir": "FOLDER", "models": "FOLDER", "file": "FILE", "story": "FILE", "server": "URL"}
#: Of a switch and its opposite, git's way to write both.
_SWITCH = re.compile(r"--([\w-]+) / --no-\1\b")


class Grouped(click.Command):
    """A command whose help shows its options under titles.

    groups: title -> names of parameters, in the order of the help; what is in none comes last.
    """

    def __init__(self, *args: Any, groups: Mapping[str, Sequence[str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._groups = groups

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, in one section for each title."""
        options = [one for one in self.get_params(ctx) if isinstance(one, click.Option)]
        found = {option.name: option.get_help_record(ctx) for option in options}
        for title, names in {**self._groups, "Options": [*found]}.items():
            records = [record for name in names if (record := found.pop(name, None))]
            if records:
                with formatter.section(title):
                    formatter.write_dl(
                        [(_SWITCH.sub(r"--[no-]\1", f), told) for f, told in records]
                    )


def setting_option(setting: Setting) -> Callable[[F], F]:
    """The option of one setting. Values stay texts: cli.settings checks them all the same way."""
    declarations = [setting.flag, setting.name, *SHORT.get(setting.name, ())]
    shown: dict[str, Any] = {"default": None, "help": _help(setting), "hidden": setting.hidden}
    if setting.is_bool and setting.default is False:
        shown |= {"is_flag": True, "flag_value": True}
    elif setting.is_bool:
        declarations[0] = f"{setting.flag}/--no-{setting.flag.removeprefix('--')}"
    else:
        shown |= {"type": str, "metavar": _metavar(setting), "multiple": setting.is_list}
    return click.option(*declarations, **shown)


def settings_options(*names: str) -> Callable[[F], F]:
    """The options of the named settings; of all that `serve` has when none is named."""
    of_server = [s for s in SETTINGS if s.name != "model" and not s.is_of_client]
    chosen = [BY_NAME[name] for name in names] or of_server

    def decorate(command: F) -> F:
        for setting in reversed(chosen):
            command = setting_option(setting)(command)
        return command

    return decorate


def elsewhere(config: Config) -> tuple[Place, ...]:
    """Where models lie beside the models folder, as the settings allow."""
    from naiad.models.places import places

    return places(config.more_models, foreign=config.foreign_models)


def draft_model_path(config: Config) -> Path | None:
    """The file of the draft model, None without one. Raises ConfigError when it is no model's."""
    from naiad.models.gguf import read_header

    name = config.engine.draft_model
    if name is None:
        return None
    try:
        path = find(name, models_dir(config.models_dir), elsewhere(config))
        read_header(path)
    except ModelFileError as error:
        raise ConfigError(f"draft_model: {error.message}", param="draft_model") from error
    return path


def complete_model(
    ctx: click.Context,  # noqa: ARG001 - the library's signature
    param: click.Parameter,  # noqa: ARG001
    incomplete: str,
) -> list[str]:
    """Names of models that begin so, for the shell."""
    config = load({})
    found = installed(models_dir(config.models_dir), elsewhere(config))
    return [m.name for m in found if m.name.lower().startswith(incomplete.lower())]


def _metavar(setting: Setting) -> str:
    number = ["N"] if {int, float} & set(setting.kinds) else []
    kind = setting.name.rpartition("_")[2]
    return "|".join([*setting.choices, *number]) or _KINDS.get(kind, "TEXT")


def _help(setting: Setting) -> str:
    default = setting.default
    if default in (None, (), False, ""):
        return setting.help
    shown = f"{default:g}" if isinstance(default, float) else str(default).lower()
    return f"{setting.help}  [{shown}]"

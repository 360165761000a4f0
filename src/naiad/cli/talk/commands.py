"""`naiad run` and `naiad chat`: which model, which server, and what goes in and out."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from naiad.cli.options import (
    Grouped,
    complete_model,
    config_option,
    elsewhere,
    json_option,
    setting_option,
    settings_options,
)
from naiad.cli.settings import BY_NAME, load
from naiad.cli.talk.chat import CHAT, Chat, at_terminal, from_pipe
from naiad.cli.talk.conversation import Conversation, sampling
from naiad.cli.talk.conversation import load as load_conversation
from naiad.cli.talk.screen import Screen
from naiad.cli.talk.server import Keeper, find_running, named, own_server, wait_ready
from naiad.cli.talk.typeahead import without_echo
from naiad.cli.talk.wire import Done, Event, Text, Thought
from naiad.config import Config
from naiad.errors import ConfigError, ModelFileError
from naiad.models.catalogue import find, models_dir

F = TypeVar("F", bound=Callable[..., Any])

#: Settings of an engine that has to be started; with one that runs they change nothing.
OF_ENGINE = ("ctx", "gpu_layers", "threads", "kv_type", "profile", "engine")
#: Flags that go into each request under their own names.
OF_REQUEST = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed")
COMPLETION = "/v1/completions"
#: Titles in the help -> what stands under them.
GROUPS = {
    "The answer": ("system", *OF_REQUEST, "more"),
    "The server": ("server", "api_key"),
    "The engine, where none runs yet": ("is_new", "models_dir", *OF_ENGINE),
}


class Number(click.FloatRange):
    """A number from a range, called that in complaints."""

    name = "number"


def _number(flag: str, kind: click.ParamType[Any], told: str) -> Callable[[F], F]:
    return click.option(flag, type=kind, metavar="N", help=told)


def talk_options(command: F) -> F:
    """What `run` and `chat` have in common."""
    options = [
        click.option("--system", metavar="TEXT", help="System text, said before everything."),
        _number("--max-tokens", click.IntRange(1), "Longest answer, in tokens."),
        _number("--temperature", Number(0), "How free the choice is; 0 takes the likeliest."),
        _number("--top-p", Number(0, 1), "The likeliest tokens that together have this chance."),
        _number("--top-k", click.IntRange(0), "Only the N likeliest tokens; 0: all."),
        _number("--min-p", Number(0, 1), "Tokens this fraction as likely as the likeliest."),
        _number("--seed", click.IntRange(0), "The same seed gives the same answer."),
        click.option(
            "--set",
            "more",
            multiple=True,
            metavar="NAME=VALUE",
            help="Any other field of the request; repeatable.",
        ),
        click.option("--new", "is_new", is_flag=True, help="Start an engine even if one runs."),
        json_option,
        setting_option(BY_NAME["server"]),
        setting_option(BY_NAME["api_key"]),
        settings_options("quiet", "models_dir", *OF_ENGINE),
        config_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command(cls=Grouped, groups=GROUPS)
@click.argument("words", nargs=-1, metavar="[MODEL] [PROMPT]", shell_complete=complete_model)
@click.option("--raw", is_flag=True, help="Go on with the prompt as it is: no chat template.")
@talk_options
def run(words: tuple[str, ...], raw: bool, as_json: bool, **flags: Any) -> int:
    """Answer one PROMPT and leave; without one, chat.

    The prompt may come from a pipe, or go along with one: git diff | naiad run "Any bugs here?"

    MODEL is a path or the name of an installed model. It is served by a server that runs, else by
    one that is started for this answer. One argument with a blank in it is a prompt.
    """
    model, prompt = split(words)
    prompt = with_input(prompt)
    if prompt is None and (raw or not sys.stdin.isatty()):
        raise ConfigError("There is nothing to answer: the prompt is empty.", source="flag")
    try:
        if prompt is None:
            return _chat(model, as_json=as_json, file=None, keeps_history=True, flags=flags)
        talk = Conversation(flags["system"] or "", options_of(flags))
        talk.ask(prompt)
        with keeper_for(model, flags) as keeper:
            is_quiet = bool(flags["quiet"])
            return _one_answer(keeper, talk, as_json=as_json, raw=raw, is_quiet=is_quiet)
    except ModelFileError as error:
        raise only_word(words, error) from None


def only_word(words: tuple[str, ...], error: ModelFileError) -> ModelFileError:
    """The failure to find a model, with how to ask what may have been meant as a prompt."""
    model, prompt = split(words)
    if model is None or prompt is not None or error.details.get("unknown") != model:
        return error
    hint = f" If that is a prompt: naiad run starter {shlex.quote(model)}"
    return ModelFileError(error.message + hint, param=error.param, **error.details)


@click.command(cls=Grouped, groups=GROUPS)
@click.argument("model", required=False, shell_complete=complete_model)
@click.option("--load", "file", type=click.Path(path_type=Path), help="Go on with a saved one.")
@click.option("--no-history", is_flag=True, help="Do not keep what is typed.")
@talk_options
def chat(
    model: str | None, file: Path | None, no_history: bool, as_json: bool, **flags: Any
) -> int:
    """Talk with MODEL at the terminal; /help tells what can be typed.

    Ctrl-C stops the answer and not the program, Ctrl-D leaves. From a pipe, each line is a message.
    """
    return _chat(model, as_json=as_json, file=file, keeps_history=not no_history, flags=flags)


def _chat(
    model: str | None, *, as_json: bool, file: Path | None, keeps_history: bool, flags: Any
) -> int:
    talk = load_conversation(file) if file else Conversation()
    talk.system = flags["system"] or talk.system
    talk.options |= options_of(flags)
    is_quiet = bool(flags["quiet"])
    with contextlib.ExitStack() as stack:
        with without_echo() as typed:
            keeper = stack.enter_context(keeper_for(model, flags))
            keys = typed()
        chatting = Chat(keeper, talk, JsonScreen(True) if as_json else Screen(is_quiet))
        if sys.stdin.isatty():
            chatting.screen.note(f"{keeper.server.model}: /help helps, Ctrl-D leaves.")
            at_terminal(chatting, keeps_history=keeps_history, keys=keys)
            return 0
        from_pipe(chatting)
    return int(chatting.n_failed > 0)


def split(words: tuple[str, ...]) -> tuple[str | None, str | None]:
    """Model and prompt from the arguments of `run`."""
    if not words:
        return None, None
    if len(words) == 1:
        (word,) = words
        return (None, word) if " " in word.strip() or "\n" in word else (word, None)
    return words[0], " ".join(words[1:])


def with_input(prompt: str | None) -> str | None:
    """The prompt with what a pipe brings behind it; None when there is neither."""
    piped = None if sys.stdin.isatty() else sys.stdin.read().strip("\n")
    return "\n\n".join(part for part in (prompt, piped) if part) or None


def options_of(flags: dict[str, Any]) -> dict[str, Any]:
    """The fields of each request that flags ask for."""
    return sampling({name: flags[name] for name in OF_REQUEST}, flags["more"])


@contextlib.contextmanager
def keeper_for(model: str | None, flags: dict[str, Any]) -> Iterator[Keeper]:
    """The server for a model, found or started; it is kept until the block ends."""
    names = ("server", "api_key", "quiet", "models_dir", *OF_ENGINE)
    config = load({"model": model or None, **{n: flags[n] for n in names}}, file=flags["config"])
    with contextlib.ExitStack() as stack:
        if config.server:
            server = named(config.server, config.api_key)
            wait_ready(server)
            yield Keeper(stack, None, server)
            return
        path = model_path(config)
        found = None if flags["is_new"] else find_running(path, config)
        if found:
            wait_ready(found)
        yield Keeper(stack, partial(_start, path, config, flags), found)


def model_path(config: Config) -> Path | None:
    """The file of the model that was asked for; None when any will do."""
    if config.engine.engine == "scripted" or not config.engine.model:
        return None
    return find(config.engine.model, models_dir(config.models_dir), elsewhere(config))


def _start(path: Path | None, config: Config, flags: dict[str, Any]) -> Any:
    if path is None and config.engine.engine != "scripted":
        path = starter(config)
    names = ("models_dir", *OF_ENGINE)
    arguments = [part for name in names for part in _as_flag(name, flags[name])]
    if flags["config"]:
        arguments += ["--config", flags["config"]]
    return own_server(str(path) if path else None, arguments, is_quiet=config.quiet)


def starter(config: Config) -> Path:
    """The starter model, fetched for somebody at a terminal if it is missing."""
    folder = models_dir(config.models_dir)
    try:
        return find(None, folder)
    except ModelFileError:
        if not sys.stderr.isatty():
            raise
    from naiad.cli.models import fetch

    return fetch("starter", folder)


def _as_flag(name: str, value: Any) -> list[str]:
    return [] if value is None else [BY_NAME[name].flag, str(value)]


def _one_answer(
    keeper: Keeper, talk: Conversation, *, as_json: bool, raw: bool, is_quiet: bool
) -> int:
    server = keeper.server
    body = talk.body(server.model)
    if raw:
        body["prompt"] = body.pop("messages")[-1]["content"]
    screen = JsonScreen(True) if as_json else Screen(is_quiet)
    with without_echo():  # what is typed meanwhile is the shell's
        done = screen.answer(server.api.stream(COMPLETION if raw else CHAT, body))
    screen.figures(done)
    return 0


class JsonScreen(Screen):
    """Shows nothing while an answer comes; then one JSON object on a line."""

    def _show(self, event: Text | Thought | Event) -> None:
        if isinstance(event, Text):
            self.text += event.text
        elif isinstance(event, Thought):
            self.thoughts += event.text

    def _end(self) -> None:
        return None

    def figures(self, done: Done) -> None:
        """Print the answer."""
        told: dict[str, Any] = {
            "text": self.text,
            "finish_reason": done.finish,
            "usage": done.usage,
        }
        told |= {"reasoning": self.thoughts} if self.thoughts else {}
        told |= {"first_s": round(done.first_s, 3), "tokens_per_s": round(done.tokens_per_s, 1)}
        click.echo(json.dumps(told, ensure_ascii=False))

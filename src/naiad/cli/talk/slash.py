"""The commands of `naiad chat` that begin with a slash."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from naiad.cli.talk.conversation import load, read_value
from naiad.errors import ConfigError, Unsupported

if TYPE_CHECKING:
    from naiad.cli.talk.chat import Chat


@dataclass(frozen=True, slots=True)
class Command:
    """usage: its arguments, for the help; run: gets the chat and what follows the name."""

    usage: str
    help: str
    run: Callable[[Chat, str], None]


def run(chat: Chat, line: str) -> None:
    """Run a line that begins with a slash. Raises NaiadError with a sentence."""
    name, _, rest = line[1:].partition(" ")
    name = ALIASES.get(name.lower(), name.lower())
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean /{close[0]}?" if close else "see /help."
        raise ConfigError(f"There is no command /{name}; {hint}")
    COMMANDS[name].run(chat, rest.strip())


def _help(_chat: Chat, _rest: str) -> None:
    width = max(len(f"/{name} {one.usage}") for name, one in COMMANDS.items())
    for name, one in COMMANDS.items():
        click.echo(f"  {f'/{name} {one.usage}':<{width}}  {one.help}")
    click.echo(_KEYS)


def _new(chat: Chat, _rest: str) -> None:
    chat.talk.messages.clear()
    chat.screen.note("A new conversation.")


def _system(chat: Chat, rest: str) -> None:
    if rest:
        chat.talk.system = "" if rest == '""' else rest
    chat.screen.note(f"System: {chat.talk.system}" if chat.talk.system else "No system text.")


def _set(chat: Chat, rest: str) -> None:
    name, _, value = rest.replace("=", " ", 1).partition(" ")
    if not name:
        told = [f"{key} = {value!r}" for key, value in chat.talk.options.items()]
        chat.screen.note("\n".join(told) or "Nothing is set; /set temperature 0.7 sets something.")
        return
    name = name.replace("-", "_")
    if not value.strip():
        chat.talk.options.pop(name, None)
        chat.screen.note(f"{name} is the server's default again.")
        return
    chat.talk.options[name] = checked(name, read_value(value), chat)


def checked(name: str, value: Any, chat: Chat) -> Any:
    """The value, if the server's own table of samplers has no objection. Raises ConfigError."""
    table = chat.samplers()
    known = {str(row["name"]): row for row in table}
    if table and name not in {*known, *_OTHER_FIELDS}:
        close = difflib.get_close_matches(name, [*known, *_OTHER_FIELDS], n=1)
        hint = f"did you mean {close[0]}?" if close else "the web page's settings show all."
        raise ConfigError(f"The server knows no setting {name}; {hint}")
    low, high = (known.get(name, {}).get(bound) for bound in ("minimum", "maximum"))
    is_number = isinstance(value, int | float)
    if is_number and low is not None and high is not None and not low <= value <= high:
        raise ConfigError(f"{name} is {value}; it must be from {low:g} to {high:g}.")
    return value


def _retry(chat: Chat, _rest: str) -> None:
    if not chat.talk.unanswer():
        raise Unsupported("There is nothing to answer again yet.")
    chat.answer()


def _undo(chat: Chat, _rest: str) -> None:
    question = chat.talk.undo()
    if question is None:
        raise Unsupported("There is nothing to take back.")
    chat.draft = question
    chat.screen.note("Taken back.")


def _show(chat: Chat, _rest: str) -> None:
    for message in chat.talk.messages:
        click.echo(f"{message['role']}: {message['content']}")


def _info(chat: Chat, _rest: str) -> None:
    server = chat.keeper.server
    own = ", started for this chat" if server.is_own else ""
    told = [f"model    {server.model}", f"server   {server.api.url}{own}"]
    told += [f"turns    {len(chat.talk.messages)}", f"context  {chat.context()}"]
    told += [f"settings {chat.talk.options}"] if chat.talk.options else []
    chat.screen.note("\n".join(told))


def _file(chat: Chat, rest: str) -> None:
    path = _path(rest)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text: {error}") from None
    chat.attached.append(f"{path.name}:\n\n{text}")
    chat.screen.note(f"{path.name} ({len(text):,} characters) goes with your next message.")


def _save(chat: Chat, rest: str) -> None:
    path = _path(rest)
    try:
        chat.talk.save(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.") from None
    chat.screen.note(f"Saved as {path}.")


def _load(chat: Chat, rest: str) -> None:
    chat.talk = load(_path(rest))
    chat.screen.note(f"{len(chat.talk.messages)} turns; /show prints them.")


def _path(rest: str) -> Path:
    if not rest:
        raise ConfigError("Which file? As in /save talk.json")
    return Path(rest).expanduser()


def _exit(_chat: Chat, _rest: str) -> None:
    raise EOFError


COMMANDS: dict[str, Command] = {
    "help": Command("", "this list", _help),
    "new": Command("", "forget the conversation and begin anew", _new),
    "retry": Command("", "another answer to your last message", _retry),
    "undo": Command("", "take your last message and its answer back", _undo),
    "system": Command("[TEXT]", 'show or set the system text; "" for none', _system),
    "set": Command("[NAME [VALUE]]", "show or set sampling: /set temperature 0.7", _set),
    "file": Command("PATH", "send a text file along with your next message", _file),
    "show": Command("", "print the conversation", _show),
    "info": Command("", "model, server, how much of the context is used", _info),
    "save": Command("PATH", "write the conversation to a JSON file", _save),
    "load": Command("PATH", "go on with a saved conversation", _load),
    "exit": Command("", "leave; so does Ctrl-D", _exit),
}
ALIASES = {"quit": "exit", "bye": "exit", "q": "exit", "?": "help", "clear": "new", "reset": "new"}
_OTHER_FIELDS = (
    "max_tokens", "stop", "response_format", "json_schema", "grammar", "logit_bias",
    "reasoning_effort", "reasoning_format", "chat_template_kwargs", "priority", "banned_strings",
)  # fmt: skip
_KEYS = '''
  Enter sends; Alt-Enter, Ctrl-J, or a message that begins with """ make several lines.
  Ctrl-C stops the answer, Ctrl-D leaves, the arrows bring earlier messages back.'''


def complete(text: str) -> list[str]:
    """The commands that begin like the text."""
    return [f"/{name}" for name in COMMANDS if f"/{name}".startswith(text)]

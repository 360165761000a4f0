"""The line where messages are typed: several lines, history, completion of commands."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from naiad.cli.running import private_folder, state_dir
from naiad.cli.talk import slash

QUOTES = '"""'


def prompter(*, keeps_history: bool, **io: Any) -> Callable[[str], str]:
    """What reads a message; given the draft it begins with.

    It raises KeyboardInterrupt at Ctrl-C and EOFError at Ctrl-D on an empty line. io: input and
    output of prompt_toolkit, for tests.
    """
    session: PromptSession[str] = PromptSession(
        "> ",
        multiline=True,
        prompt_continuation="  ",
        history=_history() if keeps_history else InMemoryHistory(),
        key_bindings=_keys(),
        completer=Commands(),
        complete_while_typing=False,
        enable_open_in_editor=True,
        **io,
    )
    return lambda draft: session.prompt(default=draft)


def history_file() -> Path:
    """Where what was typed is kept."""
    return state_dir() / "chat-history"


def _history() -> History:
    """The kept history; where it cannot be kept, that of this run."""
    try:
        path = private_folder(state_dir()) / history_file().name
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)


def is_open(text: str) -> bool:
    """True when a message has begun with triple quotes and not ended with them yet."""
    begun = text.lstrip()
    if not begun.startswith(QUOTES):
        return False
    return not (begun.rstrip().endswith(QUOTES) and len(begun.rstrip()) >= 2 * len(QUOTES))


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


class Commands(Completer):
    """Completes what begins with a slash."""

    def get_completions(
        self,
        document: Document,
        complete_event: CompleteEvent,  # noqa: ARG002 - the library's signature
    ) -> Iterable[Completion]:
        text = document.text_before_cursor
        if text.startswith("/") and " " not in text:
            for name in slash.complete(text):
                yield Completion(name, start_position=-len(text))

"""The conversation at the terminal: read a message, show its answer, until Ctrl-D."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import click

from naiad.cli.talk import slash
from naiad.cli.talk.conversation import Conversation
from naiad.cli.talk.screen import Screen
from naiad.cli.talk.server import Keeper
from naiad.cli.talk.typeahead import edited, without_echo
from naiad.cli.talk.wire import Done, ServerLost
from naiad.errors import NaiadError

CHAT = "/v1/chat/completions"


class Chat:
    """One conversation with one server.

    draft: what the next message begins with; attached: texts of files that go with it.
    """

    def __init__(self, keeper: Keeper, talk: Conversation, screen: Screen) -> None:
        self.keeper = keeper
        self.talk = talk
        self.screen = screen
        self.draft = ""
        self.attached: list[str] = []
        self._samplers: list[dict[str, Any]] | None = None
        self._last: Done | None = None
        self.n_failed = 0

    def say(self, line: str) -> None:
        """Do what a line asks: a command with a slash, or a message to be answered.

        Raises EOFError to leave. Failures are told and the conversation goes on.
        """
        try:
            if line.startswith("/") and "\n" not in line:
                slash.run(self, line)
            elif line.strip():
                self.talk.ask("\n\n".join([*self.attached, unquoted(line)]))
                self.attached.clear()
                self.answer()
        except NaiadError as error:
            self.n_failed += 1
            click.echo(f"naiad: {error.message}", err=True)

    def answer(self) -> None:
        """Ask for the next answer and show it; Ctrl-C stops it and keeps what came.

        Raises NaiadError when it fails; a message that got no answer at all becomes the draft.
        """
        done: Done | None = None
        try:
            done = self._ask()
            self.screen.figures(done)
        except KeyboardInterrupt:
            self.screen.note("Stopped.")
        except ServerLost as error:
            raise self._recovered(error) from error
        finally:
            self._last = done or self._last
            self._keep(has_ended=done is not None)

    def _ask(self) -> Done:
        server = self.keeper.server
        return self.screen.answer(server.api.stream(CHAT, self.talk.body(server.model)))

    def _keep(self, *, has_ended: bool) -> None:
        if self.screen.text or has_ended:
            self.talk.answered(self.screen.text)
        elif self.talk.messages and self.talk.messages[-1]["role"] == "user":
            self.draft = str(self.talk.undo())

    def _recovered(self, error: ServerLost) -> ServerLost:
        """What to tell after the server went away; one of our own is started again."""
        what = "What it said is kept; " if self.screen.text else "Your message is kept; "
        if self.keeper.renew():
            return ServerLost(f"{error.message} It was started again. {what}go on.")
        return ServerLost(f"{error.message} {what}try again when the server is back.")

    def samplers(self) -> list[dict[str, Any]]:
        """The server's table of sampling parameters; empty when it does not tell."""
        if self._samplers is None:
            told: Any = []
            with contextlib.suppress(NaiadError):
                told = self.keeper.server.api.get("/api/naiad/samplers")
            rows = told.get("samplers", []) if isinstance(told, dict) else told
            self._samplers = [row for row in rows if isinstance(row, dict) and "name" in row]
        return self._samplers

    def context(self) -> str:
        """How much of the context the last request used, in words."""
        health = self.keeper.server.api.get("/health")
        n_ctx = health.get("engine", {}).get("n_ctx", 0) if isinstance(health, dict) else 0
        used = self._last.usage.get("total_tokens", 0) if self._last else 0
        return f"{used:,} of {n_ctx:,} tokens used" if n_ctx else f"{used:,} tokens used"


def unquoted(text: str) -> str:
    """The message without the triple quotes that made it several lines."""
    inner = text.strip()
    if inner.startswith('"""') and inner.endswith('"""') and len(inner) >= 6:
        return inner[3:-3].strip("\n")
    return text


def from_pipe(chat: Chat) -> None:
    """One message for each line of standard input; for programs and scripts."""
    with contextlib.suppress(EOFError):
        for line in sys.stdin:
            if line.strip():
                chat.say(line.rstrip("\n"))


def at_terminal(chat: Chat, *, keeps_history: bool, keys: bytes = b"") -> None:
    """Messages as a person types them, until Ctrl-D or /exit. keys: typed already."""
    with without_echo() as typed:  # what is typed while the library is imported
        from naiad.cli.talk.prompt import prompter

        read = prompter(keeps_history=keeps_history)
        chat.draft = edited(keys + typed())
    with contextlib.suppress(EOFError):
        for line in lines(chat, read):
            with without_echo() as typed:
                chat.say(line)
                chat.draft = "\n".join(filter(None, [chat.draft, edited(typed())]))


def lines(chat: Chat, read: Any) -> Iterator[str]:
    """What is typed; Ctrl-C empties the line."""
    while True:
        draft, chat.draft = chat.draft, ""
        try:
            yield read(draft)
        except KeyboardInterrupt:
            chat.screen.note("Ctrl-D leaves, /help helps.")
        except EOFError:
            return

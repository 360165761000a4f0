"""An answer on a terminal: text as it comes, a line that says what is waited for, the figures."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

import click

from naiad.cli.talk.wire import Done, Event, Text, Thought, Wait

#: What moves the cursor, changes colours or talks to the terminal; a model's text may do neither.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    """The text with control characters, escape sequences' first byte among them, made visible."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


@dataclass(slots=True)
class Screen:
    """Where answers go: text to standard output; all about it to standard error, on terminals only.

    is_quiet: nothing but the text. text, thoughts: of the answer under way, however far it came.
    """

    is_quiet: bool = False
    text: str = ""
    thoughts: str = ""
    _waits: bool = field(default=False)

    @property
    def is_terminal(self) -> bool:
        return sys.stdout.isatty()

    def answer(self, events: Iterable[Event]) -> Done:
        """Show an answer and return its end. What came is in `text` whatever happens."""
        self.text = self.thoughts = ""
        done = Done("")
        try:
            for event in events:
                if isinstance(event, Done):
                    done = event
                else:
                    self._show(event)
        finally:
            self._end()
        return done

    def figures(self, done: Done) -> None:
        """How many tokens, how fast; for people at a terminal."""
        if self.is_quiet or not sys.stderr.isatty():
            return
        cached = (done.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        told = ["1 token" if done.n_tokens == 1 else f"{done.n_tokens} tokens"]
        told += [f"{done.tokens_per_s:.1f} tokens/s"] if done.tokens_per_s else []
        told += [f"first after {done.first_s:.2f} s"]
        told += [f"prompt {done.usage.get('prompt_tokens', 0):,} ({cached:,} reused)"]
        told += ["cut at the limit of its length"] if done.finish == "length" else []
        self.note(", ".join(told))

    def note(self, told: str) -> None:
        """A remark, in grey on a terminal."""
        if not self.is_quiet:
            click.echo(click.style(told, dim=True) if sys.stderr.isatty() else told, err=True)

    def _show(self, event: Text | Thought | Wait) -> None:
        if isinstance(event, Wait):
            self._wait(event.told)
            return
        self._wait("")
        if isinstance(event, Thought):
            self._think(event.text)
            return
        if self.thoughts and not self.text and self.is_terminal:
            _write("\n\n")
        self.text += event.text
        _write(harmless(event.text) if self.is_terminal else event.text)

    def _think(self, text: str) -> None:
        """Reasoning is shown in grey to people, and is no part of what goes into a pipe."""
        self.thoughts += text
        if self.is_terminal and not self.is_quiet:
            click.echo(click.style(harmless(text), dim=True), nl=False)

    def _wait(self, told: str) -> None:
        if self.is_quiet or not sys.stderr.isatty() or not (told or self._waits):
            return
        self._waits = bool(told)
        told = told[: shutil.get_terminal_size().columns - 1]  # one that folds is never wiped away
        click.echo(f"\r\x1b[K{click.style(told, dim=True) if told else ''}", err=True, nl=False)

    def _end(self) -> None:
        self._wait("")
        has_shown = self.text or (self.thoughts and self.is_terminal and not self.is_quiet)
        if has_shown and not self.text.endswith("\n"):
            _write("\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()

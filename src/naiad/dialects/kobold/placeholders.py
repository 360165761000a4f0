"""KoboldCpp's placeholders for instruct tags: clients that do not know a model's tags send these,
and leave it to the server to put the model's own in their place. Here that is its chat template.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from naiad.types import ChatMessage, ChatPrompt

_MARK = re.compile(r"\{\{\[(SYSTEM|INPUT|OUTPUT)(_END)?\]\}\}")
_ROLES = {"SYSTEM": "system", "INPUT": "user", "OUTPUT": "assistant"}


def has_placeholders(text: str) -> bool:
    """Whether a prompt (or stop string) leaves tags to the server."""
    return _MARK.search(text) is not None


def conversation(text: str) -> ChatPrompt:
    """The conversation in a prompt with placeholders; text before the first is the system's.

    A prompt that ends within an assistant's turn goes on with it. Reasoning stays in the text.
    """
    marks = list(_MARK.finditer(text))
    turns = [("system", text[: marks[0].start()])]
    bounds = [*(mark.start() for mark in marks), len(text)]
    for mark, (_, end) in zip(marks, pairwise(bounds), strict=True):
        content = text[mark.end() : end]
        if mark[2] is None:
            turns.append((_ROLES[mark[1]], content))
        elif content.strip():  # text behind the end of a turn has no role of its own
            turns.append((turns[-1][0], content))
    is_open = turns[-1][0] == "assistant" and marks[-1][2] is None
    continues = is_open and bool(turns[-1][1].strip())
    messages = _merged(turns[:-1] if is_open and not continues else turns, continues)
    return ChatPrompt(messages or (ChatMessage("user", ""),), continue_final=continues)


def _merged(turns: Sequence[tuple[str, str]], continues: bool) -> tuple[ChatMessage, ...]:
    """Turns of one role in a row as one: templates want roles to alternate."""
    merged: list[tuple[str, str]] = []
    for place, (role, content) in enumerate(turns):
        is_last = continues and place == len(turns) - 1
        text = content.lstrip() if is_last else content.strip()
        if not text:
            continue
        if merged and merged[-1][0] == role:
            text = f"{merged.pop()[1]}\n{text}"
        merged.append((role, text))
    return tuple(ChatMessage(role, text) for role, text in merged)

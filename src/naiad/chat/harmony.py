"""The form of gpt-oss: an answer is a row of messages, each with a channel and perhaps a recipient.

    <|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...

analysis is reasoning, final is the answer, and commentary to functions.NAME is a call of NAME. The
form is described in OpenAI's "harmony response format".
"""

from __future__ import annotations

import re
from collections.abc import Callable

from naiad.chat.output import Output
from naiad.chat.source import Reading, Source
from naiad.chat.tool_json import read_object

_CHANNEL, _MESSAGE, _START, _END = "<|channel|>", "<|message|>", "<|start|>", "<|end|>"
_LAST = (_END, "<|call|>", "<|return|>")
_ENDS = (*_LAST, _START, _CHANNEL)

#: What must show as text for the parts to be told apart; the other marks end an answer anyway.
MARKS = (_CHANNEL, _MESSAGE, _START, _END, "<|constrain|>")
#: An answer with reasoning begins with the first; what the caller asked for follows the second.
OPENING, ANSWER = _CHANNEL, f"{_CHANNEL}final{_MESSAGE}"
#: The reasoning's message: its beginning, its end, and how an answer goes on behind one.
ANALYSIS, END, NEXT = f"{_CHANNEL}analysis{_MESSAGE}", _END, f"{_END}{_START}assistant"

_NAME = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([\w.-]+)")


def is_harmony(template: str | None) -> bool:
    """Whether a model writes this form, by its chat template."""
    shown = template or ""
    return _CHANNEL in shown and _MESSAGE in shown


def read_harmony(
    source: Source,
    output: Output,
    *,
    is_inside: bool,
    reasoning: Callable[[str], None],
    has_calls: bool,
    answer: Callable[[], Reading[None]] | None = None,
) -> Reading[None]:
    """Read an answer to its end.

    is_inside: the prompt has opened the answer's message. reasoning: takes the analysis.
    answer: reads the final message, and nothing comes behind it; None: it is told as it comes.
    """
    mark: str | None = None
    if not is_inside:
        mark = yield from source.accept(_CHANNEL, _START, " to=", "to=")
    if mark is None:  # or a model that does not keep to its form
        mark = yield from source.until(_ENDS, output.text, keeps_end=True)
    while True:
        source.unread("" if mark in _LAST else mark or "")
        header: list[str] = []
        if (yield from source.until((_MESSAGE,), header.append)) is None:
            return
        told = "".join(header)
        recipient, channel = _RECIPIENT.search(told), _NAME.search(told)
        mark = None
        if recipient is not None and has_calls:
            yield from _read_call(source, output, recipient[1])
        elif channel is not None and channel[1] == "analysis":
            mark = yield from source.until(_ENDS, reasoning)
        elif answer is not None:
            yield from answer()
            return
        else:
            mark = yield from source.until(_ENDS, output.text, keeps_end=True)


def _read_call(source: Source, output: Output, name: str) -> Reading[None]:
    output.call(name)
    yield from source.spaces()
    yield from read_object(source, output.arguments)
    output.end_call()

"""A budget for a model's reasoning: where the section is, and how it is closed. Pure."""

from __future__ import annotations

import re

from naiad.chat.channels import ReasoningTags, reasoning_of, tags_of
from naiad.chat.harmony import ANALYSIS, ANSWER, END, NEXT, is_harmony
from naiad.types import ChatPrompt, Prompt, ReasoningLimit, ThinkingBudget

_LINE_END = r"((?:\\n|\n)*)"


def limit_for(
    budget: ThinkingBudget | None,
    prompt: Prompt,
    template: str | None,
    rendered: str | tuple[int, ...],
    *,
    has_grammar: bool = False,
) -> ReasoningLimit | None:
    """The limit on an answer's reasoning; None where none is wanted, or there is no reasoning.

    rendered: the prompt as the model reads it. has_grammar: the answer begins right behind the
    closing tag, since most grammars know no blanks there.
    """
    if budget is None or not isinstance(rendered, str):
        return None
    tags, is_inside = _section(prompt, template, rendered)
    if tags is None:
        return None
    message = f"\n{budget.message.strip()}" if budget.message.strip() else ""
    if is_harmony(template):  # a tool's call is a message behind the analysis, which has no limit
        return ReasoningLimit(budget.n_tokens, ANALYSIS, END, message + NEXT + ANSWER)
    before, behind = _line_ends(template or "", tags)
    ending = message + before + tags.closing + ("" if has_grammar else behind)
    return ReasoningLimit(
        budget.n_tokens, None if is_inside else tags.opening, tags.closing, ending
    )


def _section(
    prompt: Prompt, template: str | None, rendered: str
) -> tuple[ReasoningTags | None, bool]:
    """The tags of the reasoning that may come, and whether the prompt has opened it."""
    if isinstance(prompt, ChatPrompt):
        return reasoning_of(prompt, template, rendered)
    tags = tags_of(template)  # a prompt that a client has rendered itself
    return tags, tags is not None and rendered.rstrip().endswith(tags.opening)


def _line_ends(template: str, tags: ReasoningTags) -> tuple[str, str]:
    """The ends of lines before and behind the closing tag, as the template writes them.

    A template names the tag in other places too, where it takes a text apart; and an empty section
    has more of them before.
    """
    found = re.findall(_LINE_END + re.escape(tags.closing) + _LINE_END, template)
    ends = [(a.replace("\\n", "\n"), b.replace("\\n", "\n")) for a, b in found]
    return min((one for one in ends if any(one)), key=lambda one: len(one[0]), default=("", ""))

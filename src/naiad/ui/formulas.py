r"""Formulas in Markdown: \( \), \[ \], $ $, $$ $$ and bare environments such as \begin{align}.

Dollars are prices too, so a single one begins a formula only where people write formulas: nothing
but punctuation around it, no space at its ends, and no words without a sign of mathematics. Every
search for an end is bounded, and so is their number: a text of nothing but beginnings costs no more
than any other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from naiad.ui.mathml import MAX_CHARS, mathml

#: How many beginnings of formulas a text may hold; further ones stay as they are written.
MAX_SEARCHES = 2000
_MAX_LINES = 60

_PAIRS = {"$$": "$$", r"\[": r"\]", r"\(": r"\)", "$": "$"}
_OPENING = re.compile(r"\$\$|\\\[|\\\(|\$")
_BLOCK = re.compile(r"\$\$|\\\[|\\begin\{((?:align|gather|equation|multline|eqnarray)\*?)\}")
_BLANK = re.compile(r"\n[ \t]*\n")
_WORDS = re.compile(r"\s[A-Za-z]{2,}|[A-Za-z]{2,}\s|\d.*\s")
_SIGNS = re.compile(r"[\\^_=<>+*]")


def formulas(parser: MarkdownIt) -> None:
    """Make a parser know formulas. Broken ones are shown as their source."""
    parser.inline.ruler.before("escape", "formula", _inline)
    stops = ["paragraph", "reference", "blockquote", "list"]
    parser.block.ruler.before("fence", "formula_block", _block, {"alt": stops})
    parser.add_render_rule("formula", _render)
    parser.add_render_rule("formula_block", _render)


def _inline(state: StateInline, silent: bool) -> bool:
    found = _OPENING.match(state.src, state.pos)
    if found is None or not _has_room(state.env):
        return False
    opening, closing = found[0], _PAIRS[found[0]]
    start = found.end()
    end = state.src.find(closing, start, min(state.posMax, start + MAX_CHARS))
    while end > start and closing[0] == "$" and state.src[end - 1] == "\\":
        end = state.src.find(closing, end + 1, min(state.posMax, start + MAX_CHARS))
    if end < 0 or not _is_formula(state.src, start, end, opening):
        return False
    if not silent:
        token = _push(state, "formula", state.src[start:end], opening, closing)
        token.meta["display"] = opening in {"$$", r"\["}
    state.pos = end + len(closing)
    return True


def _is_formula(source: str, start: int, end: int, opening: str) -> bool:
    text = source[start:end]
    if not text.strip() or _BLANK.search(text):
        return False
    if opening == "$$":  # in a shell it is the number of a process
        return text == text.strip() or bool(_SIGNS.search(text))
    if opening != "$":
        return True
    before, after = source[max(0, start - 2) : start - 1], source[end + 1 : end + 2]
    if text != text.strip() or "\n" in text or "`" in text or before.isalnum():
        return False
    if after == "$" or after.isdigit() or (after.isalpha() and len(text) > 1):
        return False  # "$5-$10" and "$HOME:$PATH", but "the $n$th"
    return bool(_SIGNS.search(text)) or not _WORDS.search(text)


def _block(state: StateBlock, start: int, last: int, silent: bool) -> bool:
    """A formula that begins a line and ends one, with no blank line between."""
    if state.is_code_block(start):
        return False
    first = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]]
    found = _BLOCK.match(first)
    if found is None or not _has_room(state.env):
        return False
    closing = rf"\end{{{found[1]}}}" if found[1] else _PAIRS[found[0]]
    for line in range(start, min(last, start + _MAX_LINES)):
        text = state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]]
        if not text.strip() or state.sCount[line] < state.blkIndent:
            return False
        at = text.find(closing, found.end() if line == start else 0)
        if at >= 0:
            break
    if at < 0 or text[at + len(closing) :].strip(" \t.,;"):
        return False
    if not silent:
        whole = state.getLines(start, line + 1, state.sCount[start], False).strip()
        _push_block(state, whole, "" if found[1] else found[0], "" if found[1] else closing)
    state.line = line + 1
    return True


def _push_block(state: StateBlock, whole: str, opening: str, closing: str) -> None:
    end = whole.rindex(closing) if closing else len(whole)
    token = _push(state, "formula_block", whole[len(opening) : end], opening, closing)
    token.block = True
    token.meta = {"display": True, "after": whole[end + len(closing) :]}


def _push(
    state: StateInline | StateBlock, kind: str, latex: str, opening: str, closing: str
) -> Token:
    token = state.push(kind, "math", 0)
    token.content, token.markup, token.info = latex, opening, closing
    return token


def _has_room(env: EnvType) -> bool:
    env["n_formulas"] = env.get("n_formulas", 0) + 1
    return bool(env["n_formulas"] <= MAX_SEARCHES)


def _render(
    _self: RendererHTML, tokens: Sequence[Token], at: int, _options: OptionsDict, _env: EnvType
) -> str:
    token = tokens[at]
    is_display = bool(token.meta["display"])
    shown = mathml(token.content.strip(), is_display=is_display)
    if shown is None:
        source = escapeHtml(token.markup + token.content + token.info)
        shown = f'<code class="tex">{source}</code>'
    shown += escapeHtml(token.meta.get("after", ""))
    if is_display:
        shown = f'<span class="formula">{shown}</span>'
    return f"<p>{shown}</p>\n" if token.block else shown

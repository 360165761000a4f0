"""Markdown to HTML that is safe to put into a page.

Two walls stand between a model's words and the page. The parser takes no HTML, so tags are text to
it and what it writes holds nothing but its own elements; then nh3 lets pass only those elements,
and classes only as the highlighter spells them. Images are links: fetching one would tell whoever
keeps it that, and what, the user reads. Formulas become MathML, of which the same is true.
"""

from __future__ import annotations

import re
from functools import lru_cache

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from naiad.ui import mathml
from naiad.ui.formulas import formulas

#: Longer code is shown without colours: what highlighting tells is not worth the time it takes.
MAX_HIGHLIGHTED_CHARS = 50_000
_MAX_LANGUAGE_CHARS = 24

_TAGS = frozenset((
    "a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr",
    "li", "ol", "p", "pre", "s", "span", "strong", "table", "tbody", "td", "th", "thead",
    "tr", "ul",
))  # fmt: skip
_ATTRIBUTES = {
    "a": {"href", "title"},
    "code": {"class"},
    "li": {"class"},
    "ol": {"start"},
    "span": {"class"},
    "td": {"class"},
    "th": {"class"},
    **{tag: set(mathml.ATTRIBUTES) for tag in mathml.TAGS},
}
_CLASS = re.compile(
    r"task|tex|formula|t-[a-z0-9]{1,4}|lang-[a-z0-9+#.-]{1,24}|a-(left|center|right)"
)
_TASK = re.compile(r"\[([ xX])\]\s+")
_LANGUAGE = re.compile(r"[a-z0-9+#.-]+")


def render(text: str) -> str:
    """The HTML of one Markdown text, in the elements and attributes named above."""
    return _clean(_parser().render(text))


def _clean(html: str) -> str:
    return nh3.clean(
        html,
        tags=set(_TAGS | mathml.TAGS),
        attributes=_ATTRIBUTES,
        attribute_filter=_keep,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )


def _keep(tag: str, name: str, value: str) -> str | None:
    if tag in mathml.TAGS:
        return value if mathml.allowed(name, value) else None
    if name != "class":
        return value
    return " ".join(one for one in value.split() if _CLASS.fullmatch(one)) or None


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    options = {"html": False, "maxNesting": 30}
    parser = MarkdownIt("commonmark", options).enable(["table", "strikethrough"]).disable("image")
    # Before escapes become text like any other: "\[ ]" is no box.
    parser.core.ruler.before("text_join", "tasks", _mark_tasks)
    formulas(parser)
    parser.add_render_rule("fence", _fence)
    parser.add_render_rule("th_open", _cell)
    parser.add_render_rule("td_open", _cell)
    return parser


def _mark_tasks(state: StateCore) -> None:
    """Items that begin with [ ] or [x] get a box: a letter, since forms are not for the page."""
    tokens = state.tokens
    for item, paragraph, inline in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if (item.type, paragraph.type) != ("list_item_open", "paragraph_open"):
            continue
        words = [one for one in (inline.children or [])[:1] if one.type == "text"]
        found = _TASK.match(words[0].content) if words else None
        if found:
            item.attrSet("class", "task")
            box = "☐ " if found[1] == " " else "☑ "
            words[0].content = box + words[0].content[found.end() :]


def _fence(
    _renderer: RendererHTML, tokens: list[Token], idx: int, _options: OptionsDict, _env: EnvType
) -> str:
    token = tokens[idx]
    language = (token.info.split() or [""])[0].lower()[:_MAX_LANGUAGE_CHARS]
    known = language if _LANGUAGE.fullmatch(language) else ""
    shown = _highlight(token.content, known)
    return f'<pre><code class="lang-{known}">{shown}</code></pre>\n'


def _cell(
    _renderer: RendererHTML, tokens: list[Token], idx: int, _options: OptionsDict, _env: EnvType
) -> str:
    """Alignment as a class: the page's policy has no room for styles in attributes."""
    style = str(tokens[idx].attrGet("style") or "")
    side = style.removeprefix("text-align:")
    return f'<{tokens[idx].tag} class="a-{side}">' if style else f"<{tokens[idx].tag}>"


def _highlight(code: str, language: str) -> str:
    lexer = _lexer(language) if language and len(code) <= MAX_HIGHLIGHTED_CHARS else None
    if lexer is None:
        return nh3.clean_text(code)
    return str(highlight(code, lexer, _FORMATTER))


@lru_cache(maxsize=32)
def _lexer(language: str) -> Lexer | None:
    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None


_FORMATTER: HtmlFormatter[str] = HtmlFormatter(nowrap=True, classprefix="t-")

"""Markdown becomes HTML that can do nothing: by what it makes of it, and by any bytes at all."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from naiad.ui.helper import MarkdownHelper, serve
from naiad.ui.markdown import MAX_HIGHLIGHTED_CHARS, render

TAG = re.compile(r"<\s*/?\s*([a-zA-Z][^\s/>]*)([^>]*)>")
WORDS = """a blockquote br code del em h1 h2 h3 h4 h5 h6 hr li ol p pre s span strong table tbody
td th thead tr ul"""
ELEMENTS = set(WORDS.split())


@pytest.fixture
def helper() -> Iterator[MarkdownHelper]:
    helper = MarkdownHelper()
    yield helper
    helper.close()


def test_the_usual_elements() -> None:
    html = render("# A\n\n*b* **c** ~~d~~ `e`\n\n- f\n\n3. g\n\n> h\n\n---\n\n[i](https://j.k)")
    for piece in ("<h1>A</h1>", "<em>b</em>", "<strong>c</strong>", "<code>e</code>", "<hr>"):
        assert piece in html
    assert '<ol start="3">' in html
    assert '<a href="https://j.k" target="_blank" rel="noopener noreferrer nofollow">i</a>' in html


def test_code_is_highlighted_by_classes() -> None:
    html = render("```python\nreturn 1\n```")
    assert '<pre><code class="lang-python"><span class="t-k">return</span>' in html
    assert render("```nothing-known\n<b>\n```") == (
        '<pre><code class="lang-nothing-known">&lt;b&gt;\n</code></pre>\n'
    )


def test_long_code_is_not_highlighted() -> None:
    assert "<span" not in render("```python\n" + "x = 1\n" * MAX_HIGHLIGHTED_CHARS + "```")


def test_tasks_have_boxes() -> None:
    html = render("- [ ] open\n- [x] *done*\n- [y] no\n- [link](https://j.k)\n\n[x] no item")
    assert '<li class="task">☐ open</li>' in html
    assert '<li class="task">☑ <em>done</em></li>' in html
    assert html.count("task") == 2
    assert '<ol>\n<li class="task">' in render("1. [x] first")


@pytest.mark.parametrize("text", [r"- \[ ] literal", r"- [ \] literal", "- &#91;x] literal"])
def test_escaped_brackets_are_no_boxes(text: str) -> None:
    html = render(text)
    assert "task" not in html and "☐" not in html and "literal" in html


def test_tables_align_by_class() -> None:
    html = render("| a | b |\n| -: | - |\n| 1 | 2 |")
    assert '<td class="a-right">1</td>' in html
    assert "style" not in html


@pytest.mark.parametrize(
    "text",
    [
        "<script>x</script>",
        "<img src=x onerror=y>",
        "[a](javascript:x)",
        "[a](JaVaScRiPt:x)",
        "[a](data:text/html,x)",
        "[a](vbscript:x)",
        "<javascript:x>",
        "![a](http://b.c/d.png)",
        '[a](http://b.c "\\"onmouseover=x")',
        '```html" onclick="x\ny\n```',
        "```</code><script>\ny\n```",
        "[a]: javascript:x\n\n[a]",
        "&lt;script&gt;",
    ],
)
def test_tricks_come_out_harmless(text: str) -> None:
    assert_harmless(render(text))


PIECES = st.sampled_from(
    ["<", ">", '"', "'", "`", "```", "\n", "[", "](", ")", "script", "javascript:", "on=", "|", "&"]
)


@settings(max_examples=60)
@given(st.lists(st.one_of(PIECES, st.text(max_size=5)), max_size=25).map("".join))
def test_any_text_comes_out_harmless(text: str) -> None:
    assert_harmless(render(text))


def assert_harmless(html: str) -> None:
    for name, attributes in TAG.findall(html):
        assert name in ELEMENTS
        names = set(re.findall(r"([\w-]+)=\"", attributes))
        assert names <= {"href", "title", "class", "start", "rel", "target"}
        for link in re.findall(r"href=\"([^\"]*)\"", attributes):
            assert not re.match(r"\s*(javascript|data|vbscript):", link, re.IGNORECASE)


def test_the_helper_renders_several_texts_in_order(helper: MarkdownHelper) -> None:
    assert helper.render(["*a*", "b\n\nc"]) == ["<p><em>a</em></p>\n", "<p>b</p>\n<p>c</p>\n"]
    assert helper.render([]) == []


def test_the_helper_serves_lines() -> None:
    sink = io.BytesIO()
    serve(io.BytesIO(b'["a", "b"]\n["c"]\n'), sink)
    replies = [msgspec.json.decode(line) for line in sink.getvalue().splitlines()]
    assert replies == [["<p>a</p>\n", "<p>b</p>\n"], ["<p>c</p>\n"]]


def test_a_helper_that_dies_costs_one_text_and_comes_back() -> None:
    program = (
        "import sys, json\n"
        "for line in sys.stdin:\n"
        "    texts = json.loads(line)\n"
        "    if 'die' in texts: sys.exit(1)\n"
        "    print(json.dumps([t.upper() for t in texts]), flush=True)\n"
    )
    helper = MarkdownHelper((sys.executable, "-c", program))
    try:
        assert helper.render(["a", "die", "b"]) == ["A", None, "B"]
        assert helper.render(["die"]) == [None]
        assert helper.render(["c"]) == ["C"]
    finally:
        helper.close()
        helper.close()

"""Formulas become MathML, prices stay prices, and nothing hostile costs or does anything."""

from __future__ import annotations

import re
from importlib import resources

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from naiad.ui import formulas, mathml
from naiad.ui.markdown import render

SQUARE = "<msup><mi>x</mi><mn>2</mn></msup>"


@pytest.mark.parametrize("text", [r"so \(x^2\).", "so $x^2$.", "(so $x^2$), *$x^2$*", "$x^2$-y"])
def test_within_a_text(text: str) -> None:
    html = render(text)
    assert f'<math display="inline"><mrow>{SQUARE}</mrow></math>' in html
    assert "$" not in html and r"\(" not in html


@pytest.mark.parametrize(
    "text",
    [
        "\\[x^2\\]",
        "$$x^2$$",
        "$$\nx^2\n$$",
        "so\n\\[\nx^2\n\\]\nthen",
        "1. so\n   \\[\n   x^2\n   \\]",
        "> $$\n> x^2\n> $$",
        r"so \[x^2\] then",
        "so $$x^2$$ then",
        "\\begin{equation}\nx^2\n\\end{equation}",
    ],
)
def test_on_a_line_of_its_own(text: str) -> None:
    html = render(text)
    formula = f'<span class="formula"><math display="block"><mrow>{SQUARE}</mrow></math>'
    assert formula in html
    assert ("so" in text) == ("so" in html)
    assert ("then" in text) == ("then" in html)


def test_lines_of_a_formula_are_no_lists_or_quotes() -> None:
    html = render("$$\na\n+ b\n- c\n> d\n$$")
    assert html.count("<p>") == 1 and "<li>" not in html and "<blockquote>" not in html


def test_what_follows_a_formula_stays() -> None:
    assert "</math>.</span>" in render("\\[\nx^2\n\\].")
    assert "</math></span> where x" in render("\\[x^2\\] where x")


@pytest.mark.parametrize(
    "text",
    [
        "a coffee costs $5 and a cake $10.",
        "$5-$10, 5$ or 10$, US$5 and AU$6",
        "between $5 for a cup, or 7$",
        "$HOME/bin:$PATH",
        "`$x$` and ``\\(y\\)``",
        "```\n$$x$$\n\\[y\\]\n```",
        "    $$x$$",
        r"\$x$",
        "$$\nx\n\nno end",
        r"\(x and no end",
        r"\( \) $ $ $$ $$",
        "$",
        "the PID is $$; use $$ in bash",
    ],
)
def test_what_is_no_formula(text: str) -> None:
    assert "<math" not in render(text)


def test_a_formula_does_not_reach_back_over_the_text_before_it() -> None:
    assert "width" not in render(r"so \(\hspace{-9em} x\)")
    assert 'width="-0.2em"' in render(r"so \(a \hspace{-0.2em} b\)")


@pytest.mark.parametrize("colour", ["white", "black", "White", "#fff", "#000000", "transparent"])
def test_a_formula_never_takes_the_colour_of_the_paper(colour: str) -> None:
    html = render(rf"so \({{\color{{{colour}}} x}} + \textcolor{{{colour}}}{{y}}\)")
    assert "<mi>x</mi>" in html and "<mi>y</mi>" in html
    assert "color" not in html and "background" not in html
    assert "background" not in render(rf"so \(\colorbox{{{colour}}}{{x}}\)")


@pytest.mark.parametrize("colour", mathml.COLOURS)
def test_colours_of_formulas_can_be_read_in_both_themes(colour: str) -> None:
    assert f'mathcolor="{colour}"' in render(rf"so \(\color{{{colour}}} x\)")
    css = resources.files("naiad.ui").joinpath("static")
    paper = re.search(r"--bg: light-dark\((.*)\)", css.joinpath("style.css").read_text())
    rule = rf'\[mathcolor="{colour}"\].*light-dark\((.*)\)'
    shades = re.search(rule, css.joinpath("thread.css").read_text())
    assert paper and shades
    pairs = zip(paper[1].split(", "), shades[1].split(", "), strict=True)
    assert all(contrast(*pair) >= 4.5 for pair in pairs)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours as #rrggbb, by WCAG 2."""
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True)))


@pytest.mark.parametrize(
    "latex",
    [
        r"\frac{a",
        r"\left( a",
        r"\begin{foo} x",
        r"\unheard{x}",
        "x^y^z",
        "a & b",
        "",
        "}",
        r"\sqrt[3]",
    ],
)
def test_broken_latex_stays_what_the_model_wrote(latex: str) -> None:
    assert mathml.mathml(latex, is_display=False) is None
    html = render(rf"so \({latex}\) and")
    assert "<math" not in html and "and</p>" in html
    if latex.strip():
        assert '<code class="tex">' in html


@pytest.mark.parametrize(
    ("latex", "piece"),
    [
        (r"\sum_{i=1}^n i", "<munderover>"),
        (r"\begin{aligned} a &= b \\ &= c \end{aligned}", '<mtd columnalign="right">'),
        (r"\begin{gathered} a \\ b \end{gathered}", "<mtr>"),
        (r"\begin{pmatrix} a & b \\ c & d \end{pmatrix}", "<mtable>"),
        (r"\begin{dcases} 1 & x > 0 \\ 0 \end{dcases}", "<mtable>"),
        (r"\boxed{42}", '<menclose notation="box">'),
        (r"\mathbb{R}", "\u211d"),
        (r"\text{if } a < b", "<mtext>if&nbsp;</mtext>"),
        (r"\begin{equation} x \label{eq:one} \end{equation}", "<mi>x</mi>"),
    ],
)
def test_what_models_write(latex: str, piece: str) -> None:
    assert piece in render(f"$$\n{latex}\n$$")


def test_long_and_deep_formulas_stay_text() -> None:
    assert mathml.mathml("x" * (mathml.MAX_CHARS + 1), is_display=False) is None
    depth = mathml.MAX_DEPTH
    assert mathml.mathml("{" * depth + "x" + "}" * depth, is_display=False)
    assert mathml.mathml("{" * (depth + 1) + "x" + "}" * (depth + 1), is_display=False) is None
    assert mathml.mathml(r"\sqrt" * 700 + "x", is_display=False) is None


def test_only_so_many_formulas_are_looked_for() -> None:
    html = render("$x$ " * (formulas.MAX_SEARCHES + 10))
    assert html.count("<math") == formulas.MAX_SEARCHES
    assert html.count("$x$") == 10


@pytest.mark.parametrize("beginning", ["$$ a\n", "\\[ a\n", "\\begin{align} a\n", "\\(a ", "$a "])
def test_beginnings_without_an_end_stay_text(beginning: str) -> None:
    assert "<math" not in render(beginning * 3000 + "b")


@pytest.mark.parametrize(
    "latex",
    [
        r"\href{javascript:alert(1)}{x}",
        r"\style{position:fixed;inset:0}{x}",
        r"\hspace{9999cm} x \rule{99cm}{99cm}",
        r"\text{<script>alert(1)</script>}",
        r"\text{</math><img src=x onerror=y>}",
        r"\color{url(http://a.b/c)} x",
        r"\class{t-k}{x} \id{draft}{y}",
        r"\mathrm{&lt;b&gt;} \text{&#60;b>}",
    ],
)
def test_tricks_in_formulas_come_out_harmless(latex: str) -> None:
    assert_harmless(render(f"$${latex}$$"))


MARKS = r"""$ $$ \( \) \[ \] \frac { } ^ _ & \\ x \text{ <b> \left( \right) > - ` * |
\begin{align} \end{align}"""
PIECES = st.sampled_from([*MARKS.split(), "\n", "\n\n", " "])


@settings(max_examples=80)
@given(st.lists(PIECES, max_size=30).map("".join))
def test_any_text_comes_out_whole_and_harmless(text: str) -> None:
    assert_harmless(render(text))


def assert_harmless(html: str) -> None:
    for name, attributes in re.findall(r"<\s*/?\s*([a-zA-Z][^\s/>]*)([^>]*)>", html):
        assert name not in {"script", "img", "style", "b", "annotation-xml", "mglyph"}
        names = re.findall(r"([\w-]+)=\"([^\"]*)\"", attributes)
        if name in mathml.TAGS:
            assert all(mathml.allowed(*one) for one in names)

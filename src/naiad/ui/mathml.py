"""LaTeX formulas as MathML, which browsers lay out and screen readers read by themselves.

latex2mathml converts what it knows and lets the rest stand: a command it has never heard of becomes
an identifier that begins with a backslash, a fraction without its lower half an element with one
child. Such a formula is not shown half right: it stays the text that the model wrote.
"""

from __future__ import annotations

import re
from html import unescape
from xml.etree.ElementTree import Element, tostring

from latex2mathml.converter import convert_to_element

#: A longer formula stays text, and so does one whose groups nest deeper: converting is recursive.
MAX_CHARS = 4000
MAX_DEPTH = 30

#: How many children an element must have; from the MathML Core specification.
_CHILDREN = {
    "mfrac": 2, "mroot": 2, "msub": 2, "msup": 2, "msubsup": 3, "munder": 2, "mover": 2,
    "munderover": 3,
}  # fmt: skip
TAGS = frozenset((
    "math", "menclose", "mi", "mn", "mo", "mpadded", "mphantom", "mrow", "mspace", "msqrt",
    "mstyle", "mtable", "mtd", "mtext", "mtr", *_CHILDREN,
))  # fmt: skip
#: Colours that the page has a shade of for each theme. Any other, white and black among them, might
#: be that of the paper, so such words keep the colour of the text around them.
COLOURS = (
    "red", "orange", "brown", "green", "teal", "cyan", "blue", "purple", "violet", "magenta",
    "pink",
)  # fmt: skip
#: What attributes may say; nothing that loads, runs, or covers what stands around the formula.
_LENGTH = r"[+-]?\d{0,1}(\.\d{1,4})?em"
_WIDTH = r"(-0?\.[0-2]\d{0,3}|\+?\d{0,1}(\.\d{1,4})?)em"  # back by thin spaces only
_VALUES = {
    "accent": "true|false",
    "columnalign": "left|center|right",
    "depth": _LENGTH,
    "display": "block|inline",
    "displaystyle": "true|false",
    "fence": "true|false",
    "form": "prefix|infix|postfix",
    "height": _LENGTH,
    "linethickness": "0",
    "lspace": _LENGTH,
    "mathcolor": "|".join(COLOURS),
    "mathvariant": "[a-z-]{4,24}",
    "maxsize": _LENGTH,
    "minsize": _LENGTH,
    "notation": "[a-z ]{3,40}",
    "rspace": _LENGTH,
    "scriptlevel": "[0-2]",
    "stretchy": "true|false",
    "voffset": _LENGTH,
    "width": _WIDTH,
}
_PATTERNS = {name: re.compile(pattern) for name, pattern in _VALUES.items()}
ATTRIBUTES = frozenset(_PATTERNS)

#: Environments by the names that the converter knows; without equation numbers, which nobody cites.
_ENVIRONMENTS = {
    "align": "align*", "aligned": "align*", "split": "align*", "eqnarray": "align*",
    "eqnarray*": "align*", "dcases": "cases", "gather": "matrix", "gather*": "matrix",
    "gathered": "matrix", "multline": "matrix", "multline*": "matrix",
}  # fmt: skip
_ENVIRONMENT = re.compile(r"\\(begin|end)\{([a-z]{1,12}\*?)\}")
_EQUATION = re.compile(r"\\(?:begin|end)\{equation\*?\}|\\(?:nonumber|notag|label\{[^{}]{0,99}\})")


def mathml(latex: str, *, is_display: bool) -> str | None:
    """The formula as a `<math>` element; None when it is not LaTeX that can be shown.

    Args:
        latex: without the delimiters around it.
        is_display: on a line of its own, rather than within a text.
    """
    if len(latex) > MAX_CHARS or _depth(latex) > MAX_DEPTH:
        return None
    plain = _ENVIRONMENT.sub(_known, _EQUATION.sub("", latex))
    try:
        math = convert_to_element(plain, display="block" if is_display else "inline")
        return _written(math) if _is_sound(math) else None
    except Exception:  # the converter tells of broken LaTeX by a dozen unrelated exceptions
        return None


def allowed(name: str, value: str) -> bool:
    """Whether an attribute of a MathML element may have this value."""
    pattern = _PATTERNS.get(name)
    return pattern is not None and pattern.fullmatch(value) is not None


def _depth(latex: str) -> int:
    """How deep groups in braces nest."""
    deepest = depth = 0
    for char in latex:
        depth += (char == "{") - (char == "}")
        deepest = max(deepest, depth)
    return deepest


def _known(found: re.Match[str]) -> str:
    name = _ENVIRONMENTS.get(found[2], found[2])
    return rf"\{found[1]}{{{name}}}"


def _written(math: Element) -> str:
    """The element as text; the converter names characters by entities, in plain text."""
    for element in math.iter():
        element.text = unescape(element.text or "")
    return tostring(math, encoding="unicode")


def _is_sound(math: Element) -> bool:
    return any(True for _ in math.itertext()) and all(map(_is_whole, math.iter()))


def _is_whole(element: Element) -> bool:
    text = element.text or ""
    if element.tag in {"mi", "mo"} and (text.startswith("\\") or text in {"&", "}", "{"}):
        return False
    return len(element) == _CHILDREN.get(element.tag, len(element))

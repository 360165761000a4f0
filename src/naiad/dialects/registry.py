"""The dialects this server speaks. A new one is a package and a line here."""

from __future__ import annotations

from naiad.dialects import anthropic, kobold, llama, ollama, openai, page
from naiad.dialects.base import Dialect

DIALECTS: tuple[Dialect, ...] = (
    openai.DIALECT,
    kobold.DIALECT,
    ollama.DIALECT,
    anthropic.DIALECT,
    llama.DIALECT,
    page.DIALECT,
)


def for_path(path: str) -> Dialect:
    """The dialect in which a path without a route is answered: that of its longest prefix.

    Paths of nobody are OpenAI's, whose prefix is "/".
    """
    matches = [
        (len(prefix), dialect)
        for dialect in DIALECTS
        for prefix in dialect.prefixes
        if path.startswith(prefix)
    ]
    return max(matches, key=lambda match: match[0], default=(0, openai.DIALECT))[1]

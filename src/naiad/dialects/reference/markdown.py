"""The reference as a page of the documentation."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from naiad.dialects.reference import Chapter, Route, meaning_of
from naiad.dialects.reference.probing import FieldFacts

_HEAD = """# API reference

Every route, its fields, what they accept, and what applies without them; made from the code by
`python -m naiad.dialects.reference`. A running server shows the same at `/docs`, and as OpenAPI at
`/openapi.json`. How clients use all this is told in [Clients](clients.md), each sampling parameter
in [Sampling](sampling.md), schemas and grammars in [Structured output](structured.md).

*Anybody* may call routes marked public; *user* routes need the key if the server has one, *admin*
routes the admin key. Of several names for one field the first that is present counts. `null` means
that a field is absent. Fields that are not listed are accepted, and logged once.
"""


def as_markdown(chapters: Iterable[Chapter]) -> str:
    """The whole page, with a newline at its end."""
    told = tuple(chapters)
    return "\n".join([_HEAD, *map(_chapter, told), _errors(told)])


def _chapter(chapter: Chapter) -> str:
    return "\n".join([f"## {chapter.title}\n", *map(_route, chapter.routes)])


def _route(route: Route) -> str:
    head = f"### `{route.method} {route.path}`\n"
    if route.same_as is not None:
        return f"{head}\nThe same as `{route.same_as}`.\n"
    lines = [head, f"{route.summary}{'.' * bool(route.summary)} *{route.access}*\n".lstrip()]
    working = [one for one in route.fields if one.has_effect and not one.refusal]
    if working:
        lines += ["| field | accepts | default | meaning |", "| --- | --- | --- | --- |"]
        lines += [*map(_row, working), ""]
    refused = [one for one in route.fields if one.refusal]
    if refused:
        lines += [*(f"- `{one.name}` is refused: {one.refusal}" for one in refused), ""]
    idle = [f"`{name}`" for one in route.fields if not one.has_effect for name in one.names]
    if idle:
        lines += [f"Accepted without effect: {', '.join(idle)}.", ""]
    return "\n".join(lines)


def _row(one: FieldFacts) -> str:
    aliases = ", ".join(f"`{name}`" for name in one.names[1:])
    name = f"`{one.name}`" + (f", or {aliases}" if aliases else "")
    needed = "**needed** " if one.is_needed else ""
    shown = "" if one.default is None else f"`{msgspec.json.encode(one.default).decode()}`"
    cells = (name, needed + (one.accepts or "anything"), shown, meaning_of(one))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _errors(chapters: tuple[Chapter, ...]) -> str:
    """What every dialect makes of every error: its status, and the word under `type`."""
    lines = ["## Errors\n", "What the codes mean is told in [Errors and limits](errors.md).\n"]
    lines.append("| code | " + " | ".join(chapter.title for chapter in chapters) + " |")
    lines.append("| --- |" + " --- |" * len(chapters))
    for code in chapters[0].errors:
        cells = [_told(*chapter.errors[code]) for chapter in chapters]
        lines.append(f"| `{code}` | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _told(status: int, kind: str) -> str:
    return f"{status} `{kind}`" if kind else str(status)

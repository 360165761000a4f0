"""The reference as one page of HTML: no script, no style of its own, nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

import msgspec

from naiad.dialects.reference import Chapter, Route, meaning_of
from naiad.dialects.reference.probing import FieldFacts

_FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>naiad: API reference</title>
<link rel="icon" href="/ui/icon.svg">
<link rel="stylesheet" href="/ui/docs.css">
</head>
<body>
<header>
<h1>naiad</h1>
<p>Every route of this server, its fields, what they accept, and what applies without them.
<a href="/openapi.json">OpenAPI</a> · <a href="/">Chat</a> · <a href="/health">Health</a></p>
<nav>{contents}</nav>
</header>
<main>
{chapters}
{errors}
</main>
</body>
</html>
"""
_CODE = re.compile("`([^`]*)`")


def as_html(chapters: Iterable[Chapter]) -> str:
    """The whole page."""
    told = tuple(chapters)
    contents = "".join(
        f'<a href="#{_id(chapter.name)}">{escape(chapter.title)}</a>' for chapter in told
    )
    return _FRAME.format(
        contents=contents + '<a href="#errors">Errors</a>',
        chapters="\n".join(map(_chapter, told)),
        errors=_errors(told),
    )


def _chapter(chapter: Chapter) -> str:
    routes = "\n".join(_route(chapter, route) for route in chapter.routes)
    return f'<section id="{_id(chapter.name)}"><h2>{escape(chapter.title)}</h2>\n{routes}</section>'


def _route(chapter: Chapter, route: Route) -> str:
    anchor = _id(f"{chapter.name}-{route.method}-{route.path}")
    head = (
        f'<summary><span class="method">{route.method}</span> <code>{escape(route.path)}</code>'
        f' <span class="access">{route.access}</span> <span class="told">{_marked(_told(route))}'
        "</span></summary>"
    )
    return f'<details id="{anchor}">{head}{_fields(route)}</details>'


def _told(route: Route) -> str:
    return f"The same as `{route.same_as}`" if route.same_as else route.summary


def _fields(route: Route) -> str:
    if not route.fields:
        return "<p>It reads no body.</p>" if route.same_as is None else ""
    rows = "".join(_row(one) for one in route.fields if one.has_effect and not one.refusal)
    head = "<tr><th>field</th><th>accepts</th><th>default</th><th>meaning</th></tr>"
    refused = "".join(
        f"<li><code>{escape(one.name)}</code> is refused: {_marked(one.refusal)}</li>"
        for one in route.fields
        if one.refusal
    )
    idle = [name for one in route.fields if not one.has_effect for name in one.names]
    without = f"<p>Accepted without effect: {_codes(idle)}.</p>" if idle else ""
    table = _framed(f"{head}{rows}", "Fields") if rows else ""
    return table + (f"<ul>{refused}</ul>" if refused else "") + without


def _row(one: FieldFacts) -> str:
    aliases = f"<small>or {_codes(one.names[1:])}</small>" if len(one.names) > 1 else ""
    needed = "<b>needed</b> " if one.is_needed else ""
    shown = "" if one.default is None else _codes([msgspec.json.encode(one.default).decode()])
    cells = (
        f"<code>{escape(one.name)}</code> {aliases}",
        needed + _marked(one.accepts or "anything"),
        shown,
        _marked(meaning_of(one)),
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _errors(chapters: tuple[Chapter, ...]) -> str:
    head = "".join(f"<th>{escape(chapter.title)}</th>" for chapter in chapters)
    rows = ""
    for code in chapters[0].errors if chapters else ():
        cells = [chapter.errors[code] for chapter in chapters]
        told = "".join(f"<td>{status} <small>{escape(kind)}</small></td>" for status, kind in cells)
        rows += f"<tr><td><code>{code}</code></td>{told}</tr>"
    table = _framed(f"<tr><th>code</th>{head}</tr>{rows}", "Errors")
    return f'<section id="errors"><h2>Errors</h2>{table}</section>'


def _framed(rows: str, name: str) -> str:
    """A table that scrolls by itself where it is too wide, from the keyboard too."""
    frame = f'<div class="table" tabindex="0" role="region" aria-label="{name}">'
    return f"{frame}<table>{rows}</table></div>"


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"<code>{escape(name)}</code>" for name in names)


def _marked(text: str) -> str:
    return _CODE.sub(r"<code>\1</code>", escape(text))


def _id(text: str) -> str:
    return re.sub(r"\W+", "-", text).strip("-").lower()

"""What `/` answers to whom, the page's files, and what they are allowed."""

from __future__ import annotations

import re

import pytest

from fakes import FakeEngine
from http_client import LOCAL, ask, fake_app
from naiad.http.static import POLICY, STATIC
from naiad.ui import static_files

BROWSER = [*LOCAL, ("accept", "text/html,application/xhtml+xml,*/*;q=0.8")]
MAX_PAGE_BYTES = 200_000


async def test_browsers_get_the_page_and_others_the_text() -> None:
    app = fake_app(FakeEngine())
    page = await ask(app, "GET", "/", headers=BROWSER)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.body == STATIC["index.html"].body
    text = await ask(app, "GET", "/")
    assert text.headers["content-type"] == "text/plain; charset=utf-8"
    assert all("accept" in one.headers["vary"] for one in (page, text))


@pytest.mark.parametrize("name", sorted(set(STATIC) - {"index.html"}))
async def test_every_file_is_served_under_the_policy(name: str) -> None:
    answer = await ask(fake_app(FakeEngine(), api_key="secret"), "GET", f"/ui/{name}")
    assert answer.status == 200
    assert answer.body == STATIC[name].body
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_file_the_browser_has_is_not_sent_again() -> None:
    app = fake_app(FakeEngine())
    etag = (await ask(app, "GET", "/ui/main.js")).headers["etag"]
    again = await ask(app, "GET", "/ui/main.js", headers=[*LOCAL, ("if-none-match", etag)])
    assert (again.status, again.body) == (304, b"")
    stale = await ask(app, "GET", "/ui/main.js", headers=[*LOCAL, ("if-none-match", '"x"')])
    assert stale.status == 200


@pytest.mark.parametrize("path", ["/ui/../pages.py", "/ui/", "/ui/none.js", "/ui/%2e%2e/x"])
async def test_nothing_else_is_a_file(path: str) -> None:
    assert (await ask(fake_app(FakeEngine()), "GET", path)).status == 404


def test_the_policy_has_no_holes() -> None:
    assert "default-src 'none'" in POLICY
    assert "unsafe" not in POLICY
    assert "*" not in POLICY
    assert "http" not in POLICY


def test_the_page_is_small_and_whole() -> None:
    files = static_files()
    assert sum(len(file.body) for file in files.values()) < MAX_PAGE_BYTES
    page = files["index.html"].body.decode()
    named = set(re.findall(r"/ui/([\w.]+)", page))
    assert named == set(files) - {"index.html", "docs.css"}
    assert " style=" not in page
    assert not re.search(r"<script(?![^>]* src=)", page)


def test_modules_are_small_and_import_what_exists() -> None:
    for name, file in static_files().items():
        text = file.body.decode()
        assert text.count("\n") < 300, name
        if name.endswith(".js"):
            missing = [one for one in re.findall(r'from "\./([\w.]+)"', text) if one not in STATIC]
            assert missing == [], name
            assert not re.search(r"\beval\(|new Function|document\.write|outerHTML =", text), name


def test_one_place_alone_turns_text_into_elements() -> None:
    setters = [n for n, f in static_files().items() if re.search(rb"innerHTML|insertAdj", f.body)]
    assert setters == ["dom.js"]

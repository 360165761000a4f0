"""axe-core finds nothing in any state of the page that would keep somebody out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from ui import axe
from ui.conftest import DESKTOP, PHONE, Server
from ui.page import Chat, delta, saying

pytestmark = pytest.mark.skipif(
    not axe.SCRIPT.is_file(),
    reason="no axe-core (make test fetches it where npm is): accessibility was not checked",
)

RICH = """# A title

Words with **weight**, `code` and a [link](https://example.org).

> A quotation.

```python
def tide(moon: float) -> str:  # a comment
    return f"{moon:.2f}" + "text" if moon > 3 else None
```

| Place | Range |
| :-- | --: |
| Oslo | 0.3 |
"""
#: Without motion: half-faded words would be found too pale.
STILL = {"reduced_motion": "reduce"}
LOOKS = [
    pytest.param({**size, **STILL, "color_scheme": scheme}, id=f"{name}-{scheme}")
    for name, size in (("desktop", DESKTOP), ("phone", PHONE))
    for scheme in ("light", "dark")
]
CALL = {"index": 0, "id": "c1", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}


def check(chat: Chat, state: str) -> None:
    """No finding at all, the harmless included: there are none to get used to."""
    assert axe.findings(chat.page) == [], state


@pytest.mark.parametrize("look", LOOKS)
def test_a_conversation(
    server: Server, open_chat: Callable[..., Chat], look: dict[str, Any]
) -> None:
    chat = open_chat(server.url, **look)
    chat.page.locator("#server.ok").wait_for()
    check(chat, "the first visit")
    chat.ask(saying(f"<think>Let me see.</think>\n\n{RICH}"))
    chat.page.locator(".thoughts summary").click()
    check(chat, "an answer with its reasoning")
    chat.answer_with(delta(tool_calls=[CALL]), delta("tool_calls"))
    chat.ask("Weather?")
    check(chat, "a tool call")
    chat.act("edit", chat.questions.last)
    check(chat, "editing")
    chat.page.keyboard.press("Escape")


@pytest.mark.parametrize("look", LOOKS)
def test_panels_and_dialogs(
    server: Server, open_chat: Callable[..., Chat], look: dict[str, Any]
) -> None:
    chat = open_chat(server.url, **look)
    chat.ask("Hello")
    chat.page.click("#open-settings")
    chat.page.locator("#set-system").wait_for()
    chat.page.evaluate("document.querySelectorAll('#settings details').forEach(o => o.open = true)")
    chat.page.fill("#set-temperature", "500")
    check(chat, "the settings, one of them wrong")
    chat.page.click("#close-settings")
    if chat.page.locator("#open-sidebar").is_visible():
        chat.page.click("#open-sidebar")
        chat.page.locator("#sidebar #help").wait_for()
        check(chat, "the list of conversations")
    chat.page.click("#help")
    check(chat, "the keyboard shortcuts")


@pytest.mark.parametrize("look", LOOKS[:2])
def test_what_goes_wrong(
    start_server: Callable[..., Server],
    open_chat: Callable[..., Chat],
    look: dict[str, Any],
    watcher: Any,
) -> None:
    watcher.forgiven = ["ERR_", "status of 4"]
    server = start_server("--api-key", "sesame")
    asked = open_chat(server.url, **look)
    asked.page.locator("dialog").wait_for()
    check(asked, "the question for the key")
    chat = open_chat(f"{server.url}/#key=sesame", **look)
    chat.send(json.dumps({"script": [["emit", 5], ["finish_error", "a scripted failure"]]}))
    chat.wait_for_note("a scripted failure")
    chat.settled()
    check(chat, "an answer that failed")
    server.kill()
    chat.send("are you there?")
    chat.page.locator("#banner:not([hidden])").wait_for()
    check(chat, "no server")


@pytest.mark.parametrize("look", LOOKS)
def test_the_reference(
    server: Server, open_chat: Callable[..., Chat], look: dict[str, Any]
) -> None:
    chat = open_chat(server.url, **look)
    chat.page.goto(f"{server.url}/docs")
    check(chat, "the reference")
    chat.page.locator("summary").first.click()
    check(chat, "the reference, unfolded")


def test_the_checker_finds_what_is_wrong(chat: Chat) -> None:
    """A button without a name: a checker that finds nothing anywhere would prove nothing."""
    chat.page.evaluate("document.getElementById('open-settings').removeAttribute('aria-label')")
    chat.page.evaluate("document.getElementById('open-settings').removeAttribute('title')")
    assert [one.split(":")[1].strip() for one in axe.findings(chat.page)] == ["button-name"]

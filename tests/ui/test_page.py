"""The page itself: phone, keyboard, key, settings, and words that try to break out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ui.conftest import PHONE, Server
from ui.page import ENDLESS, Chat, answer_to, saying

HOSTILE = """# Hello <script>window.hurt = 1</script>

<img src=x onerror="window.hurt = 2"> <style>body { display: none }</style>
![a picture](http://evil.example/track.png?you)
[click](javascript:window.hurt=3) [data](data:text/html,<script>window.hurt=4</script>)
[google.com](http://evil.example/login) <svg onload="window.hurt=5"></svg>
<iframe src="http://evil.example"></iframe> <a href="x" style="position:fixed">x</a>

```html" onmouseover="window.hurt=6
</code></pre><script>window.hurt = 7</script>
```

| a<script>window.hurt=8</script> | b |
| :-: | - |
| `</td><script>window.hurt=9</script>` | &lt;b&gt; |
"""


def test_a_phone_has_room_for_everything(server: Server, open_chat: Callable[..., Chat]) -> None:
    chat = open_chat(server.url, **PHONE)
    wide = saying("word " * 20 + "\n\n```\n" + "x" * 90 + "\n```\n\n" + "y" * 90)
    chat.ask(wide)
    chat.page.locator(".code").wait_for()
    assert chat.page.evaluate("document.documentElement.scrollWidth") == 390
    assert not chat.page.locator("#sidebar").is_visible()
    chat.page.tap("#open-sidebar")
    chat.page.locator("#new-chat").tap()
    chat.page.locator(".welcome").wait_for()
    chat.page.wait_for_selector("#sidebar", state="hidden")
    chat.page.tap("#open-settings")
    chat.page.locator("#set-system").wait_for()
    chat.page.tap("#close-settings")
    chat.page.wait_for_selector("#settings", state="hidden")


def test_everything_can_be_done_from_the_keyboard(chat: Chat) -> None:
    keys = chat.page.keyboard
    keys.type("first line")
    keys.press("Shift+Enter")
    keys.type("second line")
    keys.press("Enter")
    said = "first line\nsecond line"
    chat.answers.first.wait_for()
    assert chat.settled() == answer_to(said).strip()
    keys.press("ArrowUp")
    keys.press("Control+a")
    keys.type("edited")
    keys.press("Enter")
    chat.page.locator(".branches", has_text="2/2").wait_for()
    assert chat.settled() == answer_to("edited").strip()
    chat.page.locator("[data-act=retry]").focus()
    keys.press("Enter")
    chat.answers.last.locator(".branches", has_text="2/2").wait_for()
    chat.settled()
    chat.page.locator("#draft").focus()
    keys.insert_text(ENDLESS)
    keys.press("Enter")
    chat.wait_for_words()
    keys.press("Escape")
    chat.wait_for_note("Stopped.")
    keys.press("Control+,")
    chat.page.locator("#close-settings:focus").wait_for()
    keys.press("Escape")
    chat.page.wait_for_selector("#settings", state="hidden")
    keys.press("Control+Shift+O")
    chat.page.locator(".welcome").wait_for()
    assert chat.page.evaluate("document.activeElement.id") == "draft"


def test_screen_readers_are_told_what_happens(chat: Chat) -> None:
    chat.ask("Hello")
    chat.page.locator("#announce", has_text="The answer is finished.").wait_for(state="attached")
    unnamed = chat.page.evaluate("""() => [...document.querySelectorAll('button, input, textarea')]
        .filter(one => !(one.ariaLabel || one.innerText.trim() || one.labels?.length))
        .map(one => one.outerHTML)""")
    assert unnamed == []


def test_hostile_markdown_stays_text(chat: Chat) -> None:
    chat.ask(saying(HOSTILE))
    body = chat.answers.last.locator(".body")
    body.locator("table").wait_for()
    assert chat.page.evaluate("window.hurt") is None
    tags = "script, style, img, iframe, svg:not([aria-hidden]), object, form, input"
    assert body.locator(tags).count() == 0
    handlers = body.evaluate("""body => [...body.querySelectorAll('*')]
        .flatMap(one => [...one.attributes].map(a => a.name))
        .filter(name => name.startsWith('on') || name === 'style')""")
    assert handlers == []
    links = body.locator("a").evaluate_all("links => links.map(a => a.href + ' ' + a.rel)")
    assert all(link.startswith("http://evil.example/") for link in links)
    assert all("noopener" in link and "noreferrer" in link for link in links)
    assert body.locator(".target").inner_text().strip() == "(leads to evil.example)"
    assert "<script>window.hurt = 1</script>" in body.inner_text()


def test_hostile_words_are_text_wherever_they_appear(chat: Chat) -> None:
    words = "<img src=x onerror=window.hurt=1>"
    chat.ask(words)
    assert chat.questions.last.locator(".body").inner_text() == words
    title = chat.page.locator(".entry span", has_text="<img src=x onerror=window.hurt=1")
    title.wait_for()
    assert title.inner_text().startswith("<img")
    chat.page.reload()
    chat.ready()
    assert chat.page.evaluate("window.hurt") is None
    assert chat.page.locator("#app img[src=x]").count() == 0


def test_the_policy_forbids_what_the_page_does_not_need(chat: Chat, watcher: Any) -> None:
    watcher.forgiven = ["console: ", "request: http://evil"]
    assert (
        chat.page.evaluate("""() => {
        try { document.body.innerHTML = '<b>x</b>'; return 'done'; } catch { return 'refused'; }
    }""")
        == "refused"
    )
    reached = chat.page.evaluate(
        "fetch('http://evil.example/').then(() => 'reached', () => 'refused')"
    )
    assert reached == "refused"


def test_the_link_carries_the_key(
    start_server: Callable[..., Server], open_chat: Callable[..., Chat], watcher: Any
) -> None:
    watcher.forgiven = ["status of 401"]
    server = start_server("--api-key", "sesame")
    linked = open_chat(f"{server.url}/#key=sesame")
    assert "sesame" not in linked.page.url
    assert linked.ask("Hello") == answer_to("Hello").strip()
    linked.page.reload()
    assert linked.ready().ask("Hello").strip()
    assert watcher.wrong == []
    asked = open_chat(server.url)
    asked.page.fill("dialog input", "wrong")
    asked.page.click("dialog .main")
    asked.page.locator("dialog", has_text="does not know this key").wait_for()
    asked.page.fill("dialog input", "sesame")
    asked.page.click("dialog .main")
    asked.page.wait_for_selector("dialog", state="detached")
    assert asked.ask("Hello") == answer_to("Hello").strip()


def test_settings_are_sent(chat: Chat) -> None:
    chat.page.click("#open-settings")
    chat.page.fill("#set-system", "Be brief.")
    chat.page.fill("#set-prefill", "Well,")
    chat.page.fill("#set-temperature", "0.3")
    chat.page.fill("#set-max_tokens", "7")
    chat.page.fill("#set-stop", "END\n\\n\\n")
    body = chat.body_of_next_request("Hello")
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Well,"},
    ]
    sent = {name: body.get(name) for name in ("temperature", "max_tokens", "stop", "top_k")}
    assert sent == {"temperature": 0.3, "max_tokens": 7, "stop": ["END", "\n\n"], "top_k": None}
    chat.wait_for_note("length limit")
    assert chat.settled().startswith("Well, ")


def test_form_settings_are_sent_and_checked(chat: Chat) -> None:
    chat.answer_with(delta_done())
    chat.page.click("#open-settings")
    chat.page.fill("#set-schema", '{"type": "object"')
    chat.send("Hello")
    chat.wait_for_note("The JSON schema in the settings is no valid JSON")
    chat.page.get_by_text("This is no valid JSON: ").wait_for()
    assert "changed" in str(chat.page.get_attribute("#open-settings", "class"))
    chat.page.fill("#set-schema", '{"type": "object"}')
    chat.page.fill("#set-grammar", 'root ::= "yes"')
    chat.page.fill("#set-tools", '[{"type": "function", "function": {"name": "f"}}]')
    body = chat.body_of_next_request("Hello")
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert body["grammar"] == 'root ::= "yes"'
    assert body["tools"][0]["function"]["name"] == "f"


def delta_done() -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": "{}"}, "finish_reason": "stop"}]}


def test_presets_and_ranges(chat: Chat) -> None:
    chat.page.click("#open-settings")
    chat.page.select_option("#settings select", "Precise")
    assert chat.page.input_value("#set-temperature") == "0.2"
    chat.page.fill("#set-temperature", "500")
    assert chat.page.get_attribute("#set-temperature", "aria-invalid") == "true"
    chat.page.get_by_text("From 0 to 100.").wait_for()
    chat.page.fill("#set-temperature", "0.4")
    chat.page.get_by_text("Save as…").click()
    chat.page.fill("dialog input", "Mine")
    chat.page.click("dialog .main")
    chat.page.wait_for_selector("dialog", state="detached")
    chat.page.select_option("#settings select", "")
    assert chat.page.input_value("#set-temperature") == ""
    chat.page.select_option("#settings select", "Mine")
    body = chat.body_of_next_request("Hello")
    assert (body["temperature"], body["top_p"], body["top_k"]) == (0.4, 0.9, 40)
    chat.settled()


def test_light_and_dark(chat: Chat) -> None:
    def shade() -> str:
        return str(chat.page.evaluate("getComputedStyle(document.body).backgroundColor"))

    before = shade()
    chat.page.click("#theme")
    assert shade() != before
    after = shade()
    chat.page.reload()
    chat.ready()
    assert shade() == after

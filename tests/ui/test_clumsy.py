"""Clumsy hands, hostile files, and a browser that keeps nothing: no answer and no word is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ui.conftest import PHONE, Server
from ui.page import ENDLESS, Chat, answer_to
from ui.test_keeping import UNTIL_SAVED, bring_in

#: The ids of the messages of the only conversation there is.
IDS = """async () => {
    const { allConversations, messagesOf } = await import('/ui/store.js');
    const [one] = await allConversations();
    return (await messagesOf(one.id)).map(message => message.id);
}"""
N_KEPT = """async () => {
    const { searchMessages } = await import('/ui/store.js');
    return (await searchMessages('')).size;
}"""
#: Another tab says that it writes the answer, an hour from now.
WRITTEN_TOMORROW = """async () => {
    const { allConversations, messagesOf, putMessages } = await import('/ui/store.js');
    const [one] = await allConversations();
    const answer = (await messagesOf(one.id)).find(message => message.role === 'assistant');
    const beat = Date.now() + 3_600_000;
    await putMessages([{ ...answer, state: 'streaming', owner: 'another', beat }]);
}"""
NO_DATABASE = "Object.defineProperty(window, 'indexedDB', { value: undefined })"
FULL = """IDBObjectStore.prototype.put = () => {
    throw new DOMException('full', 'QuotaExceededError');
}"""


def turn(name: str, parent: str | None, text: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "parent": parent, "role": "user", "text": text, **more}


def file_of(messages: list[Any], **more: Any) -> dict[str, Any]:
    one = {"id": "odd", "title": "Odd", "messages": messages, **more}
    return {"format": "naiad-conversations", "version": 1, "conversations": [one]}


def test_a_double_click_on_send_stops_nothing(chat: Chat) -> None:
    chat.page.fill("#draft", ENDLESS)
    box = chat.page.locator("#send").bounding_box()
    assert box
    chat.page.mouse.dblclick(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    chat.wait_for_words()
    assert chat.page.locator(".message.streaming").count() == 1
    assert chat.questions.count() == 1
    chat.page.keyboard.press("Escape")
    chat.wait_for_note("Stopped.")


def test_what_is_deleted_while_another_tab_writes_it_does_not_come_back(
    server: Server, open_chat: Callable[..., Chat]
) -> None:
    first = open_chat(server.url)
    first.send(ENDLESS)
    first.wait_for_words()
    first.page.evaluate(UNTIL_SAVED)
    second = open_chat(server.url, beside=first)
    entry = second.page.locator("#conversations li")
    entry.hover()
    entry.get_by_label("Delete").click()
    second.page.click("dialog .bad")
    first.page.locator(".welcome").wait_for()
    while server.in_flight():  # the engine is told to stop as well
        pass
    for chat in (first, second):
        chat.page.reload()
        chat.ready().wait_for_titles()
        assert chat.page.evaluate(N_KEPT) == 0


def test_an_imported_file_takes_the_place_of_nothing(chat: Chat, tmp_path: Path) -> None:
    said = chat.ask("mine")
    ids = chat.page.evaluate(IDS)
    bring_in(chat, tmp_path, file_of([turn(one, None, "stolen") for one in ids]))
    chat.page.locator(".entry", has_text="Odd").wait_for()
    chat.page.reload()
    assert chat.ready().settled() == said
    assert chat.questions.first.locator(".body").inner_text() == "mine"


def test_an_imported_file_cannot_trip_the_page(chat: Chat, tmp_path: Path) -> None:
    messages = [
        None,
        turn("a", "b", "in a"),
        turn("b", "a", "circle"),
        turn("c", "b", "after it"),
        turn("r", None, "a root", stats={"tokens": 3, "prompt": "x", "rate": {}}),
    ]
    params = {"stream": False, "messages": [], "stop": 5, "top_k": {"x": 1}, "temperature": 0.5}
    bring_in(chat, tmp_path, file_of(messages, leaf="a", settings={"params": params}))
    chat.page.locator(".entry", has_text="Odd").click()
    chat.page.locator(".message.user", has_text="a root").wait_for()
    assert chat.page.locator(".message").count() == 1
    chat.page.click("#open-settings")
    chat.page.locator("#set-stop").wait_for()
    chat.page.fill("#set-stop", "")
    body = chat.body_of_next_request("and on")
    assert [one["content"] for one in body["messages"]] == ["a root", "and on"]
    assert (body["stream"], body["temperature"], body.get("top_k")) == (True, 0.5, None)
    chat.settled()


@pytest.mark.parametrize(
    ("broken", "told"), [(NO_DATABASE, "does not let the page keep"), (FULL, "has no room left")]
)
def test_what_the_browser_does_not_keep_can_be_exported(
    chat: Chat, tmp_path: Path, broken: str, told: str
) -> None:
    chat.page.add_init_script(broken)
    chat.page.reload()
    chat.ready().send("keep this")
    chat.page.locator(".toast.bad", has_text=told).wait_for()
    said = chat.settled()
    assert said == answer_to("keep this").strip()
    with chat.page.expect_download() as download:
        chat.page.click("#export")
    path = tmp_path / "saved.json"
    download.value.save_as(path)
    (one,) = json.loads(path.read_text())["conversations"]
    assert [message["text"].strip() for message in one["messages"]] == ["keep this", said]


def test_a_clock_set_back_leaves_no_answer_waiting(chat: Chat) -> None:
    chat.ask("Hello")
    chat.page.evaluate(WRITTEN_TOMORROW)
    chat.page.reload()
    chat.ready().wait_for_note("cut off")


def test_settings_are_kept_when_another_tab_writes(
    server: Server, open_chat: Callable[..., Chat]
) -> None:
    first = open_chat(server.url)
    first.ask("begin")
    first.page.click("#open-settings")
    first.page.locator("#set-system").wait_for()
    second = open_chat(first.page.url, beside=first)
    second.page.reload()
    second.ready().ask("more")
    first.page.locator(".message.user", has_text="more").wait_for()
    first.answers.nth(1).wait_for()
    first.settled()
    first.page.fill("#set-system", "Be brief.")
    body = first.body_of_next_request("and now?")
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    first.settled()


def test_a_megabyte_can_be_pasted(chat: Chat, watcher: Any) -> None:
    watcher.forgiven = ["status of 4"]
    chat.page.fill("#draft", "long words " * 95_000)
    chat.page.press("#draft", "Enter")
    chat.page.locator(".note.bad").wait_for()
    assert chat.questions.count() == 1
    assert chat.page.locator(".fold").count() == 1


def test_fingers_find_what_they_aim_at(server: Server, open_chat: Callable[..., Chat]) -> None:
    chat = open_chat(server.url, **PHONE)
    chat.ask("Hello")
    chat.page.tap("#open-sidebar")
    chat.page.locator("#sidebar #help").wait_for()
    small = chat.page.evaluate("""() => [...document.querySelectorAll('button')]
        .map(one => [one.ariaLabel ?? one.innerText, one.getBoundingClientRect()])
        .filter(([, box]) => box.width && (box.height < 40 || box.width < 40))
        .map(([name, box]) => `${name}: ${box.width} x ${box.height}`)""")
    assert small == []

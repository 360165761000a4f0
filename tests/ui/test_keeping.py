"""Nothing is lost: reloads, tabs, a server that dies, long histories, files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ui.conftest import Server
from ui.page import ENDLESS, Chat, answer_to, body_of

N_TURNS = 5_000

#: Ends when the browser's database holds some words of an answer.
UNTIL_SAVED = """async () => {
    const open = indexedDB.open('naiad', 1);
    await new Promise(done => open.onsuccess = done);
    for (;;) {
        const all = open.result.transaction('messages').objectStore('messages').getAll();
        await new Promise(done => all.onsuccess = done);
        if (all.result.some(one => one.role === 'assistant' && one.text)) break;
    }
    open.result.close();
}"""


def history(n: int, **more: Any) -> dict[str, Any]:
    """A file of one conversation with so many messages."""
    messages = [
        {
            "id": f"m{i}",
            "parent": f"m{i - 1}" if i else None,
            "role": "assistant" if i % 2 else "user",
            "text": f"This is turn number {i}, with a **few** words in it.",
            "created": i + 1,
            "state": "done",
        }
        for i in range(n)
    ]
    one = {"id": "long", "title": "A long one", "leaf": f"m{n - 1}", "messages": messages, **more}
    return {"format": "naiad-conversations", "version": 1, "conversations": [one]}


def bring_in(chat: Chat, folder: Path, value: Any) -> None:
    path = folder / "conversations.json"
    path.write_text(json.dumps(value))
    chat.page.set_input_files("#import-file", path)


def test_a_reload_in_mid_stream_keeps_what_came(server: Server, chat: Chat) -> None:
    chat.send(ENDLESS)
    chat.wait_for_words()
    chat.page.evaluate(UNTIL_SAVED)
    chat.page.reload()
    chat.ready()
    chat.wait_for_note("cut off when its page was closed")
    assert chat.settled()
    assert chat.page.locator("#stop").is_hidden()
    chat.act("retry")
    chat.wait_for_words()
    chat.page.click("#stop")
    chat.wait_for_note("Stopped.")


def test_conversations_and_drafts_survive_a_reload(chat: Chat) -> None:
    said = chat.ask("remember this")
    chat.page.fill("#draft", "not yet sent")
    chat.page.reload()
    assert chat.ready().settled() == said
    assert chat.page.input_value("#draft") == "not yet sent"


def test_two_tabs_stream_at_once(server: Server, open_chat: Callable[..., Chat]) -> None:
    first = open_chat(server.url)
    second = open_chat(server.url, beside=first)
    first.send("from the first")
    second.send("from the second")
    assert first.settled() == answer_to("from the first").strip()
    assert second.settled() == answer_to("from the second").strip()
    for chat in (first, second):
        for title in ("from the first", "from the second"):
            chat.page.locator(".entry", has_text=title).wait_for()
        assert chat.page.locator(".entry").count() == 2
    second.page.locator(".entry", has_text="from the first").click()
    second.page.locator("h1", has_text="from the first").wait_for()
    assert second.settled() == answer_to("from the first").strip()


def test_a_tab_follows_what_another_writes(server: Server, open_chat: Callable[..., Chat]) -> None:
    first = open_chat(server.url)
    said = first.ask("begin")
    second = open_chat(first.page.url, beside=first)
    second.page.reload()
    assert second.ready().settled() == said
    first.send("and go on")
    second.page.locator(".message.user", has_text="and go on").wait_for()
    answer = first.settled()
    second.page.locator(".message.assistant:last-child .body", has_text=answer).wait_for()
    assert second.settled() == answer


def test_a_server_killed_and_restarted_under_an_open_page(
    start_server: Callable[..., Server], open_chat: Callable[..., Chat], watcher: Any
) -> None:
    watcher.forgiven = ["ERR_", "status of 503"]
    server = start_server()
    chat = open_chat(server.url)
    chat.send(ENDLESS)
    chat.wait_for_words()
    server.kill()
    chat.wait_for_note("connection to the server was lost; what arrived is kept")
    kept = chat.last_text()
    chat.page.locator("#banner", has_text="cannot be reached").wait_for()
    chat.send("are you there?")
    chat.wait_for_note("The server cannot be reached.")
    server.start()
    chat.page.locator("#server.ok").wait_for()
    chat.page.locator("#banner").wait_for(state="hidden")
    chat.answers.first.locator(".body:not(.plain)", has_text=kept).wait_for()
    with chat.page.expect_response("**/v1/chat/completions") as response:
        chat.act("retry")
    assert response.value.status == 200
    chat.page.wait_for_selector("#stop")
    chat.page.click("#stop")


def test_a_history_of_thousands_of_turns(chat: Chat, tmp_path: Path, watcher: Any) -> None:
    watcher.forgiven = ["status of 400"]  # so much does not fit into the context, and it is told
    bring_in(chat, tmp_path, history(N_TURNS))
    chat.page.locator(".entry", has_text="A long one").click()
    chat.page.locator(".message", has_text=f"turn number {N_TURNS - 1},").wait_for()
    assert chat.page.locator(".message").count() < 60
    chat.page.evaluate("document.querySelector('#thread').scrollTop = 0")
    chat.page.locator(".message", has_text=f"turn number {N_TURNS - 30},").wait_for()
    assert chat.page.locator(".message").count() < 120
    with chat.page.expect_request("**/v1/chat/completions") as request:
        chat.page.fill("#draft", "still fast?")
        chat.page.press("#draft", "Enter")
    assert len(body_of(request.value)["messages"]) == N_TURNS + 1
    chat.wait_for_note("the context holds")


def test_search_finds_titles_and_what_was_said(chat: Chat, tmp_path: Path) -> None:
    chat.ask("Tides and the moon")
    bring_in(chat, tmp_path, history(10))
    chat.page.locator(".entry", has_text="A long one").wait_for()
    chat.page.press("body", "Control+k")
    chat.page.keyboard.type("number 7")
    chat.page.locator(".entry small", has_text="turn number 7").wait_for()
    chat.wait_for_titles("A long one")
    chat.page.fill("#search", "moon")
    chat.page.locator(".entry", has_text="Tides").wait_for()
    chat.wait_for_titles("Tides and the moon")
    chat.page.fill("#search", "no such words")
    chat.page.get_by_text("Nothing found.").wait_for()


def test_export_and_import_give_back_what_was_there(
    server: Server, chat: Chat, open_chat: Callable[..., Chat], tmp_path: Path
) -> None:
    said = chat.ask("to be carried over")
    with chat.page.expect_download() as download:
        chat.page.click("#export")
    path = tmp_path / "saved.json"
    download.value.save_as(path)
    value = json.loads(path.read_text())
    assert [len(one["messages"]) for one in value["conversations"]] == [2]
    other = open_chat(server.url)
    other.page.set_input_files("#import-file", path)
    other.page.locator(".entry").click()
    other.answers.last.wait_for()
    assert other.settled() == said
    other.page.set_input_files("#import-file", path)
    other.wait_for_titles(*["to be carried over"] * 2)


def test_files_that_are_no_conversations_are_refused(chat: Chat, tmp_path: Path) -> None:
    bring_in(chat, tmp_path, {"format": "something else"})
    chat.page.locator(".toast.bad", has_text="holds no conversations").wait_for()
    odd = [{"messages": "none"}, {"title": 5, "messages": [{"role": "evil", "text": 3}]}, None, 7]
    bring_in(chat, tmp_path, {"format": "naiad-conversations", "conversations": odd})
    chat.page.locator(".toast.bad", has_text="no conversation that can be read").wait_for()
    assert chat.page.locator(".toast", has_text="imported").count() == 0
    assert chat.page.locator(".message").count() == 0


def test_conversations_are_renamed_and_deleted(chat: Chat) -> None:
    chat.ask("a working title")
    entry = chat.page.locator("#conversations li")
    entry.hover()
    entry.get_by_label("Rename").click()
    chat.page.fill("dialog input", "The tides")
    chat.page.click("dialog .main")
    chat.page.locator("h1", has_text="The tides").wait_for()
    entry.hover()
    entry.get_by_label("Delete").click()
    chat.page.click("dialog .bad")
    chat.page.locator(".welcome").wait_for()
    chat.page.reload()
    chat.ready()
    chat.wait_for_titles()

"""Moving about: Back and Forward, names, answers to several calls, edits while the model writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from patience import PATIENCE_S
from ui.conftest import Server
from ui.page import ENDLESS, Chat, answer_to, body_of, delta
from ui.test_keeping import UNTIL_SAVED

#: Two conversations are chosen at once, and the first must still be read from the database.
HASTY = """async id => {
    const { emit } = await import('/ui/events.js');
    const library = await import('/ui/library.js');
    emit('open', id);
    emit('open', null);
    await library.open(id);
    await new Promise(requestAnimationFrame);
}"""
#: Resolves once the tab has said twice that it still writes an answer of which nothing new came.
TWO_BEATS = """async patience => {
    const end = performance.now() + patience;
    const { allConversations, messagesOf } = await import('/ui/store.js');
    const look = async () => (await messagesOf((await allConversations())[0].id))
        .find(message => message.state === 'streaming');
    const seen = new Map();
    while (seen.size < 3) {
        if (performance.now() > end) throw new Error('it says nothing');
        const { beat, text } = await look();
        if (![...seen.values()].includes(text)) seen.clear();
        seen.set(beat, text);
    }
}"""
CALLS: list[dict[str, Any]] = [
    {"index": at, "id": name, "function": {"name": "weather", "arguments": f'{{"city":"{city}"}}'}}
    for at, (name, city) in enumerate([("c1", "Oslo"), ("c2", "Rome")])
]


def question(chat: Chat, text: str) -> None:
    """Until this is the first thing that was said in the shown conversation."""
    chat.page.locator(".message.user .body", has_text=text).first.wait_for()


def give(chat: Chat, place: int, text: str) -> None:
    chat.page.locator("[data-act=tool-result]").nth(place).click()
    chat.page.fill("dialog textarea", text)
    chat.page.click("dialog .main")


def test_back_and_forward_lead_through_what_was_shown(chat: Chat) -> None:
    chat.ask("the first")
    chat.page.click("#new-chat")
    chat.page.locator(".welcome").wait_for()
    chat.page.go_back()
    question(chat, "the first")
    chat.page.go_forward()
    chat.page.locator(".welcome").wait_for()
    chat.ask("the second")
    chat.page.click(".entry >> text=the first")
    question(chat, "the first")
    chat.page.go_back()
    question(chat, "the second")
    assert chat.page.title().startswith("the second")
    chat.page.go_back()
    question(chat, "the first")


def test_back_leaves_a_running_answer_alone(chat: Chat) -> None:
    chat.ask("the first")
    chat.page.click("#new-chat")
    chat.page.locator(".welcome").wait_for()
    chat.send(ENDLESS)
    chat.wait_for_words()
    chat.page.go_back()
    question(chat, "the first")
    assert chat.page.locator("#stop").is_hidden()
    chat.page.go_forward()
    chat.page.wait_for_selector(".message.assistant.streaming")
    chat.page.click("#stop")
    chat.wait_for_note("Stopped.")


def test_the_last_of_two_hasty_choices_is_shown(chat: Chat) -> None:
    chat.ask("the first")
    name = chat.page.evaluate("location.hash.slice(3)")
    chat.page.goto(chat.page.url.partition("#")[0])
    chat.page.reload()
    chat.ready().wait_for_titles("the first")
    chat.page.evaluate(HASTY, name)
    assert chat.page.locator(".welcome").count() == 1
    assert chat.page.evaluate("location.hash") == ""


def test_a_new_name_is_the_tabs_as_well(chat: Chat) -> None:
    chat.ask("the first")
    entry = chat.page.locator("#conversations li")
    entry.hover()
    entry.get_by_label("Rename").click()
    chat.page.fill("dialog input", "A better name")
    chat.page.click("dialog .main")
    chat.wait_for_titles("A better name")
    assert chat.page.title() == "A better name · naiad"
    assert chat.page.locator("#title").inner_text() == "A better name"


def test_the_answer_comes_when_each_of_two_calls_has_its_result(chat: Chat) -> None:
    chat.answer_with(delta(tool_calls=CALLS), delta("tool_calls"))
    chat.ask("Weather?")
    chat.page.unroute("**/v1/chat/completions")
    give(chat, 0, "4 degrees")
    chat.page.get_by_text("One more result is wanted.").wait_for()
    assert chat.answers.count() == 1
    with chat.page.expect_request("**/v1/chat/completions") as request:
        give(chat, 1, "30 degrees")
    told = [(one["tool_call_id"], one["content"]) for one in body_of(request.value)["messages"][2:]]
    assert told == [("c1", "4 degrees"), ("c2", "30 degrees")]
    chat.settled()
    with chat.page.expect_request("**/v1/chat/completions") as request:
        give(chat, 0, "5 degrees")
    told = [(one["tool_call_id"], one["content"]) for one in body_of(request.value)["messages"][2:]]
    assert told == [("c1", "5 degrees"), ("c2", "30 degrees")]
    chat.settled()


def test_a_question_about_one_conversation_is_not_answered_in_another(chat: Chat) -> None:
    chat.ask("the first")
    chat.page.click("#new-chat")
    chat.page.locator(".welcome").wait_for()
    chat.answer_with(delta(tool_calls=CALLS), delta("tool_calls"))
    chat.ask("Weather?")
    chat.page.locator("[data-act=tool-result]").first.click()
    chat.page.fill("dialog textarea", "4 degrees")
    chat.page.go_back()
    chat.page.locator("dialog").wait_for(state="detached")
    question(chat, "the first")
    assert chat.page.locator(".message").count() == 2


def test_an_edit_waits_for_the_answer_that_is_being_written(chat: Chat) -> None:
    chat.ask("one")
    chat.act("edit", chat.questions.first)
    chat.page.fill(".edit textarea", "uno")
    chat.send(ENDLESS)
    chat.wait_for_words()
    chat.page.click(".edit .main")
    chat.page.get_by_text("An answer is being written").wait_for()
    assert chat.page.input_value(".edit textarea") == "uno"
    chat.page.click("#stop")
    chat.wait_for_note("Stopped.")
    chat.page.click(".edit .main")
    question(chat, "uno")
    assert chat.settled() == answer_to("uno").strip()
    assert chat.questions.count() == 1


def test_another_tab_takes_no_edit_away(server: Server, open_chat: Callable[..., Chat]) -> None:
    first = open_chat(server.url)
    first.ask("one")
    second = open_chat(server.url, beside=first)
    second.page.click(".entry")
    question(second, "one")
    first.act("edit", first.questions.first)
    first.page.fill(".edit textarea", "uno")
    second.act("retry")
    second.settled()
    first.page.locator(".branches", has_text="1/2").wait_for()
    assert first.page.input_value(".edit textarea") == "uno"
    first.page.click(".edit .main")
    question(first, "uno")
    assert first.settled() == answer_to("uno").strip()


def test_a_tab_says_that_it_still_waits(chat: Chat) -> None:
    chat.send(json.dumps({"script": [["emit", 3], ["pause", 600]]}))
    chat.page.wait_for_selector(".message.assistant.streaming")
    chat.page.evaluate(UNTIL_SAVED)
    chat.page.evaluate(TWO_BEATS, 1000 * PATIENCE_S)
    chat.page.click("#stop")
    chat.wait_for_note("Stopped.")

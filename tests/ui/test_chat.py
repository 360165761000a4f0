"""Talking: answers, stop, retry, edit, branches, continuing, and what is shown meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ui.conftest import PHONE, Server
from ui.page import ENDLESS, Chat, answer_to, body_of, delta, saying

if TYPE_CHECKING:
    from playwright.sync_api import Locator

MAX_TRANSFER = 200_000


def test_from_the_first_visit_to_the_first_answer(
    server: Server, open_chat: Callable[..., Chat]
) -> None:
    chat = open_chat(server.url)
    sizes = chat.page.evaluate(
        "[...performance.getEntriesByType('resource'), performance.getEntriesByType('navigation')"
        "[0]].map(one => one.transferSize)"
    )
    assert 10_000 < sum(sizes) < MAX_TRANSFER
    assert chat.page.evaluate("document.activeElement.id") == "draft"
    assert chat.ask("Hello there") == answer_to("Hello there").strip()
    chat.answers.last.locator(".stats", has_text="tokens/s").wait_for()
    chat.answers.last.locator(".stats", has_text="first word after").wait_for()
    chat.wait_for_titles("Hello there")
    chat.page.locator("#meter", has_text=" of 8,192 tokens").wait_for()


def test_a_conversation_goes_on_with_what_was_said(chat: Chat) -> None:
    first = chat.ask("one")
    assert chat.ask("two") == answer_to("one", answer_to("one"), "two").strip()
    assert first == answer_to("one").strip()


def test_stop_ends_the_engines_work(server: Server, chat: Chat) -> None:
    chat.send(ENDLESS)
    chat.wait_for_words()
    chat.answers.last.locator(".stats", has_text="tokens/s").wait_for()
    chat.page.click("#stop")
    chat.wait_for_note("Stopped.")
    kept = chat.settled()
    assert kept
    while server.in_flight():  # the server learns of it when the connection has closed
        pass
    assert chat.last_text() == kept


def test_another_answer_is_another_branch(chat: Chat) -> None:
    chat.ask("Again and again")
    chat.act("retry")
    chat.page.locator(".branches", has_text="2/2").wait_for()
    assert chat.settled() == answer_to("Again and again").strip()
    chat.act("previous")
    chat.page.locator(".branches", has_text="1/2").wait_for()
    chat.act("next")
    chat.page.locator(".branches", has_text="2/2").wait_for()


def test_an_edited_question_is_a_branch_with_its_own_answers(chat: Chat) -> None:
    chat.ask("first thought")
    chat.ask("and more")
    chat.act("edit", chat.questions.first)
    chat.page.fill(".edit textarea", "second thought")
    chat.page.click(".edit .main")
    chat.page.locator(".branches", has_text="2/2").wait_for()
    assert chat.settled() == answer_to("second thought").strip()
    assert chat.questions.all_inner_texts()[0].startswith("second thought")
    chat.act("previous", chat.questions.first)
    chat.answers.nth(1).wait_for()
    chat.settled()
    assert chat.questions.count() == 2
    assert chat.answers.count() == 2
    assert chat.answers.first.locator(".body").inner_text() == answer_to("first thought").strip()


def test_an_edited_answer_is_what_the_model_sees(chat: Chat) -> None:
    chat.ask("say something")
    chat.act("edit")
    chat.page.fill(".edit textarea", "My own words.")
    chat.page.click(".edit .main")
    chat.page.locator(".branches", has_text="2/2").wait_for()
    body = chat.body_of_next_request("and now?")
    assert [one["content"] for one in body["messages"]] == [
        "say something",
        "My own words.",
        "and now?",
    ]


def test_an_answer_is_continued(chat: Chat) -> None:
    before = chat.ask("a beginning")
    with chat.page.expect_request("**/v1/chat/completions") as request:
        chat.act("continue")
    body = body_of(request.value)
    assert body["messages"][-1]["role"] == "assistant"
    assert body["continue_final_message"] is True
    after = chat.settled()
    assert after.startswith(before)
    assert len(after) > len(before)
    assert chat.answers.count() == 1


#: A disk that is behind: what is deleted comes after a great many other requests.
_SLOW_DISK = """() => {
    const remove = IDBObjectStore.prototype.delete;
    IDBObjectStore.prototype.delete = function (key) {
        for (let i = 0; i < 20000; i++) this.count();
        return remove.call(this, key);
    };
}"""


def test_messages_are_deleted_from_one_on(chat: Chat) -> None:
    """And what is gone from the page is gone for good, however soon the page is loaded anew."""
    chat.ask("keep me")
    chat.ask("drop me")
    chat.page.evaluate(_SLOW_DISK)
    chat.act("delete", chat.questions.last)
    chat.page.click("dialog .bad")
    chat.page.locator(".message.user", has_text="drop me").wait_for(state="detached")
    chat.page.reload()
    chat.ready().settled()
    assert chat.questions.all_inner_texts()[0].startswith("keep me")
    assert chat.questions.count() == 1


def test_reading_the_prompt_is_shown(chat: Chat) -> None:
    chat.send(json.dumps({"script": [["prefill", 3000, 0.1], ["emit", 3]]}))
    chat.page.locator(".wait", has_text="Reading: ").wait_for()
    assert chat.page.locator(".wait progress").get_attribute("aria-label")
    chat.page.click("#stop")


def test_the_place_in_the_queue_is_shown(
    start_server: Callable[..., Server], open_chat: Callable[..., Chat]
) -> None:
    server = start_server("--parallel", "1")
    first = open_chat(server.url)
    first.send(ENDLESS)
    first.wait_for_words()
    second = open_chat(server.url)
    second.send("me too")
    second.page.locator(".wait", has_text="Waiting in line: number 1").wait_for()
    first.page.click("#stop")
    assert second.settled() == answer_to("me too").strip()


def test_reasoning_is_folded(chat: Chat) -> None:
    assert chat.ask(saying("<think>let me see</think>\n\nIt is **so**.")) == "It is so."
    thoughts = chat.page.locator(".thoughts")
    assert thoughts.locator("summary").inner_text() == "Reasoning, 3 words"
    assert not thoughts.locator("div").is_visible()
    thoughts.locator("summary").click()
    assert thoughts.locator("div").inner_text() == "let me see"
    sent = chat.body_of_next_request("go on")["messages"]
    assert sent[1]["content"] == "It is **so**."


def test_reasoning_and_tool_calls_of_the_server_are_shown(chat: Chat) -> None:
    call = {"index": 0, "id": "c1", "function": {"name": "weather", "arguments": '{"city":'}}
    more = {"index": 0, "function": {"arguments": '"Oslo"}'}}
    chat.answer_with(
        delta(reasoning_content="They want the weather."),
        delta(tool_calls=[call]),
        delta(tool_calls=[more]),
        delta("tool_calls"),
    )
    chat.ask("Weather?")
    assert "weather" in chat.page.locator(".call summary").inner_text()
    assert json.loads(chat.page.locator(".call pre").inner_text()) == {"city": "Oslo"}
    assert chat.page.locator(".thoughts summary").inner_text() == "Reasoning, 4 words"
    chat.page.unroute("**/v1/chat/completions")
    chat.page.click("[data-act=tool-result]")
    chat.page.fill("dialog textarea", "4 degrees")
    with chat.page.expect_request("**/v1/chat/completions") as request:
        chat.page.click("dialog .main")
    sent = body_of(request.value)["messages"]
    assert sent[1]["tool_calls"][0]["function"]["name"] == "weather"
    assert sent[2] == {"role": "tool", "content": "4 degrees", "tool_call_id": "c1"}
    chat.settled()


def test_a_refusal_is_told_in_the_servers_words(chat: Chat, watcher: Any) -> None:
    watcher.forgiven = ["status of 400"]
    chat.send("x" * 9000)
    chat.wait_for_note("the context holds 8192")
    assert chat.questions.count() == 1


def test_a_failure_in_mid_stream_keeps_what_came(chat: Chat) -> None:
    chat.send(json.dumps({"script": [["emit", 5], ["finish_error", "a scripted failure"]]}))
    chat.wait_for_note("a scripted failure")
    assert len(chat.settled().split()) == 5


def test_failures_are_sentences(chat: Chat) -> None:
    told = ["the prompt is long", "Done.", "top_p must be below 1", ""]
    words: Any = chat.page.evaluate(
        "async told => { const { asSentence } = await import('/ui/text.js');"
        " return told.map(asSentence); }",
        told,
    )
    assert words == [
        "The prompt is long.",
        "Done.",
        "top_p must be below 1.",
        "Something went wrong.",
    ]


def height(element: Locator) -> float:
    """Of what is shown of it, pixels."""
    box = element.bounding_box()
    assert box is not None
    return box["height"]


def test_a_long_message_is_folded(chat: Chat) -> None:
    chat.ask("\n".join(f"line {n}" for n in range(60)))
    body = chat.questions.first.locator(".body")
    assert height(body) < 320
    fold = chat.questions.first.locator(".fold")
    fold.click()
    assert fold.get_attribute("aria-expanded") == "true"
    assert height(body) > 1000
    fold.click()
    assert height(body) < 320
    chat.ask("short")
    assert chat.page.locator(".fold").count() == 1


def test_a_search_in_the_page_unfolds_what_it_finds(chat: Chat) -> None:
    chat.ask("\n".join(f"line {n}" for n in range(60)))
    body = chat.questions.first.locator(".body")
    body.evaluate("element => { element.scrollTop = 400; }")
    fold = chat.questions.first.locator(".fold[aria-expanded=true]")
    fold.wait_for()
    assert fold.inner_text() == "Show less"
    assert height(body) > 1000


def test_a_server_that_is_back_leaves_what_was_unfolded(chat: Chat) -> None:
    chat.ask("\n".join(f"line {n}" for n in range(60)))
    fold = chat.questions.first.locator(".fold")
    fold.click()
    chat.page.evaluate("async () => (await import('/ui/events.js')).emit('server-back')")
    assert fold.get_attribute("aria-expanded") == "true"
    assert height(chat.questions.first.locator(".body")) > 1000


def test_the_meter_moves_while_an_answer_is_written(chat: Chat) -> None:
    chat.send(ENDLESS)
    meter = chat.page.locator("#meter .told")
    meter.filter(has_text=" of 8,192 tokens").wait_for()
    first = meter.inner_text()
    chat.page.wait_for_function(
        "first => document.querySelector('#meter .told').innerText !== first", arg=first
    )
    chat.page.click("#stop")
    chat.wait_for_note("Stopped.")


def test_loading_the_model_is_shown(chat: Chat) -> None:
    words: Any = chat.page.evaluate("""async () => {
        const { waitingWords } = await import('/ui/message.js');
        return waitingWords({ first: 0, progress: { load: { progress: 0.4 } } });
    }""")
    assert words == {"words": "Loading the model: 40 %", "share": 0.4}


def test_a_table_breaks_no_words(server: Server, open_chat: Callable[..., Chat]) -> None:
    """On a phone a table scrolls by itself; its words stay whole."""
    chat = open_chat(server.url, **PHONE)
    chat.ask(saying("| Kind | Remarks | More | Columns |\n|-|-|-|-|\n| semidiurnal | b | c | d |"))
    cell = chat.page.locator("td").first
    assert height(cell) < 48
    assert chat.page.evaluate("document.documentElement.scrollWidth") == 390


def test_titles_and_deleting_are_in_reach_of_a_finger(
    server: Server, open_chat: Callable[..., Chat]
) -> None:
    chat = open_chat(server.url, **PHONE)
    chat.ask("to be renamed")
    chat.page.tap("#open-sidebar")
    chat.page.get_by_label("Rename: to be renamed").tap()
    chat.page.fill("dialog input", "renamed")
    chat.page.tap("dialog .main")
    chat.page.locator(".entry", has_text="renamed").wait_for()


def test_formulas_are_laid_out(chat: Chat) -> None:
    chat.ask(saying("So \\(x^2\\), \\[y_1 = \\frac{1}{2}\\] and $5 or $10, but \\(\\frac{1\\)."))
    body = chat.answers.last.locator(".body")
    body.locator("math msup").wait_for()
    assert body.locator(".formula math[display=block] mfrac").count() == 1
    assert body.locator("code.tex").inner_text() == r"\(\frac{1\)"
    assert "$5 or $10" in body.inner_text()


def test_a_list_is_one_while_it_is_written(
    start_server: Callable[..., Server], open_chat: Callable[..., Chat]
) -> None:
    chat = open_chat(start_server(rate="40").url)
    chat.send(saying("- **one**\n- two\n- three\n" + "- and so on\n" * 60))
    item = chat.page.locator(".message.streaming .body li", has_text="one")
    item.locator("strong").wait_for()
    chat.page.locator(".message.streaming .body li", has_text="three").wait_for()
    chat.page.click("#stop")
    assert chat.settled().startswith("one\ntwo\nthree")


def test_an_answer_that_failed_is_tried_again_in_its_place(chat: Chat, watcher: Any) -> None:
    watcher.forgiven = ["status of 503"]
    told = json.dumps({"error": {"message": "too many requests wait"}})
    chat.page.route("**/v1/chat/completions", lambda route: route.fulfill(status=503, body=told))
    chat.send("Hello")
    chat.wait_for_note("Too many requests wait.")
    chat.page.unroute("**/v1/chat/completions")
    chat.page.get_by_role("button", name="Try again").click()
    assert chat.settled() == answer_to("Hello").strip()
    assert chat.answers.count() == 1
    assert chat.page.locator(".branches").count() == 0


def test_what_is_edited_stays_in_sight(chat: Chat) -> None:
    chat.ask(saying("A long answer.\n\n" * 60))
    chat.act("edit")
    area = chat.page.locator(".editing textarea")
    area.wait_for()
    chat.page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
    top = chat.page.locator("#thread").bounding_box()
    box = area.bounding_box()
    assert top and box
    assert box["y"] < top["y"] + top["height"] and box["y"] + box["height"] > top["y"]

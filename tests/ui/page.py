"""The page as a test sees it: what a person does there, and what they read."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from naiad.testing.words import expected_text, natural_length

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Request

#: A prompt whose answer takes minutes, whatever the server's rate.
ENDLESS = json.dumps({"script": [["emit", 40], *[["emit", 1], ["pause", 2]] * 150]})


def saying(text: str) -> str:
    """A prompt that is answered with this text, byte by byte."""
    return json.dumps({"script": [["bytes", text.encode().hex()]]})


def answer_to(*turns: str) -> str:
    """What the scripted engine answers to turns of user and assistant, as the page shows it."""
    roles = ("user", "assistant")
    said = "".join(f"<|{roles[i % 2]}|>{turn}\n" for i, turn in enumerate(turns))
    prompt = f"{said}<|assistant|>"
    return expected_text(prompt, natural_length(prompt))


class Chat:
    """One open page."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def ready(self) -> Chat:
        self.page.wait_for_selector("html[data-ready]")
        return self

    def send(self, text: str) -> None:
        self.page.fill("#draft", text)
        self.page.press("#draft", "Enter")

    def ask(self, text: str) -> str:
        """Send a message and wait for the whole answer."""
        n = self.answers.count()
        self.send(text)
        self.answers.nth(n).wait_for()
        return self.settled()

    def settled(self) -> str:
        """The last answer, once it is no longer being written."""
        self.page.wait_for_selector(".message.assistant:last-child:not(.streaming)")
        self.page.wait_for_selector(".rendering", state="detached")
        self.page.wait_for_selector("#stop", state="hidden")
        return self.last_text()

    def last_text(self) -> str:
        return self.answers.last.locator(".body").inner_text()

    def wait_for_words(self) -> None:
        """Until more than five words of the last answer are there."""
        some = re.compile(r"(\S+\s+){5}\S")
        self.page.locator(".message.assistant:last-child .body", has_text=some).wait_for()

    def wait_for_note(self, words: str) -> None:
        self.page.locator(".note", has_text=words).wait_for()

    def act(self, name: str, message: Locator | None = None) -> None:
        target = message or self.answers.last
        target.hover()
        target.locator(f"[data-act={name}]").click()

    @property
    def answers(self) -> Locator:
        return self.page.locator(".message.assistant")

    @property
    def questions(self) -> Locator:
        return self.page.locator(".message.user")

    def wait_for_titles(self, *titles: str) -> None:
        """Until these are in the list of conversations, in this order, and no others."""
        self.page.wait_for_function(
            "titles => JSON.stringify(titles) === JSON.stringify("
            "[...document.querySelectorAll('.entry span')].map(one => one.innerText))",
            arg=titles,
        )

    def body_of_next_request(self, text: str) -> dict[str, Any]:
        """Send a message; the body of the chat request that it makes."""
        with self.page.expect_request("**/v1/chat/completions") as request:
            self.send(text)
        return body_of(request.value)

    def answer_with(self, *events: dict[str, Any]) -> None:
        """Have the next chat requests answered with these events instead of by the server."""
        frames = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        body = frames + "data: [DONE]\n\n"
        self.page.route(
            "**/v1/chat/completions",
            lambda route: route.fulfill(content_type="text/event-stream", body=body),
        )


def body_of(request: Request) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(request.post_data or "{}")
    return body


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}

"""A request's grammar on its way to the engine: behind the model's reasoning, if there is any."""

from __future__ import annotations

import msgspec
import pytest

from fakes import ALICE, FakeEngine, FakeRenderer, make_service, request
from naiad.chat.channels import ReasoningTags, reasoning_of
from naiad.types import ChatMessage, ChatPrompt, Grammar, ModelInfo

GRAMMAR = Grammar("regex", "a+", field="guided_regex")
THINK = ReasoningTags("<think>", "</think>")
TEMPLATE = "{{ '<think>' }}{{ '</think>' }}"
HI = ChatPrompt((ChatMessage("user", "hi"),))


def begun(text: str) -> ChatPrompt:
    messages = (*HI.messages, ChatMessage("assistant", text))
    return ChatPrompt(messages, continue_final=True)


@pytest.mark.parametrize(
    ("prompt", "rendered", "expected"),
    [
        (HI, "hi\nassistant:", (THINK, False)),
        (HI, "hi\nassistant: <think>\n", (THINK, True)),
        (HI, "hi\nassistant: <think>\n\n</think>\n\n", (None, False)),
        (ChatPrompt(HI.messages, thinking=False), "hi", (None, False)),
        (begun("<think>so far"), "hi <think>so far", (THINK, True)),
        (begun("<think>so</think>And"), "hi <think>so</think>And", (None, False)),
        (begun("And so"), "hi And so", (None, False)),
    ],
)
def test_whether_reasoning_may_come_first(
    prompt: ChatPrompt, rendered: str, expected: tuple[ReasoningTags | None, bool]
) -> None:
    assert reasoning_of(prompt, TEMPLATE, rendered) == expected
    assert reasoning_of(prompt, "no tags", rendered) == (None, False)


class Rendered(FakeRenderer):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    async def render(self, template: str | None, prompt: ChatPrompt, model: ModelInfo) -> str:
        return self.text


async def grammar_of_the_job(
    monkeypatch: pytest.MonkeyPatch, template: str, rendered: str, prompt: ChatPrompt = HI
) -> Grammar | None:
    engine = FakeEngine()
    assert engine.status.model is not None
    model = msgspec.structs.replace(engine.status.model, chat_template=template)
    service = make_service(engine)
    monkeypatch.setattr(service, "_renderer", Rendered(rendered))
    monkeypatch.setattr(service, "_known_model", lambda: model)
    asked = msgspec.structs.replace(GRAMMAR)
    async with service.generate(request(grammar=asked, prompt=prompt), ALICE):
        return engine.streams[1].job.grammar


@pytest.mark.parametrize(
    ("template", "rendered", "after", "opening"),
    [
        ("plain", "hi", None, None),
        (TEMPLATE, "hi", "</think>", "<think>"),
        (TEMPLATE, "hi <think>", "</think>", None),
        (TEMPLATE, "hi <think></think>", None, None),
    ],
)
async def test_the_grammar_holds_behind_the_reasoning(
    monkeypatch: pytest.MonkeyPatch,
    template: str,
    rendered: str,
    after: str | None,
    opening: str | None,
) -> None:
    found = await grammar_of_the_job(monkeypatch, template, rendered)
    assert found == msgspec.structs.replace(GRAMMAR, after=after, opening=opening)


async def test_plain_prompts_have_no_reasoning() -> None:
    engine = FakeEngine()
    async with make_service(engine).generate(request(grammar=GRAMMAR), ALICE):
        assert engine.streams[1].job.grammar == GRAMMAR

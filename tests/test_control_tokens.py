"""Marks of reasoning and calls that are control tokens: seen by the parsers, never by the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from channel_cases import cut
from fake_executor import FakeMemory
from fakes import ALICE, FakeEngine, FakeRenderer, FakeStream
from naiad.chat.channels import TAGS, channels_for, marks_of
from naiad.chat.output import Output
from naiad.chat.tool_formats import FORMATS
from naiad.config import Config
from naiad.engine.base import CoreJob
from naiad.native.model import Model
from naiad.service.controls import MOST_KNOWN, Controls
from naiad.service.service import Service
from naiad.types import (
    ChatMessage,
    ChatPrompt,
    Completion,
    FinishReason,
    GenerateRequest,
    SamplingParams,
    TextPrompt,
    Tool,
)
from text_engine import EOG, PIECES, TextExecutor, TextVocab, make_core, run_all

pytestmark = pytest.mark.usefixtures("steady_clock")

#: A vocabulary of bytes and these.
CONTROLS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|end|>", "[TOOL_CALLS]",
            "[ARGS]", "<|channel|>", "<|message|>", "<|start|>")  # fmt: skip
HI = (ChatMessage("user", "Hi"),)
TOOL = Tool("add")


class VocabEngine(FakeEngine):
    """An engine whose model writes `answer`; its control tokens have text only where asked for."""

    def __init__(self, answer: str, template: str, controls: tuple[str, ...] = CONTROLS) -> None:
        super().__init__(self._say)
        self.answer = answer
        self.controls = controls
        self.n_asked = 0
        assert self.model is not None
        self.model = msgspec.structs.replace(self.model, chat_template=template)

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = []
        while text:
            mark = next((one for one in self.controls if text.startswith(one)), None)
            ids += [256 + CONTROLS.index(mark)] if mark else list(text[0].encode())
            text = text[len(mark or "_") :]
        return ids

    def _say(self, stream: FakeStream) -> None:
        shown = stream.job.shown
        for token in self._tokens(self.answer):
            is_shown = token < 256 or shown is None or token in shown
            stream.put(self._piece(token) if is_shown else b"")
        stream.end(FinishReason.STOP)

    def _piece(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else CONTROLS[token - 256].encode()

    async def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        self.n_asked += 1
        return self._tokens(text)

    async def detokenize(self, ids: list[int], *, special: bool = True) -> bytes:
        return b"".join(self._piece(one) for one in ids if special or one < 256)


async def answer(engine: VocabEngine, *, tools: bool = True, **changes: Any) -> Completion:
    prompt = ChatPrompt(HI, tools=(TOOL,) if tools else (), is_split=True)
    request = GenerateRequest(**{"prompt": prompt, **changes})
    service = Service(engine, Config(), FakeRenderer())
    async with service.generate(request, ALICE) as generation:
        return await generation.whole()


CALL = '{"name": "add", "arguments": {"a": 1}}'


@pytest.mark.parametrize("controls", [CONTROLS, (), CONTROLS[:2], CONTROLS[2:]])
@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            "<think></think><tool_call>{{ tools }}",
            f"<think>why</think>so<tool_call>{CALL}</tool_call>",
        ),
        (
            "<think></think>[TOOL_CALLS]{{ tools }}",
            '<think>why</think>so[TOOL_CALLS]add[ARGS]{"a": 1}',
        ),
        (
            "<|start|><|channel|>analysis<|message|>",
            "<|channel|>analysis<|message|>why<|end|><|start|>assistant<|channel|>final<|message|>so"
            '<|end|><|start|>assistant<|channel|>commentary to=functions.add<|message|>{"a": 1}',
        ),
    ],
)
async def test_marks_are_read_be_they_control_tokens_or_not(
    template: str, said: str, controls: tuple[str, ...]
) -> None:
    told = await answer(VocabEngine(said, template, controls))
    assert (told.reasoning, told.text) == ("why", "so")
    [call] = told.tool_calls
    assert (call.name, msgspec.json.decode(call.arguments)) == ("add", {"a": 1})


async def test_marks_that_mean_nothing_where_they_stand_are_shown_to_nobody() -> None:
    said = "<think>a<tool_call>b</think>x</tool_call>y</think>z<tool_call>no call<|end|>"
    told = await answer(VocabEngine(said, "<think><tool_call>{{ tools }}"))
    assert not any(mark in told.text + told.reasoning for mark in CONTROLS)
    assert told.text.endswith("xyzno call")
    written = await answer(VocabEngine("a</think>b", "<think>", ()))  # letters, not a mark
    assert written.text == "a</think>b"


async def test_only_marks_that_the_format_needs_are_asked_for() -> None:
    engine = VocabEngine("<think>why</think>so<tool_call>", "<think><tool_call>{{ tools }}")
    told = await answer(engine, tools=False)
    assert (told.reasoning, told.text) == ("why", "so")
    assert engine.streams[1].job.shown == (256, 257)
    raw = await answer(engine, prompt=ChatPrompt(HI))
    assert raw.text == "<think>why</think>so"  # not split off: the text has its tags
    assert (await answer(engine, prompt=TextPrompt("Hi"))).text == "whyso"
    everything = await answer(engine, prompt=TextPrompt("Hi"), shows_controls=True)
    assert everything.text == engine.answer


async def test_the_engine_is_asked_once_for_each_mark_and_model() -> None:
    engine = VocabEngine("", "")
    assert engine.model is not None
    controls = Controls(engine)
    for _ in range(2):
        found = await controls.ids(("<think>", "[THINK]"), engine.model)
        assert found == {"<think>": 256}
    assert engine.n_asked == 2
    await controls.ids(("<think>",), msgspec.structs.replace(engine.model))  # a new worker
    assert engine.n_asked == 3


async def test_the_partial_text_of_a_chat_is_what_its_user_sees() -> None:
    engine = VocabEngine("", "<think><tool_call>{{ tools }}")
    engine.script = lambda stream: stream.put(f"<think>why</think>so<tool_call>{CALL}")
    service = Service(engine, Config(), FakeRenderer())
    prompt = ChatPrompt(HI, tools=(TOOL,), is_split=True)
    async with service.generate(GenerateRequest(prompt, handle="K"), ALICE) as generation:
        for _ in range(2):
            await anext(generation)  # the reasoning, and the answer's text
        assert service.partial_text(ALICE, "K") == "so"


def test_every_format_says_which_marks_it_needs() -> None:
    for tags in TAGS:
        assert tags.opening.startswith(tags.marks[0])
    for form in FORMATS:
        prompt = ChatPrompt(HI, tools=(TOOL,))
        assert form.shown in marks_of(prompt, form.shown)
        assert marks_of(ChatPrompt(HI), form.shown) == ()
        assert channels_for(prompt, form.shown, "", form.marks) is not None


@pytest.mark.parametrize("sizes", [[], [1] * 20, [3, 4, 2]])
def test_a_hidden_mark_is_found_however_it_is_cut(sizes: list[int]) -> None:
    output = Output(lambda: "id", hidden=("<a>", "<ab>"))
    for piece in cut("x<a>y<ab><b<a", sizes):
        output.text(piece)
    output.reasoning("<a>r<")
    output.close()
    told: dict[str, str] = {}
    for event in output.take():
        kind = type(event).__name__
        told[kind] = told.get(kind, "") + event.text  # type: ignore[union-attr]
    assert told == {"TextDelta": "xy<b<a", "ReasoningDelta": "r<"}


def test_hidden_marks_are_no_part_of_arguments_either() -> None:
    output = Output(lambda: "id", hidden=("<a>",))
    for text in ("<a>", '{"x": "<', "b", '">', "<"):  # the first belongs to no call
        output.arguments(text)
        if text == "<a>":
            output.call("f")
    output.arguments("a>")
    output.arguments("<")
    output.end_call()
    told = "".join(event.arguments for event in output.take())  # type: ignore[union-attr]
    assert told == '{"x": "<b"><'


async def test_a_control_token_may_be_a_stop_string() -> None:
    engine = VocabEngine("so<|start|>user", "")
    stops = ("<|start|>", "\nYou:", "<b>")
    told = await answer(engine, prompt=TextPrompt("Hi"), stop=stops)
    assert (told.text, told.finished.matched_stop) == ("so", "<|start|>")
    assert engine.n_asked == 2  # a stop without brackets is no control token
    assert (await answer(engine, prompt=TextPrompt("Hi"), stop=("user",))).text == "so"


async def test_what_is_known_of_marks_is_bounded() -> None:
    engine = VocabEngine("", "")
    controls = Controls(engine)
    assert engine.model is not None
    for n in range(2 * MOST_KNOWN):
        await controls.ids((f"<{n}>",), engine.model)
    assert len(controls._known) <= MOST_KNOWN


@pytest.mark.model
def test_a_real_vocabulary_has_control_tokens(starter: Path) -> None:
    model = Model(starter)
    try:
        [token] = model.vocab.encode("<|im_start|>", add_special=False, parse_special=True)
        assert model.vocab.decode([token], special=False) == b""
        assert model.vocab.decode([token], special=True) == b"<|im_start|>"
        assert model.vocab.infill is None
    finally:
        model.close()


# -- the engine's part --------------------------------------------------------------------------


class ControlVocab(TextVocab):
    """Its `the` is a control token."""

    the = PIECES.index("the")

    def piece(self, token: int, *, special: bool = False) -> bytes:
        if token == self.the and not special:
            return b""
        return super().piece(token, special=special)


@pytest.mark.parametrize(
    ("shown", "want"),
    [
        (frozenset[int](), b"ab ab"),
        (frozenset({ControlVocab.the}), b"abthe ab"),
        (None, b"abthe ab</s>"),
    ],
)
@pytest.mark.parametrize("banned", [(), ("zzz",)])
def test_what_shows(
    shown: frozenset[int] | None, want: bytes, banned: tuple[str, ...], monkeypatch: Any
) -> None:
    monkeypatch.setattr("text_engine.TextVocab", ControlVocab)
    said = [*map(PIECES.index, ("ab", "the", " ", "ab")), EOG]
    core = make_core(Rehearsed(said))
    sampling = SamplingParams(temperature=0, banned_phrases=banned)
    items = run_all(core, [CoreJob(1, (0, 1), 9, sampling, shown=shown)])[1]
    assert b"".join(item.data for item in items) == want
    assert [token for item in items for token in item.tokens] == said
    assert items[-1].finish is FinishReason.STOP


class Rehearsed(TextExecutor):
    """Says these tokens behind a prompt of two."""

    def __init__(self, tokens: list[int]) -> None:
        super().__init__()
        self.tokens = tokens
        assert isinstance(self.memory, FakeMemory)

    def _row(self, run: Any, back: int) -> Any:
        row = super()._row(run, back)
        place = max(self.memory.sequences[run.slot]) - back - 1
        row[self.tokens[place]] = 100
        return row

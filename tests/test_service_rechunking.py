"""However the bytes of an answer are cut into tokens, and tokens into batches, it says the same:
text, reasoning, calls, and why it ended. Over the whole service, in every format."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import ALICE, FakeEngine, FakeStream, SteppedStream, make_service, request
from naiad.chat.channels import TAGS
from naiad.chat.harmony import MARKS
from naiad.chat.tool_formats import FORMATS
from naiad.types import ChatMessage, ChatPrompt, FinishReason, Tool

HI = (ChatMessage("user", "Hi"),)
TOOLS = (Tool("add"), Tool("get_weather"))
CALL = '{"name": "add", "arguments": {"a": "}é😀"}}'
HARMONY_BITS = ("analysis", "final", "commentary", " to=functions.add", "assistant", "json", "{}")
#: Templates that show a format of calls and tags of reasoning, and the marks that answers may hold.
FORMS: dict[str, tuple[str, tuple[str, ...]]] = {
    **{form.name: (f"{form.shown}<think></think>", form.marks) for form in FORMATS},
    **{tags.opening: (f"{tags.opening}{tags.closing}", (tags.closing,)) for tags in TAGS},
    "plain": ("<think></think>", ("```json\n", "```")),
    "harmony": ("<|start|><|channel|>final<|message|><|end|>", (*MARKS, *HARMONY_BITS)),
}
WORDS = ("so", " ", "\n", "\n\n", "😀", "é", "<", "STOP", "ST", '{"name": "add"', "}", CALL)
STOPS = ("STOP", "T\n", "😀}", "\n\n", '"}', "<t")


class Engine(FakeEngine):
    """Streams that come in given pieces. controls: marks that are one token each."""

    def __init__(self, template: str, controls: tuple[str, ...]) -> None:
        super().__init__(self._say, SteppedStream)
        self.pieces: list[bytes] = []
        self.end = FinishReason.STOP
        self._controls = controls
        assert self.model is not None
        self.model = msgspec.structs.replace(self.model, chat_template=template)

    def _say(self, stream: FakeStream) -> None:
        for piece in self.pieces:
            stream.put(piece)
        stream.end(self.end)

    async def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        if parse_special and text in self._controls:
            return [256 + self._controls.index(text)]
        return list(text.encode())

    async def detokenize(self, ids: list[int], *, special: bool = True) -> bytes:
        return bytes(one for one in ids if one < 256)


@dataclass(frozen=True)
class Asked:
    """What is asked of a model, and what it says."""

    form: str
    said: str
    stops: tuple[str, ...]
    has_tools: bool
    has_one_call: bool
    has_controls: bool
    keeps_stop: bool
    end: FinishReason

    async def told(self, places: list[int]) -> object:
        """The answer when its bytes are cut there."""
        template, marks = FORMS[self.form]
        engine = Engine(template, marks if self.has_controls else ())
        data = self.said.encode()
        edges = [0, *sorted({place for place in places if 0 < place < len(data)}), len(data)]
        engine.pieces = [data[a:b] for a, b in pairwise(edges)]
        engine.end = self.end
        prompt = ChatPrompt(
            HI,
            tools=TOOLS if self.has_tools else (),
            has_one_call=self.has_one_call,
            is_split=True,
        )
        asked = request(prompt=prompt, stop=self.stops, keeps_stop=self.keeps_stop)
        async with make_service(engine).generate(asked, ALICE) as generation:
            whole = await generation.whole()
        calls = [(call.name, call.arguments) for call in whole.tool_calls]
        end = whole.finished
        return whole.text, whole.reasoning, calls, end.reason, end.matched_stop, end.n_tool_calls


@st.composite
def conversations(draw: st.DrawFn) -> Asked:
    form = draw(st.sampled_from(sorted(FORMS)))
    opening = draw(st.sampled_from(["", FORMS[form][0] if form in FORMS else ""]))
    bits = st.sampled_from((*FORMS[form][1], *WORDS, "<think>", "</think>", "\nwhy"))
    return Asked(
        form,
        opening + "".join(draw(st.lists(bits, max_size=9))),
        tuple(draw(st.lists(st.sampled_from(STOPS), max_size=2))),
        has_tools=draw(st.booleans()),
        has_one_call=draw(st.booleans()),
        has_controls=draw(st.booleans()),
        keeps_stop=draw(st.booleans()),
        end=draw(st.sampled_from([FinishReason.STOP, FinishReason.LENGTH])),
    )


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


@settings(max_examples=100, deadline=None)  # three generations each
@given(asked=conversations(), places=st.lists(st.integers(1, 80), max_size=12))
def test_any_cutting_says_the_same(runner: asyncio.Runner, asked: Asked, places: list[int]) -> None:
    whole = runner.run(asked.told([]))
    assert runner.run(asked.told(places)) == whole
    assert runner.run(asked.told(list(range(len(asked.said.encode()))))) == whole


@pytest.mark.parametrize("kind", [FakeStream, SteppedStream])
@pytest.mark.parametrize("end", [FinishReason.STOP, FinishReason.LENGTH, None])
async def test_tokens_beyond_the_one_call_do_not_count(
    kind: type[FakeStream], end: FinishReason | None
) -> None:
    """The engine may be ahead of who reads it, by a token or by all of them."""
    call = f"<tool_call>\n{CALL}".encode()

    def script(stream: FakeStream) -> None:
        for byte in call + b"\n</tool_call> and so on":
            stream.put(bytes([byte]))
        if end is not None:
            stream.end(end)

    engine = FakeEngine(script, kind)
    assert engine.model is not None
    engine.model = msgspec.structs.replace(engine.model, chat_template="<tool_call>")
    prompt = ChatPrompt(HI, tools=TOOLS, has_one_call=True)
    async with make_service(engine).generate(request(prompt=prompt), ALICE) as generation:
        whole = await generation.whole()
    assert [one.name for one in whole.tool_calls] == ["add"]
    assert whole.finished.reason is FinishReason.STOP
    assert whole.finished.usage.completion_tokens == len(call)

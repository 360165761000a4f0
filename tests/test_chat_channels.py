"""Reasoning told apart from the answer: by the template's tags, whatever the pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel_cases import Folded, cut, fold, read
from naiad.chat.channels import TAGS, Channels, channels_for, tags_of
from naiad.chat.source import split_first
from naiad.types import ChatMessage, ChatPrompt, ReasoningDelta, TextDelta, Tool

THINK = TAGS[0]
HI = ChatMessage("user", "Hi")


def told(text: str, *, inside: bool = False) -> tuple[str, str]:
    answer = read(Channels(THINK, begins_inside=inside), text)
    return answer.reasoning, answer.text


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>why</think>so", "why", "so"),
        ("<think>\nwhy\n</think>\n\nso\n", "why", "so\n"),
        ("\n <think>\n\n</think>\n\nso", "", "so"),
        ("plain", "", "plain"),
        ("  plain ", "", "  plain "),
        ("", "", ""),
        (" \n", "", " \n"),
        ("<thin", "", "<thin"),
        ("<thing> is a tag", "", "<thing> is a tag"),
        ("so <think>not</think> here", "", "so <think>not</think> here"),
        ("<think>cut off </thi", "cut off </thi", ""),
        ("<think>cut off \n", "cut off", ""),
        ("<think>a < b </ c</think>so", "a < b </ c", "so"),
        ("<think>a\n\nb</think>so\n\nand", "a\n\nb", "so\n\nand"),
        ("<think>你好😀</think>😀", "你好😀", "😀"),
    ],
)
def test_tags_are_told_apart_and_dropped(text: str, reasoning: str, answer: str) -> None:
    assert told(text) == (reasoning, answer)


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("why</think>so", "why", "so"),
        ("\nwhy\n</think>\nso", "why", "so"),
        ("<think>again</think>so", "again", "so"),
        ("never ends", "never ends", ""),
    ],
)
def test_reasoning_that_the_prompt_opened(text: str, reasoning: str, answer: str) -> None:
    assert told(text, inside=True) == (reasoning, answer)


def test_text_is_not_held_back_longer_than_it_must_be() -> None:
    channels = Channels(THINK)
    assert channels.feed("<thi", 1) == []
    assert channels.feed("nk>We", 2) == [ReasoningDelta("We", 2)]
    assert channels.feed(" see<", 1) == [ReasoningDelta(" see", 1)]
    assert channels.feed("b", 1) == [ReasoningDelta("<b", 1)]
    assert channels.feed("</think>", 1) == []
    assert channels.feed("So", 1) == [TextDelta("So", 1)]
    assert channels.feed(" ", 1) == [TextDelta(" ", 1)]
    assert channels.finish() == []


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<", "thi", "\n", " ", "a", "😀", "</t"])),
    st.lists(st.integers(1, 4), max_size=8),
    st.booleans(),
)
def test_any_cutting_says_the_same(parts: list[str], sizes: list[int], inside: bool) -> None:
    text = "".join(parts)
    whole = read(Channels(THINK, begins_inside=inside), text)
    pieces = read(Channels(THINK, begins_inside=inside), *cut(text, sizes))
    letters = read(Channels(THINK, begins_inside=inside), *text)
    assert whole == pieces == letters


@pytest.mark.parametrize("tags", TAGS, ids=lambda tags: tags.opening)
def test_every_kind_of_tags(tags: object) -> None:
    for one in TAGS:
        answer = read(Channels(one), *f"{one.opening}\nwhy\n{one.closing}\nso")
        assert (answer.reasoning, answer.text) == ("why", "so")


def test_tags_are_those_that_the_template_shows() -> None:
    assert tags_of(None) is None
    assert tags_of("{{ messages }}") is None
    assert tags_of("{{ m.content.split('</think>')[-1] }}") == THINK
    found = tags_of("{{ '<|channel>thought' }}")
    assert found is not None
    assert found.closing == "<channel|>"


# -- which channels a request gets ----------------------------------------------------------------

TEMPLATE = "{{ m }}<think>\n{{ r }}</think>"


def made(prompt: ChatPrompt, rendered: str = "...", text: str = "why</think>so") -> Folded | None:
    channels = channels_for(prompt, TEMPLATE, rendered)
    return None if channels is None else read(channels, text)


def test_who_does_not_ask_gets_the_text_as_it_is() -> None:
    assert channels_for(ChatPrompt((HI,)), TEMPLATE, "<think>") is None
    assert channels_for(ChatPrompt((HI,), is_split=True), "{{ m }}", "<think>") is None


def test_a_prompt_that_ends_with_the_opening_tag_has_begun_the_reasoning() -> None:
    asked = ChatPrompt((HI,), is_split=True)
    assert made(asked, "<|a|><think>\n") == Folded(reasoning="why", text="so")
    assert made(asked, "<|a|>") == Folded(text="why</think>so")
    assert made(asked, "<think>\n\n</think>\n\n") == Folded(text="why</think>so")


def test_a_continued_answer_goes_on_where_it_was() -> None:
    def continued(begun: str, text: str) -> Folded | None:
        last = ChatMessage("assistant", begun)
        return made(ChatPrompt((HI, last), continue_final=True, is_split=True), begun, text)

    assert continued("<think>Well", ", why</think>so") == Folded(reasoning=", why", text="so")
    assert continued("It is", "<think>") == Folded(text="<think>")
    assert continued("", "<think>why</think>so") == Folded(reasoning="why", text="so")


def test_tools_are_looked_for_only_when_there_are_some() -> None:
    asked = ChatPrompt((HI,), tools=(Tool("f"),))
    call = '{"name": "f", "arguments": {}}'
    found = made(asked, text=call)
    assert found is not None
    assert [one.name for one in found.calls] == ["f"]
    assert made(ChatPrompt((HI,), is_split=True), text=call) == Folded(text=call)


@given(st.text("<>ab", max_size=12))
def test_split_first_loses_nothing(text: str) -> None:
    before, mark, after = split_first(text, ("<a>", "<ab>", "b<"))
    assert before + (mark or "") + after == text


def test_fold_counts_nothing_twice() -> None:
    assert fold([TextDelta("a", 1), TextDelta("b", 1)]) == Folded(text="ab")

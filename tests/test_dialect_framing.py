"""Frames: one event, one line, whatever is in the text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.dialects.framing import Template, sse, to_line

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def test_frames() -> None:
    assert sse(b"{}") == b"data: {}\n\n"
    assert sse(b"{}", "message") == b"event: message\ndata: {}\n\n"


@given(TEXT | st.sampled_from(["\u0085", "a\u2028b", "\u2029\r\n", "\x0b\x0c\x1c\x1d\x1e"]))
def test_json_is_one_line_for_every_reader(text: str) -> None:
    line = to_line({"text": text}).decode()
    assert line.splitlines() == [line]
    assert json.loads(line) == {"text": text}


def test_other_characters_are_not_escaped() -> None:
    assert to_line("é你😀") == '"é你😀"'.encode()


@given(TEXT)
def test_a_filled_template_is_the_event_encoded_at_once(text: str) -> None:
    shape = {"a": [1, {"b": Template.HOLE}], "c": None}
    expected = sse(to_line({"a": [1, {"b": text}], "c": None}), "e")
    assert Template(shape, "e").fill(text) == expected


def test_a_template_needs_a_hole() -> None:
    with pytest.raises(ValueError, match="no place"):
        Template({"a": 1})

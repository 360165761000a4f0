"""Stop strings: nothing leaks, nothing is lost, whatever the cut."""

from __future__ import annotations

import codecs
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from naiad.text import StopMatcher, StreamText

#: A small alphabet, so that stops overlap, nest and repeat.
TEXT = st.text("ab你", max_size=24)
STOPS = st.lists(st.text("ab你", min_size=1, max_size=6), max_size=5)
PLACES = st.lists(st.integers(0, 24), max_size=6)


def oracle(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The rule, naively: the longest of the stops that are complete at the first character."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


def held_by_rule(text: str, stops: list[str]) -> int:
    """Length of the longest suffix that is a proper prefix of some stop."""
    return max(
        (n for stop in stops for n in range(len(stop)) if n and text.endswith(stop[:n])), default=0
    )


def run(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    matcher = StopMatcher(stops)
    released = [matcher.feed(piece)[0] for piece in pieces]
    released.append(matcher.finish())
    return "".join(released), matcher.matched


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@given(TEXT, STOPS, PLACES)
@example("aabaab你", ["aabaaa", "aab你"], [3, 4])
@example("abab", ["aba你", "bab"], [1, 2, 3])
def test_any_cut_gives_what_the_oracle_says(text: str, stops: list[str], places: list[int]) -> None:
    assert run(cut(text, places), stops) == oracle(text, stops)


@given(TEXT, STOPS)
def test_whole_and_char_by_char_agree(text: str, stops: list[str]) -> None:
    assert run([text], stops) == run(list(text), stops) == oracle(text, stops)


@given(TEXT, STOPS)
def test_exactly_the_ambiguous_suffix_is_held_back(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    fed, released = "", ""
    for char in text:
        fed += char
        piece, matched = matcher.feed(char)
        released += piece
        if matched is not None:
            return
        assert len(fed) - len(released) == held_by_rule(fed, stops)


@given(TEXT, STOPS, TEXT)
def test_trailing_text_after_a_match_is_dropped(text: str, stops: list[str], more: str) -> None:
    before, stop = oracle(text, stops)
    if stop is not None:
        assert run([text, more], stops) == (before, stop)


def test_long_stop_is_held_back_over_many_chunks() -> None:
    stop = "<|start_header_id|>user<|end_header_id|>"
    matcher = StopMatcher([stop])
    assert matcher.feed("Hello") == ("Hello", None)
    assert [matcher.feed(char) for char in stop[:-1]] == [("", None)] * (len(stop) - 1)
    assert matcher.feed(stop[-1]) == ("", stop)


def test_partial_stop_is_released_when_it_fails_and_at_the_end() -> None:
    matcher = StopMatcher(["\nUser:"])
    assert matcher.feed("a\nUs") == ("a", None)
    assert matcher.feed("ual\nU") == ("\nUsual", None)
    assert matcher.finish() == "\nU"
    assert matcher.finish() == ""


def test_longest_of_those_complete_at_once_is_reported() -> None:
    assert StopMatcher(["User:", "\nUser:"]).feed("x\nUser:") == ("x", "\nUser:")


def test_no_stops_and_empty_stops_change_nothing() -> None:
    assert run(["a", "", "b"], []) == ("ab", None)
    assert run(["a", "b"], ["", ""]) == ("ab", None)


@pytest.mark.parametrize("length", [1, 1024])
def test_stop_of_any_length(length: int) -> None:
    assert run(["x" * 3000, "y" * length, "z"], ["y" * length]) == ("x" * 3000, "y" * length)


class CountingStr(str):
    """A stop that counts how often one of its characters is read."""

    reads = 0

    def __getitem__(self, key: object) -> str:
        type(self).reads += 1
        return super().__getitem__(key)  # type: ignore[index]


def test_work_per_character_does_not_grow_with_what_is_held() -> None:
    CountingStr.reads = 0
    matcher = StopMatcher([CountingStr("a" * 1000 + "b")])
    for _ in range(5000):
        matcher.feed("a")
    assert CountingStr.reads < 4 * 5000 + 1000


def test_stream_text_cuts_inside_characters_and_stops() -> None:
    stream = StreamText(["。终"])
    data = "你好。终了".encode()
    pieces = [stream.feed(data[i : i + 1]) for i in range(len(data))]
    assert "".join(text for text, _ in pieces) == "你好"
    assert stream.matched == "。终"
    assert stream.finish() == ""


def test_stream_text_without_stops_passes_text_through() -> None:
    stream = StreamText()
    assert stream.feed("é".encode()[:1]) == ("", None)
    assert stream.feed("é!".encode()[1:]) == ("é!", None)
    assert stream.finish() == ""
    assert stream.matched is None


def test_stream_text_flushes_both_machines_at_the_end() -> None:
    stream = StreamText(["END"])
    assert stream.feed(b"xE") == ("x", None)
    assert stream.feed(b"N\xf0") == ("", None)
    assert stream.finish() == "EN"


@given(st.binary(max_size=24), st.lists(st.text(max_size=3), max_size=3), PLACES)
def test_stream_text_equals_decode_then_stop(
    data: bytes, stops: list[str], places: list[int]
) -> None:
    stream = StreamText(stops)
    edges = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    text = "".join(stream.feed(data[a:b])[0] for a, b in pairwise(edges))
    assert (text + stream.finish(), stream.matched) == oracle(
        codecs.getincrementaldecoder("utf-8")("replace").decode(data), stops
    )

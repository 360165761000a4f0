"""Bytes to text: the same as decoding the whole, however they are cut."""

from __future__ import annotations

import codecs
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from naiad.text import Assembler

PLACES = st.lists(st.integers(0, 40), max_size=8)
#: Mostly things that are nearly UTF-8: pieces of characters, surrogates, overlong forms.
BYTES = st.lists(
    st.one_of(
        st.text(max_size=4).map(lambda text: text.encode("utf-8", "replace")),
        st.sampled_from([b"\xf0\x9f", b"\xe2\x82", b"\x80", b"\xed\xa0\x80", b"\xc0\xaf", b"\xff"]),
        st.binary(max_size=4),
    ),
    max_size=8,
).map(b"".join)


def assemble(pieces: list[bytes]) -> str:
    assembler = Assembler()
    return "".join(map(assembler.feed, pieces))


def decoded(data: bytes) -> str:
    """The whole, without a character that its end has cut."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(data)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@given(BYTES, PLACES)
@example(b"\xf0\x9f\x98", [1, 2])
@example(b"\xe4\xbd\xf0\x9f\x98\x80", [2, 3])
def test_any_cut_decodes_like_the_whole(data: bytes, places: list[int]) -> None:
    assert assemble(cut(data, places)) == decoded(data)


@given(BYTES)
def test_byte_by_byte_decodes_like_the_whole(data: bytes) -> None:
    single = [data[i : i + 1] for i in range(len(data))]
    assert assemble(single) == decoded(data)


@pytest.mark.parametrize("char", ["é", "你", "😀", "\U0010ffff"])
def test_split_character_waits_for_its_last_byte(char: str) -> None:
    assembler = Assembler()
    *head, last = (bytes([byte]) for byte in char.encode())
    assert [assembler.feed(byte) for byte in head] == [""] * len(head)
    assert assembler.feed(last) == char


def test_bytes_that_cannot_become_a_character_do_not_wait() -> None:
    assembler = Assembler()
    assert assembler.feed(b"\xff") == "\ufffd"
    assert assembler.feed(b"\xf0\x9f") == ""
    assert assembler.feed(b"ok") == "\ufffdok"


def test_a_character_that_the_end_has_cut_is_left_out() -> None:
    assert assemble([b"a\xe4\xbd"]) == "a"
    assert assemble([b"a\xe4\xbd", b"b"]) == "a\ufffdb"


def test_streams_do_not_share_state() -> None:
    first, second = Assembler(), Assembler()
    first.feed(b"\xf0\x9f")
    assert second.feed(b"x") == "x"
    assert first.feed(b"\x98\x80") == "😀"

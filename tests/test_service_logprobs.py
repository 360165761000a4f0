"""Which logprobs go with which text: held back, cut by a stop, in channels."""

from __future__ import annotations

import itertools
import random

import pytest

from naiad.service.logprobs import Alignment, ChannelAlignment
from naiad.text import StreamText
from naiad.types import TokenLogprob


def told(data: bytes, token: int = 0) -> TokenLogprob:
    return TokenLogprob(token, data, -1.0)


def run(
    pieces: list[bytes], stops: tuple[str, ...] = (), step: int = 1
) -> list[tuple[str, list[int]]]:
    """The pieces of text and the numbers of the tokens that came with each."""
    text, alignment, out = StreamText(stops), Alignment(), []
    for start in range(0, len(pieces), step):
        batch = pieces[start : start + step]
        released, stop = text.feed(b"".join(batch))
        for place, piece in enumerate(batch):
            alignment.begins(told(piece, start + place))
        out.append((released, [one.token for one in alignment.released(released)]))
        if stop is not None:
            return out
    released = text.finish()
    return [*out, (released, [one.token for one in alignment.released(released)])]


def test_each_token_comes_with_its_text() -> None:
    assert run([b"Hel", b"lo", b"!"]) == [("Hel", [0]), ("lo", [1]), ("!", [2]), ("", [])]


def test_parts_of_a_character_come_with_the_character() -> None:
    smile = "😀".encode()
    assert run([smile[:1], smile[1:3], smile[3:] + b"!", b""]) == [
        ("", []), ("", []), ("😀!", [0, 1, 2]), ("", []), ("", []),
    ]  # fmt: skip


def test_half_a_character_at_the_end_is_no_text_and_not_told_of() -> None:
    assert run([b"a", b"\xf0\x9f"]) == [("a", [0]), ("", []), ("", [])]


def test_held_text_takes_its_tokens_with_it() -> None:
    assert run([b"a S", b"T", b"ART"], ("STOP",)) == [
        ("a ", [0]), ("", []), ("START", [1, 2]), ("", []),
    ]  # fmt: skip


def test_the_tokens_of_a_stop_are_not_told_of() -> None:
    assert run([b"Hello", b" ST", b"OP", b"x"], ("STOP",)) == [
        ("Hello", [0]), (" ", [1]), ("", []),
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_however_the_steps_are_cut_the_same_tokens_are_told_of_in_order(seed: int) -> None:
    rng = random.Random(seed)
    data = "aé😀 bST STOP nothing".encode()
    cuts = sorted({0, len(data), *rng.sample(range(len(data)), 9)})
    pieces = [data[a:b] for a, b in itertools.pairwise(cuts)]
    for stops in ((), ("STOP",), ("ST",)):
        runs = [run(pieces, stops, step) for step in (1, 2, 5)]
        texts = {"".join(text for text, _ in one) for one in runs}
        tokens = [[t for _, some in one for t in some] for one in runs]
        assert len(texts) == 1
        assert tokens[0] == tokens[1] == tokens[2] == list(range(len(tokens[0])))
        end = len(texts.pop().encode())
        assert len(tokens[0]) == sum(start < end for start in cuts[:-1])


def test_channels_get_the_tokens_of_their_own_text() -> None:
    alignment = ChannelAlignment()
    alignment.begins([told(b"<think>", 0), told(b"Let", 1), told(b" me", 2)])
    assert [one.token for one in alignment.told("Let me")] == [1, 2]
    alignment.begins([told(b"</think>", 3), told(b"\n\nSo", 4), told(b" <", 5)])
    assert [one.token for one in alignment.told("So")] == [4]
    alignment.begins([told(b"a>", 6)])
    assert [one.token for one in alignment.told(" <a>")] == [5, 6]
    alignment.begins([told(b"\xff", 7)])
    assert [one.token for one in alignment.told("\ufffd")] == [7]

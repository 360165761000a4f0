"""Reading a body: what is JSON, what is half of it, and what the field's reader may refuse."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from starlette.types import Message, Receive

from naiad.errors import InvalidJson, InvalidRequest, PayloadTooLarge
from naiad.http.body import LARGE_BYTES, MOST_PARTS, decode_object, read_object
from naiad.http.structure import StructureCount


def test_a_body_is_an_object_and_none_is_an_empty_one() -> None:
    assert decode_object(b"") == decode_object(b"\xef\xbb\xbf") == {}
    assert decode_object(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}
    assert decode_object(b'{"a": [1, 2.0, "\xc3\xa9"]}') == {"a": [1, 2.0, "é"]}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"a=b&c=d", "not valid JSON"),
        (b'{"a": 1', "truncated"),
        (b'{"a": 1, "top_p": NaN}', "'top_p' is NaN, which JSON does not know: send a number"),
        (b'{"a": -Infinity}', "'a' is -Infinity, which"),
        (b'{"a": 1e100, "b": 1e999}', "'b' is a number too large to be read"),
        (b'{"a": NaN, "b": }', "not valid JSON"),
        (b'{"a": 1e999, "b": NaN}', "'a' is a number too large to be read"),
        (b'{"a": {"b": 1e999}}', "'b' is a number too large to be read"),
        (b'{"a": ' + b"9" * 5000 + b"}", "'a' is a number too large to be read"),
        (b'{"a": [NaN]}', "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        ('{"a": 1}'.encode("utf-16"), "in UTF-16: send it in UTF-8"),
        ('{"a": 1}'.encode("utf-16-le"), "not valid JSON"),
        (b'{"a": "tab\there"}', "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "must be a JSON object, not an array"),
        (b"null", "not null"),
    ],
)
def test_what_is_no_object_is_refused_with_a_reason(body: bytes, told: str) -> None:
    with pytest.raises(InvalidJson, match=told) as refused:
        decode_object(body)
    assert refused.value.message.endswith(".")
    assert not refused.value.message.endswith("..")


@pytest.mark.parametrize("half", [b"\\ud83c", b"\\uDE00", b"\\ud83c\\u0041"])
def test_half_an_emoji_is_called_that(half: bytes) -> None:
    name = half[:6].decode().lower().replace("\\", r"\\")
    with pytest.raises(InvalidJson, match=rf"{name} is half a character"):
        decode_object(b'{"prompt": "ab' + half + b'"}')


def test_a_field_that_is_no_number_is_named() -> None:
    with pytest.raises(InvalidJson) as refused:
        decode_object(b'{"prompt": "say \\"x\\": NaN", "temperature": NaN}')
    assert refused.value.param == "temperature"


def test_no_second_look_is_taken_at_a_large_body() -> None:
    text = b"x" * LARGE_BYTES
    with pytest.raises(InvalidJson, match="truncated"):
        decode_object(b'{"prompt": "' + text + b'\\ud83c"}')


# -- what a large body is made of ---------------------------------------------------------------


def parts_of(value: Any) -> tuple[int, int]:
    """Objects, arrays and strings; commas."""
    if isinstance(value, str):
        return 1, 0
    if not isinstance(value, dict | list):
        return 0, 0
    inner = [*value, *value.values()] if isinstance(value, dict) else value
    found = [parts_of(one) for one in inner]
    return 1 + sum(n for n, _ in found), max(len(value) - 1, 0) + sum(n for _, n in found)


def random_value(rng: random.Random, depth: int) -> Any:
    text = "".join(rng.choices('a"\\{}[],é\n', k=rng.randint(0, 6)))
    if depth == 0 or rng.random() < 0.3:
        return rng.choice([text, 1.5, None, True])
    inner = [random_value(rng, depth - 1) for _ in range(rng.randint(0, 4))]
    return inner if rng.random() < 0.5 else {text + str(i): one for i, one in enumerate(inner)}


def test_parts_are_counted_however_the_text_is_cut() -> None:
    rng = random.Random(5)
    for _ in range(200):
        value = random_value(rng, 4)
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode()
        count, left = StructureCount(), text
        while left:
            n = rng.randint(1, 9)
            count.feed(left[:n])
            left = left[n:]
        n_parts, n_commas = parts_of(value)
        assert count.n_parts == n_parts + n_commas // 16


def receiving(data: bytes, n_pieces: int) -> tuple[Receive, list[bytes]]:
    """An ASGI receive, and the pieces that it has not given away yet."""
    size = len(data) // n_pieces + 1
    pieces = [data[i : i + size] for i in range(0, len(data), size)]

    async def receive() -> Message:
        body = pieces.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(pieces)}

    return receive, pieces


async def test_a_large_body_of_many_small_things_is_refused_before_all_of_it_is_there() -> None:
    body = b'{"guided_json": {"enum": [' + b"[]," * (3 * MOST_PARTS) + b"[]]}}"
    receive, left = receiving(body, 30)
    with pytest.raises(PayloadTooLarge, match="more than 100000 objects, arrays and strings"):
        await read_object({"headers": []}, receive, 10**8)
    assert len(left) in range(15, 22), "a third of it is too much"


@pytest.mark.parametrize("n_pieces", [1, 5])
async def test_a_large_body_of_long_texts_is_read(n_pieces: int) -> None:
    body = {"prompt": 'say "[{,}]" ' * (LARGE_BYTES // 5), "ids": list(range(50_000))}
    receive, _ = receiving(json.dumps(body).encode(), n_pieces)
    assert await read_object({"headers": []}, receive, 10**8) == body


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "gzip, identity", "\x1b[31m"])
async def test_a_compressed_body_is_called_that(coding: str) -> None:
    receive, left = receiving(b'{"a": 1}', 1)
    scope = {"headers": [(b"content-encoding", coding.encode("latin-1"))]}
    with pytest.raises(InvalidRequest, match="compressed") as refused:
        await read_object(scope, receive, 100)
    assert left, "nothing of it is read"
    assert refused.value.message.isprintable()
    plain = {"headers": [(b"content-encoding", b"Identity")]}
    assert await read_object(plain, receive, 100) == {"a": 1}

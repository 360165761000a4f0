"""Reading a body: what is JSON, what is half of it, and what the field's reader may refuse."""

from __future__ import annotations

import pytest

from naiad.errors import InvalidJson
from naiad.http.body import LARGE_BYTES, decode_object


def test_a_body_is_an_object_and_none_is_an_empty_one() -> None:
    assert decode_object(b"") == {}
    assert decode_object(b'{"a": [1, 2.0, "\xc3\xa9"]}') == {"a": [1, 2.0, "é"]}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"a=b&c=d", "not valid JSON"),
        (b'{"a": 1', "truncated"),
        (b'{"a": 1, "top_p": NaN}', "'top_p' is NaN, which JSON does not know: send a number"),
        (b'{"a": -Infinity}', "'a' is -Infinity, which"),
        (b'{"a": {"b": 1e999}}', "'b' is a number too large to be read"),
        (b'{"a": ' + b"9" * 5000 + b"}", "'a' is a number too large to be read"),
        (b'{"a": [NaN]}', "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        ('{"a": 1}'.encode("utf-16"), "not valid JSON"),
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

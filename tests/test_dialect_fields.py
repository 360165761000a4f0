"""Wire fields: what real clients send is taken, everything else is refused by name."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.dialects.fields import (
    MAX_INT,
    Fields,
    array,
    boolean,
    integer,
    listed,
    mapping,
    number,
    short_text,
    text,
    token_ids,
)
from naiad.errors import InvalidRequest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
READERS = [
    number(0, 1),
    integer(0, 9),
    integer(),
    boolean,
    text,
    short_text(3),
    array,
    mapping,
    token_ids(10),
]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5, 5),
        (5.0, 5),
        ("5", 5),
        ("5.0", 5),
        (" 7 ", 7),
        ("-1", -1),
        ("1e2", 100),
        (10**15, 10**15),
    ],
)
def test_integers(value: Any, expected: int) -> None:
    found = integer()("n", value)
    assert (found, type(found)) == (expected, int)


@pytest.mark.parametrize(
    "value",
    [5.5, "5.5", "five", "", "1_0", "0x10", True, [], {}, math.nan, math.inf, "nan", 10**400],
)
def test_no_integers(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="'n' must be an integer"):
        integer()("n", value)


@pytest.mark.parametrize(
    ("value", "expected"), [(0.7, 0.7), (1, 1.0), ("0.7", 0.7), (".5", 0.5), ("1", 1.0)]
)
def test_numbers(value: Any, expected: float) -> None:
    found = number(0, 2)("t", value)
    assert (found, type(found)) == (expected, float)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "nan", "Infinity", "1e999", True])
def test_nan_and_infinity_are_no_numbers(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="'t' must be a number"):
        number()("t", value)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, None), (None, 1), (None, None)])
def test_bounds_are_included_and_named(low: int | None, high: int | None) -> None:
    read = number(low, high)
    assert [read("t", value) for value in (0, 1)] == [0, 1]
    for value, bound in ((-0.1, low), (1.1, high)):
        if bound is not None:
            with pytest.raises(InvalidRequest, match=rf"{bound}.*, not {value}"):
                read("t", value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((value, True) for value in (True, 1, "true", "True", "1")),
        *((value, False) for value in (False, 0, "false", "0")),
    ],
)
def test_booleans(value: Any, expected: bool) -> None:
    assert boolean("b", value) is expected


@pytest.mark.parametrize("value", [2, 1.0, "yes", "", [], {}])
def test_no_booleans(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="'b' must be true or false"):
        boolean("b", value)


def test_lone_surrogates_are_refused_where_they_come_in() -> None:
    with pytest.raises(InvalidRequest, match="'prompt' holds a lone surrogate at character 2"):
        text("prompt", "ab\ud800c")


def test_errors_about_text_never_quote_it() -> None:
    for read in (array, mapping):
        with pytest.raises(InvalidRequest) as caught:
            read("messages", "secret")
        assert "secret" not in caught.value.message
    assert short_text(3)("s", "abc") == "abc"
    with pytest.raises(InvalidRequest, match="at most 3 characters, not 4"):
        short_text(3)("s", "abcd")


def test_long_values_are_not_repeated() -> None:
    with pytest.raises(InvalidRequest, match="not a long string"):
        integer()("n", "9" * 1000)
    with pytest.raises(InvalidRequest, match="not a very large integer"):
        integer(0, 1)("n", 10**300)


def test_token_ids() -> None:
    assert token_ids(10)("ids", [0, 9]) == [0, 9]
    assert token_ids(10)("ids", []) == []
    assert token_ids(0)("ids", [MAX_INT]) == [MAX_INT]
    for wrong in ([10], [-1], [1.0], [True], ["1"], [None], 3):
        with pytest.raises(InvalidRequest):
            token_ids(10)("ids", wrong)


def test_null_means_absent_and_aliases_are_tried_in_order() -> None:
    fields = Fields({"a": None, "b": 2, "c": 3, "d": None, "e": 5})
    assert fields.get(integer(), "a", "b", "c") == 2
    assert fields.get(integer(), "a") is None
    assert fields.unread() == {"e": 5}


def test_errors_name_the_alias_that_was_sent_and_its_path() -> None:
    fields = Fields({"max": "x"}, "options.")
    with pytest.raises(InvalidRequest) as caught:
        fields.get(integer(1), "max_tokens", "max")
    assert caught.value.param == "options.max"
    assert caught.value.message == "'options.max' must be an integer of at least 1, not 'x'."


def test_needed_fields() -> None:
    with pytest.raises(InvalidRequest, match="'prompt' is missing") as caught:
        Fields({"prompt": None}).need(text, "prompt")
    assert caught.value.param == "prompt"


def test_listed_names_are_fit_for_a_log() -> None:
    assert listed(["a", "b\n\x1b[31m", "\ud800"]) == ("a", r"b\n\x1b[31m", r"\ud800")
    many = listed(f"{'x' * 100}{i}" for i in range(1000))
    assert len(many) == 64
    assert max(map(len, many)) == 40


@given(JSON)
def test_readers_convert_or_refuse_but_never_break(value: Any) -> None:
    for read in READERS:
        try:
            read("field", value)
        except InvalidRequest as error:
            error.message.encode()
            assert len(error.message) < 200

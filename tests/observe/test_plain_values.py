"""Copies of any value: strict JSON, bounded, and never an error."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwa.observe.plain_values import plain


class Unreadable:
    def __str__(self) -> str:
        raise ValueError("no text")


class UnreadableArray:
    shape = (2,)

    def tolist(self) -> list[float]:
        raise RuntimeError("no memory")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), "nan"),
        (np.float32(0.5), 0.5),
        (np.arange(3), [0, 1, 2]),
        ({1: (True, None)}, {"1": [True, None]}),
        (2**64, "18446744073709551616"),
        (b"abc", "<3 bytes>"),
        (Unreadable(), "<a value of type Unreadable cannot be read: ValueError>"),
        ([UnreadableArray(), 1], ["<a value of type UnreadableArray cannot be read: RuntimeError>", 1]),
        (np.zeros((1000, 1000)), "<an array of shape (1000, 1000) is too large to be written here>"),
        ("x" * 3000, f"{'x' * 1000}... (3000 characters)"),
    ],
)
def test_any_value_has_a_plain_copy(value: object, expected: object) -> None:
    assert plain(value, limit_chars=8192) == expected


def test_an_integer_that_python_refuses_to_print_is_no_error() -> None:
    assert plain(10**5000, limit_chars=8192) == "<a value of type int cannot be read: ValueError>"


def test_what_cannot_be_read_is_told() -> None:
    told: list[str] = []
    plain({"a": Unreadable()}, limit_chars=100, tell=told.append)
    assert told == ["a value of type Unreadable cannot be read: ValueError"]


def test_a_list_that_holds_itself_has_an_end() -> None:
    endless: list[object] = []
    endless.append(endless)
    assert len(json.dumps(plain(endless, limit_chars=8192))) < 100


@pytest.mark.parametrize("value", [list(range(100_000)), dict.fromkeys(range(100_000)), {"a": ["x" * 900] * 1000}])
def test_a_large_value_is_cut_and_says_so(value: object) -> None:
    text = json.dumps(plain(value, limit_chars=8192))
    assert len(text) < 20_000
    assert " more" in text


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.builds(Unreadable),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
    max_leaves=30,
)


@given(ANYTHING, st.integers(0, 200))
def test_every_copy_is_strict_json_of_bounded_size(value: object, limit_chars: int) -> None:
    text = json.dumps(plain(value, limit_chars=limit_chars), allow_nan=False)
    assert len(text) < 8 * limit_chars + 4000

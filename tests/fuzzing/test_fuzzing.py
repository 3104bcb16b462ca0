"""What `make fuzz` searches with guidance, here with examples and at random."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from targets import SEEDS, TARGETS

CASES = [(name, number) for name, seeds in SEEDS.items() for number in range(len(seeds))]


@pytest.mark.seconds
@pytest.mark.parametrize(("name", "number"), CASES, ids=[f"{name}-{number}" for name, number in CASES])
@settings(max_examples=25)
@given(data=st.data())
def test_a_legal_input_and_damaged_copies_of_it_do_no_harm(name, number, data):
    seed = bytearray(SEEDS[name][number])
    TARGETS[name](bytes(seed))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(seed) - 1))
        seed[place : place + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
        TARGETS[name](bytes(seed))
        if not seed:
            return


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.binary(max_size=5000))
def test_any_bytes_do_no_harm(name, data):
    TARGETS[name](data)

"""The mean of several models, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpwa.snapshot.dtypes import DTYPES, widen_bfloat16
from dpwa.snapshot.layout import Layout, Role, TensorSpec
from dpwa.snapshot.mean import Mean, rounded_to_bfloat16
from dpwa.snapshot.staging import Staging, section_values

SIZE = 100


def snapshot(layout: Layout, rng: np.random.Generator) -> np.ndarray:
    memory = np.zeros(layout.total_bytes, np.uint8)
    for section in layout.sections:
        values = rng.standard_normal(section.size)
        part = memory[section.start_byte : section.stop_byte].view(DTYPES[section.dtype])
        if section.dtype == "bfloat16":
            part[:] = rounded_to_bfloat16(values).view(np.uint32) >> 16
        else:
            part[:] = values
    return memory


def in_python(values: list[float], dtype: str) -> float:
    """The mean of three, with the processor's float64 and one rounding."""
    mean = (values[0] + values[1] + values[2]) / 3.0
    return mean if dtype == "float64" else float(DTYPES[dtype](mean))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_a_mean_is_summed_in_float64_and_rounded_once(dtype):
    layout = Layout([TensorSpec("w", (SIZE,), dtype), TensorSpec("statistic", (3,), "float32", Role.BUFFER)])
    memories = [snapshot(layout, np.random.default_rng(seed)) for seed in range(3)]
    mean, staging = Mean(layout.sections), Staging(layout, absolute=True)
    for memory in memories:
        mean.add_snapshot(memory.data, 1.0)
    assert mean.write(staging.values)
    section = layout.sections[0]
    inputs = [section_values(section, memory).astype(np.float64) for memory in memories]
    expected = [in_python([float(one[index]) for one in inputs], dtype) for index in range(SIZE)]
    assert staging.values[0].array.tolist() == expected


def test_weights_count():
    layout = Layout([TensorSpec("w", (2,), "float64")])
    mean, staging = Mean(layout.sections), Staging(layout, absolute=True)
    mean.add_snapshot(np.array([1.0, 2.0]).view(np.uint8).data, 3.0)
    mean.add_snapshot(np.array([5.0, -2.0]).view(np.uint8).data, 1.0)
    assert mean.write(staging.values)
    assert staging.values[0].array.tolist() == [2.0, 1.0]


def test_a_sum_that_overflows_is_noticed():
    layout = Layout([TensorSpec("w", (1,), "float64")])
    mean, staging = Mean(layout.sections), Staging(layout, absolute=True)
    for _ in range(2):
        mean.add_snapshot(np.array([1.7e308]).view(np.uint8).data, 1.0)
    assert not mean.write(staging.values)


def test_bfloat16_is_rounded_once():
    exact = np.float64(1.0) + np.float64(2.0**-8)  # in the middle between two bfloat16s
    above = exact + 2.0**-40  # float32 cannot tell it from the middle
    assert np.float32(above) == np.float32(exact)
    assert rounded_to_bfloat16(np.array([exact, above])).tolist() == [1.0, 1.0 + 2.0**-7]
    assert rounded_to_bfloat16(np.array([-exact, -above])).tolist() == [-1.0, -1.0 - 2.0**-7]


@settings(max_examples=200, deadline=None)
@given(st.floats(-3.38e38, 3.38e38))
def test_no_bfloat16_is_nearer(value):
    (got,) = rounded_to_bfloat16(np.array([value]))
    bits = np.float32(got).view(np.uint32) >> 16
    near = np.array([bits], np.uint16) + np.array([-1, 0, 1], np.int32)
    wide = np.empty(3, np.float32)
    widen_bfloat16(near.astype(np.uint16), wide)
    distances = np.abs(wide.astype(np.float64) - value)
    assert distances[1] == np.nanmin(distances)

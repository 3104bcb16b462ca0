"""The arithmetic between two snapshots."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpwa.blending import Staging
from dpwa.snapshot import Layout, Role, TensorSpec

_DTYPES = ["float64", "float32", "bfloat16", "float16"]


def _memory(layout: Layout, tensors: list[torch.Tensor]) -> np.ndarray:
    raw = np.zeros(layout.total_bytes, np.uint8)
    for section, tensor in zip(layout.sections, tensors, strict=True):
        raw[section.start_byte : section.stop_byte] = tensor.view(torch.uint8).numpy()
    return raw


def _staged(layout: Layout, peer: np.ndarray, *, absolute: bool = False) -> Staging:
    staging = Staging(layout, absolute=absolute)
    staging.memory[:] = peer.data
    return staging


@pytest.mark.parametrize("dtype", _DTYPES)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-4, 1.0, 100.0]))
def test_differences_are_those_of_torch_in_at_least_float32(dtype, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    own, peer = (scale * torch.randn(33, generator=generator) for _ in range(2))
    own, peer = own.to(getattr(torch, dtype)), peer.to(getattr(torch, dtype))
    layout = Layout([TensorSpec("a", (33,), dtype)])
    staging = _staged(layout, _memory(layout, [peer]))
    assert staging.prepare(_memory(layout, [own]).data)
    wide = torch.float64 if dtype == "float64" else torch.float32
    (values,) = staging.values
    assert values.is_difference
    assert torch.equal(torch.from_numpy(values.array), peer.to(wide) - own.to(wide))


def test_buffers_and_absolute_blends_get_the_peers_values_and_no_difference():
    layout = Layout([TensorSpec("w", (2,), "float32"), TensorSpec("mean", (2,), "float32", Role.BUFFER)])
    peer = _memory(layout, [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])])
    own = _memory(layout, [torch.tensor([1.0, 1.0]), torch.tensor([1.0, 1.0])])
    delta, absolute = _staged(layout, peer), _staged(layout, peer, absolute=True)
    assert delta.prepare(own.data)
    assert absolute.prepare(own.data)
    assert [list(values.array) for values in delta.values] == [[0.0, 1.0], [3.0, 4.0]]
    assert [list(values.array) for values in absolute.values] == [[1.0, 2.0], [3.0, 4.0]]
    assert [values.is_difference for values in (*delta.values, *absolute.values)] == [True, False, False, False]


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["peer", "own"])
@pytest.mark.parametrize("position", [0, 4999])
def test_one_value_that_is_not_finite_is_found(dtype, poison, side, position):
    layout = Layout([TensorSpec("a", (5000,), dtype)])
    sound, sick = torch.ones(5000), torch.ones(5000)
    sick[position] = poison
    peer, own = (sick, sound) if side == "peer" else (sound, sick)
    memories = [_memory(layout, [tensor.to(getattr(torch, dtype))]) for tensor in (peer, own)]
    assert not _staged(layout, memories[0]).prepare(memories[1].data)


def test_large_finite_values_are_not_taken_for_infinite_ones():
    layout = Layout([TensorSpec("a", (100,), "float32")])
    large = _memory(layout, [torch.full((100,), 3e38)])
    zero = _memory(layout, [torch.zeros(100)])
    assert _staged(layout, large).prepare(zero.data)

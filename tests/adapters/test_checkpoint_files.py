"""Checkpoints as files: what is kept comes back the same, and what is damaged is noticed."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from dpwa.adapters.checkpoint_files import read_newest, write_checkpoint
from dpwa.adapters.plain_state import Tensors, as_plain, from_plain
from dpwa.errors import ConfigError

KEYS = st.one_of(st.text(max_size=5), st.integers(-5, 5))
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10))
STATES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
        st.dictionaries(KEYS, st.integers(0, 9), max_size=4).map(Counter),
    ),
    max_leaves=20,
)


def same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(map(repr, one)) == list(map(repr, other)) and all(map(same, one.values(), other.values()))
    return one == other


@given(state=STATES)
def test_a_state_of_plain_values_comes_back_as_it_was(state):
    plain = json.loads(json.dumps(as_plain(state, "state", Tensors()), allow_nan=False))
    assert same(from_plain(plain, {}), state)


DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64),
]


@settings(max_examples=30, deadline=None)
@given(
    forms=st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)), max_size=6),
    seed=st.integers(0, 9),
)
def test_tensors_of_any_dtype_and_shape_come_back_bit_by_bit(forms, seed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    generator = torch.Generator().manual_seed(seed)
    state = [(torch.randn(shape, generator=generator) * 50).to(dtype) for dtype, shape in forms]
    tensors = Tensors()
    path, size_bytes = write_checkpoint(folder, as_plain(state, "state", tensors), tensors.by_name, keep=1)
    assert path.stat().st_size == size_bytes
    assert set(load_file(path)) == set(tensors.by_name), "any reader of safetensors can read it"
    found, problems = read_newest(folder)
    assert problems == []
    for one, other in zip(from_plain(found.plain, found.tensors), state, strict=True):
        assert one.dtype is other.dtype
        assert one.shape == other.shape
        assert one.reshape(-1).view(torch.uint8).tolist() == other.reshape(-1).view(torch.uint8).tolist()


def test_shared_tensors_are_kept_once_and_arrays_come_back_as_arrays():
    weight, tensors = torch.ones(3, 2), Tensors()
    plain = as_plain({"a": weight, "b": weight, "array": np.arange(4, dtype=np.uint32)}, "state", tensors)
    assert list(tensors.by_name) == ["state.a", "state.array"]
    back = from_plain(plain, tensors.by_name)
    assert back["a"] is not None
    assert torch.equal(back["a"], back["b"])
    assert isinstance(back["array"], np.ndarray)
    assert back["array"].dtype == np.uint32


@pytest.mark.parametrize("value", [lambda: 0, object(), {1, 2}, {(1, 2): 3}, torch.ones(2, 2).to_sparse()])
def test_what_cannot_be_kept_is_refused_with_its_place(value):
    with pytest.raises(ConfigError, match=r"^parts\.mine"):
        as_plain({"mine": value}, "parts", Tensors())


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0)[::-1],
        np.arange(6).reshape(2, 3).T,
        np.broadcast_to(np.float32(2), (3,)),
        np.array(5.0),
        np.frombuffer(b"abcd", np.uint8),  # which nobody may write
        np.zeros((0, 3), np.float16),
    ],
    ids=["backwards", "transposed", "broadcast", "0-d", "read-only", "empty"],
)
def test_an_array_comes_back_however_it_lies_in_memory(array):
    tensors = Tensors()
    plain = as_plain({"array": array}, "parts", tensors)
    back = from_plain(json.loads(json.dumps(plain)), tensors.by_name)["array"]
    assert (back.shape, back.dtype) == (array.shape, array.dtype)
    assert np.array_equal(back, array)


@pytest.mark.parametrize(
    "array", [np.array(["a", "bc"]), np.array([None]), np.zeros(2, "datetime64[s]"), np.zeros(2, ">f4")], ids=str
)
def test_an_array_that_holds_no_numbers_of_torch_is_refused_by_its_place(array):
    with pytest.raises(ConfigError, match=r"^parts\.mine: a checkpoint keeps arrays of numbers, got one of "):
        as_plain({"mine": array}, "parts", Tensors())


def test_a_number_that_no_file_holds_is_refused_by_its_place():
    with pytest.raises(ConfigError, match=r"^parts\.mine: a checkpoint keeps tensors, numbers, .* got a longdouble"):
        as_plain({"mine": np.longdouble(1)}, "parts", Tensors())


@pytest.mark.parametrize("plain", [{"tensor": "x"}, {"pickle": "x"}, {"tensor": "here", "dtype": "load", "shape": []}])
def test_json_that_nobody_wrote_is_no_state(plain):
    with pytest.raises(ValueError, match=r"expected a value|there is no dtype"):
        from_plain(plain, {"here": torch.ones(1)})


def write(folder: Path, value: float, keep: int = 2) -> Path:
    return write_checkpoint(folder, {"float": str(value)}, {"tensor": torch.full((50,), value)}, keep=keep)[0]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_as_many_stay_as_are_to_be_kept_and_the_newest_is_read(tmp_path, keep):
    for value in range(5):
        write(tmp_path, value, keep)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"checkpoint-{number}.safetensors" for number in range(6 - keep, 6)
    ]
    found, problems = read_newest(tmp_path)
    assert (found.tensors["tensor"].unique().item(), problems) == (4.0, [])


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_byte_or_a_missing_end_gives_the_checkpoint_before(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    write(folder, 1.0)
    newest = write(folder, 2.0)
    content = bytearray(newest.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[place:]
    newest.write_bytes(content)
    found, problems = read_newest(folder)
    value = found.tensors["tensor"].unique().tolist()
    if problems:
        assert (value, len(problems)) == ([1.0], 1)
        assert str(newest) in problems[0]
    else:  # a bit that says nothing, such as one of the names' order
        assert value == [2.0]
        assert found.plain == {"float": "2.0"}


def test_a_folder_of_damaged_files_has_no_checkpoint(tmp_path):
    write(tmp_path, 1.0).write_bytes(b"")
    (tmp_path / "checkpoint-7.safetensors").mkdir()
    found, problems = read_newest(tmp_path)
    assert found is None
    assert len(problems) == 2


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from dpwa.adapters import checkpoint_files
folder, moment = Path(sys.argv[1]), sys.argv[2]
checkpoint_files.write_checkpoint(folder, 1, {"tensor": torch.full((1000,), 1.0)}, keep=1)
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
class Dying:
    def __init__(self, file): self.file = file
    def write(self, data):
        self.file.write(bytes(data)[:500]); self.file.flush(); die()
if moment == "write":
    write = checkpoint_files._write
    checkpoint_files._write = lambda file, *rest: write(Dying(file), *rest)
else:
    setattr(checkpoint_files.os, moment, die)
checkpoint_files.write_checkpoint(folder, 2, {"tensor": torch.full((1000,), 2.0)}, keep=1)
"""


@pytest.mark.seconds
@pytest.mark.parametrize("moment", ["write", "fsync", "replace", "unlink"])
def test_a_kill_at_any_moment_of_writing_leaves_a_whole_checkpoint(tmp_path, moment):
    script = KILLED if moment != "unlink" else KILLED.replace("checkpoint_files.os, moment", "Path, moment")
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path), moment], check=False)
    assert ended.returncode == -signal.SIGKILL, "the fault happened"
    found, problems = read_newest(tmp_path)
    assert problems == []
    assert found.plain == (2 if moment == "unlink" else 1)
    assert found.tensors["tensor"].unique().item() == found.plain
    write(tmp_path, 3.0, keep=1)
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
    assert len(os.listdir(tmp_path)) == 1


def test_tensors_of_places_that_are_called_alike_keep_their_own_values() -> None:
    tensors = Tensors()
    parts = {"ema": {"net.w": torch.zeros(3)}, "ema.net": {"w": torch.ones(3)}, "0": torch.full((2,), 2.0)}
    plain = as_plain({**parts, 0: torch.full((2,), 3.0)}, "parts", tensors)
    restored = from_plain(json.loads(json.dumps(plain)), tensors.by_name)
    assert restored["ema"]["net.w"].tolist() == [0, 0, 0]
    assert restored["ema.net"]["w"].tolist() == [1, 1, 1]
    assert (restored["0"].tolist(), restored[0].tolist()) == ([2, 2], [3, 3])

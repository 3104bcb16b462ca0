"""What goes to TensorFlow and what comes back, without TensorFlow; `make test-tensorflow` compares whole trainings."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from dpwa.errors import ConfigError
from dpwa.examples.samples import Samples, normaliser, unchanged
from dpwa.lab.strategies import environments
from dpwa.lab.strategies.environments import ENVIRONMENTS
from dpwa.lab.strategies.tensorflow import mirrored
from dpwa.lab.strategies.tensorflow.export import layers_of, order_of_batches, shift_and_scale
from dpwa.lab.strategies.tensorflow.layout import from_keras, to_keras
from dpwa.lab.study.settings import Settings
from dpwa.lab.study.trial import Trial, TrialFolder, step_at, write_json
from dpwa.lab.training.loop import Recipe, Task, train
from dpwa.lab.training.models import build
from dpwa.lab.training.recording import Recorder
from dpwa.lab.training.strategy import Strategy

TENSORFLOW = ENVIRONMENTS["tensorflow"]


def _arrays(model: nn.Module) -> list[np.ndarray]:
    return [tensor.numpy() for tensor in model.state_dict().values()]


def _program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def _folder(path: Path, **more: object) -> TrialFolder:
    values = {"strategy": "tf_mirrored", "data": "digits", "model": "mlp", "n_epochs": 2, **more}
    write_json(path / "trial.json", Trial("s", "tf", 0, Settings.model_validate(values)).to_json())
    return TrialFolder(path)


# Layers


def test_the_networks_of_the_lab_are_described_layer_by_layer():
    assert layers_of(build("mcmahan_cnn", (1, 28, 28), 10, seed=0)) == [
        {"kind": "conv", "filters": 32, "kernel": [5, 5], "padding": "same", "bias": True},
        {"kind": "max_pool", "size": [2, 2]},
        {"kind": "relu"},
        {"kind": "conv", "filters": 64, "kernel": [5, 5], "padding": "same", "bias": True},
        {"kind": "max_pool", "size": [2, 2]},
        {"kind": "relu"},
        {"kind": "flatten"},
        {"kind": "dense", "units": 512, "bias": True},
        {"kind": "relu"},
        {"kind": "dense", "units": 10, "bias": True},
    ]


def test_all_layers_that_cannot_be_converted_are_named_at_once():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.Dropout(), nn.Conv2d(2, 2, 4, padding=2))
    with pytest.raises(ConfigError) as error:
        layers_of(model)
    assert [problem.split(":")[1] for problem in error.value.problems] == [
        " layer 0 of the model",
        " layer 2 of the model",
        " layer 3 of the model",
    ]


@pytest.mark.parametrize(
    "layer",
    [nn.MaxPool2d(3, stride=2), nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(2, 2, 1, groups=2), nn.Flatten(2)],
)
def test_a_layer_with_another_meaning_in_keras_is_refused(layer):
    with pytest.raises(ConfigError, match="layer 0"):
        layers_of(nn.Sequential(layer))


# Weights


@st.composite
def _networks(draw):
    shape = draw(st.tuples(*(st.integers(low, 7) for low in (1, 4, 4))))
    layers: list[nn.Module] = []
    if draw(st.booleans()):
        kernel, filters = draw(st.tuples(st.sampled_from([1, 3]), st.sampled_from([1, 3]))), draw(st.integers(1, 4))
        padding = draw(st.sampled_from([(0, 0), (kernel[0] // 2, kernel[1] // 2)]))
        layers += [nn.Conv2d(shape[0], filters, kernel, padding=padding, bias=draw(st.booleans())), nn.ReLU()]
    if draw(st.booleans()):
        layers.append(nn.MaxPool2d(draw(st.sampled_from([2, (1, 2)]))))
    layers.append(nn.Flatten())
    with torch.no_grad():
        inputs = nn.Sequential(*layers)(torch.zeros(1, *shape)).shape[1]
    layers += [nn.Linear(inputs, 5, bias=draw(st.booleans())), nn.ReLU(), nn.Linear(5, 2)]
    return shape, nn.Sequential(*layers)


@settings(deadline=None)
@given(_networks())
def test_weights_come_back_from_keras_as_they_went(network):
    shape, model = network
    layers, there = layers_of(model), _arrays(model)
    back = from_keras(layers, shape, to_keras(layers, shape, there))
    assert [array.shape for array in back] == [array.shape for array in there]
    assert all(np.array_equal(mine, other) for mine, other in zip(back, there, strict=True))


def test_a_dense_layer_behind_flatten_gives_the_same_scores_from_an_image_with_its_channels_last():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 5 * 6, 7)).double()
    images = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    kernel, shift, matrix, bias = to_keras(layers_of(model), (3, 5, 6), _arrays(model))
    # A convolution of one pixel is a product of matrices, in which the channels come last.
    hidden = np.maximum(images.numpy().transpose(0, 2, 3, 1) @ kernel[0, 0] + shift, 0)
    scores = hidden.reshape(2, -1) @ matrix + bias
    assert np.allclose(scores, model(images).detach().numpy(), rtol=1e-12, atol=1e-12)


def test_a_convolution_gives_the_same_from_an_image_with_its_channels_last():
    model = nn.Sequential(nn.Conv2d(3, 4, (3, 5))).double()
    image = torch.randn(1, 3, 3, 5, dtype=torch.float64)  # as large as the kernel: there is one pixel of it
    kernel, shift = to_keras(layers_of(model), (3, 3, 5), _arrays(model))
    pixel = np.tensordot(image.numpy()[0].transpose(1, 2, 0), kernel, axes=3) + shift
    assert np.allclose(pixel, model(image).detach().numpy().ravel(), rtol=1e-12, atol=1e-12)


def test_weights_of_another_network_are_refused():
    model = build("mlp", (1, 8, 8), 10, seed=0)
    with pytest.raises(ValueError, match=r"expected torch's shapes \[\(256, 49\)"):
        to_keras(layers_of(model), (1, 7, 7), _arrays(model))


# Data


class _Listener(Strategy):
    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def part_of(self, batch):
        self.batches.append(batch.tolist())
        return batch


class _Silent:
    def begin(self, total_steps): ...

    def stepped(self, step, *, done, loss, right, count): ...

    def ended(self): ...


@pytest.mark.parametrize(("count", "batch_size", "total_steps"), [(50, 8, None), (50, 8, 3), (50, 8, 20), (5, 8, None)])
def test_the_order_of_the_data_is_that_of_the_training_loop(count, batch_size, total_steps):
    samples = Samples(torch.zeros(count, 1, 2, 2), torch.zeros(count, dtype=torch.int64))
    recipe = Recipe(epochs=2, batch_size=batch_size, total_steps=total_steps)
    listener = _Listener()
    task = Task(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), samples)
    train(task, recipe, seed=3, strategy=listener, watch=_Silent())
    assert order_of_batches(count, recipe, seed=3).tolist() == listener.batches


def test_the_preparation_of_images_is_found_as_a_shift_and_a_scale_of_each_channel():
    images = torch.randint(0, 256, (20, 3, 4, 5), dtype=torch.uint8)
    shift, scale = shift_and_scale(normaliser((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), images)
    assert shift == pytest.approx([-0.1 / 0.5, -0.2 / 0.6, -0.3 / 0.7])
    assert scale == pytest.approx([1 / 255 / 0.5, 1 / 255 / 0.6, 1 / 255 / 0.7])
    assert shift_and_scale(unchanged, torch.rand(20, 1, 4, 5)) == ([0.0], [1.0])


@pytest.mark.parametrize("other", [torch.sqrt, lambda images: images.flip(3), lambda images: images.flatten(1)])
def test_another_preparation_of_images_is_refused(other):
    with pytest.raises(ConfigError, match="scales and shifts each channel"):
        shift_and_scale(other, torch.rand(20, 1, 4, 5))


# What comes back


def _book(folder: TrialFolder, model: nn.Sequential, ends: list[int]) -> mirrored._Book:
    return mirrored._Book(folder, layers_of(model), (1, 8, 8), list(model.state_dict()), ends, cores=2)


def test_what_comes_back_is_put_down_as_the_recorder_does(tmp_path):
    folder, model = _folder(tmp_path), build("light_cnn", (1, 8, 8), 10, seed=0)
    book = _book(folder, model, [2, 2, 3])
    book.begin(_arrays(model))
    trained = build("light_cnn", (1, 8, 8), 10, seed=1)
    sent = enumerate(to_keras(book.layers, book.shape, _arrays(trained)))
    steps = {"loss": np.float32([2, 1]), "right": np.int32([3, 4]), "count": np.int32([8, 8]), "end_s": [0.5, 0.75]}
    np.savez(tmp_path / "stop.npz", **{str(number): array for number, array in sent}, **steps)
    book.stopped(tmp_path / "stop.npz")

    recorded = Recorder(TrialFolder(tmp_path / "other"), ("w1",), "w1", model, rounds=3)
    recorded.begin(3)
    with safe_open(tmp_path / "other/nodes/w1/snapshots/0000.safetensors", "pt") as file:
        keys = set(file.metadata())
    assert [path.name for path in sorted(folder.snapshots("w1").iterdir())] == [f"000{n}.safetensors" for n in range(3)]
    with safe_open(folder.snapshot("w1", 2), "pt") as file:
        header = file.metadata()
    assert set(header) == keys
    assert header == {
        "round": "2",
        "step": "2",
        "samples": "16",
        "training_s": "0.75",
        "bytes_sent": "0",
        "processes": "1",
        "threads": "2",
    }
    stored = load_file(folder.snapshot("w1", 2))
    assert all(torch.equal(stored[name], tensor) for name, tensor in trained.state_dict().items())
    with np.load(folder.steps("w1")) as found:
        assert found["loss"].tolist() == [2.0, 1.0]


@pytest.mark.parametrize(("total_steps", "rounds"), [(7, 3), (10, 4), (5, 2), (2, 5)])
def test_rounds_end_at_the_steps_at_which_the_recorder_ends_them(tmp_path, total_steps, rounds):
    folder, model = TrialFolder(tmp_path), nn.Sequential(nn.Linear(1, 1))
    recorder = Recorder(folder, ("w1",), "w1", model, rounds=rounds)
    recorder.begin(total_steps)
    for step in range(1, total_steps + 1):
        recorder.stepped(step, done=step / total_steps, loss=torch.zeros(()), right=0, count=1)
    ends = []
    for number in range(1, rounds + 1):
        with safe_open(folder.snapshot("w1", number), "pt") as file:
            ends.append(int(file.metadata()["step"]))
    assert [step_at(number, rounds, total_steps) for number in range(1, rounds + 1)] == ends


# Which Python, and what if there is none


def test_without_tensorflow_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(environments, "find_spec", lambda _name: None)
    assert TENSORFLOW.python() is None
    assert TENSORFLOW.why_not().startswith("install dpwa[tensorflow]")
    assert "\n" not in TENSORFLOW.why_not()


def test_tensorflow_beside_dpwa_is_used_where_no_other_is_named(monkeypatch):
    monkeypatch.setattr(environments, "find_spec", lambda _name: importlib.util.find_spec("numpy"))
    assert TENSORFLOW.python() == Path(sys.executable)


def test_the_named_python_is_used_as_it_is_named_and_asked_first(monkeypatch, tmp_path):
    asked = _program(tmp_path / "has-tensorflow", "exit 0")
    link = tmp_path / "python"  # as in a virtual environment: its place says which one it is
    link.symlink_to(asked)
    monkeypatch.setenv(TENSORFLOW.variable, str(link))
    assert TENSORFLOW.python() == link


def test_a_named_python_that_cannot_be_used_is_reported_apart(monkeypatch, tmp_path):
    monkeypatch.setenv(TENSORFLOW.variable, str(tmp_path / "nowhere"))
    assert TENSORFLOW.python() is None
    assert "is not a program" in TENSORFLOW.why_not()
    monkeypatch.setenv(TENSORFLOW.variable, str(_program(tmp_path / "without", "exit 1")))
    assert TENSORFLOW.python() is None
    assert "has no TensorFlow" in TENSORFLOW.why_not()


def test_a_trial_without_tensorflow_ends_with_that_line(monkeypatch, tmp_path):
    monkeypatch.setattr(environments, "find_spec", lambda _name: None)
    _folder(tmp_path)
    with pytest.raises(SystemExit, match=r"tf_mirrored: install dpwa\[tensorflow\]"):
        mirrored.main([str(tmp_path)])


def test_handicaps_of_nodes_are_refused_because_there_are_none(monkeypatch, tmp_path):
    monkeypatch.setenv(TENSORFLOW.variable, str(_program(tmp_path / "python", "exit 0")))
    folder = _folder(tmp_path, slow={"node": 1, "factor": 4.0}, kill={"node": 1, "at": 0.5})
    with pytest.raises(ConfigError, match="got slow and kill"):
        mirrored.run_trial(folder)


def test_a_process_of_tensorflow_that_fails_is_an_error_and_the_initial_model_stays(monkeypatch, tmp_path, capfd):
    # Has TensorFlow, if asked; then says something and fails.
    program = _program(tmp_path / "python", 'if [ "$1" != -c ]; then echo out of memory; exit 3; fi')
    monkeypatch.setenv(TENSORFLOW.variable, str(program))
    folder = _folder(tmp_path)
    with pytest.raises(mirrored.TensorFlowFailed, match="exit code 3 after 0 of 2 rounds"):
        mirrored.run_trial(folder)
    assert "out of memory" in capfd.readouterr().out
    expected = build("mlp", (1, 8, 8), 10, seed=0).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_file(folder.snapshot("w1", 0)).items())

"""Compares trainings by TensorFlow with trainings by torch: `make test-tensorflow`, which names a Python that has it.

Not among the tests that run by themselves: TensorFlow takes 1.6 GB, and no test is skipped.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dpwa.lab.strategies.environments import ENVIRONMENTS
from dpwa.lab.strategies.tensorflow.mirrored import run_trial
from dpwa.lab.study.settings import Settings
from dpwa.lab.study.trial import Trial, TrialFolder, write_json
from dpwa.lab.training.assignment import order_seed, recipe_of, samples_of_node
from dpwa.lab.training.data import load
from dpwa.lab.training.loop import Task, train
from dpwa.lab.training.models import build
from dpwa.lab.training.strategy import Strategy

VARIABLE = ENVIRONMENTS["tensorflow"].variable
NAMED = os.environ.get(VARIABLE, "")


class _Watch:
    """Keeps losses, counts of right answers, and the weights after some steps."""

    def __init__(self, model: torch.nn.Module, stops: set[int]) -> None:
        self.model, self.stops = model, stops
        self.rows: list[tuple[float, int]] = []
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def begin(self, total_steps: int) -> None:
        self.total_steps = total_steps

    def stepped(self, step: int, *, done: float, loss: torch.Tensor, right: int, count: int) -> None:  # noqa: ARG002
        self.rows.append((loss.item(), right))
        if step in self.stops:
            self.weights[step] = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def ended(self) -> None:
        pass


@pytest.mark.parametrize(
    "more",
    [
        {"model": "mlp"},
        {"model": "light_cnn", "momentum": 0.0},
        {"model": "mcmahan_cnn", "schedule": "cosine", "weight_decay": 0.01},
    ],
    ids=lambda more: more["model"],
)
@pytest.mark.parametrize("cores", [1, 2])
def test_tensorflow_trains_the_model_that_torch_trains(monkeypatch, tmp_path, more, cores):
    monkeypatch.setenv(VARIABLE, NAMED)
    monkeypatch.setenv("OMP_NUM_THREADS", str(cores))
    # An odd batch: two replicas get unequal parts.
    values = {"strategy": "tf_mirrored", "data": "digits", "n_epochs": 2, "batch_size": 33, "rounds_per_epoch": 2}
    trial = Trial("s", "tf", 1, Settings.model_validate(values | more))
    folder = TrialFolder(tmp_path)
    write_json(folder.trial_json, trial.to_json())
    run_trial(folder)
    snapshots = {}
    for path in sorted(folder.snapshots("w1").iterdir()):
        with safe_open(path, "pt") as file:
            snapshots[int(file.metadata()["step"])] = load_file(path)

    torch.set_num_threads(1)  # two threads would wait for each other longer than they compute on a machine that is busy
    data = load("digits", None)
    model = build(trial.settings.model, data.shape, data.classes, seed=trial.seed)
    samples = samples_of_node(trial, data, 0)
    watch = _Watch(model, set(snapshots))
    task = Task(model, samples, data.prepare)
    train(task, recipe_of(trial, len(samples), 0), seed=order_seed(trial, 0), strategy=Strategy(), watch=watch)

    assert len(snapshots) == 1 + trial.rounds
    for step, weights in watch.weights.items():
        for name, tensor in weights.items():
            torch.testing.assert_close(snapshots[step][name], tensor, rtol=0, atol=1e-5)
    with np.load(folder.steps("w1")) as steps:
        assert steps["loss"] == pytest.approx(np.array([loss for loss, _ in watch.rows]), abs=1e-4)
        assert steps["right"].tolist() == [right for _, right in watch.rows]

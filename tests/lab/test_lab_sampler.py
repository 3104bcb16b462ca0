"""Rows whose nodes share out the samples while they train."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from dpwa.cli import main
from dpwa.errors import ConfigError
from dpwa.examples.samples import Samples
from dpwa.lab.strategies.dpwa import SharedOut
from dpwa.lab.study.study import Study
from dpwa.lab.study.trial import Trial, TrialFolder
from dpwa.lab.training.assignment import recipe_of, samples_of_node
from dpwa.lab.training.data import load
from dpwa.lab.training.handicaps import shares_of_work
from dpwa.lab.training.loop import Recipe, Task, train
from dpwa.lab.training.recording import Recorder
from dpwa.lab.training.snapshots import read_snapshot
from dpwa.lab.training.strategy import Strategy


class Given:
    """A sampler that gives what it is told to, epoch by epoch, and says how much of an epoch all have trained."""

    def __init__(self, epochs: list[tuple[int, list[int]]], shares: list[float]) -> None:
        self._epochs = epochs
        self._samples: list[int] = []
        self._shares = iter(shares)

    def epochs(self, count: int) -> Iterator[int]:
        assert count == 2
        for epoch, samples in self._epochs:
            self._samples = samples
            yield epoch

    def __iter__(self) -> Iterator[int]:
        return iter(self._samples)

    def share_trained(self, _epoch: int) -> float:
        return next(self._shares)


def test_a_node_follows_what_all_have_trained_and_leaves_out_incomplete_batches() -> None:
    # After the second epoch there is some more of it, which a dead node has left.
    given = Given([(0, [3, 1, 4, 0, 5]), (1, [2, 6]), (1, [7, 8, 9])], [0.25, 0.5, 0.125, 1.0, 0.75])
    shared = SharedOut(given, epochs=2, batch_size=2)
    found = [(batch.tolist(), shared.done) for batch in shared]

    assert found == [([3, 1], 0.125), ([4, 0], 0.25), ([2, 6], 0.5625), ([7, 8], 1.0)]
    assert shared.done == 1.0  # and it does not fall


def test_an_incomplete_batch_is_trained_where_it_is_all_that_a_node_has() -> None:
    found = SharedOut(Given([(0, [3, 1, 4]), (1, [])], []), epochs=2, batch_size=8)
    assert [batch.tolist() for batch in found] == [[3, 1, 4]]


class ThreeBatches:
    """Each of them is a quarter of the training."""

    def __init__(self) -> None:
        self.asked = 0

    @property
    def done(self) -> float:
        self.asked += 1
        return self.asked // 2 / 4  # asked before and after each step

    def __iter__(self) -> Iterator[Tensor]:
        return iter([torch.tensor(batch) for batch in ([0, 1], [5, 4], [2, 7])])


class Sharing(Strategy):
    """Is given three batches, and hears of the rates of its steps."""

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        super().begin(model, optimizer)
        self.rates: list[float] = []

    def shared_batches(self, samples: int, *, epochs: int, batch_size: int) -> ThreeBatches:
        assert (samples, epochs, batch_size) == (8, 3, 2)
        return ThreeBatches()

    def after_step(self, _loss: Tensor) -> None:
        self.rates.append(self.optimizer.param_groups[0]["lr"])


def test_rates_and_rounds_follow_what_is_done_and_the_last_round_ends_with_the_training(tmp_path) -> None:
    folder, model, strategy = TrialFolder(tmp_path), nn.Linear(3, 2), Sharing()
    samples = Samples(torch.randn(8, 3), torch.arange(8) % 2)
    watch = Recorder(folder, ("w1",), "w1", model, rounds=2)
    recipe = Recipe(3, 2, learning_rate=0.4, schedule="linear")
    train(Task(model, samples), recipe, seed=0, strategy=strategy, watch=watch)

    assert strategy.rates == pytest.approx([0.4, 0.3, 0.2])
    found = [read_snapshot(folder.snapshot("w1", number)).header for number in range(3)]
    assert [(header["step"], header["samples"]) for header in found] == [(0, 0), (2, 4), (3, 6)]


def test_a_process_that_makes_no_steps_ends_no_rounds(tmp_path) -> None:
    folder, model = TrialFolder(tmp_path), nn.Linear(3, 2)
    samples = Samples(torch.randn(8, 3), torch.arange(8) % 2)
    watch = Recorder(folder, ("w1",), "w1", model, rounds=2)
    train(Task(model, samples), Recipe(3, 2, total_steps=0), seed=0, strategy=Strategy(), watch=watch)

    assert [path.stem for path in folder.snapshots("w1").iterdir()] == ["0000"]


def study_of(row: str) -> Study:
    return Study.from_text(f"study: s\ndata: digits\nmodel: mlp\nnodes: 3\nbatch_size: 16\nstrategies: [{{{row}}}]\n")


def test_every_node_holds_all_samples_and_expects_an_equal_share_of_the_steps() -> None:
    (row,) = study_of("strategy: pull, sampler: true, slow: {node: 2, factor: 4}").rows
    trial, data = Trial("s", "pull", 0, row.settings), load("digits", None)

    assert all(len(samples_of_node(trial, data, rank)) == len(data.train) for rank in range(3))
    recipe = recipe_of(trial, len(data.train), 1)
    assert (recipe.epochs, recipe.total_steps) == (5, 5 * (len(data.train) // 3 // 16))
    assert shares_of_work(row.settings, waits=False) == [1.0] * 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("strategy: pull, sampler: true, engine: in_memory", "sampler: .*it needs engine: processes"),
        ("strategy: pull, sampler: true, partition: {kind: classes}", "sampler: expected partition: iid"),
        (
            "strategy: pull, sampler: true, slow: {node: 2, factor: 4, keeps_work: true}",
            "slow.keeps_work: with sampler: true no node has samples of its own",
        ),
        ("strategy: pull, sampler: true, wrong_labels: {node: 2, share: 0.1}", "wrong_labels.share: with sampler"),
        ("strategy: ddp, sampler: true", "ddp does not use it"),
        ("strategy: pull, sampler: true, cluster: {join: ['127.0.0.1:1']}", "cluster.join: with sampler: true"),
    ],
)
def test_what_contradicts_shared_samples_is_told(row, message) -> None:
    with pytest.raises(ConfigError, match=message):
        study_of(row)


def trained(hardship: str) -> dict[str, Any]:
    """The result of three nodes that share out the digits, one of which has a hard time."""
    Path("study.yaml").write_text(
        "study: try\ndata: digits\nmodel: mlp\nnodes: 3\nbatch_size: 16\nn_epochs: 6\n"
        f"strategies: [{{strategy: pull, sampler: true, {hardship}, cluster: {{timeout_ms: 5000}}}}]\n"
    )
    done = CliRunner().invoke(main, ["lab", "run", "study.yaml"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(Path("runs/try/trials/pull-s0/result.json").read_text())
    return found


@pytest.mark.heavy
@pytest.mark.timeout(300)  # three processes that import torch, perhaps on a machine that is busy with others
def test_what_a_killed_node_has_left_is_trained_by_the_others() -> None:
    result = trained("kill: {node: 2, at: 0.4}")
    assert result["reason"] == "w2 was killed; the others went on to the end"
    # What the killed node had trained counts up to its last step; what it had begun is trained once more.
    word = json.loads(Path("runs/try/trials/pull-s0/nodes/w2/last_word.json").read_text())
    (samples,) = [worker["samples"] for worker in result["workers"] if worker["name"] == "w2"]
    assert samples == word["samples"] > 0
    assert result["samples_seen"] == sum(worker["samples"] for worker in result["workers"]) >= 6 * (1437 - 4 * 16)
    steps = {worker["name"]: worker["steps"] for worker in result["workers"]}
    assert steps["w2"] < min(steps["w1"], steps["w3"])


@pytest.mark.heavy
@pytest.mark.timeout(300)  # three processes that import torch, perhaps on a machine that is busy with others
def test_nodes_of_a_study_share_out_the_samples_by_their_speed() -> None:
    result = trained("slow: {node: 2, factor: 8}")
    assert result["status"] == "done"
    assert result["final_accuracy"] > 0.5
    steps = {worker["name"]: worker["steps"] for worker in result["workers"]}
    assert steps["w2"] < min(steps["w1"], steps["w3"])
    # Each node leaves out less than a batch of an epoch, and nobody trains the short last block.
    assert 6 * (1437 - 4 * 16) <= result["samples_seen"] == 16 * sum(steps.values()) <= 6 * 1437
    assert [found["round"] for found in result["rounds"]] == list(range(7))
    assert (result["shard_sizes"], result["class_counts"]) == ([], [])  # no node holds a part of its own

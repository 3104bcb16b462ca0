"""All nodes of a trial in one process: the same models in every run, exact rates, and times that can be computed."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from dpwa.errors import ConfigError
from dpwa.examples.samples import Samples, unchanged
from dpwa.lab.run.starting import prepare
from dpwa.lab.strategies.in_memory import process
from dpwa.lab.strategies.in_memory.virtual_time import VirtualTime
from dpwa.lab.study.study import Study
from dpwa.lab.study.trial import Trial, TrialFolder
from dpwa.lab.training.assignment import parts_of_nodes
from dpwa.lab.training.data import DataSet
from dpwa.lab.training.evaluation import evaluate
from dpwa.lab.training.snapshots import read_snapshot
from dpwa.methods.registry import METHODS
from dpwa.node.node import Node
from dpwa.node.record import NodeStatistics


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the trial's own process. Two threads would wait for each other in every layer, long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def squares() -> DataSet:
    """Small images whose class is easy to learn."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(240) % 4
    images = torch.rand(240, 1, 4, 4, generator=generator) + labels.reshape(-1, 1, 1, 1)
    return DataSet(Samples(images, labels), Samples(images, labels), unchanged, 4, (1, 4, 4), labels)


@pytest.fixture
def statistics(monkeypatch: pytest.MonkeyPatch) -> dict[str, NodeStatistics]:
    """What each node did, once it is closed."""
    found: dict[str, NodeStatistics] = {}
    close = Node.close

    def noting(node: Node) -> None:
        found[node.name] = node.statistics()
        close(node)

    monkeypatch.setattr(Node, "close", noting)
    return found


def trial_of(*, cluster: dict[str, object] | None = None, seed: int = 0, **settings: object) -> Trial:
    values = {
        "study": "s",
        "model": "mlp",
        "data": "digits",
        "n_epochs": 2,
        "batch_size": 10,
        "engine": "in_memory",
        "strategies": [{"strategy": settings.pop("strategy", "pull"), **({"cluster": cluster} if cluster else {})}],
        **settings,
    }
    (row,) = Study.from_text(yaml.safe_dump(values)).rows
    return Trial("s", row.label, seed, row.settings)


def run(trial: Trial, path: Path, data: DataSet) -> TrialFolder:
    folder = TrialFolder(path)
    path.mkdir(parents=True, exist_ok=True)
    prepare(trial, folder, path)
    process.run(trial, folder, data)
    return folder


def last_models(trial: Trial, folder: TrialFolder) -> dict[str, dict[str, torch.Tensor]]:
    found = {}
    for name in trial.process_names:
        snapshot = read_snapshot(folder.snapshot(name, trial.rounds))
        assert snapshot is not None
        found[name] = snapshot.tensors
    return found


def training_s(folder: TrialFolder, name: str, round_: int) -> float:
    snapshot = read_snapshot(folder.snapshot(name, round_))
    assert snapshot is not None
    return snapshot.header["training_s"]


def test_what_is_due_at_the_same_moment_happens_in_the_order_in_which_it_was_planned():
    time, happened = VirtualTime(), []
    time.after(2.0, lambda: happened.append(("c", time.now_s)))
    time.after(1.0, lambda: (happened.append(("a", time.now_s)), time.after(1.0, lambda: happened.append(("d", 2.0)))))
    time.after(1.0, lambda: happened.append(("b", time.now_s)))
    time.run()
    assert happened == [("a", 1.0), ("b", 1.0), ("c", 2.0), ("d", 2.0)]
    assert time.clock() == 2.0


@pytest.mark.seconds
@pytest.mark.parametrize("method", sorted(METHODS))
def test_two_runs_give_the_same_models_to_the_bit_and_another_seed_gives_others(tmp_path, squares, method):
    trial = trial_of(strategy=method, nodes=5)
    first, again = (last_models(trial, run(trial, tmp_path / name, squares)) for name in ("first", "again"))
    for name, tensors in first.items():
        assert all(torch.equal(tensor, again[name][key]) for key, tensor in tensors.items())
    other = trial_of(strategy=method, nodes=5, seed=1)
    found = last_models(other, run(other, tmp_path / "other", squares))
    assert not torch.equal(found["w1"]["1.weight"], first["w1"]["1.weight"])


@pytest.mark.heavy
def test_the_order_of_sets_which_differs_from_process_to_process_makes_no_difference(tmp_path):
    study = "study: s\ndata: digits\nmodel: mlp\nnodes: 5\nn_epochs: 2\nbatch_size: 16\nengine: in_memory\n"
    study += "strategies: [pull, adpsgd, noloco]\n"
    (tmp_path / "s.yaml").write_text(study)
    for hash_seed in ("1", "2"):
        words = [sys.executable, "-m", "dpwa", "lab", "run", "s.yaml", "--run-dir", hash_seed]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    models = [sorted((tmp_path / folder).glob("trials/*/nodes/*/snapshots/*")) for folder in ("1", "2")]
    assert len(models[0]) == 15
    for one, other in zip(*models, strict=True):
        tensors, again = load_file(one), load_file(other)
        assert all(torch.equal(tensors[name], again[name]) for name in tensors)


def test_a_row_may_blend_the_optimizers_state_and_then_twice_the_tensors_travel(tmp_path, squares, statistics):
    found: dict[str, NodeStatistics] = {}
    for word in ("keep", "blend"):
        run(trial_of(nodes=3, momentum=0.9, cluster={"optimizer_state": word}), tmp_path / word, squares)
        found[word] = statistics["w2"]
        assert found[word].blended > 0
        assert not found[word].failures
    assert found["blend"].exchanged_tensors == 2 * found["keep"].exchanged_tensors
    assert found["blend"].exchanged_bytes == 2 * found["keep"].exchanged_bytes


@pytest.mark.seconds
@pytest.mark.parametrize("method", ["pull", "gosgd"])
def test_nodes_that_merge_at_the_end_are_recorded_as_the_mean_of_what_they_were(tmp_path, squares, statistics, method):
    cluster = {"pull_probability": 0}
    apart = run(trial_of(nodes=4, strategy=method, cluster=cluster), tmp_path / "apart", squares)
    merged = run(
        trial_of(nodes=4, strategy=method, cluster={**cluster, "merge_at_end": True}), tmp_path / "merged", squares
    )
    last = trial_of().rounds

    def models(folder: TrialFolder, round_: int) -> list[dict[str, torch.Tensor]]:
        return [read_snapshot(folder.snapshot(f"w{rank}", round_)).tensors for rank in range(1, 5)]

    assert {node.merged_models for node in statistics.values()} == {4}
    for name, values in models(merged, last)[0].items():
        mean = torch.stack([model[name] for model in models(apart, last)]).mean(dim=0)
        assert torch.allclose(values, mean, rtol=1e-5, atol=1e-7)
        for model in models(merged, last):
            assert torch.equal(model[name], values), "the same bits everywhere"
    for one, other in zip(models(apart, last - 1), models(merged, last - 1), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one), "no round but the last one"
    # What each node had before is kept: it says what the merge was worth.
    result = evaluate(merged, trial_of(nodes=4, strategy=method), squares, exit_code=0)
    alone = evaluate(apart, trial_of(nodes=4, strategy=method), squares, exit_code=0)
    assert {worker["accuracy"] for worker in result["workers"]} == {result["final_accuracy"]}
    before = [worker["accuracy_before_merge"] for worker in result["workers"]]
    assert before == [worker["accuracy"] for worker in alone["workers"]]
    assert {worker["accuracy_before_merge"] for worker in alone["workers"]} == {None}


def test_every_step_exchanges_at_probability_one_when_links_are_fast(tmp_path, squares, statistics):
    run(trial_of(strategy="pull", nodes=6, n_epochs=5), tmp_path, squares)
    for found in statistics.values():
        # What the last step begins comes when the training has ended, and the pull with which it joined is none of the
        # method's. A peer may be beginning, or have made no step since it was asked last: this node's was the shorter.
        assert found.step - 5 <= found.completed <= found.step - 2
        assert found.asked == found.step
        assert not found.failures


def test_nodes_whose_method_never_exchanges_have_joined_and_count_no_exchange(tmp_path, squares, statistics):
    run(trial_of(strategy="pull", cluster={"pull_probability": 0.0, "merge_at_end": True}), tmp_path, squares)
    assert [found.exchanges["blended"] for found in statistics.values()] == [1] * 4
    assert {(found.asked, found.completed, found.merged_models) for found in statistics.values()} == {(0.0, 0, 4)}


@pytest.mark.seconds
def test_rare_pushes_are_as_rare_as_they_are_meant_to_be(tmp_path, squares, statistics):
    probability = 0.2
    trial = trial_of(strategy="gosgd", nodes=6, n_epochs=50, cluster={"pull_probability": probability})
    run(trial, tmp_path, squares)
    steps = sum(found.step for found in statistics.values())
    pushed = sum(found.exchanges.get("pushed", 0) for found in statistics.values())
    assert abs(pushed - probability * steps) < 4 * (steps * probability * (1 - probability)) ** 0.5


@pytest.mark.seconds
def test_nodes_meet_about_as_often_as_they_ask_for_although_each_is_in_one_pair_at_a_time(
    tmp_path, squares, statistics
):
    virtual = {"step_ms": 10, "latency_ms": 0}
    trial = trial_of(strategy="adpsgd", nodes=2, n_epochs=60, cluster={"pull_probability": 0.1}, virtual=virtual)
    run(trial, tmp_path, squares)
    asked = sum(found.asked for found in statistics.values())
    assert sum(found.exchanges.get("busy", 0) for found in statistics.values()) > 0.05 * asked, "some were refused"
    assert sum(found.completed for found in statistics.values()) > 0.95 * asked


def test_an_exchange_that_takes_longer_than_a_step_leaves_steps_without_one(tmp_path, squares, statistics):
    virtual = {"step_ms": 10, "jitter": 0, "latency_ms": 24}
    run(trial_of(strategy="pull", nodes=3, n_epochs=6, virtual=virtual), tmp_path, squares)
    for found in statistics.values():  # asked at the end of a step, here 48 ms later: taken five steps on
        assert found.completed == (found.step - 1) // 5 - 1  # the first is the model that it joins with


def test_a_model_takes_as_long_as_its_bytes_need(tmp_path, squares, statistics):
    parameters = 16 * 256 + 256 + 256 * 64 + 64 + 64 * 4 + 4
    virtual = {"step_ms": 10, "jitter": 0, "latency_ms": 0, "bandwidth": f"{parameters * 4 / 0.025:.0f} B/s"}
    run(trial_of(strategy="pull", nodes=3, n_epochs=6, virtual=virtual), tmp_path, squares)
    for found in statistics.values():  # 25 ms: taken at the end of the third step
        assert found.completed == (found.step - 1) // 3 - 1


def test_a_step_waits_for_its_exchange_as_long_as_it_may(tmp_path, squares, statistics):
    virtual = {"step_ms": 10, "jitter": 0, "latency_ms": 24}
    cluster = {"wait_ms": 1000}
    folder = run(trial_of(strategy="pull", nodes=3, n_epochs=6, virtual=virtual, cluster=cluster), tmp_path, squares)
    for name, found in statistics.items():
        assert found.completed == found.step - 2
        assert training_s(folder, name, 6) == pytest.approx(0.010 + (found.step - 1) * 0.048)


def test_rounds_of_a_mixing_matrix_miss_nobody_once_all_have_joined(tmp_path, squares, statistics):
    virtual = {"step_ms": 10, "jitter": 0.5}
    run(trial_of(strategy="dpsgd", nodes=4, n_epochs=6, virtual=virtual), tmp_path, squares)
    for found in statistics.values():
        assert found.method["missed"] <= 2 * 3  # in its first two rounds, while others join
        assert found.blended >= found.step - 3


def test_no_round_waits_for_a_node_that_has_ended(tmp_path, squares):
    cluster = {"dpsgd": {"every": 5, "deadline_ms": 10_000}}
    partition = {"kind": "quantity", "alpha": 0.5}
    trial = trial_of(strategy="dpsgd", nodes=2, n_epochs=10, partition=partition, cluster=cluster)
    folder = run(trial, tmp_path, squares)
    steps = {name: read_snapshot(folder.snapshot(name, trial.rounds)).header["step"] for name in ("w1", "w2")}

    shortest, longest = sorted(steps, key=lambda name: steps[name])
    assert steps[longest] >= steps[shortest] + 100  # in which there are twenty rounds
    assert training_s(folder, longest, trial.rounds) < 0.015 * steps[longest]  # none has waited for its deadline


def test_a_slow_node_takes_its_time_and_makes_fewer_steps(tmp_path, squares, statistics):
    virtual = {"step_ms": 10, "jitter": 0}
    trial = trial_of(strategy="pull", nodes=3, n_epochs=6, virtual=virtual, slow={"node": 2, "factor": 4})
    folder = run(trial, tmp_path, squares)
    steps = {name: found.step for name, found in statistics.items()}
    assert steps["w1"] == steps["w3"] > 3 * steps["w2"]
    assert training_s(folder, "w2", 6) == pytest.approx(0.040 * steps["w2"])
    assert training_s(folder, "w1", 6) == pytest.approx(0.010 * steps["w1"])


def test_a_killed_node_is_gone_in_the_middle_and_the_others_end(tmp_path, squares, statistics):
    trial = trial_of(strategy="pull", nodes=3, n_epochs=6, kill={"node": 3, "at": 0.6})
    folder = run(trial, tmp_path, squares)
    assert read_snapshot(folder.snapshot("w3", 6)) is None
    assert read_snapshot(folder.snapshot("w1", 6)) is not None
    assert 0 < statistics["w3"].step < statistics["w1"].step
    # Its last step is in its fourth round, and counts.
    steps = math.ceil(0.6 * statistics["w1"].step)
    assert steps > read_snapshot(folder.snapshot("w3", 3)).header["step"]
    dead = evaluate(folder, trial, squares, exit_code=0)["workers"][2]
    assert (dead["name"], dead["steps"], dead["samples"]) == ("w3", steps, steps * trial.settings.batch_size)
    assert statistics["w1"].exchanges.get("unreachable", 0) > 0


def test_a_node_that_is_killed_in_its_last_step_has_not_ended(tmp_path, squares):
    folder = run(trial_of(strategy="pull", nodes=3, kill={"node": 3, "at": 0.999}), tmp_path, squares)
    last = trial_of().rounds
    assert not folder.snapshot("w3", last).exists()
    assert folder.snapshot("w1", last).exists()


def test_lost_messages_are_lost_in_memory_too(tmp_path, squares, statistics):
    run(trial_of(strategy="pull", nodes=3, n_epochs=6, cluster={"faults": {"drop": 0.5}}), tmp_path, squares)
    assert all(found.faults["drop"] > 0 and found.failures > 0 for found in statistics.values())


def test_a_lost_message_costs_whoever_asked_the_timeout(tmp_path, squares, statistics):
    def blended(timeout_ms: int) -> int:
        cluster = {"faults": {"drop": 0.5}, "timeout_ms": timeout_ms}
        run(trial_of(cluster=cluster, n_epochs=20), tmp_path / str(timeout_ms), squares)
        assert all(found.exchanges["timed_out"] > 0 for found in statistics.values()), "the fault happened"
        return sum(found.blended for found in statistics.values())

    assert blended(1000) < 0.5 * blended(10)


def test_a_model_that_never_gets_across_in_time_is_an_error(tmp_path, squares):
    slow = trial_of(virtual={"step_ms": 10, "bandwidth": "1 kB/s"}, cluster={"timeout_ms": 500})
    with pytest.raises(ConfigError, match=r"timeout_ms ends an exchange after 0\.5 s"):
        run(slow, tmp_path, squares)


def test_one_process_alone_trains_in_virtual_time(tmp_path, squares):
    trial = trial_of(strategy="single", nodes=3, virtual={"step_ms": 5, "jitter": 0})
    folder = run(trial, tmp_path, squares)
    assert training_s(folder, "w1", 2) == pytest.approx(0.005 * 48)


def test_another_loss_trains_another_model(tmp_path, squares):
    trial = trial_of(strategy="single", loss="mse", learning_rate=0.01, momentum=0)
    models = {}
    for loss in ("cross_entropy", "mse"):
        changed = replace(trial, settings=trial.settings.model_copy(update={"loss": loss}))
        folder = run(changed, tmp_path / loss, squares)
        models[loss] = last_models(changed, folder)["w1"]
        with np.load(folder.steps("w1")) as stored:
            assert stored["loss"][-5:].mean() < stored["loss"][:5].mean()
    assert not all(torch.equal(models["mse"][name], value) for name, value in models["cross_entropy"].items())


def test_another_order_of_the_samples_changes_what_is_trained_and_not_what_is_held(tmp_path, squares):
    usual, other = trial_of(nodes=3), trial_of(nodes=3, data_order=1)
    parts = [[part.tolist() for part in parts_of_nodes(trial, squares)] for trial in (usual, other)]
    assert parts[0] == parts[1]
    folders = [run(trial, tmp_path / name, squares) for trial, name in ((usual, "a"), (other, "b"))]
    first, second = (read_snapshot(folder.snapshot("w1", 0)) for folder in folders)
    assert first is not None
    assert second is not None
    assert all(torch.equal(value, second.tensors[name]) for name, value in first.tensors.items())
    models = [last_models(trial, folder)["w1"] for trial, folder in zip((usual, other), folders, strict=True)]
    assert not all(torch.equal(value, models[1][name]) for name, value in models[0].items())


def test_the_steps_of_all_nodes_are_in_the_trials_folder(tmp_path, squares):
    trial = trial_of(nodes=3)
    folder = run(trial, tmp_path, squares)
    with np.load(folder.steps("w2")) as stored:
        assert len(stored["loss"]) == 16
        assert (np.diff(stored["end_s"]) > 0).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"strategy": "fedavg"}, "fedavg needs processes of its own"),
        ({"cluster": {"faults": {"delay_ms": 5}}}, "faults.delay_ms happens in real time"),
        ({"cluster": {"faults": {"slow": {"w1": 5}}}}, "faults.slow happens in real time"),
        ({"engine": "processes", "virtual": {"step_ms": 5}}, "virtual is for engine: in_memory"),
        ({"engine": "processes", "nodes": 65}, "expected at most 64 with engine: processes, got 65"),
        ({"nodes": 1001}, "from 1 to 1000, got 1001"),
    ],
)
def test_what_one_process_cannot_do_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        trial_of(**settings)

"""From snapshots to a result: the mean of models, their distance, and what becomes of a trial that failed."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from dpwa.examples.evaluation import accuracy_and_loss_of
from dpwa.lab.study.settings import Settings
from dpwa.lab.study.trial import Trial, TrialFolder, write_json
from dpwa.lab.training import machine as measured
from dpwa.lab.training.client_schedule import Schedule
from dpwa.lab.training.data import DataSet, load
from dpwa.lab.training.evaluation import evaluate
from dpwa.lab.training.models import build, initial_weights_hash
from dpwa.lab.training.recording import Recorder


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load("digits", None)


def trial_of(**options) -> Trial:
    values = {"strategy": "pull", "data": "digits", "model": "mlp", "nodes": 2, "n_epochs": 2, **options}
    return Trial("study", "row", 0, Settings.model_validate(values))


def run_rounds(folder: TrialFolder, trial: Trial, digits: DataSet, shifts: dict[str, list[float]]) -> nn.Module:
    """Let processes put models down: the initial one, moved by a constant in each round."""
    for name, moves in shifts.items():
        model = build(trial.settings.model, digits.shape, digits.classes, seed=trial.seed)
        watch = Recorder(folder, (name,), name, model, rounds=trial.rounds, did=lambda: {"bytes_sent": 1000})
        watch.begin(trial.rounds)
        for number, shift in enumerate(moves, start=1):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(shift)
            watch.stepped(number, done=number / trial.rounds, loss=torch.tensor(2.0 * number), right=3, count=4)
    return build(trial.settings.model, digits.shape, digits.classes, seed=trial.seed)


def test_the_aggregated_model_is_the_mean_and_consensus_the_mean_distance_from_it(tmp_path, digits):
    folder, trial = TrialFolder(tmp_path), trial_of()
    initial = run_rounds(folder, trial, digits, {"w1": [0.1, 0.0], "w2": [-0.1, 0.1]})
    result = evaluate(folder, trial, digits, exit_code=0)
    rounds = result["rounds"]
    assert [found["round"] for found in rounds] == [0, 1, 2]
    assert rounds[0]["consensus"] == 0
    # After round 1 the mean is the initial model again, and each is 0.1 in every parameter away from it.
    count = sum(parameter.numel() for parameter in initial.parameters())
    norm = math.sqrt(sum(float((parameter.detach().double() ** 2).sum()) for parameter in initial.parameters()))
    assert rounds[1]["consensus"] == pytest.approx(0.1 * math.sqrt(count) / norm, rel=1e-5)
    assert (rounds[1]["accuracy"], rounds[1]["loss"]) == pytest.approx(accuracy_and_loss_of(initial, digits.held_out))
    assert result["final_accuracy"] == rounds[2]["accuracy"]
    assert result["status"] == "done"
    assert rounds[2]["samples"] == result["samples_seen"] == 16
    assert result["bytes_sent"] == 2000


def test_a_result_has_the_commit_that_the_trial_began_with(tmp_path, digits):
    folder, trial = TrialFolder(tmp_path), trial_of()
    run_rounds(folder, trial, digits, {"w1": [0.1, 0.0], "w2": [-0.1, 0.1]})
    folder.trial_json.write_text(json.dumps({**trial.to_json(), "commit": "fedcba987654"}))
    assert evaluate(folder, trial, digits, exit_code=0)["commit"] == "fedcba987654"


def test_an_environment_inside_a_repository_of_the_user_has_no_commit_of_dpwa(tmp_path, monkeypatch):
    installed = tmp_path / "venv" / "dpwa" / "lab" / "training" / "machine.py"
    installed.parent.mkdir(parents=True)
    installed.touch()
    (tmp_path / ".gitignore").write_text("venv\n")
    git = str(shutil.which("git"))
    person = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", ".gitignore"], [*person, "commit", "-q", "-m", "of the user"]):
        subprocess.run([git, "-C", str(tmp_path), *words], check=True)
    monkeypatch.setattr(measured, "__file__", str(installed))
    assert measured.commit() == ""
    subprocess.run([git, "-C", str(tmp_path), "add", "-f", str(installed)], check=True)
    assert measured.commit().endswith("-dirty"), "now it is one of its files"


def test_only_the_last_round_is_measured_when_the_others_are_not_wanted(tmp_path, digits):
    folder, trial = TrialFolder(tmp_path), trial_of(eval_acc=False)
    run_rounds(folder, trial, digits, {"w1": [0.1, 0.0], "w2": [-0.1, 0.1]})
    rounds = evaluate(folder, trial, digits, exit_code=0)["rounds"]
    assert [found["accuracy"] is None for found in rounds] == [True, True, False]


def test_rounds_are_measured_on_training_samples_too_where_a_study_asks_for_it(tmp_path, digits):
    folder, trial = TrialFolder(tmp_path), trial_of(eval_train=True)
    initial = run_rounds(folder, trial, digits, {"w1": [0.1, 0.0], "w2": [-0.1, 0.1]})
    rounds = evaluate(folder, trial, digits, exit_code=0)["rounds"]
    order = torch.randperm(len(digits.train), generator=torch.Generator().manual_seed(0))
    some = digits.train.select(order[: len(digits.held_out)])
    assert (rounds[1]["train_accuracy"], rounds[1]["train_loss"]) == pytest.approx(accuracy_and_loss_of(initial, some))
    usual = evaluate(folder, trial_of(), digits, exit_code=0)["rounds"]
    assert usual[1]["train_accuracy"] is None


@pytest.mark.seconds
def test_the_batches_of_each_worker_are_kept_in_few_points(tmp_path, digits):
    folder, trial = TrialFolder(tmp_path), trial_of(n_epochs=120)
    run_rounds(folder, trial, digits, {"w1": [0.0] * 120, "w2": [0.0] * 120})
    found = evaluate(folder, trial, digits, exit_code=0)["worker_batches"]
    assert found.keys() == {"w1", "w2"}
    assert len(found["w2"]["samples"]) == 50
    assert found["w2"]["samples"][-1] == 480
    alone = evaluate(folder, trial_of(strategy="single"), digits, exit_code=0)
    assert alone["worker_batches"] == {}


def test_a_trial_that_failed_keeps_what_it_came_to_and_has_no_final_accuracy(tmp_path, digits):
    folder, trial = TrialFolder(tmp_path), trial_of()
    run_rounds(folder, trial, digits, {"w1": [0.1], "w2": [0.1]})
    result = evaluate(folder, trial, digits, exit_code=1, reason="w2 said no")
    assert result["status"] == "failed"
    assert result["reason"] == "w2 said no"
    assert result["final_accuracy"] is None
    assert [found["round"] for found in result["rounds"]] == [0, 1]


def test_processes_that_end_well_without_their_last_models_have_failed(tmp_path, digits):
    folder, trial = TrialFolder(tmp_path), trial_of()
    run_rounds(folder, trial, digits, {"w1": [0.1, 0.1], "w2": [0.1]})
    assert evaluate(folder, trial, digits, exit_code=0)["status"] == "failed"


def test_when_a_node_was_killed_on_purpose_the_result_is_that_of_the_survivors(tmp_path, digits):
    folder, trial = TrialFolder(tmp_path), trial_of(kill={"node": 2, "at": 0.5})
    run_rounds(folder, trial, digits, {"w1": [0.1, 0.1], "w2": [0.1]})
    result = evaluate(folder, trial, digits, exit_code=1)
    assert result["status"] == "done"
    assert result["reason"] == "w2 was killed; the others went on to the end"
    survivor, dead = result["workers"]
    assert survivor["accuracy"] == result["final_accuracy"]
    assert (dead["name"], dead["accuracy"], dead["samples"]) == ("w2", None, 4), "its model is in no mean"


def test_a_client_that_was_not_in_the_last_round_has_no_model_at_the_end(tmp_path, digits):
    folder, trial = TrialFolder(tmp_path), trial_of(strategy="fedavg", client_fraction=0.5)
    run_rounds(folder, trial, digits, {"w1": [0.1, 0.1], "w2": [0.1, 0.1], "server": [0.1, 0.1]})
    schedule = Schedule.of(trial.settings, trial.seed)
    (last,) = schedule.chosen(schedule.rounds)
    workers = evaluate(folder, trial, digits, exit_code=0)["workers"]
    assert [worker["accuracy"] is not None for worker in workers] == [last == 0, last == 1]


def test_models_that_are_no_numbers_any_more_have_no_distance(tmp_path, digits):
    folder, trial = TrialFolder(tmp_path), trial_of()
    run_rounds(folder, trial, digits, {"w1": [0.1, math.nan], "w2": [0.1, 0.1]})
    rounds = evaluate(folder, trial, digits, exit_code=0)["rounds"]
    assert math.isnan(rounds[2]["consensus"])


def test_samples_and_bytes_of_a_killed_node_count_up_to_its_last_step(tmp_path, digits):
    folder, trial = TrialFolder(tmp_path), trial_of(kill={"node": 2, "at": 0.5})
    run_rounds(folder, trial, digits, {"w1": [0.1, 0.1], "w2": [0.1]})
    word = {"step": 7, "samples": 28, "training_s": 1.0, "bytes_sent": 1300, "asked": 8, "exchanges": 4}
    write_json(folder.last_word("w2"), word)
    result = evaluate(folder, trial, digits, exit_code=1)
    assert result["samples_seen"] == 4 * 2 + 28
    assert result["bytes_sent"] == 1000 + 1300
    assert [found["samples"] for found in result["rounds"]] == [0, 4 + 4, 8 + 28], "it was there in the first round"
    assert (result["workers"][1]["steps"], result["workers"][1]["samples"]) == (7, 28)
    assert result["exchanges_per_step"] == pytest.approx(4 / 7)


def test_a_killed_node_that_left_no_last_word_counts_up_to_its_last_snapshot(tmp_path, digits):
    folder, trial = TrialFolder(tmp_path), trial_of(kill={"node": 2, "at": 0.5})
    run_rounds(folder, trial, digits, {"w1": [0.1, 0.1], "w2": [0.1]})
    result = evaluate(folder, trial, digits, exit_code=1)
    assert result["samples_seen"] == 4 * (2 + 1)
    assert result["bytes_sent"] == 1000 * 2


def test_when_a_client_was_killed_on_purpose_the_server_tells_so(tmp_path, digits):
    folder, trial = TrialFolder(tmp_path), trial_of(strategy="fedavg", kill={"node": 2, "at": 0.5})
    run_rounds(folder, trial, digits, {"w1": [0.1, 0.1], "w2": [0.1], "server": [0.1, 0.1]})
    result = evaluate(folder, trial, digits, exit_code=1, reason="node w2 failed")
    assert (result["status"], result["reason"]) == ("done", "w2 was killed; the others went on to the end")


def test_when_the_others_die_with_a_killed_node_the_trial_has_failed(tmp_path, digits):
    folder, trial = TrialFolder(tmp_path), trial_of(kill={"node": 2, "at": 0.5})
    run_rounds(folder, trial, digits, {"w1": [0.1], "w2": [0.1]})
    assert evaluate(folder, trial, digits, exit_code=1)["status"] == "failed"


def test_a_trial_of_which_nothing_is_there_has_failed_without_rounds(tmp_path, digits):
    folder, trial = TrialFolder(tmp_path), trial_of()
    write_json(folder.trial_json, trial.to_json())
    result = evaluate(folder, folder.trial(), digits, exit_code=1)
    assert result["status"] == "failed"
    assert result["reason"] == "exit code 1"
    assert result["rounds"] == []
    assert result["workers"] == []


def test_batches_are_averaged_over_the_workers_weighted_by_their_samples(tmp_path, digits):
    folder, trial = TrialFolder(tmp_path), trial_of()
    run_rounds(folder, trial, digits, {"w1": [0.0, 0.0], "w2": [0.0, 0.0]})
    steps = {"loss": [4.0, 6.0], "right": [0, 2], "count": [12, 12], "end_s": [0.0, 0.0]}
    np.savez(folder.steps("w2"), **{key: np.array(value) for key, value in steps.items()})
    batches = evaluate(folder, trial, digits, exit_code=0)["batches"]
    assert batches["samples"] == [16, 32]
    assert batches["loss"] == pytest.approx([(2 * 4 + 4 * 12) / 16, (4 * 4 + 6 * 12) / 16])
    assert batches["accuracy"] == pytest.approx([3 / 16, 5 / 16], abs=1e-5)


def test_many_batches_become_at_most_four_hundred_points(tmp_path, digits):
    folder, trial = TrialFolder(tmp_path), trial_of()
    run_rounds(folder, trial, digits, {"w1": [0.0, 0.0], "w2": [0.0, 0.0]})
    for name, count in (("w1", 2000), ("w2", 500)):  # w2 was slower
        values = {"loss": np.ones(count), "right": np.ones(count), "count": np.full(count, 4), "end_s": np.ones(count)}
        np.savez(folder.steps(name), **values)
    batches = evaluate(folder, trial, digits, exit_code=0)["batches"]
    assert len(batches["loss"]) == 400
    assert batches["samples"][-1] == 4 * 2500
    assert batches["loss"] == pytest.approx([1.0] * 400)


def test_what_is_measured_of_a_model_is_its_accuracy_and_cross_entropy(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    accuracy, loss = accuracy_and_loss_of(model, digits.held_out)
    assert loss == pytest.approx(math.log(10), rel=1e-5)
    assert accuracy == pytest.approx(float((digits.held_out.labels == 0).float().mean()))


def test_the_hash_of_the_initial_weights_is_of_what_the_processes_began_with(tmp_path, digits):
    folder, trial = TrialFolder(tmp_path), trial_of()
    initial = run_rounds(folder, trial, digits, {"w1": [0.1, 0.0], "w2": [0.0, 0.0]})
    same = evaluate(folder, trial, digits, exit_code=0)["initial_weights"]
    assert same == initial_weights_hash(initial)
    folder.snapshot("w1", 1).replace(folder.snapshot("w1", 0))
    assert len(evaluate(folder, trial, digits, exit_code=0)["initial_weights"].split()) == 2


def test_a_result_says_what_was_trained_where(tmp_path, digits):
    folder, trial = TrialFolder(tmp_path), trial_of()
    run_rounds(folder, trial, digits, {"w1": [0.0, 0.0], "w2": [0.0, 0.0]})
    result = evaluate(folder, trial, digits, exit_code=0)
    assert Trial.from_json(result["trial"]) == trial
    assert sum(result["shard_sizes"]) == len(digits.train)
    assert np.array(result["class_counts"]).shape == (2, 10)
    assert result["machine"]["cores"] >= 1


def test_the_mean_of_models_with_batch_norm_has_the_mean_of_their_running_means_and_counts_no_batches_as_distance(
    tmp_path, digits
):
    folder, trial = TrialFolder(tmp_path), trial_of(model="resnet8_bn", n_epochs=1)
    for name, seen in (("w1", 200), ("w2", 600)):
        model = build("resnet8_bn", digits.shape, digits.classes, seed=0)
        watch = Recorder(folder, (name,), name, model, rounds=1)
        watch.begin(1)
        model[1].running_mean.fill_(seen / 100)
        model[1].num_batches_tracked.fill_(seen)
        watch.stepped(1, done=1.0, loss=torch.tensor(1.0), right=3, count=4)
    result = evaluate(folder, trial, digits, exit_code=0)
    expected = build("resnet8_bn", digits.shape, digits.classes, seed=0)
    expected[1].running_mean.fill_(4.0)
    assert result["final_loss"] == pytest.approx(accuracy_and_loss_of(expected, digits.held_out)[1], rel=1e-4)
    assert result["rounds"][-1]["consensus"] == 0  # the weights are the same


def test_a_sequence_counts_as_one_sample_and_its_accuracy_is_that_of_its_characters(tmp_path):
    text = load("text", None)
    text = replace(text, held_out=text.held_out.first(20))
    folder, trial = TrialFolder(tmp_path), trial_of(data="text", model="char_transformer", n_epochs=1)
    for name in ("w1", "w2"):
        model = build("char_transformer", text.shape, text.classes, seed=0)
        watch = Recorder(folder, (name,), name, model, rounds=1)
        watch.begin(1)
        watch.stepped(1, done=1.0, loss=torch.tensor(3.0), right=64, count=4)
    result = evaluate(folder, trial, text, exit_code=0)
    assert result["samples_seen"] == 8
    assert result["batches"]["accuracy"] == [0.25]
    assert np.array(result["class_counts"]).sum() == 5000
    assert np.array(result["class_counts"]).shape == (2, 10)
    scores = model(text.prepare(text.held_out.images))
    assert result["final_accuracy"] == pytest.approx(
        (scores.argmax(dim=1) == text.held_out.labels).float().mean().item()
    )
    assert result["final_loss"] == pytest.approx(
        nn.functional.cross_entropy(scores, text.held_out.labels).item(), rel=1e-4
    )

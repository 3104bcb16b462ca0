"""Islands whose models are sharded by FSDP2, with real processes: under one torchrun, and each as a node."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_runs import run
from safetensors.numpy import load_file

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports
from support import ROOT, TESTS

FORKED = [sys.executable, str(TESTS / "forked_ranks.py")]
TRAINER = str(TESTS / "shard_trainer.py")

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(300)]


def said_in(folder: Path, size: int = 2) -> list[list[dict[str, Any]]]:
    """What the processes of two islands have said; they end with one model, of which each has its part."""
    found = [
        [json.loads((folder / f"w{node + 1}-{rank}.json").read_text()) for rank in range(size)] for node in range(2)
    ]
    for node, island in enumerate(found):
        assert [one["places"] for one in island] == [[node, 2, rank, size] for rank in range(size)]
        assert len({one["loss"] for one in island}) == 1, "the first one's"
    for holders in zip(*found, strict=True):
        assert all(one["answer"] and one["merged_models"] == 2 for one in holders)
        assert model_of(holders[0]["after"]) == model_of(holders[1]["after"]), "to the bit"
    return found


def model_of(held: dict[str, list[float]]) -> dict[str, list[float]]:
    """Without the optimizer's state, which a merge leaves alone."""
    return {name: values for name, values in held.items() if not name.startswith("optimizer.")}


def whole(parts: list[dict[str, list[float]]], name: str) -> list[float]:
    """A tensor out of what each process has of it."""
    held = {key: values for part in parts for key, values in part.items() if key.startswith(f"{name}[")}
    in_order = sorted(held, key=lambda key: int(key.rpartition("[")[2].partition(":")[0]))
    return [value for key in in_order for value in held[key]]


def test_each_process_averages_its_part_with_the_same_one_of_the_other_island_and_the_whole_model_is_saved(tmp_path):
    (tmp_path / "settings.yaml").write_text("pull_probability: 0\n")  # so that the merge alone changes the models
    words = [str(tmp_path), "60", "2", "merge=yes"]
    run(tmp_path, *FORKED, "4", TRAINER, *words, timeout_s=280.0, DPWA_CONFIG="settings.yaml")
    found = said_in(tmp_path)
    for part, holders in enumerate(zip(*found, strict=True)):
        for name, values in holders[0]["after"].items():
            if name.endswith("]") or part == 0:  # buffers follow the first process
                mean = np.mean([one["before"][name] for one in holders], axis=0)
                np.testing.assert_allclose(values, mean, rtol=1e-6, atol=1e-7)
    assert [sorted(one["before"]) for one in found[0]] == [
        [
            *[f"0.bias[{of_seven}]", f"0.weight[{of_seven}]", f"1.bias[{of_seven}]"],
            *["1.running_mean", "1.running_var", f"1.weight[{of_seven}]"],
            *[f"3.bias[{of_three}]", f"3.weight[{of_three}]"],
        ]
        for of_seven, of_three in (("0:4", "0:2"), ("4:7", "2:3"))
    ]
    for island in found:
        assert len({tuple(one["after"]["1.running_var"]) for one in island}) == 1, "the first one's in all processes"
    run_dir = Path(found[0][0]["run_dir"])
    assert Path(found[0][1]["run_dir"]) == run_dir / "parts" / "1"
    saved = [load_file(run_dir / "nodes" / name / "model.safetensors") for name in ("w1", "w2")]
    for name in ("0.weight", "0.bias", "1.weight", "3.weight"):
        expected = np.float32(whole([one["after"] for one in found[0]], name))
        for model in saved:
            np.testing.assert_array_equal(model[name].ravel(), expected)
    assert list(saved[0]["3.weight"].shape) == [3, 7]
    assert sorted(path.parent.name for path in run_dir.rglob("model.safetensors")) == ["w1", "w2"]


def test_the_parts_are_blended_while_the_islands_train_and_the_moments_of_adam_with_them(tmp_path):
    (tmp_path / "settings.yaml").write_text("optimizer_state: blend\n")
    words = ["60", "2", "optimizer=adam", "merge=yes"]
    run(tmp_path, *FORKED, "4", TRAINER, str(tmp_path), *words, timeout_s=280.0, DPWA_CONFIG="settings.yaml")
    found = said_in(tmp_path)
    assert all(one["blended"] > 0 and one["failures"] == 0 for island in found for one in island)
    assert "optimizer.exp_avg_sq.0.weight[4:7]" in found[0][1]["before"]


@pytest.mark.slow
def test_a_node_of_dpwa_launch_may_be_such_an_island_and_comes_back_while_the_other_trains(tmp_path):
    first = next(port for port in free_ports(40) if port < 60_000)
    config = ClusterConfig.for_localhost(2, ports=[first, first + 2])
    (tmp_path / "cluster.yaml").write_text(config.to_yaml())
    said = run(
        tmp_path,
        *[sys.executable, "-m", "dpwa", "launch", "cluster.yaml", "--on-failure", "restart", "--run-dir", "run", "--"],
        *[*FORKED, "2", TRAINER, str(tmp_path), "400", "2", "merge=yes", "pause=0.03", "dies=w2/1"],
        timeout_s=280.0,
    )
    assert "w2 | [dpwa] exit code 1; restart 1 of 5" in said, "the fault has happened"
    assert all(one["blended"] > 0 for island in said_in(tmp_path) for one in island)


def test_processes_of_an_island_that_make_other_numbers_of_steps_are_told_so(tmp_path):
    command = [*FORKED, "4", TRAINER, str(tmp_path), "30", "2", "short=w2/1"]
    with pytest.raises(AssertionError) as failed:
        run(tmp_path, *command, timeout_s=60.0)
    said = str(failed.value)
    assert (
        "node w2: after 29 steps rank 2 trains on, and after 29 rank 3, of the same island, has finished; give all of "
        "them the same number of steps"
    ) in said


@pytest.mark.slow
def test_the_sample_of_islands_runs_with_a_sharded_model(tmp_path):
    sample = str(ROOT / "samples" / "islands.py")
    said = run(tmp_path, *FORKED, "4", sample, "--island", "2", "--epochs", "1", "--shard", timeout_s=280.0)
    assert "w1: epoch 0, loss" in said
    assert "w2: epoch 0, loss" in said

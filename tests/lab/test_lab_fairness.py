"""What makes a comparison fair, shown with real processes: same beginning, same samples, same cores, same updates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from dpwa.cli import main
from dpwa.lab.run.supervision import Ended, Programs
from dpwa.lab.study.trial import TrialFolder
from dpwa.lab.training import evaluation
from dpwa.lab.training.machine import machine_cores

pytestmark = [pytest.mark.heavy, pytest.mark.slow]

RUN = Programs.run
TRUE_EQUALS = ("parallel_sgd", "ddp", "custom_data_parallel")
STRATEGIES = ("single", "pull", "fedavg", "param_avg", "allreduce_every_h", *TRUE_EQUALS)
STUDY = f"""
study: fair
title: Fair
data: digits
model: mlp
nodes: 2
n_epochs: 2
batch_size: 64
seeds: 1
strategies: [{", ".join(STRATEGIES)}]
"""


async def run_in_this_process(programs, argv, environment, **options):
    """Evaluates here, where torch is loaded already: a third of the processes. `test_lab_running` starts them all."""
    _, module, name, *arguments = argv
    if (module, name) != ("-m", evaluation.__name__):
        return await RUN(programs, argv, environment, **options)
    evaluation.main(arguments)
    return Ended(0, 0.0)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fair")
    (folder / "fair.yaml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Programs, "run", run_in_this_process)
        done = CliRunner().invoke(main, ["lab", "run", str(folder / "fair.yaml"), "--run-dir", str(folder / "run")])
    assert done.exit_code == 0, done.output
    return folder / "run"


@pytest.fixture(scope="module")
def results(run_dir: Path) -> dict[str, dict[str, Any]]:
    return {
        name: json.loads(TrialFolder(run_dir / "trials" / f"{name}-s0").result_json.read_text()) for name in STRATEGIES
    }


@pytest.mark.timeout(400)
def test_all_strategies_begin_with_the_same_weights(results):
    assert {result["status"] for result in results.values()} == {"done"}
    assert len({result["initial_weights"] for result in results.values()}) == 1
    assert len({result["rounds"][0]["accuracy"] for result in results.values()}) == 1


@pytest.mark.timeout(400)
def test_all_strategies_see_the_same_number_of_samples(results):
    assert {name: result["samples_seen"] for name, result in results.items()} == dict.fromkeys(STRATEGIES, 2 * 22 * 64)


@pytest.mark.timeout(400)
def test_threads_are_divided_equally_and_together_use_the_cores(results):
    for name, result in results.items():
        training = 2 if name == "fedavg" else result["processes"]  # its server computes nothing
        assert result["threads_per_process"] == max(1, machine_cores() // training), name


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", TRUE_EQUALS)
def test_strategies_that_split_batches_make_the_updates_of_one_process(run_dir, name):
    """The same batches in the same order: what differs is the order of sums."""
    models = [load_file(TrialFolder(run_dir / "trials" / f"{row}-s0").snapshot("w1", 2)) for row in ("single", name)]
    assert models[0].keys() == models[1].keys()
    for key, value in models[0].items():
        torch.testing.assert_close(value, models[1][key], rtol=0, atol=1e-4)


@pytest.mark.timeout(400)
def test_what_a_strategy_waits_for_its_evaluation_is_not_on_its_clock(results):
    for name, result in results.items():
        times = [found["time_s"] for found in result["rounds"]]
        assert times == sorted(times), name
        assert 0 < result["training_s"] < result["wall_s"], name

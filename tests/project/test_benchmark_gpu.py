"""The GPU benchmark without a GPU: its networks have the size that it claims, and all of it runs at tiny sizes."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support import ROOT

pytestmark = pytest.mark.heavy

BENCHMARKS = ROOT / "benchmarks"
SPREAD = {"median", "p10", "p90", "repetitions"}


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--json", str(folder / "gpu.json"), *arguments]
    no_gpu = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=no_gpu, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture
def networks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu_networks")


@pytest.mark.parametrize(("case", "parameters"), [("gpt2", 124_439_808), ("resnet50", 25_557_032)])
def test_the_networks_have_as_many_parameters_as_the_originals(networks, case, parameters):
    with torch.device("meta"):
        network = networks.CASES[case].make()
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize("case", ["gpt2", "resnet50"])
def test_the_tiny_networks_learn_their_batch(networks, case):
    torch.manual_seed(1)
    tiny = networks.TINY[case]
    network = tiny.make()
    inputs, targets = tiny.make_data(tiny.batch, torch.device("cpu"))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        loss = tiny.loss(network(inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_a_place_in_the_text_does_not_see_what_follows(networks):
    network = networks.TINY["gpt2"].make().eval()
    ids = torch.randint(0, 101, (1, 16))
    changed = ids.clone()
    changed[0, 10] = (ids[0, 10] + 1) % 101
    with torch.no_grad():
        before, after = network(ids)[0], network(changed)[0]
    torch.testing.assert_close(before[:10], after[:10])
    assert not torch.allclose(before[10:], after[10:])


@pytest.mark.slow
def test_it_times_steps_with_and_without_dpwa_and_splits_the_trainers_time(tmp_path):
    done = run(tmp_path, "--quick", "--device", "cpu", "--steps", "20")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert found["name"] == "gpu"
    assert found["settings"] | {"device": "cpu", "gpus": [], "tiny": True} == found["settings"]
    assert [(row["case"], row["dpwa"]) for row in found["rows"]] == [
        (case, dpwa) for case in ("gpt2", "resnet50") for dpwa in ("without", "with")
    ]
    for row in found["rows"][1::2]:
        for part in ("step", "publish_host", "apply_host", "exchange"):
            assert row[f"{part}_ms"].keys() == SPREAD
        assert row["publish_gpu_ms"] is None  # there is no GPU, so nothing is claimed of it
        assert row["exchanges_per_step"]["median"] > 0
        assert row["model_mb"] > 0
    assert found["ratios"]["step_time"].keys() == {"gpt2", "resnet50"}
    assert all(made["repetitions"] == 2 for made in found["ratios"]["step_time"].values())


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0
    assert done.stdout == (
        "gpu: no CUDA GPU here, so nothing was measured; --device cpu shows that the benchmark runs\n"
    )
    assert not (tmp_path / "gpu.json").exists()

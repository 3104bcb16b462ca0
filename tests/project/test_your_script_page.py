"""docs/your-script.md: its blocks, run one after the other as two nodes would have them in one script."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from dpwa import ClusterConfig, DpwaPyTorchAdapter
from dpwa.launch.ports import free_ports
from pages import python_blocks

PAGE = "your-script.md"
(START,) = python_blocks(PAGE, "The model: the same start")
SEED, SHARD = python_blocks(PAGE, "The data: different shards")
(SHARED,) = python_blocks(PAGE, "Unequal machines")
(FILES,) = python_blocks(PAGE, "Files: one folder per node")
(DOWNLOAD,) = python_blocks(PAGE, "Downloads")
(CHECKPOINT,) = python_blocks(PAGE, "Checkpoints and resuming")


@pytest.fixture(autouse=True)
def _random_state():
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Runs blocks as one node of two; the names that they leave, and their node is closed at the end."""
    config = ClusterConfig.for_localhost(2, ports=free_ports(2), connect_timeout_ms=20)
    (tmp_path / "cluster.yaml").write_text(config.to_yaml(), encoding="utf-8")
    monkeypatch.setenv("DPWA_CONFIG", "cluster.yaml")
    monkeypatch.setenv("DPWA_RUN_DIR", "run")
    used: list[dict] = []

    def run(name: str, *blocks: str) -> dict:
        monkeypatch.setenv("DPWA_NODE", name)
        data = TensorDataset(torch.arange(64.0).unsqueeze(1))
        names = {"torch": torch, "Path": Path, "DpwaPyTorchAdapter": DpwaPyTorchAdapter, "data": data, "epochs": 2}
        names |= {
            "MyModel": lambda: nn.Linear(1, 1),
            "DataLoader": DataLoader,
            "DistributedSampler": DistributedSampler,
        }
        used.append(names)
        for block in blocks:
            exec(block, names)  # noqa: S102 - what the page says, as a reader would run it
        return names

    yield run
    for names in used:
        names["node"].close()


def test_nodes_begin_with_the_same_weights_and_go_on_with_random_numbers_of_their_own(script):
    nodes = [script(name, START, SEED, "drawn = torch.rand(3)") for name in ("w1", "w2")]
    assert torch.equal(nodes[0]["model"].weight, nodes[1]["model"].weight)
    assert not torch.equal(nodes[0]["drawn"], nodes[1]["drawn"])


def test_the_shards_are_disjoint_complete_and_in_another_order_each_epoch(script):
    orders = {}
    look = "    seen.append([int(row) for (rows,) in loader for row in rows])\n"
    for name in ("w1", "w2"):
        orders[name] = script(name, START, SEED, f"seen = []\n{SHARD}{look}")["seen"]
    for epoch in range(2):
        assert sorted(orders["w1"][epoch] + orders["w2"][epoch]) == list(range(64))
    assert orders["w1"][0] != orders["w1"][1]


def test_the_nodes_share_out_the_data_and_a_node_alone_trains_all_of_it():
    assert SHARED.count("        ...\n") == 1
    code = SHARED.replace(
        "        ...\n", "        seen.extend(int(row) for row in batch[0])\n        node.step(1.0)\n"
    )
    data, seen = TensorDataset(torch.arange(64.0).unsqueeze(1)), []
    with DpwaPyTorchAdapter(nn.Linear(1, 1)) as node:
        exec(code, {"node": node, "data": data, "DataLoader": DataLoader, "seen": seen})  # noqa: S102 - as above
    assert sorted(seen) == sorted(10 * list(range(64)))


def test_each_node_has_a_folder_of_its_own_for_its_files(script):
    for name in ("w1", "w2"):
        script(name, START, SEED, FILES)
        assert Path("run/nodes", name, "checkpoint.pth").exists()


def test_a_checkpoint_brings_the_clock_back(script):
    restore = (
        f"path = node.folder / 'checkpoint.pt'\noptimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n{CHECKPOINT}"
    )
    first = script(
        "w1", START, SEED, "node.step(1.0)\nsaved = {'model': model.state_dict(), 'dpwa': node.state_dict()}"
    )
    first["node"].close()
    second = script("w2", START, SEED)
    second["saved"] = first["saved"]
    exec(restore, second)  # noqa: S102 - see above
    assert second["node"].clock == 1.0
    assert set(torch.load(second["path"], weights_only=True)) == {"model", "optimizer", "dpwa"}


def test_one_node_downloads_and_the_others_go_on_when_it_has(monkeypatch):
    Path("data").mkdir()
    downloads = []

    def run(rank: str) -> None:
        monkeypatch.setenv("DPWA_RANK", rank)
        names = {"Path": Path, "os": os, "time": time, "download": lambda: downloads.append(rank)}
        exec(DOWNLOAD, names)  # noqa: S102 - see above

    for rank in ("0", "0", "1"):
        run(rank)
    assert downloads == ["0"]

"""Processes that share out data: one is slow, one is killed."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports
from support import ROOT, wait_until

BLOCKS = 400
END_S = 90.0


class Nodes:
    """Four processes that train."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = ClusterConfig.for_localhost(4, ports=free_ports(4))
        (folder / "cluster.yaml").write_text(config.to_yaml(), encoding="utf-8")
        self.running: dict[str, subprocess.Popen[str]] = {}

    def start(self, name: str, block_s: float, epochs: int = 2) -> None:
        arguments = [str(self.folder / "cluster.yaml"), name, str(self.folder), str(block_s), str(epochs)]
        self.running[name] = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "lease_trainer.py"), *arguments], stdout=subprocess.PIPE, text=True
        )

    def trained(self, name: str) -> list[str]:
        path = self.folder / f"{name}.txt"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def end(self) -> None:
        for process in self.running.values():
            out, _ = process.communicate(timeout=END_S)
            assert (process.returncode, out) == (0, "done\n")

    def all_trained(self, *names: str) -> Counter[str]:
        return Counter(line for name in names for line in self.trained(name))

    def close(self) -> None:
        for process in self.running.values():
            process.kill()
            process.communicate()


@pytest.fixture
def nodes(tmp_path) -> Iterator[Nodes]:
    made = Nodes(tmp_path)
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.heavy
def test_each_block_is_trained_once_and_the_slow_process_trains_fewest(nodes):
    for name in ("w1", "w2", "w3"):
        nodes.start(name, 0.02)
    nodes.start("w4", 0.08)
    nodes.end()
    trained = nodes.all_trained("w1", "w2", "w3", "w4")
    assert len(trained) == 2 * BLOCKS
    assert set(trained.values()) == {1}
    assert len(nodes.trained("w4")) < min(len(nodes.trained(name)) for name in ("w1", "w2", "w3"))


@pytest.mark.heavy
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_a_process_leaves_that_is_killed_is_trained_by_the_others_and_few_blocks_twice(nodes):
    names = ("w1", "w2", "w3", "w4")
    for name in names:
        nodes.start(name, 0.05)
    wait_until(lambda: nodes.all_trained(*names).total() >= 1.3 * BLOCKS, "they are in the second epoch", END_S)
    assert nodes.trained("w2")
    killed = nodes.running.pop("w2")
    killed.kill()
    killed.communicate()
    before = nodes.trained("w2")
    nodes.end()
    assert nodes.trained("w2") == before
    trained = nodes.all_trained(*names)
    assert len(trained) == 2 * BLOCKS
    assert sum(trained.values()) - len(trained) <= 0.02 * BLOCKS

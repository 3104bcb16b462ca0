"""`dpwa launch` of a node that joins a running cluster, and `dpwa leave`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from dpwa.cli import main
from dpwa.config.cluster import ClusterConfig
from dpwa.errors import ConfigError, DpwaError
from dpwa.launch.leaving import ask_to_leave
from dpwa.launch.ports import free_ports
from dpwa.launch.run_dir import make_run_dir
from support import events_of, wait_until

SCRIPT = """
import time, torch
from dpwa import DpwaPyTorchAdapter
model = torch.nn.Linear(4, 1)
with DpwaPyTorchAdapter(model) as node:
    while True:
        node.step(1.0)
        time.sleep(0.01)
"""


class Launches:
    """`dpwa launch` of files, as processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "train.py").write_text(SCRIPT)
        self._running: list[subprocess.Popen[bytes]] = []

    def launch(self, file: str, *options: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "dpwa", "launch", file, *options, "--", sys.executable, "train.py"]
        process = subprocess.Popen(
            argv, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ}
        )
        self._running.append(process)
        return process

    def events(self, run: str, name: str) -> list[dict]:
        return events_of(self.folder / run, name)

    def close(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait(30)
            process.stderr.close()


@pytest.fixture
def launches(tmp_path) -> Iterator[Launches]:
    made = Launches(tmp_path)
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.heavy
def test_a_node_joins_in_the_run_folder_leaves_when_asked_and_has_saved_its_model(launches, tmp_path):
    ports = free_ports(3)
    (tmp_path / "seed.yaml").write_text(f"nodes: [{{name: w1, port: {ports[0]}}}]\njoin: [127.0.0.1:{ports[0]}]\n")
    (tmp_path / "w9.yaml").write_text(f"nodes: [{{name: w9, port: {ports[1]}}}]\njoin: [127.0.0.1:{ports[0]}]\n")
    (tmp_path / "w8.yaml").write_text(f"nodes: [{{name: w8, port: {ports[2]}}}]\njoin: [127.0.0.1:{ports[0]}]\n")
    launches.launch("seed.yaml", "--run-dir", "run")
    wait_until(lambda: bool(launches.events("run", "w1")), "the seed trains", 60.0)
    newcomer = launches.launch("w9.yaml", "--run-dir", "run")
    outside = launches.launch("w8.yaml", "--run-dir", "other")

    def knows_it() -> bool:
        return any(event["event"] == "member" and event["peer"] == "w9" for event in launches.events("run", "w1"))

    wait_until(knows_it, "it is a member", 60.0)

    def joining() -> list[dict]:
        return [event for event in launches.events("run", "w9") if event["event"] == "joined"]

    wait_until(lambda: bool(joining()), "it has a model of the seed's", 20.0)
    (joined,) = joining()
    assert joined["members"] == ["w1"]
    assert (tmp_path / "run" / "config-w9.yaml").exists()
    assert (tmp_path / "run" / "keys" / "w9.key").exists()
    assert not (tmp_path / "other" / "keys").exists()
    result = CliRunner().invoke(main, ["leave", str(tmp_path / "run"), "w9"])
    assert (result.exit_code, result.output) == (0, "node w9 saves its model and leaves\n")
    assert newcomer.wait(30) == 0
    said = newcomer.stderr.read().decode()
    assert "1 of 1 nodes ended well" in said
    assert (tmp_path / "run" / "nodes" / "w9" / "model.safetensors").exists()

    def has_forgotten() -> bool:
        last = [event for event in launches.events("run", "w1") if event["event"] == "member"]
        return last[-1]["state"] == "forgotten" and last[-1]["said"] == "left"

    wait_until(has_forgotten, "it is forgotten", 20.0)

    def warnings() -> list[dict]:
        return [event for event in launches.events("other", "w8") if event["event"] == "warning"]

    # Whoever has no key of the run is told so, and trains alone.
    wait_until(lambda: bool(warnings()), "the other one is told", 60.0)
    told = warnings()
    assert len(told) == 1
    assert "DPWA_RUN_DIR must name their run folder" in told[0]["text"]
    outside.send_signal(signal.SIGINT)


def test_a_node_that_is_not_there_is_named(tmp_path):
    (tmp_path / "nodes" / "w1").mkdir(parents=True)
    with pytest.raises(ConfigError, match="has no node w9; it has w1"):
        ask_to_leave(tmp_path, "w9")


def test_a_node_that_takes_no_notice_is_told_of_and_not_asked_any_longer(tmp_path):
    folder = tmp_path / "nodes" / "w1"
    folder.mkdir(parents=True)
    with pytest.raises(DpwaError, match=r"took no notice within 0\.1 s"):
        ask_to_leave(tmp_path, "w1", 0.1)
    assert list(folder.iterdir()) == []


def test_the_file_of_a_newcomer_stands_beside_that_of_the_cluster(tmp_path):
    seed = ClusterConfig.from_text("nodes: [{name: w1, port: 23300}]\njoin: [127.0.0.1:23300]\n")
    newcomer = ClusterConfig.from_text("nodes: [{name: w9, port: 23309}]\njoin: [127.0.0.1:23300]\n")
    for _ in range(2):
        make_run_dir(seed, tmp_path)
        make_run_dir(newcomer, tmp_path)
    assert ClusterConfig.load(tmp_path / "config.yaml") == seed
    assert ClusterConfig.load(tmp_path / "config-w9.yaml") == newcomer
    with pytest.raises(ConfigError, match="another config"):
        make_run_dir(ClusterConfig.for_localhost(2), tmp_path)

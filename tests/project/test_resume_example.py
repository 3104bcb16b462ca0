"""examples/resume: checkpoints, and a node that is killed and goes on with the others."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.average import average_run
from dpwa.launch.ports import free_ports
from pages import python_blocks
from support import ROOT, wait_until

EXAMPLE = ROOT / "examples" / "resume"
TRAINING_TIMEOUT_S = 200


@pytest.mark.seconds
def test_a_second_start_goes_on_where_the_checkpoint_is(monkeypatch, capsys):
    state = torch.get_rng_state()
    for epochs in (1, 2):
        monkeypatch.setattr(sys, "argv", ["train.py", "--epochs", str(epochs)])
        runpy.run_path(str(EXAMPLE / "train.py"), run_name="__main__")
    torch.set_rng_state(state)
    beginnings = re.findall(r"begins with clock (\d+)", capsys.readouterr().out)
    assert beginnings == ["0", "45"]
    assert [path.name for path in Path().iterdir()] == ["checkpoint.pt"], "no part of one is left"


class _Launch:
    """`dpwa launch` of the example, with its output collected as it comes."""

    def __init__(self, folder: Path) -> None:
        count = len(ClusterConfig.load(EXAMPLE / "cluster.yaml").nodes)
        config = ClusterConfig.for_localhost(count, ports=free_ports(count))
        (folder / "cluster.yaml").write_text(config.to_yaml(), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "dpwa",
            "launch",
            "cluster.yaml",
            "--on-failure",
            "restart",
            "--run-dir",
            "run",
        ]
        self.process = subprocess.Popen(
            [*command, "--", sys.executable, str(EXAMPLE / "train.py")],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout))
        self._reader.start()

    def find(self, pattern: str) -> list[str]:
        return [found[1] for line in list(self.lines) if (found := re.search(pattern, line))]

    def end(self) -> int:
        code = self.process.wait(TRAINING_TIMEOUT_S)
        self._reader.join(20)
        self.process.stdout.close()
        return code


def _closing_clock(run_dir: Path, node: str) -> float:
    *_, last = (run_dir / "nodes" / node / "events.jsonl").read_text(encoding="utf-8").splitlines()
    closing = json.loads(last)
    assert closing["event"] == "close"
    return closing["clock"]


@pytest.mark.heavy
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_node_goes_on_from_its_checkpoint_and_at_the_age_of_its_peers_model(tmp_path):
    launch = _Launch(tmp_path)
    try:
        wait_until(lambda: len(launch.find(r"w2 \| epoch (\d+)")) >= 2, "two checkpoints of w2", TRAINING_TIMEOUT_S / 2)
        (pid,) = launch.find(r"w2 \| process (\d+)")
        os.kill(int(pid), signal.SIGKILL)
    finally:
        code = launch.end()
    output = "".join(launch.lines)
    assert code == 0, output
    assert launch.find(r"w2 \| \[dpwa\] (killed by SIGKILL; restart 1 of 5)"), "the fault happened"
    first, second = map(int, launch.find(r"w2 \| process \d+ begins with clock (\d+)"))
    assert second > 0 == first, output

    events = [json.loads(line) for line in (tmp_path / "run/nodes/w2/events.jsonl").read_text().splitlines()]
    last_start = max(at for at, event in enumerate(events) if event["event"] == "start")
    taken = [event for event in events[last_start:] if event.get("takes_over")]
    assert taken, output
    assert taken[0]["peer_clock"] > second, "it took over an older model than its checkpoint's"
    epochs = list(map(int, launch.find(r"w2 \| epoch (\d+)")))
    assert epochs == sorted(epochs), "no epoch is trained again"
    clocks = [_closing_clock(tmp_path / "run", node) for node in ("w1", "w2", "w3")]
    assert min(clocks) > 0.95 * max(clocks), "it ended with the others"
    assert len(epochs) < 100, "the epochs that its peers had trained meanwhile were left out"

    *_, last, _ = average_run(tmp_path / "run", tmp_path / "average.safetensors", "equal", None)
    assert last == "the average of 3 models"


def test_the_blocks_of_the_page_stand_in_the_example():
    example = textwrap.dedent(EXAMPLE.joinpath("train.py").read_text(encoding="utf-8"))
    lines = [line.split("  #")[0].strip() for line in example.splitlines()]
    for section in ("Checkpoints of your own", "After a take-over"):
        (block,) = python_blocks("resume.md", section)
        for line in block.splitlines():
            assert line.split("  #")[0].strip() in lines

"""What the launcher says of a failure whose cause is known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.advice import advice
from dpwa.launch.ports import free_ports

LAST_WORDS = b"  File ...\nRuntimeError: operator torchvision::nms does not exist\n"


@pytest.mark.parametrize("before", [b"", b"loss 0.1\n" * 100_000, b"\xff\r"])
def test_the_last_words_of_a_failure_say_what_to_do(before: bytes, tmp_path: Path) -> None:
    output = tmp_path / "output.log"
    output.write_bytes(before + LAST_WORDS)
    told = advice(output)
    assert told is not None
    assert "pip install --force-reinstall torch torchvision --index-url" in told
    assert "dpwa.mend_torchvision()" in told


def test_an_unknown_failure_gets_no_advice(tmp_path: Path) -> None:
    output = tmp_path / "output.log"
    assert advice(output) is None
    output.write_bytes(LAST_WORDS + b"mended\n" * 20_000)  # what a script has overcome long ago
    assert advice(output) is None


@pytest.mark.heavy
def test_a_launch_whose_nodes_fail_for_the_same_reason_gives_the_advice_once(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(ClusterConfig.for_localhost(2, ports=free_ports(2)).to_yaml())
    (tmp_path / "train.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    done = subprocess.run(
        [sys.executable, "-m", "dpwa", "launch", "cluster.yaml", "--", sys.executable, "train.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    (place,) = [number for number, line in enumerate(lines) if "torchvision was not built for this torch" in line]
    assert [line.split(":")[1].strip() for line in lines[place - 2 : place]] == ["node w1 failed", "node w2 failed"]

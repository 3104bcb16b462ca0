"""The lines at the end of a launch: what each node did, and which of them trained for nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports
from dpwa.launch.summary import summary
from dpwa.observe.saved import SavedModel, distances_from_mean
from support import TESTS, events_of

DID = {"step": 100, "blended": 40, "failures": 2, "outcomes": {"blended": 40, "timed_out": 2}}


def _remarks(**closings) -> list[str]:
    return [line for line in summary(closings, {}, has_peers=True) if line.startswith("node w")]


def test_a_line_per_node_says_what_it_did():
    closings = {"w1": {**DID, "kept_tensors": 3, "ignored_tensors": 1}, "w2": DID, "other": {}}
    assert list(summary(closings, {"w1": 0.0125}, has_peers=True)) == [
        "node   steps  blended  failed  from the mean      not exchanged",
        "w1       100       40       2          1.25%  3 kept, 1 ignored",
        "w2       100       40       2              -                  -",
        "other      -        -       -              -                  -",
    ]


@pytest.mark.parametrize(
    ("closing", "words"),
    [
        ({**DID, "step": 0}, "never made a step: call node.step(loss)"),
        ({**DID, "step": 0, "clock": 1910.5}, "never made a step: its checkpoint left nothing to train, or"),
        (
            {"step": 9, "blended": 0, "outcomes": {"mismatch": 1, "no_peer": 50}},
            "peers train a model of another layout",
        ),
        ({"step": 9, "blended": 0, "outcomes": {"no_peer": 50}}, "blended nothing: its peers could not be reached"),
        ({"step": 9, "blended": 0, "outcomes": {}}, "blended nothing"),
    ],
)
def test_a_node_that_trained_for_nothing_is_named_with_the_reason(closing, words):
    (line,) = _remarks(w1=closing)
    assert words in line


@pytest.mark.parametrize("closing", [DID, {}, {"step": 9, "blended": 0, "outcomes": {"pushed": 4}}])
def test_nothing_is_said_of_a_node_that_exchanged_or_left_no_journal(closing):
    assert _remarks(w1=closing) == []


def test_a_node_that_failed_before_its_first_step_is_not_told_to_call_step():
    closings = {"w1": {"step": 0, "blended": 0}, "w2": {"step": 0, "blended": 0}}
    lines = list(summary(closings, {}, has_peers=True, cut_short=["w1"]))
    assert [line.split()[:2] for line in lines if "never made a step" in line] == [["node", "w2"]]


def test_nothing_is_said_of_a_cluster_of_one():
    assert len(list(summary({"w1": {"step": 9, "blended": 0}}, {}, has_peers=False))) == 2


def _saved(folder, **vectors) -> list[SavedModel]:
    found = []
    for node, vector in vectors.items():
        path = folder / f"{node}.safetensors"
        save_file({"weight": np.array(vector, np.float32), "steps": np.array([7])}, path)
        found.append(SavedModel(node, path, None, None, None))
    return found


def test_the_distance_is_from_the_mean_and_relative_to_it(tmp_path):
    found = distances_from_mean(_saved(tmp_path, w1=[3.0, 4.0], w2=[3.0, 4.0], w3=[6.0, 8.0]))
    assert found == {"w1": pytest.approx(0.25), "w2": pytest.approx(0.25), "w3": pytest.approx(0.5)}


@pytest.mark.parametrize(
    "vectors",
    [{"w1": [1.0]}, {"w1": [1.0], "w2": [1.0, 2.0]}, {"w1": [0.0], "w2": [0.0]}, {"w1": [np.nan], "w2": [1.0]}],
)
def test_models_that_cannot_be_compared_have_no_distance(tmp_path, vectors):
    assert distances_from_mean(_saved(tmp_path, **vectors)) == {}


SCRIPT = """
from support import VectorModel
import os, time
from pathlib import Path
from dpwa import ClusterConfig, Node

name = os.environ["DPWA_NODE"]
config = ClusterConfig.load(os.environ["DPWA_CONFIG"])
model = VectorModel([0.0] * (3 if name == "w2" else 2))
node = Node(config, name, model, run_dir=Path(os.environ["DPWA_RUN_DIR"]))
node.start()
while name == "w2" and not node.statistics().exchanges.get("mismatch"):
    node.step(1.0)
if name == "w2":
    Path("has_asked").touch()
while not Path("has_asked").exists():
    time.sleep(0.01)
node.finish(5.0)
node.close()
"""


@pytest.mark.heavy
def test_a_launch_in_which_nothing_was_exchanged_does_not_end_in_silence(tmp_path):
    config = ClusterConfig.for_localhost(2, ports=free_ports(2))
    (tmp_path / "cluster.yaml").write_text(config.to_yaml())
    (tmp_path / "train.py").write_text(SCRIPT)
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "dpwa", "launch", "cluster.yaml", "--", sys.executable, "train.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr.count("dpwa: node w1 never made a step") == 1
    assert done.stderr.count("dpwa: node w2 blended nothing: its peers train a model of another layout") == 1
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert [close["remark"][:16] for node in ("w1", "w2") for close in events_of(run_dir, node, "close")] == [
        "never made a ste",
        "blended nothing:",
    ]


# Two nodes of three: each starts from other weights, both draw the same batches, and the third never comes.
DOUBTFUL = """
import json, os, random
from pathlib import Path
from dpwa import ClusterConfig, Node
from support import VectorModel

name = os.environ["DPWA_NODE"]
run_dir = Path(os.environ["DPWA_RUN_DIR"])
config = ClusterConfig.load(os.environ["DPWA_CONFIG"])
weights = random.Random(name)
node = Node(config, name, VectorModel([weights.gauss(0, 1) for _ in range(100)]), run_dir=run_dir)
node.start()
batches, journals = random.Random(7), [run_dir / "nodes" / each / "events.jsonl" for each in ("w1", "w2")]
# Until both have noticed: whoever has finished makes no steps any more that the other one could compare its own with.
while not (
    all(told.exists() and "same_losses" in told.read_text() for told in journals) and node.statistics().blended
):
    for _ in range(10):
        node.step(2.0 + batches.gauss(0, 0.3))
print("finish returned", node.finish(), flush=True)
node.close()
"""


@pytest.mark.heavy
@pytest.mark.slow
def test_what_makes_a_run_worth_little_is_told_on_the_terminal_and_in_the_journal(tmp_path):
    config = ClusterConfig.for_localhost(3, ports=free_ports(3), wait_ms=1000)
    (tmp_path / "cluster.yaml").write_text(config.to_yaml())
    (tmp_path / "train.py").write_text(DOUBTFUL)
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    nodes = ["--node", "w1", "--node", "w2", "--run-dir", "run"]
    done = subprocess.run(
        [sys.executable, "-m", "dpwa", "launch", "cluster.yaml", *nodes, "--", sys.executable, "train.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert done.stdout.count("finish returned False") == 2
    for node, peer in (("w1", "w2"), ("w2", "w1")):
        own = [line for line in done.stdout.splitlines() if line.startswith(f"{node} |")]
        told = {
            about: [line for line in own if words in line]
            for about, words in {
                "other_weights": f"node {node}: peer {peer} began with other initial weights",
                "same_losses": f"node {node}: its losses are those of peer {peer}, step by step",
                "left": f"node {node}: finish leaves behind w3 (no answer for ",
            }.items()
        }
        warnings = [event["about"] for event in events_of(tmp_path / "run", node, "warning")]
        assert {about: len(lines) for about, lines in told.items()} == {
            "other_weights": warnings.count("other_weights"),
            "same_losses": 1,
            "left": 1,
        }, done.stdout
        assert warnings.count("same_losses") == 1
        assert warnings.count("other_weights") <= 1
        (end,) = events_of(tmp_path / "run", node, "finish")
        assert end["still_training"] == ["w3"]
    assert 1 <= done.stdout.count("began with other initial weights") <= 2

"""Nodes that lie on purpose, by `faults.lies`: what is told, what is on record, and what becomes of it."""

from __future__ import annotations

import numpy as np
import pytest

from dpwa.config.cluster import ClusterConfig
from dpwa.config.faults import faults_in_words
from dpwa.errors import ConfigError
from support import VectorModel, events_of

NODES = "nodes: [{name: w1, port: 21000}, {name: w2, port: 21001}, {name: w3, port: 21002}]\n"
HALF = {"interpolation": "constant", "pull_probability": 1.0}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{node: w9, model: replay}", 'expected the name of a node, got "w9"'),
        ("{node: w3}", "expected a lie"),
        ("{node: w3, model: invented}", "faults.lies[0].model"),
        ("{node: w3, loss: 0}, {node: w3, clock: 1}", "w3 lies already"),
    ],
)
def test_a_lie_that_cannot_be_told_is_a_mistake_of_the_file(text, problem):
    with pytest.raises(ConfigError) as caught:
        ClusterConfig.from_text(f"{NODES}faults: {{lies: [{text}]}}\n", "c.yaml")
    assert problem in str(caught.value)


def test_check_says_who_lies():
    config = ClusterConfig.from_text(f"{NODES}faults: {{lies: [{{node: w3, model: 1e30, loss: 0, from_step: 7}}]}}\n")
    assert faults_in_words(config.faults) == "from step 7 w3 gives a model of 1e+30, a loss of 0"


@pytest.mark.parametrize("shared_memory", ["auto", "off"])
def test_a_number_stands_for_all_parameters_and_each_lie_is_on_record(cluster, shared_memory, tmp_path):
    lies = [{"node": "w2", "model": 9.0, "clock": 4.0, "loss": 0.25}]
    nodes = cluster.start(
        [VectorModel(np.ones(8)), VectorModel(np.ones(8))],
        run_dir=tmp_path,
        faults={"lies": lies},
        guard="off",
        shared_memory=shared_memory,
        **HALF,
    )
    cluster.step_all(8)
    cluster.close()
    told, blended = nodes[0].statistics().faults["lies"], nodes[0].statistics().blended
    assert blended > 0
    np.testing.assert_allclose(cluster.vectors()[0], 9.0 - 8.0 * 0.5**blended)
    # The lies of w2 have made w1 another one, which w2 hears of honestly.
    assert told == len(events_of(tmp_path, "w1", "fault", kind="lies")) > 0
    assert events_of(tmp_path, "w2", "fault", kind="lies") == []


def test_what_is_replayed_is_the_first_model_that_came(in_memory):
    in_memory.start(
        [VectorModel([0.0]), VectorModel([8.0])],
        faults={"lies": [{"node": "w2", "model": "replay", "from_step": 3}]},
        guard="off",
        **HALF,
    )

    def train(index, model):
        model.vector[:] = 0.0 if index == 0 else model.vector + 1.0

    in_memory.step_all(20, update=train)
    # x = (9 - x) / 2, where 9 is what w2 had first; by now it has 28.
    assert in_memory.vectors()[0][0] == pytest.approx(3.0, abs=0.01)

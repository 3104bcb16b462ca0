"""Nodes that go on from checkpoints of different ages: all of a cluster at once, or one whose peers have trained on."""

from __future__ import annotations

import numpy as np
import pytest

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports
from dpwa.node.node import Node
from dpwa.snapshot.lineage import JOIN_LEAD
from dpwa.transport.in_memory import InMemoryNetwork, InMemoryTransport
from support import Cluster, VectorModel


def first_cluster(**settings: object) -> list[dict[str, object]]:
    """The states of two nodes that have met, one of which has trained far longer by its checkpoint."""
    cluster = Cluster("in_memory")
    try:
        first, second = cluster.start([VectorModel([0.0]), VectorModel([0.0])], **settings)
        cluster.step_all(10)
        states = [second.state_dict(timeout_s=0.0)]
        for _ in range(int(3 * JOIN_LEAD)):
            cluster.step_all()
        states.insert(0, first.state_dict(timeout_s=0.0))
    finally:
        cluster.close()
    assert states[0]["lineage"] == states[1]["lineage"], "they were one"
    assert states[0]["clock"] > states[1]["clock"] + JOIN_LEAD
    return states


def resumed(states: list[dict[str, object]], launch_ids: list[str], **settings: object) -> Cluster:
    cluster = Cluster("in_memory")
    cluster.config = ClusterConfig.for_localhost(2, ports=free_ports(2), **settings)
    network = InMemoryNetwork()
    for number, (state, launch_id) in enumerate(zip(states, launch_ids, strict=True), start=1):
        name, model = f"w{number}", VectorModel([float(number)])

        def make(wiring, name=name):
            return InMemoryTransport(network, name, wiring)

        node = Node(cluster.config, name, model, make_transport=make, launch_id=launch_id)
        node.start()
        node.load_state_dict(state)
        cluster.nodes.append(node)
        cluster.models.append(model)
    return cluster


@pytest.mark.parametrize("method", ["pull", "gosgd", "sgp", "adpsgd", "sparta"])
def test_nodes_that_resume_together_average_however_far_their_checkpoints_are_apart(method):
    settings = {"method": method, "sparta": {"fraction": 1.0}}
    cluster = resumed(first_cluster(**settings), ["launch", "launch"], **settings)
    try:
        assert len({node.state_dict(timeout_s=0.0)["lineage"] for node in cluster.nodes}) == 1
        cluster.step_all(60)
        values = cluster.vectors()
        assert np.ptp(values) < 0.5, "they average"
        assert 1.0 < values.mean() < 2.0, "nobody has thrown its model away"
    finally:
        cluster.close()


@pytest.mark.parametrize("launch_ids", [["launch", ""], ["", ""], ["launch", "other"]])
def test_a_node_that_comes_back_alone_takes_over_the_model_of_the_peer_that_trained_on(launch_ids):
    cluster = resumed(first_cluster(), launch_ids)
    try:
        assert len({node.state_dict(timeout_s=0.0)["lineage"] for node in cluster.nodes}) == 2
        cluster.step_all(10)
        assert cluster.vectors() == pytest.approx(np.ones((2, 1)), abs=1e-9)
    finally:
        cluster.close()


@pytest.mark.parametrize(("method", "total"), [("gosgd", 1.0), ("sgp", 2.0)])
def test_the_masses_of_a_cluster_that_resumes_as_a_whole_sum_up_to_what_they_must(method, total):
    states = first_cluster(method=method)
    for state in states:
        state["of_method"]["mass"] = 0.9 * total  # checkpoints of different moments: a mass is in both
    cluster = resumed(states, ["launch", "launch"], method=method)
    try:
        masses = [node.state_dict(timeout_s=0.0)["of_method"]["mass"] for node in cluster.nodes]
        assert masses == [total / 2, total / 2]
    finally:
        cluster.close()


def test_the_method_goes_on_with_its_anchor_and_momentum():
    settings = {"method": "noloco", "noloco": {"every": 3}}
    states = first_cluster(**settings)
    cluster = resumed(states, ["launch", "launch"], **settings)
    try:
        cluster.step_all(1)
        for node, state in zip(cluster.nodes, states, strict=True):
            assert node.state_dict(timeout_s=0.0)["of_method"]["outer"]["steps"] == state["of_method"]["outer"]["steps"]
    finally:
        cluster.close()

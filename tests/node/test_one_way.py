"""Nodes that cannot be asked (`serve: false`): they pull and blend, nobody asks them, and nobody waits for them."""

from __future__ import annotations

import socket
import threading
import time

import numpy as np
import pytest
from open_clusters import Training, all_know, open_config, until

from dpwa.config.cluster import ClusterConfig
from dpwa.errors import ConfigError
from dpwa.exchange.membership import Membership
from dpwa.launch.ports import free_ports
from dpwa.methods.base import ExchangeKind, Method, Plan
from dpwa.node import reach
from dpwa.node.node import Node
from support import DEADLINE_S, VectorModel, events_of, wait_until

ONE_WAY = {"name": "laptop", "serve": False}


def one_way_config(serving: int, **settings: object) -> ClusterConfig:
    """w1, w2 ... serve, and laptop does not."""
    nodes: list[dict[str, object]] = [
        {"name": f"w{number}", "port": port} for number, port in enumerate(free_ports(serving), start=1)
    ]
    settings.setdefault("wait_ms", 2000)
    return ClusterConfig.from_mapping({"nodes": [*nodes, ONE_WAY], **settings})


def start(cluster, config: ClusterConfig, values: dict[str, float], run_dir=None) -> dict[str, Node]:
    return {
        name: cluster.add(name, VectorModel(np.full(4, value)), config=config, run_dir=run_dir)
        for name, value in values.items()
    }


def asked_for(node: Node) -> set[str]:
    """Whom a node may ask."""
    return set(node.statistics().scores)


def test_it_pulls_and_blends_and_its_model_reaches_nobody(cluster):
    config = one_way_config(2)
    nodes = start(cluster, config, {"w1": 0.0, "w2": 0.0, "laptop": 8.0})
    for _ in range(10):
        for node in nodes.values():
            node.step(1.0)
    laptop = nodes["laptop"]
    assert laptop.statistics().blended >= 5
    assert 0.0 <= cluster.models[2].vector[0] < 1.0
    assert [model.vector.tolist() for model in cluster.models[:2]] == [[0.0] * 4] * 2
    assert asked_for(laptop) == {"w1", "w2"}
    assert asked_for(nodes["w1"]) == {"w2"}
    assert nodes["w1"].statistics().blended > 0
    assert laptop.statistics().failures == nodes["w1"].statistics().failures == 0


def test_with_one_node_that_serves_that_one_trains_alone_and_the_others_follow_it(cluster, tmp_path):
    config = one_way_config(1)
    nodes = start(cluster, config, {"w1": 0.0, "laptop": 8.0}, tmp_path)
    for _ in range(10):
        for node in nodes.values():
            node.step(1.0)
    assert cluster.models[0].vector.tolist() == [0.0] * 4
    assert nodes["w1"].statistics().exchanges == {}
    assert cluster.models[1].vector[0] < 1.0
    assert nodes["w1"].finish(0.0), "nobody is left behind"
    nodes["w1"].close()
    assert "blended nothing" not in (tmp_path / "nodes" / "w1" / "events.jsonl").read_text()


def test_it_listens_nowhere(zeromq, monkeypatch):
    made = []
    create = socket.create_server
    monkeypatch.setattr(socket, "create_server", lambda *args, **options: made.append(args) or create(*args, **options))
    config = one_way_config(1)
    start(zeromq, config, {"laptop": 8.0})
    assert made == []
    assert "dpwa-rx-laptop" not in {thread.name for thread in threading.enumerate()}
    start(zeromq, config, {"w1": 0.0})
    assert made == [(("127.0.0.1", config.nodes[0].port),)]


def test_nobody_waits_for_it_at_the_end_and_it_waits_for_those_it_can_ask(zeromq):
    config = one_way_config(2)
    nodes = start(zeromq, config, {"w1": 0.0, "w2": 1.0, "laptop": 8.0})
    for node in nodes.values():
        node.step(1.0)
    ends: dict[str, bool] = {}
    finishing = [
        threading.Thread(target=lambda name=name: ends.update({name: nodes[name].finish(DEADLINE_S)}))
        for name in ("w1", "w2")
    ]
    for thread in finishing:
        thread.start()
    for thread in finishing:
        thread.join(DEADLINE_S)
    assert ends == {"w1": True, "w2": True}
    began_s = time.monotonic()
    nodes["laptop"].step(1.0)
    assert nodes["laptop"].finish(DEADLINE_S)
    assert time.monotonic() - began_s < DEADLINE_S


@pytest.mark.seconds
def test_those_that_can_be_asked_merge_without_it_and_it_says_that_it_has_no_merged_model(zeromq, caplog):
    config = one_way_config(2, merge_at_end=True)
    nodes = start(zeromq, config, {"w1": 0.0, "w2": 1.0, "laptop": 8.0})
    for node in nodes.values():
        node.step(1.0)
    ends: dict[str, bool] = {}
    finishing = [
        threading.Thread(target=lambda name=name, node=node: ends.update({name: node.finish(DEADLINE_S)}))
        for name, node in nodes.items()
    ]
    for thread in finishing:
        thread.start()
    for thread in finishing:
        thread.join(2 * DEADLINE_S)
    assert ends == {"w1": True, "w2": True, "laptop": False}
    assert [nodes[name].statistics().merged_models for name in ("w1", "w2", "laptop")] == [2, 2, 0]
    assert zeromq.models[0].vector.tolist() == zeromq.models[1].vector.tolist()
    said = [record.getMessage() for record in caplog.records if "merged model" in record.getMessage()]
    assert said == ["node laptop: has no merged model, and keeps its own: no other node can fetch it (serve: false)"]


def test_a_node_that_was_merging_in_vain_can_finish_without_a_merge_later(zeromq):
    config = one_way_config(1)
    nodes = start(zeromq, config, {"w1": 0.0, "laptop": 8.0})
    for _ in range(3):
        nodes["w1"].step(1.0)
        nodes["laptop"].step(1.0)
    nodes["w1"].finish(0.0)
    laptop = nodes["laptop"]
    assert not laptop.finish(DEADLINE_S, merge=True)
    laptop.step(1.0)
    assert laptop.finish(DEADLINE_S)


# --- Methods ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "sparta", "sparta": {"fraction": 0.5}},
        {"pull_probability": 0.9, "optimizer_state": "keep", "guard": "median"},
        {
            "method": "dpsgd",
            "topology": {
                "graph": "edges",
                "directed": True,
                "edges": [["w1", "w2"], ["w2", "w1"], ["w1", "laptop"]],
                "allow_disconnected": True,
            },
        },
    ],
    ids=["sparta", "median", "dpsgd"],
)
def test_the_methods_that_bear_such_a_node_train_with_it(cluster, settings):
    """With dpsgd the mean of the others is kept, too: they have nothing of its model, and it comes to theirs."""
    config = one_way_config(2, **settings)
    nodes = start(cluster, config, {"w1": 1.0, "w2": 1.2, "laptop": 1.6})
    for _ in range(30):
        for node in nodes.values():
            node.step(1.0)
    first, second, laptop = (model.vector for model in cluster.models)
    assert nodes["laptop"].statistics().blended > 5
    assert nodes["w1"].statistics().blended > 5
    assert min(first.min(), second.min()) >= 1.0
    assert max(first.max(), second.max()) <= 1.2, "nothing of the model that nobody can fetch"
    assert laptop.max() < 1.3
    if config.method == "dpsgd":
        assert ((first + second) / 2).tolist() == pytest.approx([1.1] * 4)
    assert [node.statistics().failures for node in nodes.values()] == [0, 0, 0]


class Pushes(Method):
    """A custom method of a kind that needs both ways."""

    kind = ExchangeKind.PUSH

    def plan(self, rng):  # noqa: ARG002
        return None

    def blend(self, result, own_state):  # noqa: ARG002
        return 0.0


def test_a_custom_method_that_needs_both_ways_is_refused_when_it_is_made():
    config = one_way_config(2, method=f"{__name__}:Pushes")
    with pytest.raises(ConfigError, match=r"Pushes pushes models.*laptop could give nothing"):
        config.method_for("w1")


class AsksAll(Method):
    """A custom pull that asks whoever its topology has."""

    kind = ExchangeKind.PULL

    def plan(self, rng):  # noqa: ARG002
        return Plan(ExchangeKind.PULL, peers=self.links.row(self.round))

    def blend(self, result, own_state):  # noqa: ARG002
        return 0.5


def test_a_custom_pull_is_not_told_of_nodes_that_cannot_be_asked():
    config = one_way_config(2, method=f"{__name__}:AsksAll")
    assert set(config.method_for("w1").links.row(0)) == {"w2"}
    assert set(config.method_for("laptop").links.row(0)) == {"w1", "w2"}


# --- Where nodes come and go ------------------------------------------------------------------------------------------


@pytest.mark.seconds
def test_a_newcomer_that_cannot_be_asked_trains_with_the_members_and_nobody_looks_for_it(tmp_path):
    ports = free_ports(3)
    config = open_config(["w1", "w2"], ports[:2], ports[:1])
    trainings = [Training(config, name, 1.0, tmp_path) for name in ("w1", "w2")]
    newcomer = ClusterConfig.from_mapping(
        {"nodes": [ONE_WAY], "join": [f"127.0.0.1:{ports[0]}"], "shared_memory": "off"}
    )
    laptop = Training(newcomer, "laptop", 100.0, tmp_path)
    everyone = [*trainings, laptop]
    try:
        for training in trainings:
            training.start()
        all_know(trainings)
        until(lambda: trainings[0].step > 20, "the members train")
        laptop.start()
        assert laptop.value_at_start() == pytest.approx(1.0), "it has copied a member's model"
        wait_until(lambda: set(laptop.members) == {"w1", "w2"}, "it knows the members", DEADLINE_S)
        before = laptop.node.statistics().blended
        until(lambda: laptop.node.statistics().blended >= before + 100, "it blends")
        assert [set(training.members) for training in trainings] == [{"w2"}, {"w1"}]
        assert all(training.node.statistics().failures == 0 for training in everyone)
    finally:
        for training in (laptop, *trainings):
            training.end()
    events = [(tmp_path / "nodes" / name / "events.jsonl").read_text() for name in ("w1", "w2")]
    assert not any('"laptop"' in text for text in events)


def test_a_listed_node_that_cannot_be_asked_is_no_member_that_anybody_looks_for():
    ports = free_ports(2)
    config = ClusterConfig.from_mapping(
        {
            "nodes": [*({"name": f"w{number}", "port": port} for number, port in enumerate(ports, 1)), ONE_WAY],
            "join": [f"127.0.0.1:{ports[0]}"],
            "shared_memory": "off",
        }
    )
    trainings = [Training(config, name, 1.0) for name in ("w1", "w2", "laptop")]
    try:
        for training in trainings:
            training.start()
        until(lambda: trainings[2].node.statistics().blended >= 20, "it blends")
        until(lambda: trainings[0].node.statistics().blended >= 20, "the others, too")
        assert set(trainings[0].members) == {"w2"}
        assert set(trainings[2].members) == {"w1", "w2"}
        assert all(training.node.statistics().failures == 0 for training in trainings)
    finally:
        for training in reversed(trainings):
            training.end()


# --- Addresses that lead nowhere --------------------------------------------------------------------------------------


@pytest.mark.seconds
def test_a_node_at_an_address_that_leads_nowhere_is_named_by_its_peer_and_says_so_itself(
    zeromq, caplog, monkeypatch, tmp_path
):
    """w2 listens, and the port of the file does not lead there: a forwarding that is missing."""
    monkeypatch.setattr(reach, "_LEAST_S", 0.5)
    first, listens, nobody = free_ports(3)
    config = ClusterConfig.from_mapping(
        {
            "nodes": [
                {"name": "w1", "port": first},
                {"name": "w2", "port": nobody, "bind": f"0.0.0.0:{listens}"},
            ],
            "insecure": True,
            "wait_ms": 100,
            "flow_control": {"probe_s": 0.01, "probe_max_s": 0.05},
        }
    )
    nodes = start(zeromq, config, {"w1": 0.0, "w2": 4.0}, tmp_path)

    def said(begin: str) -> list[str]:
        return [text for text in (record.getMessage() for record in caplog.records) if text.startswith(begin)]

    def step() -> bool:
        for node in nodes.values():
            node.step(1.0)
        return bool(said("node w2: peers answer it"))

    wait_until(step, "w2 says that nobody asks it", DEADLINE_S)
    (own,) = said("node w2: peers answer it")
    assert f"can they reach localhost:{nobody}?" in own
    (of_peer,) = [text for text in said("node w1:") if "but it asks this node" in text]
    assert f"no connection to localhost:{nobody}: connection refused" in of_peer
    nodes["w2"].close()
    assert events_of(tmp_path, "w2", "warning", about="unreached") != []


class Peers:
    """What is heard of peers, for `Reach`."""

    def __init__(self, **settings: object) -> None:
        settings.setdefault("insecure", True)
        nodes = [{"name": name, "host": "10.0.0.1", "port": port} for port, name in enumerate(("w1", "w2", "w3"), 1)]
        self.now_s = 0.0
        self.membership = Membership(["w2", "w3"])
        config = ClusterConfig.from_mapping({"nodes": nodes, **settings})
        self._reach = reach.Reach(config, "w1", self.membership, lambda: 0.5, lambda: self.now_s)

    def exchange(self, times: int, *, seconds: float, steps: int) -> list[str]:
        """So many exchanges, evenly in this time, in which w2 makes so many steps; what was said."""
        said = []
        for number in range(1, times + 1):
            self.now_s += seconds / times
            self.membership.heard("w2", b"life", finished=False, step=steps * number // times)
            said.append(self._reach.met("w2"))
        return [text for text in said if text is not None]


@pytest.mark.parametrize(
    ("times", "seconds", "steps"),
    [
        (29, 60.0, 1000),  # too few exchanges to tell
        (1000, 9.9, 1000),  # too early
        (1000, 60.0, 100),  # peers that make few steps, or evaluate, ask for little
    ],
)
def test_a_node_that_may_just_not_have_been_asked_yet_says_nothing(times, seconds, steps):
    assert Peers().exchange(times, seconds=seconds, steps=steps) == []


def test_a_node_that_its_peers_would_have_asked_long_ago_says_so_once():
    said = Peers().exchange(1000, seconds=60.0, steps=1000)
    assert len(said) == 1
    assert "can they reach 10.0.0.1:1?" in said[0]


def test_a_node_that_was_asked_once_or_that_perhaps_nobody_hears_says_nothing():
    asked = Peers()
    asked.membership.hint("w3", finished=False)
    assert asked.exchange(1000, seconds=60.0, steps=1000) == []
    assert Peers(topology="directed_ring").exchange(1000, seconds=60.0, steps=1000) == []

"""The cluster of nodes that were given places: its file, and what changes when one of them moves; without Ray."""

from __future__ import annotations

import pytest

from dpwa.config.cluster import ClusterConfig
from dpwa.engines.placed import given_settings, may_move, moved, placed_config
from dpwa.errors import ConfigError

PLACES = {"w1": ("10.0.0.1", 21000), "w2": ("10.0.0.2", 21000), "w3": ("10.0.0.2", 21001)}


def test_the_nodes_have_their_places_and_may_move():
    config = placed_config({"run": "mine"}, PLACES, keys="keys")
    assert [(node.name, node.host, node.port) for node in config.nodes] == [
        (name, *address) for name, address in PLACES.items()
    ]
    assert config.join == ("10.0.0.1:21000", "10.0.0.2:21000", "10.0.0.2:21001")
    assert may_move(config)
    assert not config.is_newcomer
    assert config.run == "mine"


@pytest.mark.parametrize("settings", [{"method": "dpsgd"}, {"method": "noloco"}, {"topology": "ring"}])
def test_methods_and_topologies_of_the_same_nodes_have_no_way_to_move(settings):
    config = placed_config({**settings, "insecure": True}, PLACES)
    assert not may_move(config)


def test_a_node_alone_joins_nobody():
    assert placed_config({}, {"w1": ("127.0.0.1", 21000)}).is_alone


def test_a_moved_node_is_at_its_new_address_for_those_who_read_the_file_now():
    config = placed_config(None, PLACES, keys="keys")
    after = moved(config, {**PLACES, "w2": ("10.0.0.9", 25000)})
    assert after.node("w2").address == "10.0.0.9:25000"
    assert after.node("w3") == config.node("w3")
    assert ClusterConfig.from_text(after.to_yaml()) == after
    assert after.run_id == config.run_id, "else its peers would take it for one of another run"
    assert not after.is_newcomer


def test_a_file_that_says_where_nodes_are_is_refused(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("nodes: [{name: w1, port: 21000}]\njoin: ['127.0.0.1:21000']\n")
    with pytest.raises(
        ConfigError, match=r"cluster.yaml: nodes and join: Ray says where the nodes are; leave that out"
    ):
        given_settings(path)
    path.write_text("run: mine\n")
    assert given_settings(path) == {"run": "mine"}
    assert given_settings(None) == {}


def test_mistakes_in_the_file_have_their_lines(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("run: mine\nmetod: gosgd\n")
    with pytest.raises(ConfigError, match=r"cluster.yaml:2:1: metod: "):
        placed_config(path, PLACES, keys="keys")

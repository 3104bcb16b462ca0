"""The key `join`: what it may hold, what it does not go with, and what follows from it."""

from __future__ import annotations

import pytest

from dpwa.config.cluster import MAX_NODES, ClusterConfig
from dpwa.config.describe import describe
from dpwa.errors import ConfigError
from dpwa.methods.pull import Pull
from dpwa.methods.registry import METHODS

SEED = "nodes: [{name: w1, port: 23300}]\njoin: [127.0.0.1:23300]\n"
NEWCOMER = "nodes: [{name: w9, port: 23309}]\njoin: [localhost:23300]\n"
KEYS = "keys: keys\n"


class Closed(Pull):
    """A custom method that says nothing of nodes that come and go is taken to bear them as its base does."""

    follows_members = False


def problems_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        ClusterConfig.from_text(text, "c.yaml")
    return [problem.removeprefix("c.yaml:") for problem in caught.value.problems]


def test_a_file_without_join_is_as_ever():
    config = ClusterConfig.for_localhost(2)
    assert not config.is_open
    assert not config.is_newcomer
    assert not config.is_alone
    assert ClusterConfig.alone().is_alone


def test_the_files_of_beginners_and_newcomers_are_of_one_run():
    seed, newcomer = ClusterConfig.from_text(SEED), ClusterConfig.from_text(NEWCOMER)
    assert seed.run_id == newcomer.run_id == "dpwa-open"
    assert ClusterConfig.from_text(f"run: other\n{SEED}").run_id != seed.run_id
    assert (seed.is_newcomer, newcomer.is_newcomer) == (False, True)
    assert seed.is_open
    assert not seed.is_alone
    assert seed.seeds == newcomer.seeds == (("127.0.0.1", 23300),)


def test_a_push_method_begins_with_one_mass_on_all_nodes():
    configs = [ClusterConfig.from_text(f"{text}method: gosgd\n") for text in (SEED, NEWCOMER)]
    assert {config.method_for(config.nodes[0].name).mass for config in configs} == {1 / MAX_NODES}


def test_other_ports_for_a_launch_move_the_addresses_of_join():
    moved = ClusterConfig.from_text(SEED).with_ports_from(23400)
    assert moved.seeds == (("127.0.0.1", 23400),)
    assert not moved.is_newcomer
    assert ClusterConfig.from_text(NEWCOMER).with_ports_from(23400).join == ("localhost:23300",)


@pytest.mark.parametrize(
    "address",
    [
        "w1",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        ":21000",
        "a b:1",
        "::1:1",
        "[::1]",
        "[w1]:1",
        "w1:1e3",
    ],
)
def test_an_address_is_a_host_and_a_port(address):
    (problem,) = problems_of(f"nodes: [{{name: w1, port: 23300}}]\njoin: ['{address}']\n")
    assert problem.startswith("2:8: join[0]: expected ")


@pytest.mark.parametrize("method", ["dpsgd", "noloco"])
def test_a_method_that_needs_the_same_nodes_is_refused_with_what_to_use(method):
    (problem,) = problems_of(f"{SEED}method: {method}\n")
    assert f"method {method} needs the same nodes from the first step to the last" in problem
    assert "use one of pull, gosgd, sgp, adpsgd, elastic, sparta, or leave `join` out" in problem
    assert not METHODS[method].follows_members


@pytest.mark.parametrize("topology", ["ring", "{graph: exponential}", "{graph: matrix, matrix: m.csv}"])
def test_a_topology_is_refused(topology):
    problems = problems_of(f"{SEED}topology: {topology}\n")
    assert any("a topology gives each node of the file its neighbours" in problem for problem in problems)


def test_a_custom_method_must_say_that_it_bears_it():
    config = ClusterConfig.from_text(f"{SEED}method: '{__name__}:Closed'\n")
    with pytest.raises(ConfigError, match="does not declare `follows_members`"):
        config.method_for("w1")


def test_beyond_this_machine_it_takes_keys_and_an_address_that_others_reach():
    (plain, unreachable) = problems_of("nodes: [{name: w9, port: 23309}]\njoin: [10.0.0.1:23300]\n")
    assert "is reached over a network, and without keys" in unreachable + plain
    assert "cannot reach w9 at localhost" in unreachable + plain
    ok = "nodes: [{name: w9, host: 10.0.0.9, port: 23309}]\njoin: [10.0.0.1:23300]\n"
    assert ClusterConfig.from_text(ok + KEYS).is_newcomer
    assert ClusterConfig.from_text(f"{ok}insecure: true\n").is_newcomer


def test_check_says_how_nodes_join():
    text = describe(ClusterConfig.from_text(SEED), ["w1"])
    assert "may join through 127.0.0.1:23300, or any other member" in text
    assert "train alone" not in text
    assert "warning: whoever reaches a port and knows the name of the run may join" in text
    text = describe(ClusterConfig.from_text(NEWCOMER + KEYS), ["w9"])
    assert "join the cluster dpwa through localhost:23300, and copy a model of it first" in text
    assert "needs a key in keys/allowed.yaml" in text
    assert "warning" not in text

"""The file that `dpwa init` prints."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

from dpwa.cli import main
from dpwa.config.cluster import MAX_NODES, ClusterConfig
from dpwa.interpolation.registry import RULES
from dpwa.methods.registry import METHODS


@pytest.mark.parametrize("count", [1, 4, MAX_NODES])
def test_the_first_cluster_file_is_that_of_a_local_cluster(count):
    done = CliRunner().invoke(main, ["init", str(count)])
    assert done.exit_code == 0
    assert ClusterConfig.from_text(done.output) == ClusterConfig.for_localhost(count)


def test_its_commented_keys_are_defaults():
    text = CliRunner().invoke(main, ["init"]).output
    written = re.sub(r"^# (?=[a-z_]+: )", "", text, flags=re.MULTILINE)
    assert "\nmethod: pull" in written
    assert ClusterConfig.from_text(written) == ClusterConfig.for_localhost(4)


def test_it_names_every_method_and_every_rule():
    text = CliRunner().invoke(main, ["init"]).output
    for key, registry in (("method", METHODS), ("interpolation", RULES)):
        (comment,) = re.findall(rf"^# {key}: \w+ +# .+: (.+)$", text, flags=re.MULTILINE)
        assert comment.split(", ") == list(registry)


def test_a_count_that_cannot_be_is_refused():
    done = CliRunner().invoke(main, ["init", "0"])
    assert done.exit_code == 2
    assert "0 is not in the range" in done.output


@pytest.mark.parametrize("words", [["--nodes", "4"], ["4", "--nodes", "4"], ["--hosts", "localhost", "4"]])
def test_the_number_of_nodes_may_be_an_option(words):
    done = CliRunner().invoke(main, ["init", *words])
    assert ClusterConfig.from_text(done.output) == ClusterConfig.for_localhost(4)


def test_two_hosts_share_the_nodes_and_have_keys():
    done = CliRunner().invoke(main, ["init", "--nodes", "5", "--hosts", "10.0.0.1, ada.lan"])
    config = ClusterConfig.from_text(done.output)
    places = [(node.name, node.host, node.port) for node in config.nodes]
    assert places == [
        ("w1", "10.0.0.1", 21000),
        ("w2", "10.0.0.1", 21001),
        ("w3", "10.0.0.1", 21002),
        ("w4", "ada.lan", 21000),
        ("w5", "ada.lan", 21001),
    ]
    assert config.keys == "keys"


def test_without_a_number_each_host_has_a_node():
    done = CliRunner().invoke(main, ["init", "--hosts", "10.0.0.1,10.0.0.2,10.0.0.3"])
    assert [node.host for node in ClusterConfig.from_text(done.output).nodes] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]


@pytest.mark.parametrize("host", ["::1", "2001:db8::7", "1e3", "0x1f", "null", "true", "no", "ada.lan", "10.0.0.1"])
def test_a_host_that_yaml_would_read_as_something_else_is_quoted(host):
    done = CliRunner().invoke(main, ["init", "--hosts", host])
    assert done.exit_code == 0, done.output
    assert [node.host for node in ClusterConfig.from_text(done.output).nodes] == [host]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["4", "--nodes", "5"], "got 4 and 5"),
        (["--hosts", "a,,b"], '"": expected a host name'),
        (["--hosts", "a,A"], "named twice"),
        (["2", "--hosts", "a,b,c"], "3 machines for 2 nodes"),
        (["--hosts", "10.0.0"], '"10.0.0": expected a host name'),
    ],
)
def test_hosts_and_numbers_that_cannot_be_are_refused(words, told):
    done = CliRunner().invoke(main, ["init", *words])
    assert done.exit_code == 2
    assert told in done.output

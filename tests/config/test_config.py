"""The configuration: defaults, every check and its words, and the ways to make and write one."""

import os
import re
import socket
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dpwa.config import hosts
from dpwa.config.cluster import FIRST_PORT, MAX_NODES, ClusterConfig, json_schema
from dpwa.config.describe import describe
from dpwa.config.sections import NodeConfig
from dpwa.errors import ConfigError
from dpwa.interpolation import registry
from dpwa.interpolation.rules import Constant, Loss
from dpwa.snapshot.state import State

EXPECTED_RATE = (
    'expected a rate above 0 with its unit, such as "20 MB/s" '
    "(units B/s, kB/s, MB/s, GB/s, KiB/s, MiB/s, GiB/s, kbit/s, Mbit/s, Gbit/s)"
)
NODES = "nodes: [{name: w1, port: 21000}, {name: w2, port: 21001}]\n"


def problems_of(text):
    with pytest.raises(ConfigError) as caught:
        ClusterConfig.from_text(text, "c.yaml")
    return list(caught.value.problems)


def test_nodes_alone_are_enough():
    config = ClusterConfig.from_text(NODES)
    assert [node.address for node in config.nodes] == ["localhost:21000", "localhost:21001"]
    assert isinstance(config.interpolator().rule, Constant)


def test_milliseconds_become_seconds():
    config = ClusterConfig.from_text(
        NODES + "{timeout_ms: 1500, connect_timeout_ms: 20, wait_ms: 7}"[1:-1].replace(", ", "\n")
    )
    assert (config.timeout_s, config.connect_timeout_s, config.wait_s) == (1.5, 0.02, 0.007)
    assert config.metrics_interval_s == 1.0


def test_megabytes_of_the_journal_become_bytes_and_have_a_least_number():
    assert ClusterConfig.from_text(NODES).journal_max_bytes == 256_000_000
    assert ClusterConfig.from_text(f"{NODES}journal_max_mb: 8\n").journal_max_bytes == 8_000_000
    (problem,) = problems_of(f"{NODES}journal_max_mb: 7\n")
    assert problem.startswith("c.yaml:2:17: journal_max_mb: ")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("pull_probabilty: 1", '2:1: pull_probabilty: unknown key, did you mean "pull_probability"?'),
        ("pull_probability: 1.5", "2:19: pull_probability: expected a number from 0 to 1, got 1.5"),
        ("pull_probability: true", "2:19: pull_probability: expected a number from 0 to 1, got true"),
        (
            'pull_probability: "1e-3"',
            '2:19: pull_probability: expected a number from 0 to 1, got "1e-3"; write the number without quotes',
        ),
        ("pull_probability: .nan", "2:19: pull_probability: expected a number from 0 to 1, got NaN"),
        ("fetch_probability: 2", "2:20: fetch_probability: expected a number from 0 to 1, got 2"),
        ("timeout_ms: 0", "2:13: timeout_ms: expected a whole number from 1 to 600000 or null, got 0"),
        ("timeout_ms: 2.5", "2:13: timeout_ms: expected a whole number from 1 to 600000 or null, got 2.5"),
        ("wait_ms:", "2:9: wait_ms: expected a whole number from 0 to 600000, got nothing"),
        ("loss_smoothing: 1", "2:17: loss_smoothing: expected a number from 0 up to but not including 1, got 1"),
        ("divergence_threshold: -1", "2:23: divergence_threshold: expected a number of at least 0, got -1"),
        ("blend: dleta", '2:8: blend: expected one of delta, absolute, got "dleta"; did you mean "delta"?'),
        ("buffers: 3", "2:10: buffers: expected one of blend, keep, got 3"),
        ("insecure: yes", '2:11: insecure: expected true or false, got "yes"; write true'),
        ("insecure: 1", "2:11: insecure: expected true or false, got 1"),
        ("run: 2017", "2:6: run: expected text, got 2017; put it in quotes"),
        ("interpolation: [loss]", "2:16: interpolation: expected text, got a list of 1"),
        ("constant: 0.5", "2:11: constant: expected a mapping (key: value), got 0.5"),
        ("constant: {value: 2}", "2:19: constant.value: expected a number from 0 to 1, got 2"),
        ("clock: {value: 2}", "2:9: clock.value: unknown key, expected no keys here"),
        ("flow_control: {probe_s: 0}", "2:25: flow_control.probe_s: expected a number above 0 and up to 3600, got 0"),
        (
            "flow_control: {score_min: 600}",
            "2:27: flow_control.score_min: expected score_min <= score_start, got 600 and 500",
        ),
        (
            "flow_control: {probe_max_s: 0.5}",
            "2:29: flow_control.probe_max_s: expected probe_s <= probe_max_s, got 1 and 0.5",
        ),
        ("factor_max: 0.5\nfactor_min: 0.6", "2:13: factor_max: expected factor_min <= factor_max, got 0.6 and 0.5"),
        ("factor_min: 1.0\nfactor_max: 0", "3:13: factor_max: expected factor_min <= factor_max, got 1 and 0"),
        ("codec: int", '2:8: codec: expected one of auto, raw, fp16, bf16, int8, got "int"; did you mean "int8"?'),
        ("shared_memory: off_", '2:16: shared_memory: expected one of auto, off, got "off_"; did you mean "off"?'),
        ("shared_memory: false", "2:16: shared_memory: expected one of auto, off, got false"),
        ("memory: tiny", '2:9: memory: expected one of normal, low, got "tiny"'),
        ("pull_fraction: 0", "2:16: pull_fraction: expected a number above 0 and up to 1, got 0"),
        ("pull_fraction: 1.5", "2:16: pull_fraction: expected a number above 0 and up to 1, got 1.5"),
        ("max_connections: 0", "2:18: max_connections: expected a whole number from 1 to 4096, got 0"),
        (
            "blend: absolute\npull_fraction: 0.5",
            "3:16: pull_fraction: a part of a model cannot be blended with blend: absolute, got 0.5; "
            "write blend: delta, or leave this key out",
        ),
        (
            "bandwidth_limit: 1 MB/s\nblend: absolute",
            "2:18: bandwidth_limit: a limit makes exchanges pull parts, which cannot be blended with blend: absolute; "
            "write blend: delta, or leave this key out",
        ),
        (
            "optimizer_state: blend\npull_fraction: 0.5",
            "2:18: optimizer_state: the optimizer's state travels with whole models only, and here an exchange brings "
            "0.5 of the parameters; write optimizer_state: keep, or let exchanges bring whole models",
        ),
        (
            "optimizer_state: blend\nmethod: sparta",
            "2:18: optimizer_state: the optimizer's state travels with whole models only, and here an exchange brings "
            "0.005 of the parameters; write optimizer_state: keep, or let exchanges bring whole models",
        ),
        ("optimizer_state: share", '2:18: optimizer_state: expected one of keep, blend, got "share"'),
        ("custom_rule: {x: .inf}", "2:18: custom_rule.x: expected a plain, finite value, got Infinity"),
        ("plugins: my_rules", '2:10: plugins: expected a list, got "my_rules"'),
        (
            "seed: 1\nseed: 2",
            '3:1: the key "seed" stands here and in line 2 of the same mapping; remove one of the two',
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_place_and_what_was_expected(line, problem):
    assert problems_of(NODES + line) == [f"c.yaml:{problem}"]


@pytest.mark.parametrize(
    ("text", "shown", "hint"),
    [
        ("0", "0", "; leave the key out for no limit"),
        ("0.0 MB/s", '"0.0 MB/s"', "; leave the key out for no limit"),
        ("-5 MB/s", '"-5 MB/s"', "; leave the key out for no limit"),
        ("unlimited", '"unlimited"', "; leave the key out for no limit"),
        ("20", "20", '; write the unit, too: "20 MB/s" or another'),
        ("2.5e6", "2500000.0", '; write the unit, too: "2500000 MB/s" or another'),
        ('"20"', '"20"', '; write the unit, too: "20 MB/s" or another'),
        ("20 MBs", '"20 MBs"', '; did you mean "20 MB/s"?'),
        ("20 mb/s", '"20 mb/s"', '; did you mean "20 MB/s"?'),
        ("1.5 KB/s", '"1.5 KB/s"', '; did you mean "1.5 kB/s"?'),
        ("20 MB", '"20 MB"', '; did you mean "20 MB/s"?'),
        ("20 MiB", '"20 MiB"', '; did you mean "20 MiB/s"?'),
        ("20 MBps", '"20 MBps"', '; did you mean "20 MB/s"?'),
        ("20 Mbps", '"20 Mbps"', '; did you mean "20 Mbit/s"?'),
        ("20 GB per second", '"20 GB per second"', '; did you mean "20 GB/s"?'),
        ("20 apples", '"20 apples"', ""),
        ("1e9 MB/s", '"1e9 MB/s"', ""),
        ("1,5 MB/s", '"1,5 MB/s"', ""),
        ("true", "true", ""),
        (".inf", "Infinity", ""),
        ("[1 MB/s]", "a list of 1", ""),
    ],
)
def test_a_wrong_rate_is_named_with_what_was_probably_meant(text, shown, hint):
    assert problems_of(f"{NODES}bandwidth_limit: {text}") == [
        f"c.yaml:2:18: bandwidth_limit: {EXPECTED_RATE}, got {shown}{hint}"
    ]


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("1 B/s", 1),
        ("20 kB/s", 20e3),
        ("20 MB/s", 20e6),
        ("1.5GB/s", 1.5e9),
        ("2 KiB/s", 2048),
        ("0.5 MiB/s", 2**19),
        ("1 GiB/s", 2**30),
        ("8 kbit/s", 1e3),
        ("100 Mbit/s", 12.5e6),
        ("1 Gbit/s", 125e6),
        ("null", None),
        ("", None),
    ],
)
def test_a_rate_means_bytes_per_second(text, rate):
    config = ClusterConfig.from_text(f"{NODES}bandwidth_limit: {text}")
    assert config.bandwidth_limit_bytes_per_s == rate
    assert ClusterConfig.from_text(config.to_yaml()) == config
    if text:
        pattern = json_schema()["properties"]["bandwidth_limit"]["pattern"]
        assert text == "null" or re.search(pattern, text), "editors accept what dpwa accepts"


def test_a_rate_that_overflows_is_no_rate():
    (problem,) = problems_of(f"{NODES}bandwidth_limit: {'9' * 400} MB/s")
    assert problem.startswith(f"c.yaml:2:18: bandwidth_limit: {EXPECTED_RATE}, got ")


def test_parts_and_limits_go_with_blending_by_difference():
    config = ClusterConfig.for_localhost(2, pull_fraction=0.25, bandwidth_limit="1 MB/s")
    assert (config.pull_fraction, config.bandwidth_limit_bytes_per_s) == (0.25, 1e6)
    assert ClusterConfig.for_localhost(2, pull_fraction=1, blend="absolute").pull_fraction == 1


def test_low_memory_means_fewer_snapshots():
    assert ClusterConfig.alone().snapshot_slots == 3
    assert ClusterConfig.for_localhost(2, memory="low").snapshot_slots == 2


EXAMPLE = "; for example: - {name: w1, port: 21000}"


@pytest.mark.parametrize(
    ("nodes", "problem"),
    [
        ("", f"1:1: nodes: missing; expected a list of 1 to 4096 entries{EXAMPLE}"),
        ("nodes: []", f"1:8: nodes: expected a list of 1 to 4096 entries, got a list of 0{EXAMPLE}"),
        ("nodes: 3", f"1:8: nodes: expected a list of 1 to 4096 entries, got 3{EXAMPLE}"),
        ("nodes: [3]", f"1:9: nodes[0]: expected a mapping (key: value), got 3{EXAMPLE}"),
        ("nodes: [{name: a}]", "1:9: nodes[0].port: missing; expected a whole number from 1 to 65535"),
        (
            "nodes: [{name: a, port: 80000}]",
            "1:25: nodes[0].port: expected a whole number from 1 to 65535, got 80000",
        ),
        ("nodes: [{name: a, port: 1, nmae: b}]", '1:28: nodes[0].nmae: unknown key, did you mean "name"?'),
        (
            "nodes: [{name: a, port: 1}, {name: a, port: 2}]",
            '1:36: nodes[1].name: nodes[0] is called "a" too; every node needs its own name',
        ),
        (
            "nodes: [{name: a, port: 1}, {name: b, port: 1, host: 127.0.0.1}]",
            "1:45: nodes[1].port: nodes[0] has port 1 of this host too; give each its own",
        ),
        (
            "nodes: [{name: a, port: 1, host: 10.0.0.256}]",
            '1:34: nodes[0].host: expected a host name or an IP address, got "10.0.0.256"',
        ),
        (
            "nodes: [{name: a, port: 1, host: 0.0.0.0}]",
            '1:34: nodes[0].host: expected an address that peers can reach, such as this node\'s own, got "0.0.0.0"',
        ),
    ],
)
def test_a_wrong_node_is_named_with_its_place_and_what_was_expected(nodes, problem):
    assert problems_of(nodes or "seed: 0") == [f"c.yaml:{problem}"]


@pytest.mark.parametrize("name", ["", "-a", ".a", "..", "a b", "a/b", "é", "a" * 65, "a\n"])
def test_names_are_safe_as_names_of_folders(name):
    (problem,) = problems_of(f'nodes: [{{name: "{name}", port: 1}}]'.replace("\n", "\\n"))
    assert "nodes[0].name: expected 1 to 64 letters, digits" in problem


def test_a_host_in_the_network_needs_the_word_that_admits_it():
    text = "nodes: [{name: a, port: 1, host: 192.168.1.5}]\n"
    (problem,) = problems_of(text)
    assert "without keys whoever reaches the port" in problem
    assert "insecure: true" in problem
    assert ClusterConfig.from_text(text + "insecure: true").insecure


def test_all_problems_come_at_once_in_the_order_of_the_file():
    problems = problems_of(
        "nodes:\n"
        "  - {name: w1, port: 21000}\n"
        "  - {nmae: w2, port: 99999}\n"
        "  - {name: w1, port: 21000, host: 10.1.2.3}\n"
        "pull_probability: 7\n"
        "pull_probability: 8\n"
        "factor_min: 0.9\n"
        "factor_max: 0.1\n"
    )
    places = [problem.split(": ")[0] for problem in problems]
    assert places == [
        "c.yaml:3:5",
        "c.yaml:3:6",
        "c.yaml:3:22",
        "c.yaml:4:12",
        "c.yaml:4:35",
        "c.yaml:5:19",
        "c.yaml:6:1",
        "c.yaml:8:13",
    ]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("flow_control: {score_min: 600, score_start: x}", "flow_control.score_start"),
        ("factor_min: 0.6\nfactor_max: x", "factor_max"),
        ("consensus: {late_target: 0.1, late_clock: x}", "consensus.late_clock"),
        ("method: gosgd\npull_fraction: x", "pull_fraction"),
        ("blend: absolut\npull_fraction: 0.5", "blend"),
        ("topology: {graph: random_regular, degree: x}", "topology.degree"),
        ("faults: {kill: [{node: w3, step: x}]}", "faults.kill[0].step"),
        ("plugins: x\ninterpolation: of-a-plugin", "plugins"),
    ],
)
def test_a_wrong_value_is_not_compared_with_others(text, place, tmp_path):
    with pytest.raises(ConfigError) as caught:
        ClusterConfig.load(write(tmp_path, NODES + text))
    assert [problem.split(": ")[1] for problem in caught.value.problems] == [place]


@pytest.mark.parametrize("wrong", ["{name: w2}", "{port: 21001}", "3", "{name: 2, port: 21001}"])
def test_a_wrong_node_is_not_missed_by_topology_and_faults(wrong, tmp_path):
    others = "topology: {edges: [[w1, w2]]}\nfaults: {slow: {w2: 5}}\n"
    with pytest.raises(ConfigError) as caught:
        ClusterConfig.load(write(tmp_path, f"nodes: [{{name: w1, port: 21000}}, {wrong}]\n{others}"))
    (problem,) = caught.value.problems
    assert ": nodes[1]" in problem


def test_what_is_right_of_a_wrong_node_is_compared_with_the_others():
    problems = problems_of("nodes: [{name: a, port: 1}, {name: a, port: x}, {nmae: b, port: 1}]")
    assert [problem.split(": ")[1] for problem in problems] == [
        *("nodes[1].name", "nodes[1].port", "nodes[2].name", "nodes[2].nmae", "nodes[2].port")
    ]


def test_the_constructor_refuses_what_does_not_go_together():
    with pytest.raises(ValidationError, match="give each its own"):
        ClusterConfig(nodes=(NodeConfig(name="a", port=1), NodeConfig(name="b", port=1)))


def test_a_config_never_changes():
    config = ClusterConfig.alone()
    with pytest.raises(ValidationError):
        config.seed = 3


def test_a_local_cluster_has_ports_that_outgoing_connections_never_take():
    config = ClusterConfig.for_localhost(4, seed=7, flow_control={"success": 3})
    assert [(node.name, node.port) for node in config.nodes] == [(f"w{i}", FIRST_PORT + i - 1) for i in range(1, 5)]
    assert FIRST_PORT + MAX_NODES < 32768
    assert (config.seed, config.flow_control.success) == (7, 3)


def test_a_local_cluster_takes_the_ports_it_is_given():
    assert [node.port for node in ClusterConfig.for_localhost(2, ports=[5, 6]).nodes] == [5, 6]
    with pytest.raises(ConfigError, match="expected 2 ports, got 1"):
        ClusterConfig.for_localhost(2, ports=[5])


@pytest.mark.parametrize(
    ("count", "given", "message"),
    [
        (0, {}, f"nodes: expected a list of 1 to 4096 entries, got a list of 0{EXAMPLE}"),
        (MAX_NODES + 1, {}, "nodes: expected a list of 1 to 4096 entries, got a list of 4097"),
        (1, {"sed": 1}, 'sed: unknown key, did you mean "seed"?'),
    ],
)
def test_a_local_cluster_is_checked_like_a_file(count, given, message):
    with pytest.raises(ConfigError) as caught:
        ClusterConfig.for_localhost(count, **given)
    assert message in caught.value.problems


def test_a_node_alone_has_no_peers():
    config = ClusterConfig.alone("me")
    assert config.node("me").name == "me"
    assert config.peers_of("me") == ()


def test_peers_are_all_others():
    config = ClusterConfig.for_localhost(3)
    assert [peer.name for peer in config.peers_of("w2")] == ["w1", "w3"]


def test_an_unknown_node_is_refused_with_a_suggestion():
    config = ClusterConfig.for_localhost(20)
    with pytest.raises(ConfigError, match='no node of this name, did you mean "w1'):
        config.node("w1x")
    with pytest.raises(ConfigError, match=r"expected one of w1, w2, .* and 10 more"):
        config.peers_of("elsewhere")


def test_the_run_id_is_the_same_for_the_same_cluster_and_another_one_for_another():
    first = ClusterConfig.from_text("nodes: [{name: a, port: 1}, {name: b, port: 2}]\nrun: x")
    same = ClusterConfig.from_text("nodes: [{name: b, port: 2}, {name: a, port: 1, host: 127.0.0.1}]\nrun: x\nseed: 4")
    other = ClusterConfig.from_text("nodes: [{name: a, port: 1}, {name: b, port: 3}]\nrun: x")
    assert first.run_id == same.run_id != other.run_id
    assert first.run_id.startswith("x-")


def test_the_interpolator_has_the_configured_rule_and_guards():
    config = ClusterConfig.for_localhost(2, interpolation="loss", factor_max=0.7, divergence_threshold=0.5)
    interpolator = config.interpolator()
    assert isinstance(interpolator.rule, Loss)
    assert interpolator.factor(State(9.0, 1.0), State(1.0, 1.0)) == 0.7
    constant = ClusterConfig.for_localhost(2, constant={"value": 0.25}).interpolator()
    assert constant.factor(State(9.0, 1.0), State(1.0, 1.0)) == 0.25


def test_the_schema_describes_every_key():
    schema = json_schema()
    assert set(schema["properties"]) == set(ClusterConfig.model_fields)
    assert all(text["description"] for text in schema["properties"].values())
    assert schema["required"] == ["nodes"]
    assert schema["additionalProperties"] is False


names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}", fullmatch=True)
texts = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(
    named=st.lists(names, min_size=1, max_size=4, unique=True),
    run=names,
    probability=st.floats(0, 1),
    threshold=st.floats(0, 1e300),
    custom_rule=st.dictionaries(texts, json_values, max_size=3),
    blend=st.sampled_from(["delta", "absolute"]),
    codec=st.sampled_from(["auto", "raw", "fp16", "bf16", "int8"]),
    limit=st.none() | st.from_regex(r"[1-9][0-9]{0,5}(\.[0-9]{1,3})? ?(B|[kMG]B|[KMG]iB|[kMG]bit)/s", fullmatch=True),
    fraction=st.floats(0, 1, exclude_min=True),
    connections=st.integers(1, 4096),
)
def test_what_is_written_reads_as_the_same_config(named, blend, limit, fraction, probability, threshold, **other):
    config = ClusterConfig(
        run=other["run"],
        nodes=tuple(NodeConfig(name=name, port=21000 + index) for index, name in enumerate(named)),
        pull_probability=probability,
        divergence_threshold=threshold,
        custom_rule=other["custom_rule"],
        blend=blend,
        codec=other["codec"],
        pull_fraction=fraction if blend == "delta" else 1.0,
        bandwidth_limit=limit if blend == "delta" else None,
        max_connections=other["connections"],
    )
    assert ClusterConfig.from_text(config.to_yaml()) == config


@pytest.mark.parametrize(
    "name", ["1e3", "1e-3", "0o17", "0x1f", "12", "no", "true", "null", "1.5", "2020-01-01", "010"]
)
def test_names_that_look_like_other_values_survive_writing(name):
    config = ClusterConfig.alone(name)
    assert ClusterConfig.from_text(config.to_yaml()) == config


def write(folder, text):
    path = folder / "cluster.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def clean_imports(monkeypatch):
    """Modules and rules that a test brings in are forgotten after it."""
    known = dict(sys.modules)
    monkeypatch.setattr("dpwa.interpolation.registry._known", dict(registry._known))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    for name in set(sys.modules) - set(known):
        del sys.modules[name]


RULE = """
from dpwa.interpolation.registry import register

@register("mine")
class Mine:
    def __init__(self, share=0.1):
        self.share = share

    def factor(self, own, peer):
        return self.share
"""


@pytest.mark.parametrize("beside", ["the file", "the current folder"])
@pytest.mark.usefixtures("clean_imports")
def test_a_custom_rule_is_found_beside_the_file_and_in_the_current_folder(beside, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (tmp_path if beside == "the file" else elsewhere).joinpath("custom_rule_a.py").write_text(RULE)
    path_before = list(sys.path)
    config = ClusterConfig.load(write(tmp_path, NODES + "interpolation: custom_rule_a:Mine\ncustom_rule: {share: 0.3}"))
    assert sys.path == path_before
    assert config.interpolator().factor(State(1.0, 1.0), State(1.0, 1.0)) == 0.3


@pytest.mark.usefixtures("clean_imports")
def test_a_plugin_registers_its_rule_by_name(tmp_path):
    (tmp_path / "custom_rule_b.py").write_text(RULE)
    config = ClusterConfig.load(write(tmp_path, NODES + "plugins: [custom_rule_b]\ninterpolation: mine"))
    assert config.interpolator().factor(State(1.0, 1.0), State(1.0, 1.0)) == 0.1


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("interpolation: los", '2:16: interpolation: there is no interpolation "los", did you mean "loss"?'),
        ("interpolation: custom_rule_c:Mien", '2:16: interpolation: interpolation "custom_rule_c:Mien": the module'),
        (
            "interpolation: custom_rule_c:Mine\ncustom_rule: {sahre: 1}",
            '3:14: custom_rule: Mine has no option "sahre", did you',
        ),
        ("plugins: [no_such_plugin, custom_rule_c]", '2:10: plugins: the plugin "no_such_plugin" cannot be imported'),
        ("plugins: [broken_rule]", '2:10: plugins: the plugin "broken_rule" cannot be imported (SyntaxError'),
        ('plugins: ["", ".x"]', '2:10: plugins: the plugin "" cannot be imported'),
    ],
)
@pytest.mark.usefixtures("clean_imports")
def test_a_rule_that_cannot_be_used_is_found_when_the_file_is_loaded(lines, problem, tmp_path):
    (tmp_path / "custom_rule_c.py").write_text(RULE)
    (tmp_path / "broken_rule.py").write_text("def factor(:\n")
    path = write(tmp_path, NODES + lines)
    with pytest.raises(ConfigError) as caught:
        ClusterConfig.load(path)
    assert caught.value.problems[0].startswith(f"{path}:{problem}")


def test_mistakes_in_values_and_in_the_world_come_together(tmp_path, monkeypatch):
    def no_names(*_args, **_kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "gethostbyname", no_names)
    monkeypatch.setattr(socket, "getaddrinfo", no_names)
    path = write(
        tmp_path,
        "nodes:\n  - {name: a, port: 1, host: nowhere}\n  - {name: b, port: 2, host: nowhere}\n"
        "insecure: true\nseed: x\ninterpolation: los\n",
    )
    with pytest.raises(ConfigError) as caught:
        ClusterConfig.load(path)
    assert len(caught.value.problems) == 4
    assert caught.value.problems[0] == (
        f'{path}:2:30: nodes[0].host: the host "nowhere" has no address known to this machine '
        f"(Name or service not known); correct it, or write its IP address"
    )


def test_an_unreadable_file_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        ClusterConfig.load(str(tmp_path / "none.yaml"))


def test_addresses_and_localhost_are_never_looked_up(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "gethostbyname", asked.append)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **_kwargs: asked.append(args))
    ClusterConfig.load(write(tmp_path, NODES + "insecure: true"))
    ClusterConfig.load(write(tmp_path, "nodes: [{name: a, port: 1, host: 10.0.0.1}]\ninsecure: true"))
    ClusterConfig.load(write(tmp_path, 'nodes: [{name: a, port: 1, host: "2001:db8::7"}]\ninsecure: true'))
    # Nor is a name that nobody connects to.
    laptop = "{name: laptop, host: laptop.example, serve: false}"
    ClusterConfig.load(write(tmp_path, f"nodes: [{{name: a, port: 1}}, {laptop}]\n"))
    assert asked == []


def test_a_resolver_that_does_not_answer_costs_only_the_time_limit():
    answer = threading.Event()
    try:
        failures = hosts.unresolvable(["slow-1", "slow-2"], timeout_s=0.05, lookup=lambda _name: answer.wait(60))
    finally:
        answer.set()
        for thread in threading.enumerate():
            if thread.name == "dpwa-resolver":
                thread.join(10)
    assert failures == {"slow-1": "no answer within 0.05 s", "slow-2": "no answer within 0.05 s"}


def test_each_name_is_looked_up_once_and_failures_carry_their_reason():
    asked = []

    def lookup(name):
        asked.append(name)
        if name == "bad":
            raise OSError(os.EX_NOHOST, "no such name")
        if name == "odd":
            raise UnicodeError("label too long")

    failures = hosts.unresolvable(["good", "bad", "odd", "bad"], timeout_s=10, lookup=lookup)
    assert failures == {"bad": "no such name", "odd": "label too long"}
    assert sorted(asked) == ["bad", "good", "odd"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "127.1.2.3"])
def test_loopback_is_known_in_all_its_forms(host):
    assert hosts.is_loopback(host)
    assert hosts.problem_with(host) is None


@pytest.mark.parametrize("host", ["10.0.0.1", "example.org", "localhost.example.org", "box", "my_box", "a-b.c"])
def test_other_hosts_are_not_loopback(host):
    assert not hosts.is_loopback(host)
    assert hosts.problem_with(host) is None


@pytest.mark.parametrize(
    "host", ["", " ", "a b", "a..b", "-a", "127.1", "1.2.3.4.5", "a" * 64, "x." * 130, "a:1", "224.0.0.1"]
)
def test_what_cannot_be_a_host_is_known_without_asking(host):
    assert hosts.problem_with(host) is not None


def test_check_describes_the_nodes_and_the_settings():
    text = describe(ClusterConfig.for_localhost(4, factor_max=0.8, loss_smoothing=0.9, wait_ms=5), ["w1", "w2"])
    assert "run dpwa: 4 nodes, 2 on this host" in text
    assert "w1    localhost:21000  yes" in text
    assert "w3    localhost:21002  no" in text
    assert "one random neighbour with probability 1, and waits up to 5 ms" in text
    assert "constant 0.5; losses smoothed with weight 0.9; kept from 0 to 0.8" in text
    assert "warning" not in text
    assert text.replace("\n", "").isprintable(), "no control codes of a terminal"


def test_check_describes_links_and_memory():
    text = describe(ClusterConfig.for_localhost(2), ["w1"])
    assert (
        "travel as they are on fast links and smaller on slow ones; between nodes of one host and user by sha" in text
    )
    assert "3 snapshots and the differences of one exchange; at most 6 open connections" in text
    changed = {"codec": "int8", "shared_memory": "off", "pull_fraction": 0.25, "bandwidth_limit": "20 MB/s"}
    text = describe(ClusterConfig.for_localhost(2, memory="low", max_connections=3, **changed), ["w1"])
    assert "as int8 with a scale per block; an exchange pulls 0.25 of them, another part each time; a node rec" in text
    assert "receives at most 20 MB/s over the network." in text
    assert "2 snapshots and the differences of one exchange; at most 3 open connections" in text
    assert "warning" not in text


def test_check_says_how_many_bytes_an_optimizers_state_takes():
    assert "optimizer" not in describe(ClusterConfig.for_localhost(2), ["w1"])
    text = describe(ClusterConfig.for_localhost(2, optimizer_state="blend"), ["w1"])
    words = "twice (SGD with momentum) or three times (Adam, AdamW) the bytes of the parameters travel."
    assert f"; the optimizer's state is blended too, so that {words}" in text
    text = describe(ClusterConfig.for_localhost(2, optimizer_state="blend", bandwidth_limit="1 MB/s"), ["w1"])
    assert "warning: bandwidth_limit makes exchanges bring parts of the model, which come without the opt" in text


@pytest.mark.parametrize(
    ("config", "local", "warning"),
    [
        (ClusterConfig.alone(), ["alone"], "there is one node only"),
        (ClusterConfig.for_localhost(2, pull_probability=0), ["w1"], "pull_probability is 0"),
        (ClusterConfig.for_localhost(2, constant={"value": 0}), ["w1"], "the factor is always 0"),
        (ClusterConfig.for_localhost(2, factor_max=0), ["w1"], "the factor is always 0"),
        (ClusterConfig.for_localhost(2), [], "no node of this file belongs to this host"),
        (ClusterConfig.for_localhost(2, timeout_ms=100), ["w1"], "connect_timeout_ms is above timeout_ms"),
        (ClusterConfig.for_localhost(2, bandwidth_limit="1 MB/s"), ["w1"], "bandwidth_limit concerns the network"),
        (ClusterConfig.for_localhost(2, ports=[45000, 45001]), ["w1"], "ports from 32768 up"),
        (
            ClusterConfig.from_text(
                "{nodes: [{name: w1, port: 1, host: 10.0.0.1}, {name: w2, port: 2}], insecure: true}"
            ),
            ["w1"],
            "some nodes have a loopback address",
        ),
        (
            ClusterConfig.from_text("{nodes: [{name: w1, port: 1, host: 10.0.0.1}], insecure: true}"),
            ["w1"],
            "nodes talk over a network without encryption",
        ),
    ],
)
def test_check_warns_of_what_is_allowed_but_odd(config, local, warning):
    assert f"warning: {warning}" in describe(
        config, local
    ) or f"warning: nodes talk over a network {warning}" in describe(config, local)


def test_check_shortens_the_table_of_a_large_cluster():
    text = describe(ClusterConfig.for_localhost(100), ["w1"])
    assert "and 68 more" in text
    assert "w33" not in text

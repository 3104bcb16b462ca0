"""Topologies in the cluster file: what may be written, every refusal in words, matrices in files, commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from dpwa.cli import main
from dpwa.config.cluster import ClusterConfig, json_schema
from dpwa.config.describe import describe
from dpwa.config.topology import TopologyOptions
from dpwa.errors import ConfigError
from dpwa.topology.matrix_files import matrix_problems, read_matrix
from support import ROOT

SAMPLES = sorted((ROOT / "samples" / "topologies").glob("*.yaml"))
NODES = "nodes: [{name: w1, port: 21000}, {name: w2, port: 21001}, {name: w3, port: 21002}]\n"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def nodes(count: int) -> str:
    entries = ", ".join(f"{{name: w{number}, port: {20999 + number}}}" for number in range(1, count + 1))
    return f"nodes: [{entries}]\n"


def load(folder: Path, topology: str, count: int = 3) -> ClusterConfig:
    path = folder / "c.yaml"
    path.write_text(f"{nodes(count)}topology: {topology}\n")
    return ClusterConfig.load(path)


def problems_of(topology: str, count: int = 3) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        ClusterConfig.from_text(f"{nodes(count)}topology: {topology}\n", "c.yaml")
    return [problem.removeprefix("c.yaml:") for problem in caught.value.problems]


def file_problems_of(folder: Path, topology: str, count: int = 3) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, topology, count)
    return [problem.replace(f"{folder}/", "") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("topology", "count", "problems"),
    [
        (
            "rnig",
            3,
            [
                "2:11: topology.graph: expected one of complete, ring, directed_ring, grid, torus, star, hypercube, "
                "exponential, one_peer_exponential, base_graph, random_regular, erdos_renyi, small_world, edges, "
                'matrix, got "rnig"; did you mean "ring"?'
            ],
        ),
        ("3", 3, ["2:11: topology: expected a mapping (key: value), got 3"]),
        ("{grpah: ring}", 3, ['2:12: topology.grpah: unknown key, did you mean "graph"?']),
        (
            "{graph: ring, weights: metropolitan}",
            3,
            [
                "2:34: topology.weights: expected one of uniform, uniform_column, metropolis, random_row, "
                'random_column, random_doubly or null, got "metropolitan"; did you mean "metropolis"?'
            ],
        ),
        (
            "{graph: ring, schedule: peridic}",
            3,
            [
                "2:35: topology.schedule: expected one of static, periodic, random or null, got "
                '"peridic"; did you mean "periodic"?'
            ],
        ),
        (
            "hypercube",
            6,
            [
                "2:11: topology: a hypercube needs 2, 4, 8, 16 … nodes, got 6; base_graph and exponential take any "
                "number"
            ],
        ),
        ("random_regular", 6, ["2:11: topology: the graph random_regular needs the key degree"]),
        ("erdos_renyi", 6, ["2:11: topology: the graph erdos_renyi needs the key probability"]),
        ("edges", 6, ["2:11: topology: the graph edges needs the key edges"]),
        ("matrix", 6, ["2:11: topology: the graph matrix needs the key matrix, or matrices with one or more"]),
        (
            "{matrices: []}",
            6,
            ["2:11: topology: the graph matrix needs the key matrix, or matrices with one or more"],
        ),
        (
            "{graph: random_regular, degree: 3}",
            3,
            ["2:43: topology.degree: expected fewer neighbours than the 3 nodes, got 3"],
        ),
        (
            "{graph: random_regular, degree: 3}",
            5,
            ["2:43: topology.degree: 5 nodes with 3 neighbours each cannot be: 5 x 3 is odd"],
        ),
        (
            "{graph: small_world, degree: 3}",
            5,
            ["2:40: topology.degree: expected an even number, half of the neighbours on each side of the ring, got 3"],
        ),
        (
            "{graph: erdos_renyi, probability: 0}",
            5,
            ["2:45: topology.probability: expected a number above 0 and up to 1 or null, got 0"],
        ),
        (
            "{graph: erdos_renyi, probability: 0.01}",
            12,
            [
                "2:11: topology: erdos_renyi left some of the 12 nodes cut off in every draw; raise probability, write "
                "schedule: random for a new graph in each round, or write allow_disconnected: true"
            ],
        ),
        (
            "{graph: ring, degree: 2}",
            3,
            ["2:25: topology.degree: belongs to the graph random_regular and small_world, got graph ring; remove it"],
        ),
        (
            "{graph: directed_ring, weights: metropolis}",
            3,
            [
                "2:43: topology.weights: metropolis weights need edges in both directions; for a directed graph choose "
                "uniform, uniform_column, random_row, random_column or random_doubly"
            ],
        ),
        (
            "{graph: base_graph, weights: uniform}",
            3,
            ["2:40: topology.weights: the graph base_graph brings its own weights; remove this key"],
        ),
        (
            "{graph: ring, schedule: periodic}",
            3,
            [
                "2:35: topology.schedule: periodic needs several matrices; write them under matrices, or choose "
                "another graph"
            ],
        ),
        (
            "{graph: base_graph, schedule: static}",
            3,
            [
                "2:41: topology.schedule: the graph base_graph has another matrix in each round, got static; choose "
                "periodic or random"
            ],
        ),
        (
            "{graph: ring, schedule: random}",
            3,
            [
                "2:35: topology.schedule: random needs something to draw: a random graph (random_regular, "
                "erdos_renyi, small_world), random weights, or several matrices"
            ],
        ),
        (
            "{edges: [[w1, w2], [w2, w33], [w3, w3]]}",
            3,
            [
                '2:35: topology.edges[1][1]: expected the name of a node, got "w33"; did you mean "w3"?',
                '2:41: topology.edges[2]: expected two different nodes, got "w3" twice; every node hears itself anyway',
            ],
        ),
        (
            "{edges: [[w1], 5]}",
            3,
            [
                "2:20: topology.edges[0]: expected the names of two nodes, such as [w1, w2], got a list of 1",
                "2:26: topology.edges[1]: expected the names of two nodes, such as [w1, w2], got 5",
            ],
        ),
        ("{edges: w1}", 3, ['2:19: topology.edges: expected a list or null, got "w1"']),
        (
            "{edges: [[w1, w2], [w2, w3]]}",
            5,
            [
                "2:19: topology.edges: nobody hears w4, w5, and they hear nobody; add edges, or write "
                "allow_disconnected: true"
            ],
        ),
        (
            "{edges: [[w1, w2], [w2, w3]], directed: true}",
            3,
            [
                "2:19: topology.edges: nobody hears w3; add edges, or write allow_disconnected: true",
                "2:19: topology.edges: w1 hears nobody; add edges, or write allow_disconnected: true",
            ],
        ),
        (
            "{edges: [[w1, w2], [w3, w4]]}",
            4,
            [
                "2:19: topology.edges: what w1, w2 learn never reaches the other nodes; add edges, or write "
                "allow_disconnected: true",
                "2:19: topology.edges: what w3, w4 learn never reaches the other nodes; add edges, or write "
                "allow_disconnected: true",
            ],
        ),
        (
            "{edges: [[w1, w2]], directed: true, weights: random_doubly, allow_disconnected: true}",
            2,
            [
                "2:19: topology.edges: random_doubly weights need a way back for every edge, but none leads from w2 to "
                "w1; add one, or choose other weights"
            ],
        ),
        (
            "{matrix: [[1, 0], [0, 1]]}",
            3,
            ["2:20: topology.matrix: expected 3 rows of 3 numbers, one for each node, got 2 rows"],
        ),
        (
            "{matrix: [[1, 0], [0, 1, 0]]}",
            2,
            ["2:29: topology.matrix[1]: expected 2 rows of 2 numbers, one for each node, got 3 numbers in row 2"],
        ),
        (
            "{matrix: [[1.5, -0.5], [.nan, .inf]]}",
            2,
            [
                "2:21: topology.matrix[0]: expected weights from 0, got -0.5 as the weight that w1 gives w2",
                "2:34: topology.matrix[1]: expected weights from 0, got inf as the weight that w2 gives w2",
                "2:34: topology.matrix[1]: expected weights from 0, got nan as the weight that w2 gives w1",
            ],
        ),
        (
            "{matrix: [[0.5, 0.4], [0.6, 0.4]]}",
            2,
            [
                "2:21: topology.matrix[0]: row 1 (w1) sums to 0.9; expected all rows, or all columns, to sum to 1",
            ],
        ),
        (
            "{matrix: [[0.5, 0.4], [0.5, 0.5]]}",
            2,
            [
                "2:21: topology.matrix[0]: row 1 (w1) sums to 0.9; expected all rows, or all columns, to sum to 1",
            ],
        ),
        (
            "{matrix: [[0.1, 0.3, 0.5], [0.1, 0.4, 0.4], [0.8, 0.2, 0.1]]}",
            3,
            ["2:20: topology.matrix: column 2 (w2) sums to 0.9; expected all rows, or all columns, to sum to 1"],
        ),
        (
            "{matrix: [[0.333, 0.333, 0.333], [0.2, 0.3, 0.5], [0.2, 0.4, 0.4]]}",
            3,
            [
                "2:21: topology.matrix[0]: row 1 (w1) sums to 0.999; expected all rows, or all columns, to sum to 1; "
                "write all its digits, such as 0.3333333333, or save it as float64"
            ],
        ),
        (
            "{matrix: [[0, 1], [1, 0]]}",
            2,
            [
                "2:20: topology.matrix: models are only passed on and never come together; put weights above 0 on the "
                "diagonal, or write allow_disconnected: true"
            ],
        ),
        (
            "{matrix: [[1, 0], [0.5, 0.5]]}",
            2,
            [
                "2:20: topology.matrix: nobody hears w2; add weights above 0, or write allow_disconnected: true",
                "2:20: topology.matrix: w1 hears nobody; add weights above 0, or write allow_disconnected: true",
            ],
        ),
        (
            "{matrices: [[[1, 0], [0.5, 0.5]], [[0.5, 0], [0.5, 1]]]}",
            2,
            [
                "2:22: topology.matrices: in matrix 1 only the rows sum to 1, in matrix 2 only the columns do; choose "
                "one"
            ],
        ),
        (
            "{matrix: [[1, x], [0, 1]]}",
            2,
            [
                "2:20: topology.matrix: expected rows of numbers, such as [[0.5, 0.5], [0.5, 0.5]], or the path of a "
                ".csv or .npy file, got a list of 2"
            ],
        ),
        (
            "{matrix: weights.txt}",
            2,
            [
                "2:20: topology.matrix: expected rows of numbers, such as [[0.5, 0.5], [0.5, 0.5]], or the path of a "
                '.csv or .npy file, got "weights.txt"'
            ],
        ),
        (
            "{matrix: [[1]], matrices: [[[1]]]}",
            1,
            ["2:27: topology.matrices: expected either matrix or matrices, got both"],
        ),
    ],
)
def test_a_wrong_topology_is_named_with_its_place_and_what_was_expected(topology, count, problems):
    assert problems_of(topology, count) == problems


def test_all_problems_of_a_topology_are_reported_at_once():
    def keys_of(text: str) -> list[str]:
        return [problem.split(": ")[1].removeprefix("topology.") for problem in problems_of(text, 5)]

    assert keys_of("{graph: small_world, degree: 0, rewiring: 2, weights: uniforn, schedule: periodik}") == [
        *("degree", "rewiring", "weights", "schedule")
    ]
    assert keys_of("{graph: small_world, degree: 7, schedule: periodic, k: 1, probability: 1}") == [
        *("degree", "schedule", "k", "probability")
    ]


def test_problems_of_the_topology_come_with_those_of_other_keys():
    with pytest.raises(ConfigError) as caught:
        ClusterConfig.from_text(f"{NODES}topology: hypercube\npull_probability: 2\n", "c.yaml")
    assert len(caught.value.problems) == 2


def test_a_word_and_the_keys_of_a_graph_are_short_for_a_mapping():
    assert TopologyOptions.model_validate("ring") == TopologyOptions(graph="ring")
    assert TopologyOptions.model_validate({"edges": [["a", "b"]]}).graph == "edges"
    assert TopologyOptions.model_validate({"matrices": [[[1]]]}).graph == "matrix"
    assert ClusterConfig.from_text(f"{NODES}topology: complete") == ClusterConfig.from_text(NODES)


@pytest.mark.parametrize(
    ("topology", "count"),
    [
        ("{edges: [[w1, w2]], allow_disconnected: true}", 3),
        ("{matrix: [[0, 1], [1, 0]], allow_disconnected: true}", 2),
        ("{graph: random_regular, degree: 1, allow_disconnected: true}", 4),
        ("{graph: random_regular, degree: 1, schedule: random}", 4),
        ("{matrices: [[[0, 1], [1, 0]], [[0.5, 0.5], [0.5, 0.5]]]}", 2),
        ("{matrices: [[[0, 1], [1, 0]], [[0.5, 0.5], [0.5, 0.5]]], schedule: random}", 2),
        ("{matrix: [[0.5, 0.2], [0.5, 0.8]]}", 2),
        ("ring", 1),
        ("{graph: erdos_renyi, probability: 0.5, weights: random_doubly, seed: 3}", 9),
    ],
)
def test_what_is_allowed_makes_a_topology(topology, count):
    config = ClusterConfig.from_text(f"{nodes(count)}topology: {topology}\n")
    assert config.topology_of_nodes.count == count
    again = ClusterConfig.from_text(config.to_yaml())
    assert again == config
    assert again.run_id == config.run_id


def test_permutations_in_a_random_order_never_average():
    (problem,) = problems_of("{matrices: [[[0, 1], [1, 0]], [[1, 0], [0, 1]]], schedule: random}", 2)
    assert "models are only passed on" in problem


def test_the_seed_is_that_of_the_cluster_unless_the_topology_has_its_own():
    drawn = {"graph": "ring", "weights": "random_row"}
    by_default = ClusterConfig.for_localhost(5, topology=drawn, seed=4).topology_of_nodes
    own = ClusterConfig.for_localhost(5, topology={**drawn, "seed": 4}, seed=9).topology_of_nodes
    other = ClusterConfig.for_localhost(5, topology=drawn, seed=9).topology_of_nodes
    assert (by_default.matrix(0) == own.matrix(0)).all()
    assert (by_default.matrix(0) != other.matrix(0)).any()


def test_clusters_that_differ_in_topology_or_in_the_order_of_its_nodes_are_different_runs():
    text = "nodes: [{name: a, port: 21000}, {name: b, port: 21001}, {name: c, port: 21002}]\n"
    turned = "nodes: [{name: b, port: 21001}, {name: a, port: 21000}, {name: c, port: 21002}]\n"
    assert ClusterConfig.from_text(text).run_id == ClusterConfig.from_text(turned).run_id
    ids = [
        ClusterConfig.from_text(f"{part}topology: {graph}").run_id
        for part in (text, turned)
        for graph in ("ring", "star")
    ]
    assert len({*ids, ClusterConfig.from_text(text).run_id}) == 5


def test_the_topology_is_made_once_and_leaves_the_config_equal():
    config, other = (ClusterConfig.for_localhost(4, topology="ring") for _ in range(2))
    assert config.topology_of_nodes is config.topology_of_nodes
    assert config == other
    assert "topology_of_nodes" not in config.model_dump()


def test_a_matrix_file_lies_beside_the_cluster_file(tmp_path, monkeypatch):
    (tmp_path / "w.csv").write_text("0.5, 0.5, 0\n\n0.25,0.5,0.25\n0,0.5,0.5\n")
    np.save(tmp_path / "w.npy", np.full((3, 3), 1 / 3))
    config = load(tmp_path, "{matrices: [w.csv, w.npy]}")
    monkeypatch.chdir("/")
    topology = ClusterConfig.from_text(config.to_yaml()).topology_of_nodes  # the paths have become absolute
    assert topology.period == 2
    assert topology.matrix(0)[1].tolist() == [0.25, 0.5, 0.25]
    assert topology.matrix(1) == pytest.approx(np.full((3, 3), 1 / 3))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("1,0\n0,1\n", "the file w.csv: expected 3 rows of 3 numbers, one for each node, got 2 rows"),
        (
            "1,0,0\n0,1\n0,0,1\n",
            "the file w.csv: expected 3 rows of 3 numbers, one for each node, got 2 numbers in row 2",
        ),
        ("a,b,c\n", "the file w.csv, line 1: expected numbers (could not convert string to float: 'a')"),
        (
            "1 0 0\n0 1 0\n0 0 1\n",
            "the file w.csv, line 1: expected numbers; separate them by commas "
            "(could not convert string to float: '1 0 0')",
        ),
        ("", "the file w.csv: expected 3 rows of 3 numbers, one for each node, got 0 rows"),
        (
            "0.5,0.5,0\n0.2,0.2,0.2\n0,0,1\n",
            "the file w.csv: row 2 (w2) sums to 0.6; expected all rows, or all columns, to sum to 1",
        ),
        ("1,0,0\n0,1,0\n0,0,nan\n", "the file w.csv: expected weights from 0, got nan as the weight that w3 gives w3"),
    ],
)
def test_a_wrong_csv_file_is_named_with_what_is_wrong_in_it(tmp_path, content, problem):
    (tmp_path / "w.csv").write_text(content)
    assert file_problems_of(tmp_path, "{matrix: w.csv}") == [f"c.yaml:2:20: topology.matrix: {problem}"]


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path):
    (problem,) = file_problems_of(tmp_path, "{matrix: w.csv}")
    assert problem == "c.yaml:2:20: topology.matrix: the file w.csv cannot be read: No such file or directory"
    (tmp_path / "w.csv").write_bytes(b"\xff\xfe\x00")
    (problem,) = file_problems_of(tmp_path, "{matrix: w.csv}")
    assert problem.startswith("c.yaml:2:20: topology.matrix: the file w.csv is no CSV file in UTF-8: ")


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.eye(2), "expected 3 rows of 3 numbers, one for each node, got 2 x 2"),
        (np.float64(3), "expected 3 rows of 3 numbers, one for each node, got a single number"),
        (np.full((3, 3), 1j), "expected an NPY file of real numbers"),
        (np.array([["a"] * 3] * 3), "expected an NPY file of real numbers"),
    ],
)
def test_a_wrong_npy_file_is_named_with_what_is_wrong_in_it(tmp_path, array, problem):
    np.save(tmp_path / "w.npy", array)
    assert file_problems_of(tmp_path, "{matrix: w.npy}") == [f"c.yaml:2:20: topology.matrix: the file w.npy: {problem}"]


@pytest.mark.parametrize("content", [b"", b"no numpy", b"\x93NUMPY\x01\x00\x06\x00{}   \n"])
def test_a_file_that_is_no_npy_file_is_named(tmp_path, content):
    (tmp_path / "w.npy").write_bytes(content)
    (problem,) = file_problems_of(tmp_path, "{matrix: w.npy}")
    assert problem.startswith("c.yaml:2:20: topology.matrix: the file w.npy is no NPY file of numbers: ")


def test_an_npy_file_with_objects_is_never_unpickled(tmp_path):
    np.save(tmp_path / "w.npy", np.array([[print] * 3] * 3, object), allow_pickle=True)
    (problem,) = file_problems_of(tmp_path, "{matrix: w.npy}")
    assert "is no NPY file of numbers" in problem


def test_a_matrix_from_a_file_that_cuts_nodes_off_is_refused(tmp_path):
    np.save(tmp_path / "w.npy", np.eye(3))
    (problem,) = file_problems_of(tmp_path, "{matrix: w.npy}")
    assert "nobody hears w1, w2, w3, and they hear nobody" in problem


@settings(deadline=None)
@given(rows=st.lists(st.lists(st.floats(0.125, 1), min_size=4, max_size=4), min_size=4, max_size=4))
def test_what_is_written_as_csv_is_read_as_it_was(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "w.csv"
    path.write_text("\n".join(",".join(map(repr, row)) for row in rows))
    assert read_matrix(path, 4).tolist() == rows


@settings(deadline=None)
@given(content=st.binary(max_size=300), suffix=st.sampled_from(["csv", "npy"]))
def test_no_content_of_a_file_does_more_than_raise_a_config_error(tmp_path_factory, content, suffix):
    path = tmp_path_factory.mktemp("any") / f"w.{suffix}"
    path.write_bytes(content)
    try:
        shape = read_matrix(path, 2).shape
    except ConfigError:
        shape = (2, 2)
    assert shape == (2, 2)


NUMBERS = st.floats(-1, 2) | st.sampled_from([0.0, 0.5, 1.0, float("nan"), float("inf")])


@given(st.lists(st.lists(NUMBERS, min_size=2, max_size=3), min_size=2, max_size=3))
def test_what_has_no_problem_is_stochastic(rows):
    texts = list(matrix_problems(rows, ["a", "b"]))
    if not texts:
        matrix = np.array(rows)
        assert (matrix >= 0).all()
        sums = [np.abs(matrix.sum(axis=axis) - 1).max() <= 1e-9 for axis in (0, 1)]
        assert any(sums)
    assert all(text for _, text in texts)


def test_the_schema_for_editors_knows_words_and_mappings():
    schema = json_schema()
    word = schema["properties"]["topology"]["anyOf"][1]["enum"]
    assert "ring" in word
    assert schema["$defs"]["TopologyOptions"]["properties"]["edges"]["anyOf"][0]["items"]["minItems"] == 2
    assert json.loads(json.dumps(schema)) == schema


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_every_sample_of_a_topology_loads_and_is_described(path):
    config = ClusterConfig.load(path)
    assert max(node.port for node in config.nodes) < 32768
    text = describe(config, [])
    assert f"The topology: {config.topology.graph}" in text
    assert ClusterConfig.from_text(config.to_yaml()) == config


def test_check_says_nothing_of_the_default_topology_and_the_whole_report_of_others():
    assert "topology" not in describe(ClusterConfig.for_localhost(4), [])
    text = describe(ClusterConfig.for_localhost(6, topology="ring"), [])
    assert "Spectral gap 0.333: a round leaves 0.667 of the distance from consensus, and 35 rounds leave a" in text
    assert "Everyone reaches everyone: strongly connected." in text


@pytest.mark.seconds
@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_the_command_draws_every_sample(path, tmp_path):
    picture = tmp_path / "graph.png"
    result = CliRunner().invoke(main, ["topology", "draw", str(path), "-o", str(picture)])
    assert (result.exit_code, result.output) == (0, f"wrote {picture}\n")
    assert picture.read_bytes().startswith(PNG_SIGNATURE)


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("graph", "count"), [("complete", 1), ("star", 2), ("grid", 40), ("one_peer_exponential", 33), ("complete", 100)]
)
def test_a_picture_can_be_drawn_of_any_number_of_nodes(graph, count, tmp_path):
    cluster = tmp_path / "c.yaml"
    cluster.write_text(f"{nodes(count)}topology: {graph}\n")
    result = CliRunner().invoke(main, ["topology", "draw", str(cluster), "-o", str(tmp_path / "graph.png")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "graph.png").stat().st_size > 4000


@pytest.mark.seconds
def test_a_picture_that_cannot_be_written_is_a_problem_in_words(tmp_path):
    picture = tmp_path / "missing" / "graph.png"
    result = CliRunner().invoke(main, ["topology", "draw", str(SAMPLES[0]), "-o", str(picture)])
    assert result.exit_code == 2
    assert result.output == f"{picture}: the picture cannot be written: No such file or directory\n"


def test_without_matplotlib_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "dpwa.topology.drawing", raising=False)
    result = CliRunner().invoke(main, ["topology", "draw", str(SAMPLES[0])])
    assert result.exit_code == 2
    assert "pip install 'dpwa[plot]'" in result.output


def test_loading_a_file_without_a_topology_imports_neither_its_code_nor_networkx():
    code = """
import sys
from dpwa.config.cluster import ClusterConfig
ClusterConfig.for_localhost(4)
print([name for name in sys.modules if name in ("networkx", "dpwa.config.topology_checks")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"

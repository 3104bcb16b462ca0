"""What is wrong with a method is said before anything starts: all at once, with the place."""

from __future__ import annotations

import pytest
import torch

from dpwa.adapters.pytorch import DpwaPyTorchAdapter
from dpwa.adapters.tensors import TorchModel
from dpwa.config.cluster import ClusterConfig
from dpwa.config.describe import describe
from dpwa.errors import ConfigError
from dpwa.methods.registry import METHODS
from dpwa.node.node import Node
from support import VectorModel, step_until

NODES = "nodes: [{name: w1, port: 21000}, {name: w2, port: 21001}, {name: w3, port: 21002}]\n"


def _problems(tmp_path, text: str) -> list[str]:
    path = tmp_path / "cluster.yaml"
    path.write_text(NODES + text)
    with pytest.raises(ConfigError) as raised:
        ClusterConfig.load(path)
    return [problem.removeprefix(f"{path}:") for problem in raised.value.problems]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("method: gosdg", 'there is no method "gosdg", did you mean "gosgd"?'),
        ("method: mine", "known: adpsgd, dpsgd, elastic, gosgd, noloco, pull, sgp, sparta"),
        ("method: 'nowhere:Method'", "the module nowhere cannot be imported"),
        ("method: 'dpwa.methods.pull:Nothing'", "a class that inherits from dpwa.methods.base.Method, found None"),
        ("method: 'dpwa.methods.base:Method'", "the class does not define blend, plan"),
        ("pull_probability: 1.5", "a number from 0 to 1, got 1.5"),
        ("method: noloco\nnoloco: {every: 0}", "noloco.every: expected a whole number from 1"),
        ("method: dpsgd\ndpsgd: {every: 0}", "dpsgd.every: expected a whole number from 1"),
        ("method: dpsgd\ndpsgd: {deadline_ms: 0}", "dpsgd.deadline_ms: expected a whole number from 1"),
        ("outer: {every: 0}", "outer.every: expected a whole number from 1"),
        ("outer: {momentum: 1}", "outer.momentum: expected a number from 0 up to but not including 1"),
        ("method: elastic\nelastic: {alpha: 0.6}", "elastic.alpha: expected a number above 0 and up to 0.5"),
        ("method: sparta\nsparta: {base: gosgd}", "sparta.base: expected"),
        ("method: gosgd\ngosgd: {p: 0.5}", "gosgd"),
        ("method: gosgd\npull_fraction: 0.5", "method gosgd exchanges whole models"),
        ("method: adpsgd\nblend: absolute", "absolute is a way of the method pull"),
        ("method: sparta\nsparta: {base: adpsgd}\nblend: absolute", "with method sparta leave this key out"),
        ("method: noloco\npull_fraction: 0.5", "use pull or adpsgd or elastic or sparta"),
        (
            "method: dpsgd\ntopology: {matrix: [[0.5, 0.5, 0.5], [0.25, 0.25, 0.25], [0.25, 0.25, 0.25]]}",
            "method dpsgd blends by the rows of a matrix",
        ),
    ],
)
def test_bad_input_is_refused_with_its_place(tmp_path, text, expected):
    (problem,) = _problems(tmp_path, text)
    place, _, _ = problem.partition(" ")
    line, column = place.rstrip(":").split(":")[:2]
    assert line.isdigit()
    assert column.isdigit()
    assert expected in problem


def test_all_mistakes_come_at_once(tmp_path):
    text = "method: gosdg\npull_probability: 2\nnoloco: {every: 0, beta: -1}\ntopology: rign\n"
    problems = _problems(tmp_path, text)
    for part in ("gosdg", "pull_probability", "noloco.every", "noloco.beta", "topology"):
        assert any(part in problem for problem in problems), (part, problems)


@pytest.mark.parametrize("method", ["pull", "gosgd", "sgp", "adpsgd", "dpsgd", "noloco", "elastic", "sparta"])
def test_check_says_what_each_method_does_and_conserves(method):
    text = describe(ClusterConfig.for_localhost(3, method=method), ["w1"])
    assert f"Method {method}: " in text
    assert any(word in text for word in ("conserved", "Row-stochastic", "like pull", "as their mean would"))


@pytest.mark.parametrize(
    ("method", "probability", "is_warned"),
    [("gosgd", 1.0, True), ("gosgd", 0.3, True), ("gosgd", 0.2, False), ("sgp", 1.0, False), ("pull", 1.0, False)],
)
def test_check_warns_of_a_probability_at_which_a_method_loses_training(method, probability, is_warned):
    text = describe(ClusterConfig.for_localhost(3, method=method, pull_probability=probability), ["w1"])
    assert (f"method {method} loses part of the training at pull_probability {probability:g}" in text) is is_warned


def test_check_warns_of_an_interpolation_without_effect():
    text = describe(ClusterConfig.for_localhost(3, method="adpsgd", interpolation="loss"), ["w1"])
    assert "interpolation has no effect" in text


def test_check_says_what_a_limit_does_to_rounds_and_to_no_other_method():
    said = {
        method: describe(ClusterConfig.for_localhost(3, method=method, bandwidth_limit="5 MB/s"), ["w1"])
        for method in METHODS
    }
    assert [method for method, text in said.items() if "only every second, fourth, … round" in text] == ["dpsgd"]
    assert all("a node receives at most 5 MB/s over the network" in text for text in said.values())


def test_nodes_with_other_methods_do_not_average_with_each_other(zeromq):
    zeromq.start([VectorModel([0.0]), VectorModel([4.0])], method="gosgd")
    zeromq.nodes.pop().close()
    zeromq.models.pop()
    other = ClusterConfig.from_text(zeromq.config.to_yaml().replace("method: gosgd", "method: adpsgd"))
    stranger = zeromq.add("w2", VectorModel([4.0]), config=other)
    first = zeromq.nodes[0]

    def refused() -> bool:
        stranger.step(1.0)
        return first.statistics().exchanges.get("refused", 0) > 0

    step_until(first, refused, "the push is refused")
    numbers = first.method.statistics()
    assert numbers["mass"] + numbers["mass_under_way"] == pytest.approx(0.5)
    assert zeromq.models[0].vector == [0.0]


def test_sgp_refuses_a_model_in_half_precision_before_anything_starts():
    config = ClusterConfig.for_localhost(2, method="sgp", sgp={"debias": True})
    with pytest.raises(ConfigError, match="cannot be trained by a method that scales each step"):
        DpwaPyTorchAdapter(torch.nn.Linear(2, 2).half(), "w1", config)
    plain = ClusterConfig.for_localhost(2, method="sgp", sgp={"debias": False})
    Node(plain, "w1", TorchModel(torch.nn.Linear(2, 2).half(), plain)).close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"pull_probability": {"schedule": "cosine", "start": 1, "end": 0.1, "over": 10000}},
            "asks one random neighbour with probability 1, falling along half a cosine to 0.1 at update 10,000, and",
        ),
        (
            {"method": "gosgd", "pull_probability": {"schedule": "late", "begin": 5, "value": 0.5}},
            "loses part of the training at pull_probability 0.5; let its schedule stay at 0.2 or less (docs/methods.md",
        ),
        (
            {"pull_probability": {"schedule": "linear", "start": 0, "end": 0, "over": 5}},
            "pull_probability is 0; no node will ever ask another one",
        ),
        (
            {"constant": {"value": {"schedule": "late", "begin": 500, "value": 0.5}}},
            "The factor: 0, and 0.5 from update 500 on.",
        ),
        (
            {"constant": {"value": {"schedule": "late", "begin": 500, "value": 0}}},
            "the factor is always 0; nothing will be blended",
        ),
    ],
)
def test_check_says_what_a_schedule_does_and_warns_by_its_highest_value(settings, words):
    assert words in describe(ClusterConfig.for_localhost(3, **settings), ["w1"])

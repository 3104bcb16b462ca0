"""A custom averaging method: the examples do what their page says, and a wrong one is refused with words."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from dpwa.config.cluster import ClusterConfig
from dpwa.errors import ConfigError
from dpwa.methods.base import Conservation, ExchangeKind
from dpwa.methods.pull import Pull
from support import ROOT, VectorModel, events_of

FOLDER = ROOT / "examples" / "custom_method"

BEST = 2  # index of the node with the lowest loss


@pytest.fixture(autouse=True)
def _example_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def _step(cluster, times):
    """All nodes but one report a loss of 1; how often each of them was blended last, by its peer."""
    heard = Counter()
    for _ in range(times):
        for index, node in enumerate(cluster.nodes):
            node.step(0.1 if index == BEST else 1.0)
            if index != BEST:
                heard[node.statistics().last_peer] += 1
    return heard


def test_the_cluster_file_of_the_example_finds_its_method_beside_it(monkeypatch):
    monkeypatch.undo()
    config = ClusterConfig.load(FOLDER / "cluster.yaml")
    method = config.method_for("w2")
    assert type(method).__name__ == "BestPeer"
    assert (method.kind, method.conservation) == (ExchangeKind.PULL, Conservation.ROW)


def test_the_best_peer_is_asked_most(in_memory):
    models = [VectorModel([float(index)]) for index in range(4)]
    in_memory.start(models, method="best_peer:BestPeer", custom_method={"explore": 0.1}, seed=3)
    _step(in_memory, 20)
    heard = _step(in_memory, 200)
    assert heard[f"w{BEST + 1}"] > 0.8 * heard.total()
    in_memory.nodes[0].method.probability = 0.0  # a peer that is being asked counts as unknown
    _step(in_memory, 2)
    numbers = in_memory.nodes[0].statistics().method
    assert numbers["best_loss"] == 0.1


def test_the_nodes_agree_all_the_same(in_memory):
    in_memory.start([VectorModel([float(index)]) for index in range(4)], method="best_peer:BestPeer")
    _step(in_memory, 200)
    assert np.ptp(in_memory.vectors()) < 1e-9


def test_a_best_peer_that_is_gone_is_not_waited_for(in_memory):
    models = [VectorModel([float(index)]) for index in range(4)]
    in_memory.start(models, method="best_peer:BestPeer", custom_method={"explore": 0.1})
    _step(in_memory, 50)
    in_memory.nodes[BEST].close()
    rest = [node for index, node in enumerate(in_memory.nodes) if index != BEST]
    blended = [node.statistics().blended for node in rest]
    for _ in range(100):
        for node in rest:
            node.step(1.0)
    assert all(node.statistics().blended > before + 50 for node, before in zip(rest, blended, strict=True))
    assert all(
        "best_loss" not in node.method.statistics() or node.method.statistics()["best_loss"] > 0.5 for node in rest
    )


def test_a_push_with_another_share_keeps_all_mass_and_the_mean(in_memory):
    start = np.random.default_rng(0).normal(size=(5, 20))
    in_memory.start([VectorModel(row) for row in start], method="cautious_push:CautiousPush")
    in_memory.step_all(100)
    for node in in_memory.nodes:
        node.method.probability = 0.0  # what is under way arrives, and nothing more is sent
    in_memory.step_all(3)
    masses = np.array([node.method.mass for node in in_memory.nodes])
    assert masses.sum() == pytest.approx(1.0, abs=1e-12)
    assert np.ptp(in_memory.vectors(), axis=0).max() < 1e-6
    assert masses @ in_memory.vectors() == pytest.approx(start.mean(axis=0), abs=1e-12)


def test_a_method_says_what_is_wrong_with_its_options():
    config = ClusterConfig.for_localhost(2, method="best_peer:BestPeer", custom_method={"explore": 0})
    with pytest.raises(ConfigError, match=r"refused its options .*above 0 up to 1, got 0"):
        config.method_for("w1")


DECLARING = """
from pydantic import Field

from dpwa.methods.gosgd import GoSGD
from dpwa.methods.sgp import SGP
from dpwa.options import Options


class ShareOptions(Options):
    share: float = Field(0.5, gt=0, lt=1, description="Share of the mass that stays.")


class Declaring(GoSGD):
    options = ShareOptions

    def __init__(self, links, count, probability, *, share):
        super().__init__(links, count, probability)
        self.own_share = share


class LikeSGP(SGP):
    pass


class Silent(SGP):
    def __init__(self, links, count, probability, *, anything=1):
        super().__init__(links, count, probability)
        self.anything = anything
"""


@pytest.fixture
def declaring(tmp_path, monkeypatch):
    (tmp_path / "declaring_methods.py").write_text(DECLARING)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("declaring")
def test_options_that_a_custom_method_declares_have_defaults_and_are_checked_with_their_places(tmp_path):
    def load(text):
        path = tmp_path / "cluster.yaml"
        path.write_text(f"nodes: [{{name: w1, port: 21000}}]\nmethod: declaring_methods:{text}\n")
        return ClusterConfig.load(path)

    assert load("Declaring").method_for("w1").own_share == 0.5
    assert load("Declaring\ncustom_method: {share: 0.25}").method_for("w1").own_share == 0.25
    with pytest.raises(ConfigError) as caught:
        load("Declaring\ncustom_method: {share: 2, shrae: 1}")
    assert [problem.split("cluster.yaml:")[1] for problem in caught.value.problems] == [
        "3:24: custom_method.share: expected a number above 0 and up to but not including 1, got 2",
        '3:27: custom_method.shrae: unknown key, did you mean "share"?',
    ]
    with pytest.raises(ConfigError, match=r"custom_method.least_weight: expected a number above 0 and up to 1, got 3"):
        load("LikeSGP\ncustom_method: {least_weight: 3}")
    assert load("Silent\ncustom_method: {anything: 7}").method_for("w1").anything == 7
    from_values = ClusterConfig.for_localhost(2, method="declaring_methods:Declaring", custom_method={"share": "x"})
    with pytest.raises(ConfigError, match=r"custom_method.share: expected a number"):
        from_values.method_for("w1")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("best_peer:WorstPeer", "inherits from dpwa.methods.base.Method, found None"),
        ("best_peers:BestPeer", "cannot be imported .*beside the config file"),
        ("best_peer:math", "inherits from dpwa.methods.base.Method"),
        ("best_pear", "known: adpsgd"),
    ],
)
def test_a_method_that_is_not_there_is_refused(name, words):
    with pytest.raises(ConfigError, match=words):
        ClusterConfig.for_localhost(2, method=name).method_for("w1")


class Talkative(Pull):
    """Its numbers have the names of what the node itself writes into its journal."""

    def statistics(self):
        return {"loss": -1.0, "clock": -1.0, "blended": -1.0, "step": -1.0, "t": -1.0, "event": -1.0, "pulls": 7.0}


def test_a_method_whose_numbers_have_the_names_of_the_nodes_own_replaces_none_of_them(in_memory, tmp_path):
    in_memory.start([VectorModel([0.0]), VectorModel([1.0])], method=f"{__name__}:Talkative", run_dir=tmp_path)
    in_memory.step_all(5)
    in_memory.close()
    (close,) = events_of(tmp_path, "w1", "close")
    assert (close["loss"], close["step"], close["pulls"]) == (1.0, 5, 7.0)
    assert close["blended"] > 0
    assert min(event["t"] for event in events_of(tmp_path, "w1")) > 0

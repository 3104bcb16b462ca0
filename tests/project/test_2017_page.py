"""docs/dpwa-2017.md: the file that averages as the 2017 dpwa did, and what a script of that time may go on saying."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from torch import nn

from dpwa import ClusterConfig
from dpwa.adapters.pytorch import DpwaPyTorchAdapter
from dpwa.launch.ports import free_ports
from support import ROOT

TEXT = (ROOT / "docs" / "dpwa-2017.md").read_text(encoding="utf-8")
(RECIPE,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def cluster_file(tmp_path):
    """The page's file, on free ports."""
    first, second = free_ports(2)
    text = RECIPE.replace("21000", str(first)).replace("21001", str(second))
    path = tmp_path / "cluster.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.fixture
def start(cluster_file):
    """Makes adapters as a script of 2017 does: by place, with a path."""
    made = []

    def one(net: nn.Module, name: str) -> DpwaPyTorchAdapter:
        made.append(DpwaPyTorchAdapter(net, name, cluster_file))
        return made[-1]

    yield one
    for adapter in made:
        adapter.close()


def _filled(value: float) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        for tensor in (*net.parameters(), net[1].running_mean, net[1].running_var):
            tensor.fill_(value)
    net[0].weight.requires_grad_(False)
    return net


def test_the_file_of_the_page_exchanges_what_was_exchanged_in_2017(start):
    net = _filled(1.0)
    did = start(net, "w1").statistics()
    assert did.exchanged_tensors == len(list(net.named_parameters()))
    assert did.exchanged_bytes == sum(parameter.nbytes for parameter in net.parameters())
    assert did.kept_tensors == 2, "the statistics of BatchNorm"


def test_the_file_of_the_page_blends_by_the_formula_of_2017(start):
    net, other = _filled(1.0), _filled(9.0)
    dpwa, peer = start(net, "w1"), start(other, "w2")
    peer.update_send(1.0)
    dpwa.update_send(1.0)
    with torch.no_grad():
        net[0].bias.add_(2.0)  # the batch
    dpwa.update_wait(1.0)
    assert dpwa.statistics().blended == 1, "it waited"
    assert net[0].bias.tolist() == [0.5 * 9 + 0.5 * 3] * 2, "by what the parameters are after the batch"
    assert net[0].weight.tolist() == [[5.0, 5.0]] * 2, "frozen ones, too"
    assert net[1].running_mean.tolist() == [1.0, 1.0], "and no buffers"


def test_the_file_of_the_page_waits_and_rounds_nothing(cluster_file):
    config = ClusterConfig.load(cluster_file)
    assert (config.pull_probability, config.wait_s, config.codec) == (1.0, 2.5, "raw")
    assert config.clock.model_dump() == config.loss.model_dump() == {}


def test_every_key_of_the_file_that_differs_from_todays_default_is_explained():
    lines = RECIPE[RECIPE.index("- wait_ms") :].splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "- wait_ms",
        "- blend",
        "- buffers",
        "- frozen_parameters",
        "- codec",
    ]
    assert all("#" in line for line in lines)


@pytest.mark.seconds
def test_a_log_of_2017s_kind_has_what_a_person_should_know_and_no_exchanges(start, caplog):
    with caplog.at_level(logging.DEBUG):
        dpwa = start(_filled(1.0), "w1")
        dpwa.update_send(1.0)
        dpwa.update_wait(1.0)
    said = [record.getMessage() for record in caplog.records if record.name == "dpwa"]
    assert any("peer w2: no connection" in message for message in said)
    assert not any("exchange" in message for message in said)

"""What `dpwa.engines.ray` does with nodes that end, as far as it can be seen without Ray."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch_support import linear

from dpwa import ClusterConfig, DpwaPyTorchAdapter, attach
from dpwa.engines import closers, ray
from dpwa.engines.closers import close_all, forget_closer, remember_closer
from dpwa.engines.ray import NodesFailed, _Node, _Part, _Run
from dpwa.launch.ports import free_ports
from support import events_of


@pytest.fixture
def part(monkeypatch, tmp_path):
    """What a node is told; the environment is one of its own."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    config = ClusterConfig.for_localhost(2, ports=free_ports(2))
    return _Part("w1", config.to_yaml(), {}, str(tmp_path / "run"))


def test_the_node_of_a_function_that_never_closes_it_is_closed_when_the_function_returns(part, tmp_path):
    made: list[DpwaPyTorchAdapter] = []

    def function() -> str:
        model = linear(5.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        made.append(attach(model, optimizer))
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        return "done"

    assert _Node().live(part, function) == "done"
    assert made[0].closed
    assert load_file(tmp_path / "run" / "nodes" / "w1" / "model.safetensors").keys() == {"weight", "bias"}
    assert len(events_of(tmp_path / "run", "w1", "close")) == 1


def test_the_node_of_a_function_that_fails_is_closed_and_the_failure_is_what_ray_hears(part):
    made: list[DpwaPyTorchAdapter] = []

    def function() -> None:
        made.append(DpwaPyTorchAdapter(linear(5.0)))
        raise KeyError("no such batch")

    with pytest.raises(KeyError, match="no such batch"):
        _Node().live(part, function)
    assert made[0].closed


def test_all_are_closed_the_newest_first_although_one_fails(monkeypatch):
    monkeypatch.setattr(closers, "_closers", [])
    closed: list[int] = []

    def fail() -> None:
        closed.append(2)
        raise OSError("no space left")

    steps = [lambda: closed.append(1), fail, lambda: closed.append(3)]
    for close in steps:
        remember_closer(close)
    with pytest.raises(OSError, match="no space left"):
        close_all()
    assert closed == [3, 2, 1]
    for close in steps * 2:  # a second time nothing happens
        forget_closer(close)
    close_all()
    assert closed == [3, 2, 1]


class RayError(Exception):
    """As Ray's."""


def test_the_process_of_a_node_that_has_failed_for_good_is_ended_at_once(monkeypatch):
    """The others wait for it as long as it lives, and their functions return only when they have stopped waiting."""
    ended: list[str] = []

    def wait(running: list[str]) -> tuple[list[str], list[str]]:
        """The failure comes first; the other node returns when the failed one is gone."""
        if "of w1" in running:
            return ["of w1"], running
        assert ended == ["actor of w1"], "the other node would wait"
        return running[:1], running[1:]

    def get(answer: str) -> str:
        if answer == "of w1":
            raise RayError("a stack\nKeyError: no such batch")
        return "done"

    fake = SimpleNamespace(wait=wait, get=get, exceptions=SimpleNamespace(RayError=RayError))
    monkeypatch.setattr(ray, "needs_ray", lambda: fake)
    run = _Run(SimpleNamespace(end=ended.append), None, lambda: None, None, "continue")
    run._addresses = {"w1": ("127.0.0.1", 1), "w2": ("127.0.0.1", 2)}
    run._actors = {name: f"actor of {name}" for name in run._addresses}
    run._running = {f"of {name}": name for name in run._addresses}
    with pytest.raises(NodesFailed, match="1 of 2 nodes have failed: w1: KeyError: no such batch") as raised:
        run.results(0)
    assert raised.value.results == {"w2": "done"}
    assert ended == ["actor of w1"]

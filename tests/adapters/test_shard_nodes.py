"""How the processes of an island keep step whose model is sharded: the words that they tell each other."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from test_islands import WAIT_S, wires
from torch import nn

from dpwa import ConfigError, IslandError
from dpwa.adapters.shard_nodes import ShardNode

Islander = tuple[ShardNode, "Scripted"]


class Scripted:
    """In the place of a process's node."""

    def __init__(self, turns: int = 0, *, merges: bool = True, merged: int = 2) -> None:
        self.name, self.is_forked, self.is_asked_to_leave = "w1", False, False
        self.losses: list[float | None] = []
        self.problem = ""
        self._turns, self._merges, self._merged = turns, merges, merged

    def start(self) -> None:
        if self.problem:
            raise ConfigError(self.problem)

    def step(self, loss: float | None) -> None:
        self.losses.append(loss)

    def finishing(self, *_: object, **__: object) -> Generator[None, None, bool]:
        for _turn in range(self._turns):
            yield
        return self._merges

    def pause(self) -> None:
        """Nothing comes."""

    def statistics(self) -> Any:
        return SimpleNamespace(merged_models=self._merged)

    def close(self) -> None:
        """Nothing."""


def islanders(*nodes: Scripted, saved: list[Any] | None = None) -> list[Islander]:
    made = []
    for wire, node in zip(wires(len(nodes)), nodes, strict=True):
        module = nn.Linear(1, 1)
        nn.init.constant_(module.weight, wire.rank)
        model: Any = SimpleNamespace(module=module, buffers=[torch.full((2,), float(wire.rank))])
        keep: Callable[[Any], None] = ([] if saved is None else saved).append
        made.append((ShardNode(cast("Any", wire), model, cast("Any", node), keep), node))
    return made


def in_all(made: list[Islander], do: Callable[[ShardNode], object]) -> list[object]:
    """What it returns or raises in each process, by rank."""

    def caught(one: ShardNode) -> object:
        try:
            return do(one)
        except (ConfigError, IslandError, SystemExit) as error:
            return error

    with ThreadPoolExecutor(len(made)) as pool:
        futures = [pool.submit(caught, one) for one, _ in made]
        return [future.result(WAIT_S) for future in futures]


def test_all_step_with_the_first_ones_loss():
    made = islanders(Scripted(), Scripted(), Scripted())
    losses = iter([0.5, None])
    for loss in losses:
        in_all(made, lambda one, loss=loss: one.step(loss if one._island.is_first else 7.0))
    assert [node.losses for _, node in made] == [[0.5, None]] * 3


def test_what_one_cannot_start_is_refused_in_all_with_whose_it_is():
    made = islanders(Scripted(), Scripted())
    made[1][1].problem = "port 7 is in use"
    first, second = in_all(made, ShardNode.start)
    assert str(first) == f"rank {made[0][0]._island.ranks[1]}, of the same island as this one: port 7 is in use"
    assert str(second) == "port 7 is in use"
    made = islanders(Scripted(), Scripted())
    assert in_all(made, ShardNode.start) == [None, None]


def test_one_that_has_finished_while_the_first_trains_on_is_told_so():
    made = islanders(Scripted(), Scripted())
    in_all(made, lambda one: one.step(1.0))
    _, told = in_all(made, lambda one: one.step(1.0) if one._island.is_first else one.finish())
    assert isinstance(told, IslandError)
    assert "after 1 steps rank 10 trains on, and after 1 rank 11, of the same island, has finished; give" in str(told)


@pytest.mark.parametrize("slow", [0, 1])
@pytest.mark.parametrize("apart", [0, 1, None])
def test_finish_ends_when_all_have_finished_and_is_true_of_the_node_only_if_it_is_of_each(monkeypatch, slow, apart):
    monkeypatch.setattr("dpwa.adapters.shard_nodes._ASK_S", 0.01)
    saved: list[Any] = []
    nodes = [Scripted(20 if rank == slow else 0, merges=rank != apart) for rank in range(2)]
    made = islanders(*nodes, saved=saved)
    assert in_all(made, ShardNode.finish) == [apart is None] * 2
    for one, _ in made:
        assert one._model.buffers[0].tolist() == [0.0, 0.0], "the first one's"
        assert one.is_saved
    assert [state["weight"].item() for state in saved] == [0.0]


def test_parts_that_are_means_of_other_numbers_of_models_are_reported_once(caplog):
    in_all(islanders(Scripted(merged=3), Scripted(merged=2)), ShardNode.finish)
    told = [record.getMessage() for record in caplog.records]
    (line,) = told
    assert line.startswith("node w1: the parts of the model are means of [3, 2] models, by rank")


def test_a_node_that_is_asked_to_leave_saves_its_model_and_all_of_its_processes_leave():
    saved: list[Any] = []
    made = islanders(Scripted(), Scripted(), saved=saved)
    made[0][1].is_asked_to_leave = True
    answers = in_all(made, lambda one: one.is_asked_to_leave or one.step(1.0))
    assert answers[0] is True
    assert isinstance(answers[1], SystemExit)
    assert answers[1].code == 0
    assert len(saved) == 1
    assert made[1][1].losses == []

"""Islands without processes: what the first process tells, what the others make of it, which are one node.

The processes are threads here, and tell each other through queues; tests/engines/test_real_islands.py has real ones.
"""

from __future__ import annotations

import json
import math
import queue
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dpwa import ClusterConfig, ConfigError, Inventory, IslandError, NodeClosed, NodeStatistics
from dpwa.adapters import identity, islands
from dpwa.adapters.checkpoint_files import Found
from dpwa.adapters.identity import Identity, identity_of, island_size
from dpwa.adapters.island_nodes import Follower, Leader, telling_failure
from dpwa.adapters.island_start import agreed, give_checkpoint, given_checkpoint
from dpwa.adapters.islands import Island, Members, members_of
from dpwa.adapters.random_state import random_text, set_random_text

WAIT_S = 20.0


class Wire:
    """Stands for `Island` in one of several threads. What is told arrives bit for bit."""

    refuse_alike = Island.refuse_alike

    def __init__(self, rank: int, queues: Sequence[queue.Queue[Any]], meeting: threading.Barrier, said: list[str]):
        self.rank, self.size = rank, len(queues)
        self.ranks = tuple(range(10, 10 + self.size))
        self.is_first, self.is_closed = rank == 0, False
        self.shared = 0
        self._queues, self._meeting, self._said = queues, meeting, said

    def tell(self, numbers: Sequence[float]) -> None:
        for one in self._queues[1:]:
            one.put(torch.tensor(numbers, dtype=torch.float64).tolist())

    def hear(self, count: int) -> list[float]:
        heard = self._queues[self.rank].get(timeout=WAIT_S)
        if heard is None:
            raise IslandError("gone")
        assert len(heard) == count
        return heard

    def texts(self, text: str, most_bytes: int) -> list[str]:
        assert len(text.encode()) <= most_bytes
        self._said[self.rank] = text
        self._meeting.wait(WAIT_S)
        heard = list(self._said)
        self._meeting.wait(WAIT_S)
        return heard

    def share_bytes(self, data: bytes | None) -> bytes:
        if data is None:
            return self._queues[self.rank].get(timeout=WAIT_S)
        for one in self._queues[1:]:
            one.put(data)
        return data

    def share_tensors(self, tensors: Sequence[Tensor]) -> None:
        self.shared += 1
        if self.is_first:
            for one in self._queues[1:]:
                one.put([tensor.clone() for tensor in tensors])
            return
        for tensor, value in zip(tensors, self._queues[self.rank].get(timeout=WAIT_S), strict=True):
            tensor.copy_(value)

    def close(self) -> None:
        self.is_closed = True


def wires(count: int = 2) -> list[Wire]:
    queues: list[queue.Queue[Any]] = [queue.Queue() for _ in range(count)]
    meeting, said = threading.Barrier(count), [""] * count
    return [Wire(rank, queues, meeting, said) for rank in range(count)]


def model_of(*values: Tensor) -> Any:
    return SimpleNamespace(tensors=list(values), blends=0, inventory=Inventory(len(values), 4), layout=None)


STATISTICS = NodeStatistics(
    step=7,
    clock=7.25,
    loss=0.5,
    exchanges={"blended": 3},
    asked=7.0,
    completed=4,
    blended=3,
    failures=1,
    last_peer="w2",
    last_factor=0.5,
    bytes_in=1,
    bytes_out=2,
    served=1,
    published=1,
    publish_skipped=0,
    protocol_errors=0,
    scores={},
    method={},
    merged_models=2,
)


class Scripted:
    """Stands for the node of the first process."""

    def __init__(self, model: Any, in_step: Callable[[], object] = lambda: None) -> None:
        self.is_asked_to_leave = False
        self.said = STATISTICS
        self._model, self._in_step = model, in_step

    def step(self, loss: float | None) -> None:  # noqa: ARG002
        self._in_step()

    update_wait = step

    def finishing(self, timeout_s: float | None, *, merge: bool | None) -> Any:  # noqa: ARG002
        for _ in range(3):
            yield
        self._in_step()
        return bool(merge)

    def pause(self) -> None:
        pass

    def state_dict(self, timeout_s: float) -> dict[str, float]:
        return {"waited_s": timeout_s}

    def statistics(self) -> NodeStatistics:
        return self.said

    def close(self) -> None:
        pass


def pair(in_step: Callable[[Any], object] = lambda _: None, *values: Tensor) -> tuple[Leader, Follower, list[Wire]]:
    """The two processes of an island, past their start."""
    first, second = wires()
    theirs = [value.clone() for value in values]
    lead, follow = model_of(*values), model_of(*theirs)
    leader = Leader(first, lead, Scripted(lead, lambda: in_step(lead)))
    follower = Follower(second, follow, "w1")
    leader.begin(None)
    assert follower.begin() is None
    follower.follow_start()
    return leader, follower, [first, second]


def bits(tensor: Tensor) -> bytes:
    return tensor.view(torch.uint8).numpy().tobytes()


# --- A step -----------------------------------------------------------------------------------------------------------


def test_a_step_that_changed_nothing_costs_a_word_and_no_tensor():
    leader, follower, ends = pair(lambda _: None, torch.zeros(3))
    assert [end.shared for end in ends] == [1, 1], "the model that training begins with"
    for _ in range(5):
        leader.step(1.0)
        follower.step(2.0)
    assert [end.shared for end in ends] == [1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64])
def test_what_a_step_blends_is_the_same_in_all_processes_to_the_bit(dtype):
    value = torch.tensor([1.0, -0.0, math.nan, 1e-40], dtype=dtype)

    def blend(model: Any) -> None:
        model.tensors[0].mul_(torch.tensor(1 / 3, dtype=dtype)).add_(0.1)
        model.blends += 1

    leader, follower, _ = pair(blend, value)
    theirs = follower._model.tensors[0]
    theirs[0] = 5  # whatever it was
    leader.step(1.0)
    follower.step(1.0)
    assert bits(theirs) == bits(value)


def test_scripts_get_the_same_numbers_in_all_processes():
    leader, follower, _ = pair()
    for said in (STATISTICS, replace(STATISTICS, loss=None, step=8, clock=2.0**53)):
        leader._node.said = said
        leader.step(None)
        follower.step(None)
        theirs = follower.statistics()
        for name in ("step", "clock", "loss", "asked", "completed", "blended", "failures", "merged_models"):
            assert getattr(theirs, name) == getattr(said, name), name
    assert theirs.exchanged_tensors == 0, "of its own model"


def test_an_error_of_the_first_process_ends_the_others_in_the_same_step():
    def fails(_: Any) -> None:
        raise NodeClosed("closed")

    leader, follower, _ = pair(fails)
    with pytest.raises(NodeClosed):
        leader.step(1.0)
    with pytest.raises(IslandError, match=r"node w1: rank 10, the first process of this island, did not end its step"):
        follower.step(1.0)


def test_processes_with_unequal_numbers_of_steps_are_told_so_instead_of_going_apart():
    leader, follower, _ = pair()
    leader.finish()
    with pytest.raises(
        IslandError, match="after 7 steps rank 10 has finished, and rank 11, of the same island, trains on"
    ):
        follower.step(1.0)
    leader, follower, _ = pair()
    leader.step(1.0)
    with pytest.raises(IslandError, match="rank 10 trains on, and rank 11, of the same island, has finished; give all"):
        follower.finish()


def test_a_state_that_the_script_has_loaded_brings_the_model_along():
    leader, follower, ends = pair(lambda _: None, torch.ones(2))
    leader._node.load_state_dict = lambda _: None
    leader.load_state_dict({})
    leader.step(1.0)
    follower.step(1.0)
    assert ends[1].shared == 2


def test_whoever_is_asked_to_leave_takes_the_others_along():
    leader, follower, _ = pair()
    assert not leader.is_asked_to_leave
    leader._node.is_asked_to_leave = True
    assert leader.is_asked_to_leave
    with pytest.raises(SystemExit) as left:
        follower.step(1.0)
    assert left.value.code == 0


@pytest.mark.parametrize("merge", [True, False])
def test_all_finish_with_the_first_ones_model_and_answer(merge, monkeypatch):
    monkeypatch.setattr("dpwa.adapters.island_nodes._STILL_THERE_S", 0.0)  # it says in each turn that it waits

    def merges(model: Any) -> None:
        model.tensors[0].fill_(9)
        model.blends += merge

    leader, follower, ends = pair(merges, torch.zeros(2))
    with ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(follower.finish)
        assert leader.finish(merge=merge) is merge
        assert theirs.result(WAIT_S) is merge
    assert follower._model.tensors[0].tolist() == [9, 9]
    assert ends[1].shared == 2, "once at the start, once at the end"


def test_a_checkpoint_of_the_scripts_own_waits_for_nothing_that_would_change_the_model():
    leader, follower, _ = pair()
    assert leader.state_dict() == {"waited_s": 0.0}
    assert follower.state_dict() == {}
    follower.load_state_dict({"clock": 1.0})


def test_a_process_that_has_closed_says_so():
    leader, follower, _ = pair()
    follower.close()
    with pytest.raises(NodeClosed, match="node w1 is closed"):
        follower.step(1.0)
    leader.close()
    assert leader._island.is_closed


def test_a_forked_child_follows_nobody():
    _, follower, _ = pair()
    follower._pid += 1
    assert follower.is_forked
    with pytest.raises(NodeClosed, match="lives in another process"):
        follower.step(1.0)


# --- The start --------------------------------------------------------------------------------------------------------


def in_all(ends: Sequence[Wire], do: Callable[[Wire], object]) -> list[object]:
    """What comes of it in each process: what it returns, or the error."""

    def one(end: Wire) -> object:
        try:
            return do(end)
        except ConfigError as error:
            return str(error)

    with ThreadPoolExecutor(len(ends)) as pool:
        return list(pool.map(one, ends))


def identity_with(**settings: Any) -> Identity:
    node = settings.pop("node", "w1")
    return Identity(ClusterConfig.for_localhost(2, **settings), node, Path("run"))


def taken(form: str = "f") -> Any:
    return SimpleNamespace(form=form)


def test_processes_that_agree_have_the_first_ones_run_folder():
    def agree(end: Wire) -> object:
        return agreed(end, replace(identity_with(), run_dir=Path(f"run{end.rank}")), taken)[1]

    assert in_all(wires(3), agree) == [Path("run0")] * 3


@pytest.mark.parametrize(
    ("of_the_last", "model", "words"),
    [
        ({"seed": 1}, "f", "rank 12 differs from rank 10 in its settings; give all of them the same cluster file"),
        ({"node": "w2"}, "f", "rank 12 differs from rank 10 in its node (w2 and w1); pass the same name"),
        ({}, "g", "rank 12 differs from rank 10 in its model; build the same model"),
    ],
)
def test_processes_that_disagree_are_all_refused_with_whose_and_what(of_the_last, model, words):
    def agree(end: Wire) -> object:
        is_last = end.rank == 2
        return agreed(end, identity_with(**(of_the_last if is_last else {})), lambda: taken(model if is_last else "f"))

    heard = in_all(wires(3), agree)
    assert len(set(heard)) == 1
    assert words in str(heard[0])
    assert "\n" not in str(heard[0])


def test_a_model_that_one_process_cannot_take_is_refused_in_all_with_its_reason():
    def refuse() -> Any:
        raise ConfigError("tensor a: holds NaN " + 2000 * "x")

    heard = in_all(wires(2), lambda end: agreed(end, identity_with(), refuse if end.rank else taken))
    assert str(heard[0]).startswith("rank 11, of the same island as this one: tensor a: holds NaN")
    assert str(heard[1]).startswith("tensor a: holds NaN")


def test_a_node_that_cannot_start_is_a_refusal_in_all_processes():
    first, second = wires()
    with pytest.raises(ConfigError, match="port is taken"), telling_failure(first):
        raise ConfigError("the port is taken")
    with pytest.raises(ConfigError, match="node w1: rank 10, the first process of this island, could not start it"):
        Follower(second, model_of(), "w1").begin()


def test_others_need_not_be_able_to_read_the_checkpoint():
    tensors = {"a": torch.arange(6).view(2, 3), "b": torch.tensor(1.5, dtype=torch.bfloat16), "c": torch.empty(0)}
    found = Found(Path("somewhere/checkpoint-3.safetensors"), {"dict": [["step", 4]]}, tensors)
    first, second = wires()
    give_checkpoint(first, found)
    theirs = given_checkpoint(second)
    assert theirs is not None
    assert (theirs.path, theirs.plain, list(theirs.tensors)) == (found.path, found.plain, ["a", "b", "c"])
    for name, tensor in tensors.items():
        assert theirs.tensors[name].dtype is tensor.dtype
        assert torch.equal(theirs.tensors[name], tensor)
    give_checkpoint(first, None)
    assert given_checkpoint(second) is None


# --- Random numbers ---------------------------------------------------------------------------------------------------


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_random_numbers_go_on_as_text_and_fit_into_what_they_may_take():
    text = random_text()
    then = drawn()
    assert drawn() != then
    set_random_text(text)
    assert drawn() == then
    assert len(text) < 60_000
    assert json.loads(text)["cuda"] == []


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"python": 1}', random_text()[:-9]])
def test_random_numbers_of_another_form_are_refused_and_nothing_changes(text):
    kept = random_text()
    with pytest.raises(ValueError):  # noqa: PT011 - json's own, or ours
        set_random_text(text)
    assert random_text() == kept


def test_a_checkpoint_is_taken_in_the_step_in_which_all_have_told_their_random_numbers():
    leader, follower, _ = pair()
    assert leader.random_of_island() is None
    due = iter([False, True, False])
    leader.is_checkpoint_due = lambda: next(due)
    kept = []
    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            theirs = pool.submit(follower.step, 1.0)
            leader.step(1.0)
            theirs.result(WAIT_S)
            kept.append(leader.random_of_island())
    assert [None if texts is None else len(texts) for texts in kept] == [None, 2, None]


def test_a_process_goes_on_with_its_own_random_numbers_where_as_many_were_kept():
    texts = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        texts.append(random_text())
    _, follower, ends = pair()
    for given_texts, expected in ((texts, 2), ([*texts, texts[0]], 3)):
        torch.manual_seed(3)
        ends[0].tell([1.0] + [0.0] * 11)
        follower.follow_start(given_texts)
        found = torch.rand(())
        torch.manual_seed(expected)
        assert torch.equal(found, torch.rand(()))


# --- Who is in an island ----------------------------------------------------------------------------------------------


def test_without_torch_distributed_a_process_is_a_node_by_itself():
    assert members_of(nn.Linear(2, 1), None) is None
    with pytest.raises(ConfigError, match=r"island: \{size: 4\}: expected a process of torch\.distributed; start"):
        members_of(nn.Linear(2, 1), 4)


@pytest.mark.parametrize(
    ("rank", "world", "size", "members"),
    [(0, 4, 2, ((0, 1), 0)), (3, 4, 2, ((2, 3), 1)), (1, 2, 2, ((0, 1), 1)), (4, 6, 3, ((3, 4, 5), 1))],
)
def test_neighbours_by_rank_are_an_island_where_the_file_says_how_many(monkeypatch, rank, world, size, members):
    monkeypatch.setattr(islands, "replicas_of", lambda _: None)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: rank)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: world)
    found = members_of(nn.Linear(2, 1), size)
    assert found is not None
    assert (found.ranks, found.rank) == members
    with pytest.raises(ConfigError, match=rf"{world} processes are no whole number of islands of {world + 1}"):
        members_of(nn.Linear(2, 1), world + 1)


def test_a_model_that_is_spread_otherwise_than_the_file_says_is_refused(monkeypatch):
    monkeypatch.setattr(islands, "replicas_of", lambda _: "group")
    monkeypatch.setattr(islands, "ranks_of", lambda _: (0, 1, 2, 3))
    with pytest.raises(ConfigError, match=r"spans 4 processes; give it a group of 2 \(process_group=torch\.distrib"):
        members_of(nn.Linear(2, 1), 2)


def test_the_size_of_an_island_is_known_before_the_nodes_are(tmp_path, monkeypatch):
    (tmp_path / "settings.yaml").write_text("island: {size: 4}\n")
    assert island_size(tmp_path / "settings.yaml") == 4
    assert island_size({"island": {"size": 3}}) == 3
    assert island_size({"island": {"size": "many"}}) is None
    assert island_size({"island": 4}) is None
    assert island_size(ClusterConfig.for_localhost(2, island={"size": 2})) == 2
    assert island_size(None) is None
    monkeypatch.setenv("DPWA_CONFIG", str(tmp_path / "settings.yaml"))
    assert island_size(None) == 4


@given(
    st.lists(st.tuples(st.sampled_from(["float32", "float64"]), st.integers(0, 40)), max_size=12), st.integers(1, 99)
)
def test_tensors_travel_together_in_their_order_and_in_packs_of_a_bounded_size(forms, most_bytes):
    tensors = [torch.zeros(size, dtype=getattr(torch, dtype)) for dtype, size in forms]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(islands, "_PACK_BYTES", most_bytes)
        packs = list(islands._packs(tensors))
    assert [id(tensor) for pack in packs for tensor in pack] == [id(tensor) for tensor in tensors]
    for pack in packs:
        assert len({tensor.dtype for tensor in pack}) == 1
        assert len(pack) == 1 or sum(tensor.nbytes for tensor in pack) <= most_bytes


# --- Which node an island is ------------------------------------------------------------------------------------------


@pytest.fixture
def torchrun(monkeypatch):
    """Makes this process one of six of torchrun."""
    monkeypatch.setattr(identity, "_found", {})

    def start(rank: int, size: int = 6) -> None:
        for name, value in {
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "a",
            "MASTER_PORT": "1",
            "DPWA_RUN_DIR": "run",
        }.items():
            monkeypatch.setenv(name, value)

    return start


@pytest.mark.parametrize(("rank", "node"), [(0, "w1"), (2, "w1"), (3, "w2"), (5, "w2")])
def test_the_nodes_of_a_file_are_islands_in_the_order_of_their_ranks(torchrun, rank, node):
    torchrun(rank)
    first = rank // 3 * 3
    members = Members(tuple(range(first, first + 3)), rank - first, None)
    found = identity_of(None, ClusterConfig.for_localhost(2), members=members)
    assert (found.name, found.members, found.is_by_rank) == (node, members, True)
    assert identity_of(None, ClusterConfig.for_localhost(2), members=members).members is members, "known by now"


def test_islands_and_nodes_of_a_file_must_be_as_many(torchrun):
    torchrun(0)
    members = Members((0, 1, 2), 0, None)
    with pytest.raises(
        ConfigError, match="has started 6 processes, 3 of which share a model, and the cluster file has 3"
    ):
        identity_of(None, ClusterConfig.for_localhost(3), members=members)
    with pytest.raises(
        ConfigError, match=r"the processes \[0, 2, 4\] share a model; .* expected 3 neighbours such as \["
    ):
        identity_of(None, ClusterConfig.for_localhost(2), members=Members((0, 2, 4), 0, None))


def test_two_opinions_of_a_rank_are_refused(torchrun):
    torchrun(1)
    with pytest.raises(ConfigError, match=r"torchrun calls this process 1, and torch\.distributed calls it 0"):
        identity_of(None, ClusterConfig.for_localhost(3), members=Members((0, 1), 0, None))


def test_an_island_of_all_processes_is_the_node_that_the_launcher_has_named(torchrun, monkeypatch):
    torchrun(1, 2)
    monkeypatch.setenv("DPWA_NODE", "w2")
    members = Members((0, 1), 1, None)
    found = identity_of(None, ClusterConfig.for_localhost(2), members=members)
    assert (found.name, found.members, found.is_by_rank) == ("w2", members, False)

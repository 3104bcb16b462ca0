"""The sampler that shares out a data set among nodes while they train."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dpwa import ClusterConfig, ConfigError, DpwaPyTorchAdapter, NodeClosed
from dpwa.adapters.sampler import _Loop
from dpwa.exchange.lease_words import Block
from dpwa.launch.ports import free_ports
from dpwa.observe.bounded_file import read_records
from support import wait_until

SAMPLES = 600

# On a machine with one core, torch warns of two workers.
ASKS_FOR_WORKERS = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def data(samples: int = SAMPLES) -> TensorDataset:
    return TensorDataset(torch.arange(float(samples))[:, None])


class Trainer:
    """A node with a loop of its own; notes which samples it has trained."""

    def __init__(self, name: str | None = None, config: ClusterConfig | None = None, **checkpoint) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(1, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0)
        self.node = DpwaPyTorchAdapter(self.model, name, config, optimizer=self.optimizer, **checkpoint)
        self.trained: list[int] = []

    def step(self, batch) -> None:
        (inputs,) = batch
        loss = self.model(inputs).square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.node.step(loss)
        self.trained += [int(value) for value in inputs[:, 0]]


@pytest.fixture
def alone() -> Iterator[Trainer]:
    trainer = Trainer()
    yield trainer
    trainer.node.close()


def together(count: int, train: Callable[[Trainer, int], None], **settings) -> list[Trainer]:
    """Nodes that train in threads, each by itself."""
    config = ClusterConfig.for_localhost(count, ports=free_ports(count), **settings)
    trainers = [Trainer(f"w{index + 1}", config) for index in range(count)]
    failures: list[BaseException] = []

    def run(index: int) -> None:
        try:
            train(trainers[index], index)
        except Exception as error:  # noqa: BLE001 - the test fails by it
            failures.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    for trainer in trainers:
        trainer.node.close()
    assert failures == []
    assert not any(thread.is_alive() for thread in threads)
    return trainers


# --- A node alone -------------------------------------------------------------------------------------------------


def test_a_node_alone_trains_all_samples_once_in_each_epoch_in_another_order(alone):
    sampler = alone.node.sampler(data())
    orders = [list(sampler) for _ in range(3)]
    assert all(sorted(order) == list(range(SAMPLES)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert len(sampler) == SAMPLES


def test_the_order_follows_from_the_seed_and_the_epoch(alone):
    other = Trainer()
    mine, same = alone.node.sampler(data(), seed=3), other.node.sampler(data(), seed=3)
    assert [list(mine), list(mine)] == [list(same), list(same)]
    assert list(alone.node.sampler(data(), seed=4)) != list(other.node.sampler(data(), seed=5))
    assert list(alone.node.sampler(data(), shuffle=False)) == list(range(SAMPLES))
    other.node.close()


def test_epochs_come_once_each_and_an_epoch_that_was_trained_is_not_shared_out_again(alone):
    sampler = alone.node.sampler(data())
    loader = DataLoader(data(), batch_size=50, sampler=sampler)
    assert [(epoch, len(list(loader))) for epoch in sampler.epochs(3)] == [(0, 12), (1, 12), (2, 12)]
    assert list(sampler.epochs(3)) == []
    with pytest.raises(ConfigError, match=r"set_epoch\(2\).*count on from 3"):
        sampler.set_epoch(2)
    sampler.set_epoch(5)
    assert sorted(sampler) == list(range(SAMPLES))
    assert sampler.epoch == 6


def test_how_much_of_an_epoch_is_trained_follows_the_steps(alone):
    sampler = alone.node.sampler(data(), block_samples=10)
    loader = DataLoader(data(), batch_size=20, sampler=sampler)
    shares = []
    for epoch in sampler.epochs(2):
        for batch in loader:
            alone.step(batch)
            shares.append((sampler.share_trained(0), sampler.share_trained(1)))
        assert sampler.share_trained(epoch) == 1.0
    # How far ahead the loader asks is known after two steps.
    of_an_epoch = [0.0, *[pytest.approx(20 * step / SAMPLES) for step in range(2, 31)]]
    assert [first for first, _ in shares] == [*of_an_epoch, *[1.0] * 30]
    assert [second for _, second in shares] == [*[0.0] * 30, *of_an_epoch]


def test_a_look_at_the_first_batch_costs_no_sample(alone):
    sampler = alone.node.sampler(data())
    loader = DataLoader(data(), batch_size=50, sampler=sampler)
    next(iter(loader))
    for batch in loader:
        alone.step(batch)
    assert sorted(alone.trained) == list(range(SAMPLES))


def test_what_a_loop_leaves_early_comes_first_in_the_next_epoch(alone):
    sampler = alone.node.sampler(data(), block_samples=50)
    loader = DataLoader(data(), batch_size=50, sampler=sampler)
    for epoch in sampler.epochs(2):
        for number, batch in enumerate(loader):
            alone.step(batch)
            if epoch == 0 and number == 4:
                break
    assert sorted(alone.trained[250:SAMPLES]) == sorted(set(range(SAMPLES)) - set(alone.trained[:250]))
    assert set(Counter(alone.trained).values()) == {2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": []}, "data set of 0 samples"),
        ({"dataset": data(), "block_samples": 0}, "block_samples: expected 1 or more, got 0"),
        ({"dataset": data(2000), "block_samples": 1}, "take 2 or more"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(alone, arguments, message):
    with pytest.raises(ConfigError, match=message):
        alone.node.sampler(**arguments)


def test_a_second_sampler_of_the_same_samples_is_refused_and_one_with_another_seed_is_not(alone):
    alone.node.sampler(data())
    with pytest.raises(ConfigError, match="is there already"):
        alone.node.sampler(data())
    alone.node.sampler(data(), seed=1)


def test_after_close_there_are_no_samples_any_more(alone):
    sampler = alone.node.sampler(data())
    samples = iter(sampler)
    next(samples)
    alone.node.close()
    with pytest.raises(NodeClosed):
        list(samples)
    with pytest.raises(NodeClosed):
        alone.node.sampler(data(), seed=1)


def test_a_state_that_is_loaded_goes_on_where_it_was_kept(alone):
    sampler = alone.node.sampler(data(), block_samples=10)
    loader = DataLoader(data(), batch_size=20, sampler=sampler)
    list(loader)
    for number, batch in enumerate(loader):
        alone.step(batch)
        if number == 9:
            break
    state = sampler.state_dict()
    other = Trainer()
    restored = other.node.sampler(data(), block_samples=10)
    restored.load_state_dict(state)
    assert restored.epoch == 1
    rest = list(restored)
    assert sorted(rest + alone.trained) == list(range(SAMPLES))
    other.node.close()


def test_the_state_of_another_sampler_or_a_damaged_one_is_refused(alone):
    sampler, other = alone.node.sampler(data()), alone.node.sampler(data(), seed=1)
    with pytest.raises(ConfigError, match="another data set"):
        other.load_state_dict(sampler.state_dict())
    for state in ({}, {"epoch": 0, "leases": {}}, {"epoch": 0, "leases": 3}, {"epoch": "x", "leases": {}}):
        with pytest.raises(ConfigError, match="damaged"):
            sampler.load_state_dict(state)


def test_a_checkpoint_keeps_the_samplers_by_itself(monkeypatch, tmp_path):
    monkeypatch.setenv("DPWA_RUN_DIR", str(tmp_path / "run"))
    config = ClusterConfig.for_localhost(1, checkpoint={"every_s": 60.0})
    first = Trainer("w1", config)
    loader = DataLoader(data(), batch_size=20, sampler=first.node.sampler(data(), block_samples=20))
    other = first.node.sampler(data(100))
    list(loader)
    for number, batch in enumerate(loader):
        first.node._checkpoints._due_s = 0.0 if number == 9 else float("inf")
        first.step(batch)
        if number == 11:  # two steps that the checkpoint does not know
            break
    first.node.close()
    again = Trainer("w1", config)
    assert again.node.resumed_step == 10
    sampler = again.node.sampler(data(), block_samples=20)
    assert (sampler.epoch, again.node.sampler(data(100)).epoch, other.epoch) == (1, 0, 0)
    assert sorted([*sampler, *first.trained[:200]]) == list(range(SAMPLES))
    again.node.close()


def test_an_epoch_of_a_node_has_a_line_in_the_journal(monkeypatch, tmp_path):
    monkeypatch.setenv("DPWA_RUN_DIR", str(tmp_path / "run"))
    trainer = Trainer("w1", ClusterConfig.for_localhost(1))
    sampler = trainer.node.sampler(data(), block_samples=20)
    for _ in sampler.epochs(2):
        list(sampler)
    trainer.node.close()
    lines = [line for line in read_records(tmp_path / "run/nodes/w1/events.jsonl") if line["event"] == "epoch"]
    assert [(line["epoch"], line["samples"], line["blocks"], line["from_others"]) for line in lines] == [
        (0, SAMPLES, 30, 0),
        (1, SAMPLES, 30, 0),
    ]


# --- What counts as trained ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [0, 1, 4, 12])
@pytest.mark.parametrize("per_step", [1, 2])
def test_a_block_counts_as_trained_when_its_last_step_was_made_however_far_ahead_the_loader_asks(ahead, per_step):
    """A loader of 25 batches of 8 in blocks of 10 that asks for some batches before it is asked for one."""
    loop, batches, batch_size = _Loop(), 25, 8
    asked = 0

    def ask() -> None:
        nonlocal asked
        if asked == batches:
            loop.is_complete = True
            return
        asked += 1
        for _ in range(batch_size):
            if loop.given % 10 == 0:
                loop.take(Block(0, loop.given // 10), 10)
            loop.given += 1

    for _ in range(ahead):
        ask()
    told = 0
    for batch in range(batches):
        ask()
        if (batch + 1) % per_step == 0:
            done = loop.stepped()
            told += len(done)
            assert told * 10 <= (batch + 1) * batch_size
            if batch > 2 * per_step and asked < batches:
                assert told == (batch + 1) * batch_size // 10
    assert told >= 17


@pytest.mark.seconds
@ASKS_FOR_WORKERS
def test_what_workers_have_asked_for_when_a_loop_is_left_is_not_trained(alone):
    """The loader asks for 16 batches at first, and for one more with each that it gives; the data set has 18."""
    sampler = alone.node.sampler(data(72), block_samples=4)
    loader = DataLoader(data(72), batch_size=4, sampler=sampler, num_workers=2, prefetch_factor=8)
    batches = iter(loader)
    for _ in range(4):
        alone.step(next(batches))
    sampler.settle()
    assert sampler.share_trained(0) == pytest.approx(16 / 72)
    for batch in loader:  # what is left, and the next epoch
        alone.step(batch)
    assert sampler.share_trained(0) == 1.0
    assert set(Counter(alone.trained).values()) == {2}


@pytest.mark.seconds
@pytest.mark.parametrize("workers", [0, 2])
@ASKS_FOR_WORKERS
def test_workers_ask_ahead_and_nothing_counts_before_it_is_trained(alone, workers):
    sampler = alone.node.sampler(data(), block_samples=10)
    loader = DataLoader(data(), batch_size=20, sampler=sampler, num_workers=workers)
    told = []
    sampler._leases.trained = told.extend
    for batch in loader:
        alone.step(batch)
        assert 10 * len(told) <= len(alone.trained)
    assert 10 * len(told) >= len(alone.trained) - 20 * 5
    assert sampler._leases.asking.ahead == 3  # a batch, and a block more
    sampler.settle()
    assert len(told) == 60


# --- Several nodes ------------------------------------------------------------------------------------------------


def shared(pace_s: list[float], epochs: int, **arguments) -> Callable[[Trainer, int], None]:
    """A training loop that waits so long after each step of each node."""
    pause = threading.Event()

    def train(trainer: Trainer, index: int) -> None:
        sampler = trainer.node.sampler(data(), **arguments)
        loader = DataLoader(data(), batch_size=10, sampler=sampler)
        for _ in sampler.epochs(epochs):
            for batch in loader:
                trainer.step(batch)
                pause.wait(pace_s[index])
        trainer.node.finish(timeout_s=20.0)

    return train


def test_two_nodes_train_each_sample_once_and_the_fast_one_takes_more():
    fast, slow = together(2, shared([0.005, 0.05], 2))
    trained = Counter(fast.trained + slow.trained)
    assert sorted(trained) == list(range(SAMPLES))
    assert set(trained.values()) == {2}
    assert len(fast.trained) > len(slow.trained)


@pytest.mark.seconds
def test_four_nodes_with_set_epoch_train_each_sample_once_in_each_epoch():
    def train(trainer: Trainer, index: int) -> None:
        sampler = trainer.node.sampler(data())
        loader = DataLoader(data(), batch_size=10, sampler=sampler)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            for batch in loader:
                trainer.step(batch)
                threading.Event().wait(0.01 if index == 2 else 0.002)
        trainer.node.finish(timeout_s=20.0)

    trainers = together(4, train)
    trained = Counter(sample for trainer in trainers for sample in trainer.trained)
    assert set(trained.values()) == {3}
    assert len(trained) == SAMPLES


@pytest.mark.slow
@pytest.mark.seconds
def test_nodes_that_share_out_different_data_say_so_and_train_all_of_it(caplog):
    def train(trainer: Trainer, index: int) -> None:
        own = data(SAMPLES - 100 * index)
        sampler = trainer.node.sampler(own)
        loader = DataLoader(own, batch_size=50, sampler=sampler)
        for batch in loader:
            trainer.step(batch)
        wait_until(lambda: f"shares no data with w{2 - index}" in caplog.text, "a warning", 60.0)
        for batch in loader:  # what is left of the first epoch, and the second one
            trainer.step(batch)

    first, second = together(2, train)
    assert sorted(first.trained) == sorted(2 * list(range(SAMPLES)))
    assert sorted(second.trained) == sorted(2 * list(range(SAMPLES - 100)))
    assert "this node shares out 500 samples in blocks of 3" in caplog.text


@pytest.mark.seconds
def test_what_a_node_leaves_that_ends_in_the_last_epoch_is_trained_by_the_other():
    def train(trainer: Trainer, index: int) -> None:
        sampler = trainer.node.sampler(data(), block_samples=10)
        loader = DataLoader(data(), batch_size=10, sampler=sampler)
        for _ in sampler.epochs(1):
            for number, batch in enumerate(loader):
                trainer.step(batch)
                if index == 1 and number == 9:
                    trainer.node.close()
                    return

    survivor, leaver = together(2, train)
    trained = Counter(survivor.trained + leaver.trained)
    assert sorted(trained) == list(range(SAMPLES))
    assert len(leaver.trained) == 100
    assert sum(trained.values()) <= SAMPLES + len(leaver.trained)


def test_nodes_that_cannot_be_asked_share_out_nothing():
    port, _ = free_ports(2)
    config = {"nodes": [{"name": "w1", "host": "127.0.0.1", "port": port}, {"name": "w2", "serve": False}]}
    with (
        DpwaPyTorchAdapter(nn.Linear(2, 1), config=config, name="w1") as node,
        pytest.raises(ConfigError, match="w2 cannot be asked"),
    ):
        node.sampler(range(100))


def test_a_cluster_that_nodes_may_join_shares_out_nothing():
    port = free_ports(1)[0]
    config = {"nodes": [{"name": "w1", "host": "127.0.0.1", "port": port}], "join": [f"127.0.0.1:{port}"]}
    trainer = Trainer("w1", config)
    with pytest.raises(ConfigError, match="with `join` nobody knows"):
        trainer.node.sampler(data())
    trainer.node.close()

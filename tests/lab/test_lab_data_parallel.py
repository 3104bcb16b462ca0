"""custom_data_parallel: replicas in threads, against one model on whole batches."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch_support import DEVICES

from collective_support import alone, training
from collective_trainer import Observer, network, samples
from dpwa.lab.strategies.data_parallel import CustomDataParallel, make
from dpwa.lab.study.settings import Settings
from dpwa.lab.study.trial import Trial, TrialFolder
from dpwa.lab.training.loop import Recipe, Task, train
from dpwa.lab.training.losses import LOSSES

CPU = torch.device("cpu")


def trained(strategy, made, folder, model=None):
    """Train with a strategy, in this process."""
    settings = Settings.model_validate(made["settings"])
    model = model or network()
    strategy.loss = LOSSES[settings.loss]
    shard = samples(made["samples"][0])
    observer = Observer({}, folder, 0, model)
    recipe = Recipe(settings.n_epochs, settings.batch_size, settings.learning_rate, settings.momentum)
    try:
        train(Task(model, shard), recipe, seed=7, strategy=strategy, watch=observer)
        strategy.finish()
    finally:
        strategy.close()
    return observer


@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize(
    ("count", "batch_size", "loss", "rate"),
    [
        (41, 10, "cross_entropy", 0.3),
        (6, 2, "cross_entropy", 0.3),
        (4, 100, "cross_entropy", 0.3),
        (41, 10, "mse", 0.01),
    ],
)
def test_replicas_together_make_the_steps_of_one_model_on_whole_batches(
    replicas, count, batch_size, loss, rate, tmp_path
):
    made = training("custom_data_parallel", count, batch_size=batch_size, n_epochs=5, learning_rate=rate, loss=loss)
    found = trained(CustomDataParallel([CPU] * replicas), made, tmp_path)
    expected = alone(made, tmp_path)
    np.testing.assert_allclose(np.stack(found.models), np.stack(expected.models), atol=1e-5, rtol=0)
    np.testing.assert_allclose([step[0] for step in found.steps], [step[0] for step in expected.steps], atol=1e-5)
    assert [step[1:] for step in found.steps] == [step[1:] for step in expected.steps]


class Meeting(nn.Module):
    """Waits in the forward pass until as many threads are in theirs."""

    def __init__(self, barrier):
        super().__init__()
        self.barrier = barrier
        self.weight = nn.Parameter(torch.zeros(6, 3))

    def __deepcopy__(self, memo):
        made = Meeting(self.barrier)
        made.weight = nn.Parameter(self.weight.detach().clone())
        return made

    def forward(self, images):
        self.barrier.wait(20.0)
        return images @ self.weight


def test_parts_of_a_batch_are_computed_at_the_same_time():
    barrier = threading.Barrier(3)
    model = Meeting(barrier)
    strategy = CustomDataParallel([CPU] * 3)
    strategy.begin(model, torch.optim.SGD(model.parameters()))
    shard = samples(9)
    loss, _ = strategy.backward(shard.images, shard.labels)
    strategy.close()
    assert not barrier.broken
    assert loss.item() == pytest.approx(np.log(3), abs=1e-6)


def test_the_threads_of_replicas_end_with_the_strategy():
    strategy = CustomDataParallel([CPU] * 2)
    model = network()
    strategy.begin(model, torch.optim.SGD(model.parameters()))
    shard = samples(8)
    strategy.backward(shard.images, shard.labels)
    assert [thread for thread in threading.enumerate() if thread.name.startswith("replica")]
    strategy.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("replica")]


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_torch_has_its_threads_back_after_the_training():
    strategy = CustomDataParallel([CPU] * 2)
    model, shard, seen = network(), samples(8), []
    model.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    strategy.begin(model, torch.optim.SGD(model.parameters()))
    assert torch.get_num_threads() == 1
    strategy.backward(shard.images, shard.labels)
    assert seen == [1, 1]
    strategy.close()
    assert torch.get_num_threads() == 3


def test_an_error_in_a_replica_is_that_of_the_training(tmp_path):
    made = training("custom_data_parallel", 8, batch_size=8)
    wrong = nn.Linear(5, 3)
    wrong.running = torch.zeros(1)
    with pytest.raises(RuntimeError, match="shapes"):
        trained(CustomDataParallel([CPU] * 2), made, tmp_path, wrong)


@pytest.mark.usefixtures("three_threads")
def test_without_gpus_there_is_a_replica_for_each_thread_that_torch_may_use(tmp_path):
    trial = Trial("study", "row", 0, Settings(strategy="custom_data_parallel"))
    strategy = make(trial, 0, 1, TrialFolder(tmp_path))
    model = network()
    strategy.begin(model, torch.optim.SGD(model.parameters()))
    strategy.close()
    assert len(strategy.replicas) == 3
    # They are the same numbers in memory, so that a step of the optimizer is a step of all.
    assert len({next(replica.parameters()).data_ptr() for replica in strategy.replicas}) == 1
    assert strategy.bytes_sent == 0


@pytest.mark.parametrize("device", DEVICES)
def test_a_replica_on_another_device_gets_the_new_parameters_after_each_step(device):
    # The second replica is told to be elsewhere by giving it memory of its own, as a replica on another device has.
    first = torch.device(device)
    model, other = network().to(first), network()
    strategy = CustomDataParallel([first, CPU])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    strategy.begin(model, optimizer)
    strategy.replicas[1] = other
    shard = samples(8).to(first)
    loss, _ = strategy.backward(shard.images, shard.labels)
    optimizer.step()
    strategy.after_step(loss)
    strategy.close()
    for parameter, copied in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter.detach().cpu(), copied.detach())
    assert strategy.bytes_sent == 2 * 4 * sum(parameter.numel() for parameter in model.parameters())


def test_closing_before_the_beginning_is_no_error():
    before = torch.get_num_threads()
    CustomDataParallel().close()
    assert torch.get_num_threads() == before

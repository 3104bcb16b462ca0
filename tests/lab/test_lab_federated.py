"""fedavg and fedprox over dpwa's own transport: exact means, the right clients, and what happens when one dies."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as of_hypothesis
from hypothesis import strategies as st
from torch import nn

from dpwa.config.cluster import ClusterConfig
from dpwa.errors import ConfigError, PeerUnreachable
from dpwa.examples.samples import Samples
from dpwa.lab.strategies.federated.client import FederatedClient
from dpwa.lab.strategies.federated.cluster import cluster_settings
from dpwa.lab.strategies.federated.node import FederatedNode
from dpwa.lab.strategies.federated.rounds import FederatedRounds, samples_of
from dpwa.lab.strategies.federated.server import FederatedServer, Participant
from dpwa.lab.study.settings import Settings
from dpwa.lab.training.client_schedule import Schedule
from dpwa.lab.training.data import load
from dpwa.lab.training.loop import Recipe, Task, train
from dpwa.lab.training.models import build
from dpwa.lab.training.strategy import Strategy
from dpwa.launch.ports import free_ports
from dpwa.methods.exchange import ExchangeKind, ExchangeResult, Outcome
from dpwa.node import farewell
from dpwa.snapshot.state import State
from support import wait_until

SERVER = "server"
TIMEOUT_S = 60


@pytest.fixture(autouse=True)
def _one_core_each():
    """Threads that each compute with all cores wait for each other for most of their time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Watch:
    """Keeps the server's model after each round, or counts a client's steps and samples."""

    def __init__(self, model: nn.Module | None = None) -> None:
        self.model = model
        self.total_steps = 0
        self.models: list[torch.Tensor] = []
        self.samples: list[int] = []
        self.rounds: list[int] = []
        self.steps = self.count = 0

    def begin(self, total_steps: int) -> None:
        self.total_steps = total_steps

    def round_done(self, round_: int, *, samples: int) -> None:
        self.rounds.append(round_)
        self.samples.append(samples)
        self.models.append(flat(self.model))

    def stepped(self, step: int, *, count: int, **_values: object) -> None:
        self.steps = step
        self.count += count

    def ended(self) -> None:
        pass


class DyingWatch(Watch):
    """Ends the server after its first round."""

    def round_done(self, round_: int, *, samples: int) -> None:
        super().round_done(round_, samples=samples)
        raise Died


class Died(Exception):
    """The end of a process."""


def flat(model: nn.Module) -> torch.Tensor:
    """All parameters in one vector, shape (size,)."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).clone()


def some_model(seed: int) -> nn.Module:
    """A network whose weights the seed decides."""
    return build("mlp", (1, 8, 8), 10, seed=seed)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def settings_of(**given: object) -> Settings:
    return Settings.model_validate({"strategy": "fedavg", "data": "digits", "model": "mlp", **given})


class Federation:
    """A server and clients, each with a thread of its own and real sockets."""

    def __init__(self, settings: Settings, sizes: Sequence[int], *, seed: int = 0) -> None:
        self.settings, self.sizes = settings, sizes
        self.schedule = Schedule.of(settings, seed)
        self.names = [f"w{number}" for number in range(1, settings.nodes + 1)]
        values = cluster_settings(settings, [*self.names, SERVER], seed)
        ports = free_ports(len(self.names) + 1)
        nodes = [{"name": name, "port": port} for name, port in zip([*self.names, SERVER], ports, strict=True)]
        self.config = ClusterConfig.from_text(json.dumps({**values, "nodes": nodes}))
        self.server: FederatedServer | None = None
        self.server_model = some_model(seed)
        self.watch = Watch(self.server_model)
        self.clients: dict[int, FederatedClient] = {}
        self.found: list[object] = []

    def node(self, name: str, model: nn.Module) -> FederatedNode:
        return FederatedNode(self.config, name, model, start_timeout_s=TIMEOUT_S)

    def client(self, number: int) -> FederatedClient:
        """The strategy of a client."""
        made = FederatedClient(
            lambda model: self.node(self.names[number], model),
            self.schedule,
            number,
            server=SERVER,
            mu=self.settings.mu if self.settings.strategy == "fedprox" else 0.0,
        )
        self.clients[number] = made
        return made

    def serve(self) -> None:
        node = self.node(SERVER, self.server_model)
        try:
            clients = [Participant(name, size) for name, size in zip(self.names, self.sizes, strict=True)]
            self.server = FederatedServer(node, self.schedule, clients, batch_size=self.settings.batch_size)
            self.server.run(self.watch)
        finally:
            node.close()

    def run(self, work: Callable[[int], object]) -> list[object]:
        """The server beside all clients; what each client's work gave, or the error that it raised."""
        with ThreadPoolExecutor(len(self.names) + 1) as pool:
            serving = pool.submit(self.serve)
            working = [pool.submit(work, number) for number in range(len(self.names))]
            self.found = [ended(future) for future in working]
            serving.result(TIMEOUT_S)
        return self.found


def ended(future: Future[object]) -> object:
    error = future.exception(TIMEOUT_S)
    return error if error is not None else future.result()


def begun(federation: Federation, number: int, model: nn.Module) -> FederatedClient:
    """A client that has joined, and belongs to this thread."""
    client = federation.client(number)
    client.begin(model, optimizer_of(model))
    return client


def rounds_by_hand(federation: Federation, number: int, learn: Callable[[int, nn.Module], None]) -> list[torch.Tensor]:
    """A client's life without a training: in each of its rounds a function changes the model.

    Returns:
        The models that it was given, and the last one.
    """
    model = some_model(100 + number)
    client = begun(federation, number, model)
    given = []
    try:
        for epoch in range(1, federation.schedule.epochs_of(number) + 1):
            client.before_epoch(epoch)
            given.append(flat(model))
            learn(epoch, model)
            client.after_epoch(epoch)
        client.finish()
        given.append(flat(model))
    finally:
        client.close()
    return given


def set_to(model: nn.Module, vector: torch.Tensor) -> None:
    """Copies values into a model's own memory."""
    sizes = [parameter.numel() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter, part in zip(model.parameters(), vector.split(sizes), strict=True):
            parameter.copy_(part.view_as(parameter))


# --- Which clients, and how many rounds ---------------------------------------------------------------------------


@of_hypothesis(deadline=None)
@given(
    nodes=st.integers(1, 12),
    fraction=st.floats(0.01, 1.0),
    epochs=st.integers(1, 20),
    local=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_each_round_has_the_right_number_of_clients_and_all_see_the_samples_asked_for(
    nodes, fraction, epochs, local, seed
):
    settings = settings_of(nodes=nodes, client_fraction=fraction, n_epochs=epochs, local_epochs=local)
    schedule = Schedule.of(settings, seed)
    assert schedule.per_round == max(1, int(fraction * nodes + 0.5))
    for round_ in range(1, schedule.rounds + 1):
        chosen = schedule.chosen(round_)
        assert len(set(chosen)) == schedule.per_round
        assert set(chosen) <= set(range(nodes))
    of_all = sum(schedule.epochs_of(client) for client in range(nodes))
    of_a_round = schedule.per_round * local
    assert of_all == schedule.rounds * of_a_round
    assert schedule.rounds == 1 or abs(of_all - epochs * nodes) <= of_a_round / 2
    for client in range(nodes):
        assert schedule.rounds_of(client) == tuple(
            round_ for round_ in range(1, schedule.rounds + 1) if client in schedule.chosen(round_)
        )


def test_the_choice_of_clients_is_that_of_the_seed():
    settings = settings_of(nodes=10, client_fraction=0.3, n_epochs=20)
    of_seed = [[Schedule.of(settings, seed).chosen(round_) for round_ in range(1, 50)] for seed in (1, 1, 2)]
    assert of_seed[0] == of_seed[1] != of_seed[2]
    assert {client for chosen in of_seed[0] for client in chosen} == set(range(10))


def test_the_samples_of_a_round_are_those_that_the_training_function_draws():
    data = load("digits", None)
    for size, batch_size in ((100, 32), (20, 32), (64, 32)):
        watch = Watch()
        task = task_of(data.train.first(size), some_model(0))
        train(task, Recipe(epochs=2, batch_size=batch_size), seed=0, strategy=Strategy(), watch=watch)
        assert watch.count == samples_of(size, batch_size, 2)


def test_what_a_cluster_file_says_of_a_federation_is_right_and_needs_no_torch():
    code = (
        "import sys, dpwa.lab.strategies.federated.rounds, dpwa.lab.strategies.federated.cluster; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    values = cluster_settings(settings_of(cluster={"shared_memory": "off", "blend": "delta"}), ["w1", SERVER], 7)
    config = ClusterConfig.for_localhost(2, **values)
    assert isinstance(config.method_for("w1"), FederatedRounds)
    assert (config.shared_memory, config.blend, config.seed) == ("off", "absolute", 7)


def test_a_deadline_that_is_none_is_refused():
    values = cluster_settings(settings_of(cluster={"custom_method": {"deadline_s": 0}}), ["w1", SERVER], 0)
    with pytest.raises(ConfigError, match="deadline_s: expected a number of seconds above 0, got 0"):
        ClusterConfig.for_localhost(2, **values).method_for("w1")


# --- The arithmetic ---------------------------------------------------------------------------------------------------


def test_the_method_takes_the_mean_of_those_that_came_whatever_their_weights_sum_up_to():
    method = FederatedRounds(None, 3, 1.0)
    method.gather({"w1": 0.2, "w2": 0.8}, 5.0)
    assert (method.missed, method.plan(None).wait_s) == (2, 5.0)
    gathered = ExchangeResult(Outcome.BLENDED, ExchangeKind.GATHER, weight=0.2, missed=1)
    assert method.blend(gathered, State(None, 0.0)) == 1.0
    assert method.statistics() == {"gathered": 1.0, "missed": 1.0}


@pytest.mark.parametrize("shared_memory", ["auto", "off"])
@pytest.mark.heavy
def test_the_server_takes_the_mean_weighted_by_samples_and_the_clients_take_its_very_bits(shared_memory):
    settings = settings_of(nodes=3, n_epochs=2, cluster={"shared_memory": shared_memory})
    sizes = [100, 250, 37]
    federation = Federation(settings, sizes)
    first = flat(federation.server_model)
    learned = torch.randn((2, 3, len(first)), generator=torch.Generator().manual_seed(0))

    def work(number: int) -> object:
        return rounds_by_hand(federation, number, lambda epoch, model: set_to(model, learned[epoch - 1, number]))

    given = federation.run(work)
    expected = np.einsum("c,rcp->rp", np.array(sizes) / sum(sizes), learned.double().numpy())
    assert federation.watch.total_steps == 2
    assert federation.watch.rounds == [1, 2]
    for round_ in range(2):
        assert federation.watch.models[round_].numpy() == pytest.approx(expected[round_], rel=1e-6, abs=1e-6)
    for models in given:
        assert all(map(torch.equal, models, [first, *federation.watch.models]))
        assert len(models) == 3
    each_way, clients, rounds = 2, 3, 2
    assert federation.server.bytes_sent == each_way * clients * rounds * 4 * len(first)


def test_only_those_that_are_chosen_count_and_the_others_wait_for_the_end():
    settings = settings_of(nodes=4, n_epochs=1, client_fraction=0.25, local_epochs=2)
    federation = Federation(settings, [10, 20, 30, 40], seed=3)
    schedule = federation.schedule
    assert (schedule.per_round, schedule.rounds) == (1, 2)
    assert any(not schedule.rounds_of(number) for number in range(4))
    size = len(flat(federation.server_model))

    def work(number: int) -> object:
        def learn(epoch: int, model: nn.Module) -> None:
            set_to(model, torch.full((size,), float(10 * (number + 1) + epoch)))

        return rounds_by_hand(federation, number, learn)

    given = federation.run(work)
    trained = dict.fromkeys(range(4), 0)
    for round_, model in enumerate(federation.watch.models, start=1):
        (client,) = schedule.chosen(round_)
        trained[client] += 2
        assert torch.equal(model, torch.full((size,), float(10 * (client + 1) + trained[client])))
    assert all(torch.equal(models[-1], federation.watch.models[-1]) for models in given)


def test_fedprox_adds_the_pull_towards_the_model_of_the_round_to_the_gradient():
    settings = settings_of(strategy="fedprox", nodes=1, n_epochs=1, mu=0.7)
    federation = Federation(settings, [10])
    data = load("digits", None)
    images, labels = data.prepare(data.train.images[:16]), data.train.labels[:16]

    def work(number: int) -> object:
        model = some_model(5)
        client = begun(federation, number, model)
        try:
            client.before_epoch(1)
            anchor = flat(model)
            moved = anchor + torch.linspace(-1, 1, len(anchor))
            set_to(model, moved)
            loss, right = client.backward(images, labels)
            found = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
            model.zero_grad()
            scores = model(images)
            plain = nn.functional.cross_entropy(scores, labels)
            plain.backward()
            gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
            client.after_epoch(1)
            client.finish()
        finally:
            client.close()
        assert loss.item() == pytest.approx(plain.item())
        assert right == int((scores.argmax(dim=1) == labels).sum())
        return found - gradient, 0.7 * (moved - anchor)

    ((pull, expected),) = federation.run(work)
    assert torch.allclose(pull, expected, atol=1e-6)


# --- Whole trainings --------------------------------------------------------------------------------------------------


def task_of(shard: Samples, model: nn.Module) -> Task:
    return Task(model, shard, load("digits", None).prepare)


def alone(settings: Settings, shards: Sequence[Samples], model: nn.Module, schedule: Schedule) -> list[torch.Tensor]:
    """The same training in one thread, written down once more and without dpwa: the server's model of each round."""
    prepare = load("digits", None).prepare
    orders = [torch.Generator().manual_seed(number) for number in range(settings.nodes)]
    models = []
    for round_ in range(1, schedule.rounds + 1):
        start, learned, weights = flat(model), [], []
        for number in schedule.chosen(round_):
            set_to(model, start)
            shard = shards[number]
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            for _ in range(settings.local_epochs):
                batches = torch.randperm(len(shard), generator=orders[number]).split(settings.batch_size)
                for batch in batches[: len(shard) // settings.batch_size]:
                    optimizer.zero_grad()
                    loss = nn.functional.cross_entropy(model(prepare(shard.images[batch])), shard.labels[batch])
                    if settings.strategy == "fedprox":
                        loss = (
                            loss
                            + settings.mu / 2 * (nn.utils.parameters_to_vector(model.parameters()) - start).pow(2).sum()
                        )
                    loss.backward()
                    optimizer.step()
            learned.append(flat(model))
            weights.append(float(len(shard)))
        set_to(model, torch.stack(learned).T @ torch.tensor(weights) / sum(weights))
        models.append(flat(model))
    return models


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox"])
def test_a_training_over_the_network_is_the_one_that_the_paper_describes(strategy):
    settings = settings_of(
        strategy=strategy, nodes=3, n_epochs=4, client_fraction=0.67, local_epochs=2, batch_size=32, mu=0.5
    )
    sizes = [64, 128, 200]
    federation = Federation(settings, sizes)
    train_set = load("digits", None).train
    shards = [train_set.select(part) for part in torch.arange(sum(sizes)).split(sizes)]

    def work(number: int) -> object:
        client = federation.client(number)
        watch = Watch()
        model = some_model(number)
        recipe = Recipe(epochs=federation.schedule.epochs_of(number), batch_size=32, learning_rate=0.1)
        try:
            train(task_of(shards[number], model), recipe, seed=number, strategy=client, watch=watch)
            client.finish()
        finally:
            client.close()
        return watch.count

    counts = federation.run(work)
    expected = alone(settings, shards, some_model(0), federation.schedule)
    assert federation.schedule.per_round == 2
    assert len(expected) == federation.schedule.rounds == 3
    for found, model in zip(federation.watch.models, expected, strict=True):
        assert torch.allclose(found, model, atol=1e-4)
    assert federation.watch.samples[-1] == sum(counts)


def test_a_client_that_is_never_chosen_trains_nothing_and_ends_with_the_others():
    settings = settings_of(nodes=3, n_epochs=1, client_fraction=0.3, local_epochs=3, batch_size=32)
    federation = Federation(settings, [64] * 3)
    shard = load("digits", None).train.first(64)

    def work(number: int) -> object:
        client, watch = federation.client(number), Watch()
        recipe = Recipe(epochs=federation.schedule.epochs_of(number), batch_size=32)
        try:
            train(task_of(shard, some_model(number)), recipe, seed=number, strategy=client, watch=watch)
            client.finish()
        finally:
            client.close()
        return watch.steps

    steps = federation.run(work)
    assert sorted(steps) == [0, 0, 6]
    assert federation.watch.rounds == [1]


def test_a_client_that_hears_first_that_the_server_has_finished_still_gets_the_last_model():
    federation = Federation(settings_of(nodes=2, n_epochs=1, client_fraction=0.5), [10, 10], seed=3)
    late = 0
    assert federation.schedule.rounds_of(late) == ()

    def work(number: int) -> object:
        if number != late:
            size = len(flat(federation.server_model))
            return rounds_by_hand(federation, number, lambda _, model: set_to(model, torch.full((size,), 7.0)))[-1]
        client = begun(federation, number, some_model(number))
        try:
            membership = client._node._node._parts.context.membership
            wait_until(lambda: membership.may_have_left(SERVER), "the server has told this client that it has finished")
            client.finish()
            return flat(client.model)
        finally:
            client.close()

    given = federation.run(work)
    assert all(torch.equal(model, torch.full_like(model, 7.0)) for model in given)


# --- Those that do not come -------------------------------------------------------------------------------------------


def test_the_server_goes_on_with_those_present_when_a_client_has_died(monkeypatch):
    monkeypatch.setattr(farewell, "SILENT_S", 0.5)
    settings = settings_of(nodes=3, n_epochs=3)
    sizes = [100, 200, 300]
    federation = Federation(settings, sizes)
    size = len(flat(federation.server_model))

    def work(number: int) -> object:
        def learn(epoch: int, model: nn.Module) -> None:
            if (number, epoch) == (1, 2):
                federation.clients[number].close()  # its connections end as those of a killed process
                raise Died
            set_to(model, torch.full((size,), float(number + 1)))

        return rounds_by_hand(federation, number, learn)

    found = federation.run(work)
    assert isinstance(found[1], Died)
    assert federation.server.gone == {"w2": 2}
    assert federation.watch.rounds == [1, 2, 3]
    means = [model.mean().item() for model in federation.watch.models]
    assert means == pytest.approx([(100 + 400 + 900) / 600, (100 + 900) / 400, (100 + 900) / 400], rel=1e-6)
    assert federation.watch.samples == [484, 484 + 356, 484 + 2 * 356]


def test_a_model_that_is_not_finite_is_left_out_and_its_client_is_not():
    settings = settings_of(nodes=2, n_epochs=2)
    federation = Federation(settings, [100, 100])
    size = len(flat(federation.server_model))

    def work(number: int) -> object:
        def learn(epoch: int, model: nn.Module) -> None:
            value = float("nan") if (number, epoch) == (0, 1) else float(number + epoch)
            set_to(model, torch.full((size,), value))

        return rounds_by_hand(federation, number, learn)

    federation.run(work)
    assert [model[0].item() for model in federation.watch.models] == [2.0, 2.5]
    assert federation.server.gone == {}


def test_a_server_without_clients_says_so():
    settings = settings_of(nodes=1, n_epochs=5)
    federation = Federation(settings, [100])

    def work(number: int) -> object:
        client = begun(federation, number, some_model(1))
        try:
            client.before_epoch(1)
        finally:
            client.close()

    with pytest.raises(PeerUnreachable, match="w1: was the last of 1 clients, and is gone"):
        federation.run(work)


def test_a_client_whose_server_has_gone_says_so():
    settings = settings_of(nodes=2, n_epochs=5)
    federation = Federation(settings, [100, 100])
    federation.watch = DyingWatch(federation.server_model)

    def work(number: int) -> object:
        return rounds_by_hand(federation, number, lambda _epoch, _model: None)

    with pytest.raises(Died):
        federation.run(work)
    errors = federation.found
    assert len(errors) == 2
    assert all(isinstance(error, PeerUnreachable) for error in errors)
    assert "server: its model for round" in str(errors[0])


@pytest.mark.seconds
def test_a_client_that_is_slower_than_the_deadline_is_left_behind_and_reported(monkeypatch):
    monkeypatch.setattr(farewell, "SILENT_S", 0.5)
    settings = settings_of(nodes=2, n_epochs=3, cluster={"custom_method": {"deadline_s": 2.0}})
    federation = Federation(settings, [100, 100])

    def work(number: int) -> object:
        def learn(epoch: int, _model: nn.Module) -> None:
            if number == 0 and epoch == 1:
                wait_until(lambda: federation.watch.rounds == [1, 2, 3], "the other one has finished")

        return rounds_by_hand(federation, number, learn)

    found = federation.run(work)
    assert isinstance(found[0], PeerUnreachable)
    assert federation.server.gone == {"w1": 1}
    assert len(found[1]) == 4


def test_a_peer_that_never_listens_is_named():
    config = ClusterConfig.for_localhost(2, ports=free_ports(2), **cluster_settings(settings_of(), ["w1", "w2"], 0))
    with pytest.raises(PeerUnreachable, match=r"w2: does not listen on localhost:\d+"):
        FederatedNode(config, "w1", some_model(0), start_timeout_s=0.1)


def test_a_cluster_with_another_method_is_refused():
    config = ClusterConfig.for_localhost(2, ports=free_ports(2))
    with pytest.raises(ConfigError, match=r"expected method dpwa\.lab.*:FederatedRounds, got pull"):
        FederatedNode(config, "w1", some_model(0))

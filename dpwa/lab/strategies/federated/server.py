"""The server of fedavg and fedprox: in each round, it replaces its model with the mean of its clients' models.

Must not know: data sets, networks, folders. Runs in: the training thread.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dpwa.errors import PeerUnreachable
from dpwa.lab.strategies.federated.node import FederatedNode
from dpwa.lab.strategies.federated.rounds import round_of_model, round_of_work, samples_of
from dpwa.lab.training.client_schedule import Schedule

__all__ = ["FederatedServer", "Participant", "ServerWatch"]

_logger = logging.getLogger("dpwa")


class ServerWatch(Protocol):
    """Observes a server's rounds."""

    def begin(self, total_steps: int) -> None:
        """Called before the first of so many rounds."""

    def round_done(self, round_: int, *, samples: int) -> None:
        """Called after each round, from 1, with the samples that all clients together have trained on so far."""


@dataclass(frozen=True)
class Participant:
    """What the server knows of a client.

    Attributes:
        name: of its node.
        shard_size: number of its samples: its weight in the mean.
    """

    name: str
    shard_size: int


class FederatedServer:
    """Runs the rounds.

    Args:
        node: of the server.
        schedule: of the rounds.
        clients: in the order of their numbers.
        batch_size: of the clients.

    Attributes:
        gone: clients that died or missed the deadline of a round, with that round. They are not asked again.
    """

    def __init__(
        self, node: FederatedNode, schedule: Schedule, clients: Sequence[Participant], *, batch_size: int
    ) -> None:
        self.gone: dict[str, int] = {}
        self._node = node
        self._schedule = schedule
        self._clients = clients
        self._batch_size = batch_size
        self._bytes_before = node.bytes_received  # the node may have joined with a peer's model

    @property
    def bytes_sent(self) -> int:
        """Bytes of models that the server and its clients have sent so far.

        For each model from a client, the server has sent one of the same size to it.
        """
        return 2 * (self._node.bytes_received - self._bytes_before)

    def run(self, watch: ServerWatch) -> None:
        """Runs all rounds, then waits for the clients to end.

        Raises:
            PeerUnreachable: no client is left.
        """
        self._node.publish(round_of_model(1))
        watch.begin(self._schedule.rounds)
        samples = 0
        for round_ in range(1, self._schedule.rounds + 1):
            present = [self._clients[number] for number in self._schedule.chosen(round_)]
            present = [client for client in present if client.name not in self.gone]
            for client in self._average(round_, present) if present else ():
                samples += samples_of(client.shard_size, self._batch_size, self._schedule.local_epochs)
            # Clients continue while the watch looks at the model.
            self._node.publish(round_of_model(round_ + 1))
            watch.round_done(round_, samples=samples)
        self._node.finish()

    def _average(self, round_: int, clients: Sequence[Participant]) -> list[Participant]:
        """Takes the mean of the clients' models, weighted by their samples; returns the clients that have answered."""
        total = sum(client.shard_size for client in clients)
        weights = {client.name: client.shard_size / total for client in clients}
        failed = self._node.gather(round_of_work(round_), weights, self._node.deadline_s)
        for name in failed:
            self.gone[name] = round_
            _logger.warning(
                "node %s: round %d: client %s has died or is too slow, and is left out from now on",
                self._node.name,
                round_,
                name,
            )
        if self._node.missed > len(failed):
            _logger.warning(
                "node %s: round %d: the models of %d clients are not finite, and are left out",
                self._node.name,
                round_,
                self._node.missed - len(failed),
            )
        if len(self.gone) == len(self._clients):
            raise PeerUnreachable(failed[0], f"was the last of {len(self._clients)} clients, and is gone")
        return [client for client in clients if client.name not in failed]

"""A client of fedavg or fedprox: takes the server's model, trains it on its own data, and publishes the result.

Must not know: data sets, networks, folders. Runs in: the training thread.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dpwa.errors import PeerUnreachable
from dpwa.lab.strategies.federated.node import FederatedNode
from dpwa.lab.strategies.federated.rounds import round_of_model, round_of_work
from dpwa.lab.training.client_schedule import Schedule
from dpwa.lab.training.strategy import Strategy

__all__ = ["FederatedClient"]


class FederatedClient(Strategy):
    """Trains in the rounds for which it is chosen, `schedule.epochs_of(number)` epochs in all.

    A round begins with the server's model and a fresh optimizer state. The server counts the bytes.

    Args:
        make_node: makes the node for a model.
        schedule: of the rounds.
        number: of this client, from 0.
        server: name of the server.
        mu: how strongly the client is held near the round's model; 0: fedavg. Li et al., "Federated optimization in
            heterogeneous networks", arXiv 1812.06127: mu / 2 * |w - w_round|**2 is added to the loss.
    """

    def __init__(
        self,
        make_node: Callable[[nn.Module], FederatedNode],
        schedule: Schedule,
        number: int,
        *,
        server: str,
        mu: float = 0.0,
    ) -> None:
        self._make_node = make_node
        self._schedule = schedule
        self._rounds = schedule.rounds_of(number)
        self._server = server
        self._mu = mu
        self._node: FederatedNode | None = None
        self._last_round = 0
        self._anchor: list[Tensor] = []

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """See `Strategy.begin`."""
        super().begin(model, optimizer)
        self._node = self._make_node(model)

    def before_epoch(self, epoch: int) -> None:
        """Begins a round, if this is its first epoch.

        Raises:
            PeerUnreachable: the server's model for the round did not come.
        """
        index, epoch_of_round = divmod(epoch - 1, self._schedule.local_epochs)
        if epoch_of_round:
            return
        round_ = self._rounds[index]
        if not self._take_model(round_):
            raise PeerUnreachable(
                self._server,
                f"its model for round {round_} did not come: it has ended, or it has left out this client, which "
                "missed the deadline of a round. The server's own messages say which",
            )
        self.optimizer.state.clear()
        if self._mu > 0:
            self._anchor = [parameter.detach().clone() for parameter in self.model.parameters()]

    def backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """See `Strategy.backward`; the loss is reported without the term of `mu`."""
        found = super().backward(images, labels)
        if self._mu > 0:
            for parameter, anchor in zip(self.model.parameters(), self._anchor, strict=True):
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach() - anchor, alpha=self._mu)
        return found

    def after_epoch(self, epoch: int) -> None:
        """Ends a round, if this was its last epoch: the server fetches the model."""
        if epoch % self._schedule.local_epochs == 0 and self._node is not None:
            self._node.publish(round_of_work(self._last_round))

    def finish(self) -> bool:
        """Waits for the model after the last round; the server's process records it."""
        if self._node is None:
            return False
        # A node that says it has finished is soon no longer asked: first the server must have fetched this model.
        self._take_model(self._schedule.rounds + 1)
        self._node.finish()
        return False

    def close(self) -> None:
        """See `Strategy.close`."""
        if self._node is not None:
            self._node.close()

    def _take_model(self, round_: int) -> bool:
        """Waits for the model that a round begins with; False if it does not come."""
        if self._node is None:
            return False
        # The server waits for each earlier round in turn, and may have started to wait later than this client.
        wait_s = self._node.deadline_s * (round_ - self._last_round + 1)
        self._last_round = round_
        self._node.gather(round_of_model(round_), {self._server: 1.0}, wait_s)
        return self._node.missed == 0

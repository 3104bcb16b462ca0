"""A node of dpwa that publishes and gathers on command: what clients and server have in common.

Must not know: which node is the server, how a model is trained. Runs in: the training thread, which waits here for
others.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from dpwa.adapters.tensors import TorchModel
from dpwa.config.cluster import ClusterConfig
from dpwa.errors import ConfigError, PeerUnreachable
from dpwa.lab.strategies.federated.rounds import FederatedRounds
from dpwa.node.node import Node

__all__ = ["FederatedNode"]

# Many processes on few cores take their time to load torch and the data.
_START_TIMEOUT_S = 300.0
_POLL_S = 0.02

_FINISH_TIMEOUT_S = 60.0


class FederatedNode:
    """A node that has joined its cluster.

    Args:
        config: the cluster.
        name: of this node.
        model: what is exchanged.
        run_dir: the run folder; None: nothing is written.
        start_timeout_s: how long to wait until the others listen, in seconds.

    Raises:
        ConfigError: config, name or model cannot be used, or the method is not `FederatedRounds`.
        PeerUnreachable: a node still does not listen after that time.
    """

    def __init__(
        self,
        config: ClusterConfig,
        name: str,
        model: nn.Module,
        *,
        run_dir: Path | None = None,
        start_timeout_s: float = _START_TIMEOUT_S,
    ) -> None:
        self._tensors = TorchModel(model, config)
        self._node = Node(config, name, self._tensors, run_dir=run_dir)
        self._method = _checked(self._node)
        self.name = self._node.name
        has_begun = False
        try:
            self._node.start()
            # A peer that is asked before it listens would count as gone.
            for peer in config.peers_of(name):
                _wait_for(peer.name, peer.host, peer.port, time.monotonic() + start_timeout_s)
            while not self._method.is_in:
                self._node.step()
            has_begun = True
        finally:
            if not has_begun:
                self.close()

    @property
    def deadline_s(self) -> float:
        """How long a client may take for a round, in seconds."""
        return self._method.deadline_s

    @property
    def missed(self) -> int:
        """How many models of the last gathering did not come."""
        return self._method.missed

    @property
    def bytes_received(self) -> int:
        """Bytes of models that this node has received, including those read from shared memory."""
        return self._node.statistics().bytes_in

    def publish(self, round_: int) -> None:
        """Publishes the present model as that of a round. The model of the previous round remains available."""
        self._method.round = round_
        self._method.has_news = True
        published = self._node.statistics().published
        while True:
            self._node.step()
            if self._node.statistics().published > published:
                break
            time.sleep(_POLL_S)  # peers hold all buffers; those of dead ones come back when the transport gives up
        self._method.has_news = False

    def gather(self, round_: int, weights: Mapping[str, float], wait_s: float) -> tuple[str, ...]:
        """Waits for peers' models of a round, and replaces this node's model with their weighted mean.

        Args:
            round_: the models' round.
            weights: the peers, and how much each counts.
            wait_s: how long to wait for the models. Peers that cannot be reached are not waited for.

        Returns:
            The peers that are gone or too late. If `missed` is larger than their number, the models of others had
            values that are not finite. If no model came, this node's model does not change.
        """
        before = self._node.statistics()
        self._method.gather(weights, wait_s)
        self.publish(round_)
        self._method.planned = None
        while self._ended() == sum(before.exchanges.values()):
            self._node.step()
        scores = self._node.statistics().scores
        return tuple(peer for peer in weights if scores[peer] < before.scores[peer])

    def finish(self) -> None:
        """Waits until all peers have finished or are gone."""
        self._node.finish(_FINISH_TIMEOUT_S)

    def close(self) -> None:
        """Ends the node's threads. May be called more than once."""
        self._node.close()
        self._tensors.close()

    def _ended(self) -> int:
        return sum(self._node.statistics().exchanges.values())


def _checked(node: Node) -> FederatedRounds:
    if not isinstance(node.method, FederatedRounds):
        node.close()
        expected = f"{FederatedRounds.__module__}:{FederatedRounds.__name__}"
        raise ConfigError(
            f"the cluster file of a federated strategy: expected method {expected}, got {node.config.method}"
        )
    return node.method


def _wait_for(peer: str, host: str, port: int, deadline_s: float) -> None:
    while (error := _problem_with(host, port)) is not None:
        if time.monotonic() > deadline_s:
            raise PeerUnreachable(peer, f"does not listen on {host}:{port} ({error}); its own messages say why")
        time.sleep(_POLL_S)


def _problem_with(host: str, port: int) -> OSError | None:
    """Why a connection fails; None if it succeeds."""
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError as error:
        return error
    return None

"""dpwa's methods: the process is a node of the cluster, with one line after each step.

Must not know: which method it is. Runs in: the training thread.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpwa.adapters.pytorch import DpwaPyTorchAdapter
from dpwa.lab.training.strategy import Strategy
from dpwa.node.record import NodeStatistics

__all__ = ["Peers", "did_by_node"]

# A slow node may still train when the others are done; they keep answering it.
_FINISH_TIMEOUT_S = 600.0


class Peers(Strategy):
    """Trains as a node of the cluster that `dpwa launch` has started."""

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """See `Strategy.begin`."""
        super().begin(model, optimizer)
        self._node = DpwaPyTorchAdapter(model, optimizer=optimizer)

    def after_step(self, loss: Tensor) -> None:
        """See `Strategy.after_step`."""
        self._node.step(loss)

    def did(self) -> dict[str, float]:
        """See `Strategy.did`."""
        return did_by_node(self._node.statistics())

    def finish(self) -> bool:
        """Keeps serving until all nodes are done, and takes part in their merge if the row has one."""
        self._node.finish(_FINISH_TIMEOUT_S)
        return bool(self._node.statistics().merged_models)

    def close(self) -> None:
        """See `Strategy.close`."""
        self._node.close()


def did_by_node(statistics: NodeStatistics) -> dict[str, float]:
    """What a node has done, as `Strategy.did` says it.

    The bytes are those that it has received: over all nodes, received and sent are the same.
    """
    return {"bytes_sent": statistics.bytes_in, "asked": statistics.asked, "exchanges": statistics.completed}

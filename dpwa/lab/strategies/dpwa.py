"""dpwa's methods: the process is a node of the cluster, with one line after each step.

Must not know: which method it is. Runs in: the training thread.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpwa.adapters.pytorch import DpwaPyTorchAdapter
from dpwa.lab.training.strategy import Strategy

__all__ = ["Peers"]

# A slow node may still train when the others are done; they keep answering it.
_FINISH_TIMEOUT_S = 600.0


class Peers(Strategy):
    """Trains as a node of the cluster that `dpwa launch` has started.

    `bytes_sent` counts the models that this node has received: over all nodes, received and sent are the same.
    """

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """See `Strategy.begin`."""
        super().begin(model, optimizer)
        self._node = DpwaPyTorchAdapter(model)

    def after_step(self, loss: Tensor) -> None:
        """See `Strategy.after_step`."""
        self._node.step(loss)

    @property
    def bytes_sent(self) -> int:  # type: ignore[override]
        """See the class."""
        return int(self._node.statistics().bytes_in)

    def finish(self) -> None:
        """Keeps serving until all nodes are done."""
        self._node.finish(_FINISH_TIMEOUT_S)

    def close(self) -> None:
        """See `Strategy.close`."""
        self._node.close()

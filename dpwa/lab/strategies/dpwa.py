"""dpwa's methods: the process is a node of the cluster, with one line after each step.

Must not know: which method it is. Runs in: the training thread.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dpwa.adapters.pytorch import DpwaPyTorchAdapter
from dpwa.adapters.sampler import SharingSampler
from dpwa.lab.training.strategy import SharedBatches, Strategy
from dpwa.node.record import NodeStatistics

__all__ = ["Peers", "SharedOut", "did_by_node"]

# As many as the adapter makes by itself; here they are multiples of a batch.
_BLOCKS_PER_NODE = 100


class Peers(Strategy):
    """Trains as a node of the cluster that `dpwa launch` has started.

    Args:
        shares_samples: whether the nodes share out all samples while they train.
        seed: for the order of these samples, the same in all nodes.
    """

    def __init__(self, *, shares_samples: bool, seed: int) -> None:
        self._shares_samples = shares_samples
        self._seed = seed

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """See `Strategy.begin`."""
        super().begin(model, optimizer)
        self._node = DpwaPyTorchAdapter(model, optimizer=optimizer)

    def shared_batches(self, samples: int, *, epochs: int, batch_size: int) -> SharedBatches | None:
        """See `Strategy.shared_batches`."""
        if not self._shares_samples:
            return None
        equal = samples / len(self._node.config.nodes)
        blocks = max(1, round(equal / _BLOCKS_PER_NODE / batch_size))
        sampler = self._node.sampler(range(samples), block_samples=blocks * batch_size, seed=self._seed)
        return SharedOut(sampler, epochs=epochs, batch_size=batch_size)

    def after_step(self, loss: Tensor) -> None:
        """See `Strategy.after_step`."""
        self._node.step(loss)

    def did(self) -> dict[str, float]:
        """See `Strategy.did`."""
        return did_by_node(self._node.statistics())

    def finish(self) -> bool:
        """Keeps serving as long as others train, however slow, and takes part in their merge if the row has one."""
        self._node.finish()
        return bool(self._node.statistics().merged_models)

    def close(self) -> None:
        """See `Strategy.close`."""
        self._node.close()


class SharedOut:
    """The steps of a node whose cluster shares out the samples; see `SharedBatches`.

    An incomplete last batch of an epoch is left out, unless it is all that the node has of it.

    Args:
        sampler: of the node.
        epochs: by all nodes together.
        batch_size: of a step.
    """

    def __init__(self, sampler: SharingSampler, *, epochs: int, batch_size: int) -> None:
        self._sampler = sampler
        self._epochs = epochs
        self._batch_size = batch_size
        self._epoch = 0
        self._done = 0.0

    @property
    def done(self) -> float:
        """See `SharedBatches.done`."""
        self._done = max(self._done, (self._epoch + self._sampler.share_trained(self._epoch)) / self._epochs)
        return self._done

    def __iter__(self) -> Iterator[Tensor]:
        for epoch in self._sampler.epochs(self._epochs):
            self._epoch = epoch
            batch: list[int] = []
            is_first = True
            for sample in self._sampler:
                batch.append(sample)
                if len(batch) == self._batch_size:
                    yield torch.tensor(batch)
                    batch, is_first = [], False
            if batch and is_first:
                yield torch.tensor(batch)


def did_by_node(statistics: NodeStatistics) -> dict[str, float]:
    """What a node has done, as `Strategy.did` says it.

    The bytes are those that it has received: over all nodes, received and sent are the same.
    """
    return {"bytes_sent": statistics.bytes_in, "asked": statistics.asked, "exchanges": statistics.completed}

"""A sampler that shares out a data set among the nodes while they train, so that fast nodes take more of it.

The order of an epoch is a permutation that follows from the seed and the epoch's number, and is cut into blocks. Which
node trains which block is decided as they go: `Node.lease_blocks`. A block counts as trained when the optimizer has
made the steps of its samples. Loaders with workers ask for samples long before that; how long, is measured.

Runs in: the trainer's thread.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Mapping, Sized
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from dpwa import ConfigError, Node

if TYPE_CHECKING:
    from dpwa.exchange.lease_words import Block

__all__ = ["SharingSampler"]

# Orders that are kept: blocks of the epoch before may be left.
_ORDERS = 2


class SharingSampler(Sampler[int]):
    """Positions of samples for this node to train; made by `DpwaPyTorchAdapter.sampler`.

    In each epoch every sample is trained by one of the nodes. When a node dies, the others train what it has left, and
    repeat the block or two that it could not tell them of any more. While the network is split, each part trains all.

    Args:
        node: the node.
        dataset: what is sampled, for its length.
        shuffle: False: in the order of the data set.
        block_samples: samples that are shared out together; None: so many that each node has about 100 blocks in an
            epoch.
        seed: of the order.

    Raises:
        ConfigError: the data set is empty, a number is out of range, or there is such a sampler already.
    """

    def __init__(
        self, node: Node, dataset: Sized, *, shuffle: bool = True, block_samples: int | None = None, seed: int = 0
    ) -> None:
        self._node = node
        self._shuffle, self._seed = shuffle, seed
        self._leases = node.lease_blocks(
            len(dataset), block_samples=block_samples, seed=seed if shuffle else "no shuffling"
        )
        self._orders: dict[int, Tensor] = {}
        self._next_epoch = 0
        self._last_epoch = -1  # that has ended in this life
        self._loop = _Loop()

    def __len__(self) -> int:
        """An equal share of the data set. How many samples this node gets, the epoch decides."""
        nodes = len(self._node.config.nodes)
        return (self._leases.samples + nodes - 1) // nodes

    @property
    def cut(self) -> str:
        """What all nodes agree on, as a hash: data set, seed and blocks."""
        return self._leases.cut.hex()

    @property
    def epoch(self) -> int:
        """The epoch that is trained, or comes next."""
        return self._next_epoch

    def share_trained(self, epoch: int) -> float:
        """The share of an epoch that all nodes together have trained, 0 to 1, as far as this one has heard.

        For learning rates: how many steps a node will make, nobody knows before.
        """
        return self._leases.share_trained(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next loop over the loader is. Without it, each loop is the epoch after the one before.

        Raises:
            ConfigError: this node has trained it before.
        """
        if epoch <= self._last_epoch:
            raise ConfigError(
                f"sampler.set_epoch({epoch}): this node has trained epoch {self._last_epoch}, and an epoch is shared "
                f"out once; count on from {self._last_epoch + 1}"
            )
        self._next_epoch = epoch

    def epochs(self, count: int) -> Iterator[int]:
        """The numbers of the epochs to train, of `count` in all; a loop over the loader belongs to each.

        It goes on where a checkpoint ended, leaves out what the others have trained without this node, and waits at the
        end until all samples of the last epoch are trained. If a node dies there, the last number comes once more, for
        what that node has left.

        Raises:
            NodeClosed: after `close`.
            InternalError: a background thread failed.
        """
        while (epoch := self._next_epoch) < count:
            yield epoch
            self.settle()
            self._next_epoch = max(self._next_epoch, epoch + 1, self._leases.table.epochs.floor)
        while count > 0 and self._leases.wait_for_all(count - 1):
            self._next_epoch = count - 1
            yield count - 1
            self.settle()

    def __iter__(self) -> Iterator[int]:
        self.settle()
        self._leases.begin(self._next_epoch)
        return self._samples(self._loop, self._next_epoch)

    def _samples(self, loop: _Loop, epoch: int) -> Iterator[int]:
        leases, waited_s, got = self._leases, self._leases.waited_s, self._leases.got
        while loop is self._loop:  # else another has begun, and has let go of what this one had taken
            block = leases.next_block()
            if block is None:
                loop.is_complete = True
                leases.end()
                self._last_epoch, self._next_epoch = max(self._last_epoch, epoch), epoch + 1
                fields = {"samples": loop.given, "blocks": loop.taken, "from_others": leases.got - got}
                self._node.note("epoch", epoch=epoch, **fields, waited_s=round(leases.waited_s - waited_s, 6))
                return
            rows = leases.rows(block)
            loop.take(block, len(rows))
            for sample in self._order(block.epoch)[rows.start : rows.stop].tolist():
                if loop is not self._loop:
                    return
                loop.given += 1
                yield sample

    def _order(self, epoch: int) -> Tensor:
        """The order of an epoch's samples."""
        if epoch not in self._orders:
            while len(self._orders) >= _ORDERS:
                del self._orders[min(self._orders)]
            samples = self._leases.samples
            number = random.Random(f"{self._seed}/{epoch}").getrandbits(63)  # noqa: S311  (no secret)
            generator = torch.Generator().manual_seed(number)
            self._orders[epoch] = (
                torch.randperm(samples, generator=generator) if self._shuffle else torch.arange(samples)
            )
        return self._orders[epoch]

    # --- What is trained ----------------------------------------------------------------------------------------------

    def stepped(self) -> None:
        """The optimizer has made a step. The adapter calls it."""
        loop = self._loop
        blocks = loop.stepped()
        if loop.steps == 1:
            self._leases.expect(loop.given)
        elif loop.steps == 2:
            self._leases.expect(loop.per_step)
        if blocks:
            self._leases.trained(blocks)

    def settle(self) -> None:
        """The loop over the loader has ended. What it has taken and not trained is free for others."""
        loop, self._loop = self._loop, _Loop()
        blocks = [block for block, _ in loop.blocks]
        if loop.is_complete and not loop.was_left:
            self._leases.trained(blocks)
        else:
            self._leases.release(blocks)
            self._leases.end()

    # --- Checkpoints --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the epoch, and which of its samples are trained as far as this node knows."""
        return {"epoch": self._next_epoch, "leases": self._leases.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there. Call it before the first loop over the loader.

        Raises:
            ConfigError: it is of another data set, or damaged.
        """
        try:
            epoch, leases = int(state["epoch"]), state["leases"]
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"the sampler's state is damaged ({error})") from error
        self._leases.restore(leases)
        self._next_epoch = max(0, epoch)


class _Loop:
    """One loop over the loader: what it has taken, and how much of that the optimizer has seen.

    A loader asks for the samples of a batch before it is trained; one with workers does so several batches ahead. How
    far ahead, its first two steps show: what was asked for before the first, less what one step takes.
    """

    def __init__(self) -> None:
        self.blocks: deque[tuple[Block, int]] = deque()
        """Those not trained yet, each with how many samples had been taken at its end."""
        self.given = 0
        """Samples that the loader has asked for."""
        self.taken = 0
        """Blocks."""
        self.is_complete = False
        """There was no block any more."""
        self.steps = 0
        """Of the optimizer."""
        self.per_step = 0
        """The fewest samples that the loader has asked for between two of them."""
        self._end = 0
        self._before = 0
        self._first = 0
        self._seen = 0

    @property
    def was_left(self) -> bool:
        """Whether steps are missing for samples that a loader with workers has asked for: its loop was left early.

        A last batch that `drop_last` leaves out takes less than a step. Where the loader had asked for all before the
        second step, nobody knows how much a step takes, and all counts as trained.
        """
        return 0 < self.per_step <= self.given - self._seen

    def take(self, block: Block, samples: int) -> None:
        """A block was taken."""
        self.taken += 1
        self._end += samples
        self.blocks.append((block, self._end))

    def stepped(self) -> list[Block]:
        """A step was made; the blocks that are trained now and were not before."""
        self.steps += 1
        grown, self._before = self.given - self._before, self.given
        if self.steps == 1:
            self._first = self.given
            return []
        if self.is_complete:  # the last batch may be a small one
            self._seen = min(self.given, self._seen + self.per_step)
        elif grown:
            self.per_step = min(self.per_step or grown, grown)
            self._seen = max(self._seen, self.given - max(0, self._first - self.per_step))
        trained = []
        while self.blocks and self.blocks[0][1] <= self._seen:
            trained.append(self.blocks.popleft()[0])
        return trained

"""The leases of one node: blocks for its trainer, answers to its peers, and questions to them.

A trainer that finds a block at hand takes it under a lock that is held for microseconds. Questions are asked beside the
training, before the blocks at hand are used up, so it waits only where its peers answer more slowly than it trains.

Runs in: `Leases` in the trainer's thread; `Leasing.answer` in the Rx thread, `Leasing.work` in the thread that asks for
leases (the trainer's own under the in-memory transport).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from dpwa.errors import ConfigError, ModelMismatch, NodeClosed, PeerTimeout, PeerUnreachable, RemoteProtocolError
from dpwa.exchange.client import Client
from dpwa.exchange.fetch import Identity
from dpwa.exchange.lease_asking import AHEAD, LeaseAsking, Turn
from dpwa.exchange.lease_table import SILENT_S, LeaseTable
from dpwa.exchange.lease_words import CUT_BYTES, MAX_HOME_BLOCKS, Block, Word
from dpwa.exchange.messages import MAX_TEXT_CHARS, Busy, Lease, Leased, Message, NotReady, Refused

__all__ = ["Leases", "Leasing"]

_logger = logging.getLogger("dpwa")

_BLOCKS_PER_NODE: Final = 100

# A trainer that waits for a block looks so often whether the node still runs.
_LOOK_S = 0.1

# Who waits for the last blocks of the last epoch asks all others so often for what may have become free.
_ASK_AGAIN_S = 0.5

# Nobody waits longer than this for blocks that others have taken, while none of them is trained.
_STANDSTILL_S = 600.0

# Until all have heard that the last epoch is complete.
_GOODBYE_S = 2.0


class Leases:
    """The blocks of one data set, shared out among the nodes.

    Made by `Node.lease_blocks`.

    Args:
        leasing: of the node.
        samples: in the data set.
        block_samples: in one block; the last may have fewer.
        cut: a hash of what all nodes must agree on.
        table: what the node knows.
    """

    def __init__(self, leasing: Leasing, samples: int, block_samples: int, cut: bytes, table: LeaseTable) -> None:
        self.samples = samples
        self.block_samples = block_samples
        self.cut = cut
        self.table = table
        self.asking = LeaseAsking(table)
        self.epoch: int | None = None
        """The epoch that this node trains; None: it trains none now."""
        self.refused_s: dict[str, float] = {}
        """Peers that share out something else, each with the time of its first refusal."""
        self.waited_s = 0.0
        """How long the trainer has waited for blocks."""
        self.got = 0
        """Blocks that others have given."""
        self._has_told_floor = False
        self._leasing = leasing

    def __str__(self) -> str:
        return f"{self.samples} samples in blocks of {self.block_samples}"

    def rows(self, block: Block) -> range:
        """Where the samples of a block stand in the epoch's order."""
        first = block.number * self.block_samples
        return range(first, min(first + self.block_samples, self.samples))

    def begin(self, epoch: int) -> None:
        """This node begins an epoch, or goes on with one."""
        with self._leasing.changed:
            lost_before = self.table.epochs.left_out
            self.table.epochs.enter(epoch)
            left_out = self.table.epochs.left_out - lost_before
            floor = self.table.epochs.floor
            self.epoch = epoch
        if left_out:
            _logger.warning(
                "node %s: %d blocks of earlier epochs are given up: nodes have taken them, and not trained them yet",
                self._leasing.name,
                left_out,
            )
        if epoch < floor and not self._has_told_floor:
            self._has_told_floor = True
            _logger.warning(
                "node %s: nothing is left to train of epoch %d: the cluster is in epoch %d",
                self._leasing.name,
                epoch,
                floor,
            )
        self._leasing.wake()

    def next_block(self) -> Block | None:
        """A block to train next, of the present epoch or one before.

        Returns:
            None if nobody has one to give, or this node holds blocks of so many others that it must train them first.

        Raises:
            NodeClosed: the node is not running.
            InternalError: a background thread failed.
        """
        leasing = self._leasing
        epoch = self.epoch
        while epoch is not None:
            leasing.check()
            with leasing.changed:
                now_s = leasing.monotonic_s()
                block = self.table.take(epoch, now_s)
                is_hungry = self.asking.is_hungry(epoch, now_s)
                # Blocks that the trainer holds are trained when it goes on, which it does not while it waits here.
                is_over = block is None and (self.table.is_exhausted(epoch, now_s) or self.asking.is_full)
            if is_hungry and not is_over:
                leasing.wake()
            if block is not None or is_over:
                return block
            leasing.wait(_LOOK_S)
            self.waited_s += leasing.monotonic_s() - now_s
        return None

    def expect(self, samples: int) -> None:
        """The trainer takes so many samples at a time: so many, and a block more, are to be at hand."""
        self.asking.ahead = max(AHEAD, -(-samples // self.block_samples) + 1)

    def end(self) -> None:
        """This node has left its epoch; what it was given and did not begin is free again."""
        with self._leasing.changed:
            self.epoch = None
            self.table.release_queue()

    def trained(self, blocks: Iterable[Block]) -> None:
        """Blocks that were taken are trained."""
        with self._leasing.changed:
            self.table.trained(blocks, self._leasing.monotonic_s())
        self._leasing.wake()

    def release(self, blocks: Iterable[Block]) -> None:
        """Blocks that were taken will not be trained."""
        with self._leasing.changed:
            self.table.release(blocks)

    def is_complete(self, epoch: int) -> bool:
        """Whether all blocks of an epoch are trained."""
        return epoch < self.table.epochs.floor

    def share_trained(self, epoch: int) -> float:
        """The share of an epoch's blocks that all nodes together have trained, as far as this one has heard."""
        with self._leasing.changed:
            return self.table.epochs.share_done(epoch)

    def wait_for_all(self, epoch: int) -> bool:
        """Wait until all blocks of an epoch are trained, or there are some that a node has left which is gone.

        Returns:
            Whether there are blocks to train.

        Raises:
            NodeClosed: the node is not running.
            InternalError: a background thread failed.
        """
        leasing, table = self._leasing, self.table
        with leasing.changed:
            self.epoch, self.asking.is_at_the_end = epoch, True
        try:
            asked_s = moved_s = leasing.monotonic_s()
            left = math.inf
            while not self.is_complete(epoch):
                leasing.check()
                with leasing.changed:
                    now_s = leasing.monotonic_s()
                    if table.stock(epoch, now_s):
                        return True
                    if now_s >= asked_s + _ASK_AGAIN_S:
                        table.ask_again()
                        asked_s = now_s
                    left, before = self._untrained(epoch), left
                    moved_s = now_s if left < before else moved_s
                if now_s >= moved_s + _STANDSTILL_S:
                    _logger.warning(
                        "node %s: %d blocks are given up: nodes that answer have taken them, and trained none for %g s",
                        leasing.name,
                        left,
                        _STANDSTILL_S,
                    )
                    return False
                leasing.wake()
                leasing.wait(_LOOK_S)
            self._tell_all()
            return False
        finally:
            with leasing.changed:
                self.epoch, self.asking.is_at_the_end = None, False

    def _untrained(self, epoch: int) -> int:
        epochs = self.table.epochs
        done = [bits for number in epochs if number <= epoch for bits in epochs[number].done]
        full = [bits for number in epochs if number <= epoch for bits in epochs.full]
        return sum(map(int.bit_count, full)) - sum(map(int.bit_count, done))

    def _tell_all(self) -> None:
        """All who answer hear that the epoch is complete: whoever leaves unheard is taken for dead."""
        leasing = self._leasing
        with leasing.changed:
            self.table.owe_all()
        end_s = leasing.monotonic_s() + _GOODBYE_S
        while self.table.owed() and leasing.monotonic_s() < end_s:
            leasing.check()
            leasing.wake()
            leasing.wait(_LOOK_S)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: what is trained, as far as this node knows."""
        with self._leasing.changed:
            return {"cut": self.cut.hex(), **self.table.epochs.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave, before the first epoch.

        Raises:
            ConfigError: it is damaged, or of another data set.
        """
        try:
            if state["cut"] != self.cut.hex():
                raise ConfigError(
                    f"node {self._leasing.name}: the sampler's state is of another data set, seed, block_samples or "
                    f"cluster; this one shares out {self}"
                )
            with self._leasing.changed:
                self.table.epochs.restore(state)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"node {self._leasing.name}: the sampler's state is damaged ({error})") from error


class Leasing:
    """The leases of one node, of all its data sets.

    Args:
        identity: who the node is.
        nodes: names of all nodes, in the order of the cluster file.
        monotonic_s: the clock.
        through: puts faults between this node and its transport, for experiments.
    """

    def __init__(
        self,
        identity: Identity,
        nodes: Sequence[str],
        monotonic_s: Callable[[], float],
        through: Callable[[Client], Client] | None = None,
    ) -> None:
        self.name = identity.node
        self.monotonic_s = monotonic_s
        self.changed = threading.Condition(threading.RLock())  # a signal's handler may close the node within it
        """Held while a table is looked at or changed, for microseconds."""
        self.wake: Callable[[], None] = _nothing
        """Called when there may be something to ask; set by the transport."""
        self.pump: Callable[[], None] | None = None
        """Asks in the caller's own thread, where no other does; set by the transport."""
        self.check: Callable[[], None] = _nothing
        """Raises if the node does not run; set by the node."""
        self._identity = identity
        self._nodes = tuple(nodes)
        self._through = through
        self._leases: dict[bytes, Leases] = {}
        self._nonce = 0

    @property
    def has_any(self) -> bool:
        """Whether anything is shared out."""
        return bool(self._leases)

    def share_out(self, samples: int, block_samples: int | None, seed: object) -> Leases:
        """Cut a data set into blocks. Trainer.

        Args:
            samples: how many there are.
            block_samples: in one block; None: so many that each node has about 100 blocks.
            seed: of the order of the samples.

        Raises:
            ConfigError: a number is out of range, or these samples are shared out already.
        """
        homes = len(self._nodes)
        if samples < 1:
            raise ConfigError(f"node {self.name}: a data set of {samples} samples cannot be shared out")
        size = max(1, -(-samples // (_BLOCKS_PER_NODE * homes))) if block_samples is None else block_samples
        if size < 1:
            raise ConfigError(f"block_samples: expected 1 or more, got {size}")
        blocks = -(-samples // size)
        if blocks > MAX_HOME_BLOCKS * homes:
            least = -(-samples // (MAX_HOME_BLOCKS * homes))
            raise ConfigError(
                f"block_samples: {size} would make {blocks} blocks of {samples} samples, at most {MAX_HOME_BLOCKS} per "
                f"node are possible; take {least} or more"
            )
        text = f"{samples}/{size}/{seed}/{','.join(self._nodes)}"
        cut = hashlib.sha256(text.encode()).digest()[:CUT_BYTES]
        if cut in self._leases:
            raise ConfigError(
                f"node {self.name}: a sampler of {samples} samples with this seed is there already; use that one, or "
                "give this one another seed"
            )
        table = LeaseTable(self._nodes, self.name, blocks, self.monotonic_s())
        leases = Leases(self, samples, size, cut, table)
        with self.changed:
            self._leases[cut] = leases
        self.wake()
        return leases

    def wait(self, longest_s: float) -> None:
        """Wait until something has changed. Trainer."""
        if self.pump is not None:
            self.pump()
            return
        with self.changed:
            self.changed.wait(longest_s)

    def close(self) -> None:
        """Let go of the node; whoever waits for a block learns that there will be none."""
        self.check, self.wake, self.pump = self._closed, _nothing, None
        with self.changed:
            self.changed.notify_all()

    def _closed(self) -> None:
        raise NodeClosed(f"node {self.name} is closed, expected running")

    # --- Answers: Rx thread -------------------------------------------------------------------------------------------

    def answer(self, lease: Lease, *, is_peer: bool) -> Message:
        """What is answered to a peer that asks for blocks."""
        leases = self._leases.get(lease.cut)
        if not is_peer or leases is None:
            if is_peer and not self._leases:
                return NotReady(lease.nonce)
            shared = "; ".join(map(str, self._leases.values())) if is_peer else "nothing with nodes of no cluster file"
            return Refused(lease.nonce, f"this node shares out {shared}"[:MAX_TEXT_CHARS])
        table, granted, left = leases.table, tuple[Block, ...](), 1
        with self.changed:
            now_s = self.monotonic_s()
            if table.is_known(lease.node, lease.incarnation):
                is_fresh = table.is_fresh(lease.node, lease.word)
                table.hear(lease.node, lease.incarnation, Word(lease.word, lease.floor, lease.entries), now_s)
                if is_fresh:
                    granted, left = table.grant(lease.node, lease.epoch, lease.want, now_s)
            else:
                self.wake()  # its own answer will say which life it is in
            word = table.word_for(lease.node, now_s)
            self.changed.notify_all()
        return Leased(lease.nonce, self._identity.incarnation, granted, left, *word)

    # --- Questions ----------------------------------------------------------------------------------------------------

    def work(self, client: Client) -> float:
        """Ask what is due.

        Returns:
            When there will be something to ask.

        Raises:
            NodeClosed: the node was closed meanwhile.
        """
        if self._through is not None:
            client = self._through(client)
        due_s = math.inf
        for leases in list(self._leases.values()):
            with self.changed:
                now_s = self.monotonic_s()
                turn = leases.asking.next(leases.epoch, now_s)
                if turn.due_s <= now_s:
                    leases.asking.asks(turn, now_s)
            if turn.due_s <= now_s:
                self._ask(leases, turn, client)
                due_s = now_s
            due_s = min(due_s, turn.due_s)
        return due_s

    def _ask(self, leases: Leases, turn: Turn, client: Client) -> None:
        table, identity = leases.table, self._identity
        with self.changed:
            epoch = leases.epoch or 0
            word, changes = table.word_for(turn.peer, self.monotonic_s()), table.changes
        self._nonce += 1
        lease = Lease(
            self._nonce, identity.run, identity.node, identity.incarnation, leases.cut, epoch, turn.want, *word
        )
        answer: Message | None = None
        with contextlib.suppress(PeerTimeout, PeerUnreachable, RemoteProtocolError, ModelMismatch):
            answer = client.request(turn.peer, lease)
        with self.changed:
            now_s = self.monotonic_s()
            if isinstance(answer, Leased):
                table.hear(turn.peer, answer.incarnation, Word(answer.word, answer.floor, answer.entries), now_s)
                got = table.received(turn.peer, answer.granted, answer.left, epoch) if turn.want else 0
                leases.got += got
                table.was_told(turn.peer, changes)
                leases.asking.answered(turn, epoch, got=got, left=answer.left, now_s=now_s)
                leases.refused_s.pop(turn.peer, None)
            elif isinstance(answer, Busy):
                leases.asking.busy(turn, now_s)
            else:
                leases.asking.failed(turn, now_s, is_idle=isinstance(answer, NotReady))
            self.changed.notify_all()
        if isinstance(answer, Refused):
            self._note_refusal(leases, turn.peer, answer.reason, now_s)

    def _note_refusal(self, leases: Leases, peer: str, reason: str, now_s: float) -> None:
        """Warn, once, of a peer that shares out something else; but not while it may still be making its samplers."""
        since_s = leases.refused_s.setdefault(peer, now_s)
        if since_s + SILENT_S <= now_s < math.inf:
            leases.refused_s[peer] = math.inf
            _logger.warning(
                "node %s: shares no data with %s, which says: %s; this node shares out %s. All nodes must make their "
                "samplers of the same data set, with the same seed and block_samples; both train all of it now",
                self.name,
                peer,
                reason,
                leases,
            )


def _nothing() -> None:
    """Nobody is there to be told, or nothing is wrong."""

"""hivemind as a row of the lab: local steps, and now and then an average with whoever is found.

Processes find each other through hivemind's own hash table, and average in groups that they form anew each time
(`DecentralizedAverager`, hivemind 1.1). Who looks for a group waits until it is complete, or a second; a process that
is slower, or dead, is in no group then. hivemind starts processes of its own beside each worker.

Must not know: data sets, networks. Runs in: the training thread.
"""

from __future__ import annotations

import json
import logging
import os
import time
from asyncio import InvalidStateError
from collections.abc import Iterable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpwa.errors import DpwaError
from dpwa.lab.strategies.collective import allreduce_bytes, averaged_tensors
from dpwa.lab.study.trial import Trial, TrialFolder
from dpwa.lab.training.strategy import Strategy

__all__ = ["HivemindAveraging", "make"]

_logger = logging.getLogger("dpwa")

_PEERS = "hivemind-peers.json"
_START_TIMEOUT_S = 300.0
_POLL_S = 0.02

# hivemind's matchmaking costs at least this, and its documentation asks for seconds over the internet.
_MATCHMAKING_S = 1.0
_REQUEST_TIMEOUT_S = 0.5
_GROUP_TIMEOUT_S = 10.0
_SILENT_PEER_S = 5.0


def make(trial: Trial, rank: int, size: int, folder: TrialFolder) -> Strategy:
    """The strategy of one process.

    Args:
        trial: says how often to average.
        rank: of this process, from 0.
        size: number of processes.
        folder: of the trial; the first process leaves its addresses there.
    """
    return HivemindAveraging(rank, size, folder.path / _PEERS, every_steps=trial.settings.every_steps)


class HivemindAveraging(Strategy):
    """Trains alone on its own samples, and every few steps averages its model with a group of others.

    Floating-point buffers are averaged, too; the optimizer's momentum is not. `bytes_sent` counts an all-reduce among
    those who were in the group.

    Args:
        rank: of this process, from 0.
        size: number of processes.
        peers: a file that does not exist yet, the same for all processes.
        every_steps: of this process, between two averages.
    """

    def __init__(self, rank: int, size: int, peers: Path, *, every_steps: int) -> None:
        self._rank = rank
        self._size = size
        self._peers = peers
        self._every_steps = every_steps
        self._step = 0
        self._asked = 0
        self._done = 0
        self._table: Any = None
        self._averager: Any = None

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """See `Strategy.begin`; connects to the first process.

        Raises:
            DpwaError: that one did not become ready.
        """
        super().begin(model, optimizer)
        import hivemind  # noqa: PLC0415 - in an environment of its own
        from hivemind.averaging.allreduce import AllreduceException  # noqa: PLC0415 - see above
        from hivemind.averaging.matchmaking import MatchmakingException  # noqa: PLC0415 - see above
        from hivemind.p2p import P2PDaemonError, P2PHandlerError  # noqa: PLC0415 - see above

        # A group that was not found or fell apart, a peer that died: what hivemind itself tries again after.
        ended = (AssertionError, StopAsyncIteration, CancelledError, InvalidStateError, TimeoutError)
        self._failures = (AllreduceException, MatchmakingException, P2PDaemonError, P2PHandlerError, *ended)
        self._tensors = averaged_tensors(model)
        self._payload_bytes = sum(tensor.numel() * 4 for tensor in self._tensors)
        self._table = hivemind.DHT(initial_peers=[] if self._rank == 0 else self._addresses(), start=True)
        if self._rank == 0:
            draft = self._peers.with_suffix(".new")
            draft.write_text(json.dumps([str(address) for address in self._table.get_visible_maddrs()]))
            os.replace(draft, self._peers)
        self._averager = hivemind.averaging.DecentralizedAverager(
            [tensor.detach().float().cpu().clone() for tensor in self._tensors],
            self._table,
            start=True,
            prefix="dpwa-lab",
            target_group_size=self._size,
            min_matchmaking_time=_MATCHMAKING_S,
            request_timeout=_REQUEST_TIMEOUT_S,
            next_chunk_timeout=_SILENT_PEER_S,
        )

    def _addresses(self) -> list[str]:
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while not self._peers.exists():
            if time.monotonic() > deadline_s:
                raise DpwaError(f"hivemind: the first process did not start within {_START_TIMEOUT_S:.0f} s")
            time.sleep(_POLL_S)
        found: list[str] = json.loads(self._peers.read_text())
        return found

    def did(self) -> dict[str, float]:
        """See `Strategy.did`."""
        return {**super().did(), "asked": self._asked, "exchanges": self._done}

    def after_step(self, loss: Tensor) -> None:  # noqa: ARG002
        """See `Strategy.after_step`."""
        self._step += 1
        if self._step % self._every_steps == 0:
            self._average()

    def _average(self) -> None:
        self._asked += 1
        with self._averager.get_tensors() as held:
            _copy(held, self._tensors)
        try:
            group = self._averager.step(timeout=_GROUP_TIMEOUT_S, allow_retries=False)
        except self._failures as error:
            _logger.warning("hivemind: an average failed: %r", error)
            return
        if group and len(group) > 1:
            with self._averager.get_tensors() as held:
                _copy(self._tensors, held)
            self.bytes_sent += allreduce_bytes(self._payload_bytes, len(group))
            self._done += 1

    def close(self) -> None:
        """See `Strategy.close`."""
        if self._averager is not None:
            self._averager.shutdown()
        if self._table is not None:
            self._table.shutdown()


@torch.no_grad()
def _copy(to: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    for target, value in zip(to, values, strict=True):
        target.copy_(value)

"""Faults that are injected for experiments: which, when, and a record of each.

The decisions come from seeded random numbers of each node and each kind of fault, so that one more kind does not change
when the others strike. What a decision does to a message is in `dpwa.transport.faulty`.

Must not know: sockets, threads, messages. Runs in: each method says where. A kind is counted in one thread only, which
is why there is no lock.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dpwa.config.faults import FaultOptions
from dpwa.errors import ConfigError
from dpwa.snapshot.layout import Section
from dpwa.transport.lies import Lies

__all__ = ["PARTITION_FILE", "Fate", "Faults", "Lost", "NodeFaults", "SteeredPartition"]

PARTITION_FILE = "partition.json"
"""In the run folder: who is cut off from whom now, and until when, for nodes with `faults: {steered: true}`."""

# How often a node looks whether that has changed.
_LOOK_S = 0.1


class Lost(Enum):
    """Which way of an ask is lost."""

    NEITHER = "neither"
    REQUEST = "request"
    ANSWER = "answer"


@dataclass(frozen=True)
class Fate:
    """What becomes of one ask.

    Attributes:
        delay_s: how late it is.
        lost: which way of it is lost.
        is_duplicated: it is delivered twice.
        is_held: it is delivered after the next one to that peer.
    """

    delay_s: float = 0.0
    lost: Lost = Lost.NEITHER
    is_duplicated: bool = False
    is_held: bool = False


class SteeredPartition:
    """The partition that a file of the run folder asks for. It ends by itself, also when its writer was killed.

    Runs in: `write` and `remove` where the partition is made; `separates` in the thread that makes the exchanges.

    Args:
        run_dir: the run folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / PARTITION_FILE
        self._looked_s = 0.0
        self._read_of = 0
        self._groups: Sequence[Collection[str]] = ()
        self._until_s = 0.0

    def write(self, groups: Sequence[Collection[str]], until_s: float) -> None:
        """Cut these groups of nodes off from each other until a time in Unix seconds.

        Raises:
            OSError: the file cannot be written.
        """
        draft = self._path.with_name(f".{PARTITION_FILE}.{os.getpid()}")
        draft.write_text(json.dumps({"groups": [sorted(group) for group in groups], "until": until_s}))
        draft.replace(self._path)

    def remove(self) -> None:
        """End it now."""
        self._path.unlink(missing_ok=True)

    def separates(self, asker: str, peer: str) -> bool:
        """Whether these two are cut off now."""
        self._look()
        if time.time() >= self._until_s:
            return False
        own = [group for group in self._groups if asker in group]
        return any(peer not in group for group in own) and any(peer in group for group in self._groups)

    def _look(self) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s < _LOOK_S:
            return
        self._looked_s = now_s
        try:
            changed = self._path.stat().st_mtime_ns
            if changed != self._read_of:
                asked = json.loads(self._path.read_text())
                self._groups, self._until_s = [set(group) for group in asked["groups"]], float(asked["until"])
                self._read_of = changed
        except FileNotFoundError:
            self._read_of, self._until_s = 0, 0.0
        except (OSError, ValueError, TypeError, KeyError):
            self._until_s = 0.0  # a file that cannot be read asks for nothing


class Faults:
    """The faults of one node.

    Args:
        options: what is wanted.
        node: its name.
        record: called with each fault, as keywords; from any thread.
        steered: the partition that may be asked for at any time; None: none can.
    """

    def __init__(
        self,
        options: FaultOptions,
        node: str,
        record: Callable[..., None],
        steered: SteeredPartition | None = None,
    ) -> None:
        self.options = options
        self._steered = steered
        self.node = node
        self.step = 0
        """The node's own step; set by the trainer, read by others."""
        self._record = record
        self._counting = threading.Lock()
        self._counts = dict.fromkeys(options.kinds, 0)
        if options.drop > 0:
            self._counts["drop_done"] = 0
        self._rngs = {
            kind: random.Random(f"{options.seed}/{node}/faults/{kind}")  # noqa: S311  (no secret)
            for kind in ("drop", "drop_done", "duplicate", "delay", "reorder")
        }
        self.lies = Lies(options.lies)
        """What peers that lie give instead of their models. In the thread that makes the exchanges."""
        seed = random.Random(f"{options.seed}/{node}/faults/noise").getrandbits(128)  # noqa: S311
        self._noise = np.random.default_rng(seed)

    def happened(self, kind: str, **fields: object) -> None:
        """Count a fault, and put it on record. Any thread."""
        with self._counting:
            self._counts[kind] += 1
        self._record(kind=kind, **fields)

    def counts(self) -> Mapping[str, int]:
        """How many there were of each kind. Any thread."""
        return dict(self._counts)

    # --- Of messages: in the thread that makes the exchanges ------------------------------------------------------

    def separates(self, peer: str) -> bool:
        """Whether a partition cuts off a peer now."""
        if self._steered is not None and self._steered.separates(self.node, peer):
            return True
        return any(partition.separates(self.node, peer, self.step) for partition in self.options.partition)

    def fate(self, *, can_be_held: bool) -> Fate:
        """What becomes of the next ask.

        Args:
            can_be_held: it is a proposal, and none is held for that peer.
        """
        options, delay_s, lost = self.options, self.options.delay_s, Lost.NEITHER
        if self._strikes("drop", options.drop):
            lost = Lost.REQUEST if self._rngs["drop"].random() < 0.5 else Lost.ANSWER
        return Fate(
            delay_s=self._rngs["delay"].uniform(*delay_s) if delay_s is not None else 0.0,
            lost=lost,
            is_duplicated=self._strikes("duplicate", options.duplicate),
            is_held=can_be_held and self._strikes("reorder", options.reorder),
        )

    def loses_done(self) -> bool:
        """Whether a peer's word that it has fetched a proposal is lost on its way here. In the thread that serves."""
        return self._strikes("drop_done", self.options.drop)

    def _strikes(self, kind: str, probability: float) -> bool:
        return probability > 0 and self._rngs[kind].random() < probability

    def disturb(self, section: Section, first: int, values: npt.NDArray[Any]) -> None:
        """Change values that were received, in place: by the lies of their giver, and by noise.

        Args:
            section: what they belong to.
            first: the element of it that they begin with.
            values: float32 or float64, shape (size,). With `relative` the noise is scaled by their root mean square.
        """
        self.lies.distort(section, first, values)
        noise = self.options.noise
        scale = noise.scale
        if scale == 0.0:
            return
        if noise.relative:
            scale *= math.sqrt(float(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0
        drawn = self._noise.standard_normal(values.shape, values.dtype.type)
        drawn *= scale
        values += drawn


class NodeFaults:
    """The faults of a node's own steps: it is slow, or dies.

    Args:
        faults: of the node.
        folder: of the node within the run's; None without a run folder.
        pause: waits so many seconds.
        before_death: makes sure that what is on record is written.

    Raises:
        ConfigError: the node is to be killed, and there is no folder to remember in that it was.
    """

    def __init__(
        self, faults: Faults, *, folder: Path | None, pause: Callable[[float], None], before_death: Callable[[], None]
    ) -> None:
        options = faults.options
        self.faults = faults
        self._folder = folder
        self._pause = pause
        self._before_death = before_death
        self._pause_s = options.slow.get(faults.node, 0.0) / 1000
        self._deaths = {kill.step for kill in options.kill if kill.node == faults.node}
        if self._deaths and folder is None:
            raise ConfigError(
                f"faults.kill: node {faults.node} kills itself once per run, which needs a run folder to remember it "
                "in; start it with `dpwa launch`, or set DPWA_RUN_DIR"
            )

    def begin_step(self, step: int) -> None:
        """Let happen what is due in a step. Trainer."""
        self.faults.step = step
        if self._pause_s > 0:
            self.faults.happened("slow", waited_s=self._pause_s)
            self._pause(self._pause_s)
        if step in self._deaths and self._folder is not None:
            mark = self._folder / f"killed-in-step-{step}"
            if not mark.exists():
                self._folder.mkdir(parents=True, exist_ok=True)
                mark.touch()
                self.faults.happened("kill")
                self._before_death()
                os.kill(os.getpid(), signal.SIGKILL)

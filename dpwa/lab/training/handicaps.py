"""A node that is slow, and a node that is killed: the same for every strategy, with or without dpwa.

Runs in: the training thread.
"""

from __future__ import annotations

import os
import signal
import time

from dpwa.lab.study.settings import Settings

__all__ = ["Handicap", "restarts", "shares_of_work"]


def restarts() -> int:
    """How often torchrun has started this process anew: 0 in its first life, and where nobody does so."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


class Handicap:
    """What is wrong with one process; for most, nothing.

    Args:
        settings: of the trial.
        number: of the node, from 1.
        crowding: processes per core: with two, a step takes twice as long as it computes.
        life: how often this process has been started anew: it is killed in its first life only.
    """

    def __init__(self, settings: Settings, number: int, crowding: float, life: int = 0) -> None:
        slow, kill = settings.slow, settings.kill
        self._factor = slow.factor if slow is not None and slow.node == number else 1.0
        self._dies_at = kill.at if kill is not None and kill.node == number and life == 0 else None
        self._crowding = max(1.0, crowding)
        self._computed_s = 0.0

    def begin(self) -> None:
        """Called before the first step: the time computed until now does not count."""
        self._computed_s = time.thread_time()

    def after_step(self) -> None:
        """Slows this process down. Only computing becomes slower, not waiting."""
        if self._factor > 1.0:
            now_s = time.thread_time()
            time.sleep((self._factor - 1.0) * (now_s - self._computed_s) * self._crowding)
            self._computed_s = now_s

    def is_due(self, done: float) -> bool:
        """Whether this process is to be killed now.

        Args:
            done: the share of the training that is done.
        """
        return self._dies_at is not None and done >= self._dies_at

    @staticmethod
    def kill() -> None:
        """Ends this process without a word to anybody."""
        os.kill(os.getpid(), signal.SIGKILL)


def shares_of_work(settings: Settings, *, waits: bool) -> list[float]:
    """Steps of each node, as a multiple of its steps among equal nodes.

    Nodes that wait for each other make the same number of steps, and so do all if the slow one keeps its work. With the
    sampler the training itself shows who makes how many. Otherwise each does what it can in the same time: its share of
    the work is proportional to its speed.

    Args:
        settings: of the trial.
        waits: whether the nodes wait for each other.

    Returns:
        One number per node, with mean 1.
    """
    slow = settings.slow
    if waits or slow is None or slow.keeps_work or settings.sampler:
        return [1.0] * settings.nodes
    speeds = [1 / slow.factor if number == slow.node else 1.0 for number in range(1, settings.nodes + 1)]
    return [speed * settings.nodes / sum(speeds) for speed in speeds]

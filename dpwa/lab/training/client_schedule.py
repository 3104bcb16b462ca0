"""Which clients of fedavg and fedprox train in which round.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data", arXiv 1602.05629,
algorithm 1. All processes compute the same rounds from the same seed, so they need not agree on them.

Runs in: any thread; pure.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from dpwa.lab.study.settings import Settings

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """Which clients train in which round.

    Attributes:
        clients: number of clients.
        per_round: how many of them train in each round.
        rounds: number of rounds; the first is 1.
        local_epochs: epochs of a client per round.
        seed: for the choice.
    """

    clients: int
    per_round: int
    rounds: int
    local_epochs: int
    seed: int

    @classmethod
    def of(cls, settings: Settings, seed: int) -> Schedule:
        """The rounds in which all clients together see as many samples as in `n_epochs` passes over the data.

        That is exact to half a round, for shards of equal size; there is at least one round.
        """
        per_round = max(1, _nearest(settings.client_fraction * settings.nodes))
        rounds = max(1, _nearest(settings.n_epochs * settings.nodes / (per_round * settings.local_epochs)))
        return cls(settings.nodes, per_round, rounds, settings.local_epochs, seed)

    def chosen(self, round_: int) -> tuple[int, ...]:
        """The clients that train in a round, as numbers from 0 upwards."""
        rng = random.Random(f"{self.seed}/clients/{round_}")  # noqa: S311  (no secret)
        return tuple(sorted(rng.sample(range(self.clients), self.per_round)))

    def rounds_of(self, client: int) -> tuple[int, ...]:
        """The rounds in which a client trains, possibly none."""
        return tuple(round_ for round_ in range(1, self.rounds + 1) if client in self.chosen(round_))

    def epochs_of(self, client: int) -> int:
        """How many epochs a client trains in all its rounds."""
        return self.local_epochs * len(self.rounds_of(client))


def _nearest(number: float) -> int:
    return int(number + 0.5)  # `round` would take 2.5 for 2

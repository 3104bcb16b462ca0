"""What an averaging method is: when a node exchanges, with whom, what it gives away, and how it applies what comes.

A method is one class. The node asks it at each step boundary, always in the trainer's thread; transport, threads and
bookkeeping of messages are the node's. docs/methods.md has a worked example of a custom one.

Must not know: time; random numbers are passed in. Runs in: the trainer's thread, but for
`statistics`, which any thread may call.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from dpwa.methods.exchange import ExchangeKind, ExchangeResult, Plan
from dpwa.options import Options
from dpwa.schedule import Schedule, value_at
from dpwa.snapshot.state import MAX_COUNTER, MAX_MASS, State
from dpwa.topology.neighbourhood import Neighbourhood

if TYPE_CHECKING:  # numpy: the cluster file's keys come from the methods, and a launcher that reads it does not need it
    from dpwa.snapshot.layout import Buffer, Layout, Section

__all__ = ["Conservation", "ExchangeKind", "ExchangeResult", "Method", "Plan"]


class Conservation(str, Enum):
    """What a method promises, with correct links and without."""

    ROW = "row-stochastic"
    """The nodes come to agree, at some weighted average of where they began."""
    COLUMN = "column-stochastic"
    """The sum of all masses, and of the models weighted by them, is conserved: also when messages are lost, repeated
    or late."""
    DOUBLY = "doubly stochastic"
    """The mean of all models is conserved by every exchange."""


class Method(ABC):
    """An averaging method, as one node runs it.

    Args of every method's constructor: `links` (whom the node may exchange with), `count` (nodes in the cluster),
    `probability` (the config's `pull_probability`: of an exchange in a step), and the method's own options by keyword.
    Where the config has a schedule, the constructor gets its first value, and the attribute follows it from then on.
    """

    # --- What a method declares; the config, `dpwa check`, the lab and the tables of the docs read it --------------

    name: ClassVar[str] = ""
    """Its word in the cluster file; a custom method has none, it is written as "module:Class"."""
    summary: ClassVar[str] = "a custom method"
    """What it does, in one line."""
    description: ClassVar[str] = "a custom one; a step begins an exchange {often}"
    """What a step does and what that conserves, as `dpwa check` prints it: `{options.key}` is the value of an option,
    `{often}` the probability of an exchange, `{wait}` how long a step waits for the answer."""
    options: ClassVar[type[Options] | None] = None
    """Its section in the cluster file, and the keyword arguments of its constructor; None: it has no options."""
    uses_interpolation: ClassVar[bool] = False
    """Whether the config's interpolation decides the factor."""
    uses_probability: ClassVar[bool] = True
    """Whether `pull_probability` decides when an exchange begins."""
    best_probability: ClassVar[float] = 1.0
    """The highest `pull_probability` at which the method trains well; `dpwa check` warns of a higher one, also if it is
    one of a schedule."""
    exchanges_slices: ClassVar[bool] = False
    """Whether an exchange may carry a share of the parameters: the config's `pull_fraction`."""

    follows_members: ClassVar[bool] = False
    """Whether the method bears that nodes come and go (the config's `join`): it exchanges with any peer there is, and
    needs neither fixed neighbours nor the number of nodes."""
    blends_by_rows: ClassVar[bool] = False
    """Whether the rows of the topology's matrix are the weights of the blend, and so must sum to 1."""

    kind: ClassVar[ExchangeKind]
    conservation: ClassVar[Conservation]
    repays: ClassVar[bool] = True
    """Whether this node's half of a PAIR may be applied much later than it was made, if the peer had vanished."""
    heeds_age: ClassVar[bool] = True
    """Whether the model of a node that was started again and knows nothing is kept out of averages, and replaced by a
    trained one. False for a method that itself says who gets whose model."""
    fraction = 1.0
    """Share of the parameters in an exchange; for the kinds PULL and PAIR."""
    clock = 0.0
    """Of this node's model, in updates; the node sets it at each step boundary, before it asks for a plan."""
    speed = 1.0
    """How fast this node trains, as a share of the fastest one's speed: 1 for the fastest, never below 1/16. The node
    sets it where the method asks for that."""
    follows_speed_over: int | None = None
    """A method that uses `speed` says here over how many steps of the fastest node; None: it does not use it."""

    @classmethod
    def variant(cls, options: Options | None) -> type[Method]:  # noqa: ARG003
        """The class that runs with these options: this one, unless its options choose between several."""
        return cls

    def __init__(self, links: Neighbourhood, count: int, probability: float) -> None:
        self.links = links
        self.count = count
        self.probability = probability
        self.round = 0
        """Step boundaries that the node has been through; a joining node takes over that of its peer."""

    # --- How often ------------------------------------------------------------------------------------------------

    @property
    def probability(self) -> float:
        """Of an exchange in a step: the config's `pull_probability`, where it is a schedule at the present clock."""
        return value_at(self._probability, self.clock)

    @probability.setter
    def probability(self, probability: float | Schedule) -> None:
        self._probability = probability

    @property
    def exchanges_per_step(self) -> float:
        """How many exchanges this node asks for in a step, on average and at the present clock.

        That is while nothing is in the way: none is under way, and nobody is busy or gone. What a run really makes is
        less by as much as exchanges last longer than steps.
        """
        return self.probability if self.uses_probability else 1.0

    # --- What the node asks at each step boundary -----------------------------------------------------------------

    @property
    def mass(self) -> float:
        """Weight of this node's model, published with each snapshot; 0 for methods without."""
        return 0.0

    @property
    def total_mass(self) -> float:
        """What the masses of all nodes sum up to, while no node was started again; a push never carries more."""
        return MAX_MASS

    @property
    def pair_rounds(self) -> tuple[int, int] | None:
        """The lowest and highest round of peers whose proposal of a pair is welcome now; None: nobody's is."""
        return (0, MAX_COUNTER)

    @property
    def wants_snapshot(self) -> bool:
        """Whether this step takes a snapshot, although nobody may have asked for one."""
        return False

    def advance(self) -> None:
        """A training step was made."""
        self.round = min(self.round + 1, MAX_COUNTER)

    @abstractmethod
    def plan(self, rng: random.Random) -> Plan | None:
        """The exchange to begin now, or None. Not asked while one is under way."""

    @abstractmethod
    def blend(self, result: ExchangeResult, own_state: State) -> float:
        """The factor by which values that came are applied: those of this node's plan, or of a peer's push or pair.

        `model += factor * difference`, or the share `factor` of the way to a value. The values may be changed in place
        before.

        Args:
            result: what came; its outcome is `BLENDED`.
            own_state: of this node's model now.
        """

    def refused(self, *, by_peers: bool) -> None:
        """The pair or pull that was planned last came to nothing, and no failure is to blame.

        Args:
            by_peers: those that were asked take part in another pair, which has cost messages and a snapshot, or have
                nothing new to pull; False: this node itself takes part in a pair, and nobody was asked.
        """

    def pass_on(self) -> Plan | None:
        """The push by which a node that has finished passes on what it was given; None: it keeps that.

        Asked for each push that it takes while peers train, and again after a plan whose peers have all finished. What
        stays with those that train no longer is lost to those that do.
        """
        return None

    def gave(self, mass: float) -> None:
        """A push with this mass is on its way: the node no longer has it."""

    def took_back(self, mass: float) -> float:  # noqa: ARG002
        """A push has failed, or was never taken: the mass is the node's again.

        Returns:
            The share of the way that this node's model goes back to what was given away: what comes back is that
            model, and not what this node's has become since.
        """
        return 0.0

    def delivered(self, mass: float) -> None:
        """A push was taken."""

    def lost(self, mass: float) -> None:
        """A push went to a peer that vanished with it, or may have."""

    def joined(self, peer: State, *, takes_over: bool) -> None:
        """The node has joined, or has taken over a peer's model: once or more often in its life.

        Args:
            peer: state of the peer that it joined by.
            takes_over: the peer was far ahead, and its model was taken over whole.
        """
        if takes_over:
            self.round = max(self.round, peer.round)

    def resumed_together(self) -> None:
        """All nodes of the cluster go on from checkpoints, which are of different moments; this one's is loaded."""

    def close(self) -> None:
        """The node has ended: let go of arrays as large as the model. `statistics` is still asked for."""

    # --- Own arrays: an anchor, a momentum … --------------------------------------------------------------------------

    def extend(self, layout: Layout) -> Layout:
        """The layout that is exchanged: the model's own, and behind it what else the method sends."""
        return layout

    def fill(self, own: Buffer, rest: Buffer, sections: tuple[Section, ...]) -> None:
        """Write the tensors that `extend` added.

        Args:
            own: the snapshot's part with the model, which has just been copied.
            rest: what follows, to be written.
            sections: of the added tensors; their positions count from the begin of `own`.
        """

    @property
    def corrects_steps(self) -> bool:
        """Whether `correction` may answer; a model in half precision is refused then, before anything starts."""
        return False

    def correction(self) -> float | None:
        """By how much the last training step went too far, as the share of the way back; None for right.

        Negative: not far enough. Asked before anything is blended; measured from the last snapshot, so that
        `wants_snapshot` must be True in every step.
        """
        return None

    # --- What people and checkpoints see --------------------------------------------------------------------------

    def statistics(self) -> Mapping[str, float]:
        """Numbers of the method, for `statistics()` and the journal."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep: numbers and arrays."""
        return {"round": self.round}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ConfigError: it is of another method, or damaged.
        """
        self.round = int(state["round"])

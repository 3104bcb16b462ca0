"""Which exchange begins at a step boundary: the method's, that of a node that joins, or that of one that has finished.

Must not know: snapshots, the model. Runs in: the trainer's thread.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

from dpwa.config.cluster import ClusterConfig
from dpwa.exchange.intake import Intake
from dpwa.exchange.membership import Membership
from dpwa.exchange.service import Service
from dpwa.methods.base import Method
from dpwa.methods.checked import plan_of, plan_to_pass_on
from dpwa.methods.exchange import ExchangeKind, Plan
from dpwa.node.farewell import BETWEEN_ASKS_S, Farewell
from dpwa.node.joining import Joining

__all__ = ["Planner"]


class Planner:
    """Plans the exchanges of one node.

    Args:
        config: the cluster.
        name: the node.
        intake: how much the node takes in.
        method: the averaging method.
        service: says what the peers are told.
        membership: who they are.
        joining: whether the node still needs a model of theirs.
        farewell: whom a node that has finished may ask.
        monotonic_s: the clock.
        engage: keeps peers' pairs out until this node's exchange has ended; False while it takes part in one.
    """

    def __init__(
        self,
        config: ClusterConfig,
        name: str,
        *,
        intake: Intake,
        method: Method,
        service: Service,
        membership: Membership,
        joining: Joining,
        farewell: Farewell,
        monotonic_s: Callable[[], float],
        engage: Callable[[], bool],
    ) -> None:
        self._method = method
        self._service = service
        self._joining = joining
        self._farewell = farewell
        self._monotonic_s = monotonic_s
        self._engage = engage
        self._membership = membership
        self._rng = random.Random(f"{config.seed}/{name}/pull")  # noqa: S311  (no secret)
        self._intake = intake
        self._to_pass_on = 0  # pushes that this node has taken since it has finished, and not passed on yet
        self._pass_on_from_s = -math.inf
        self._has_passed_on = False  # at the last turn

    def close(self) -> None:
        """Let go of the node."""
        self._engage = _never

    def next_plan(self, clock: float, *, in_flight: bool) -> Plan | None:
        """The exchange to begin at this step boundary; None for none.

        Args:
            clock: of the model.
            in_flight: whether one is still under way.
        """
        self._method.clock = clock
        pair_rounds = self._method.pair_rounds
        if pair_rounds != self._service.serving.pair_rounds:
            self._service.tell(pair_rounds=pair_rounds)
        if in_flight or not self._membership.peers:
            return None
        if self._joining.is_on:
            # What a pair has come to must not be in the staging that the pull fills, nor the pull in a pair's snapshot.
            return self._joining.plan() if self._method.kind is not ExchangeKind.PAIR or self._engage() else None
        if self._service.serving.finished:
            return self._plan_of_the_end()
        plan = plan_of(self._method, self._rng, self._membership.peers)
        plan = None if plan is None else self._within_budget(plan)
        if plan is not None and plan.kind is ExchangeKind.PAIR and not self._engage():
            self._method.refused(by_peers=False)
            return None
        return plan

    def took_pushes(self, count: int) -> None:
        """So many pushes of peers were blended."""
        if self._service.serving.finished:
            self._to_pass_on = min(self._to_pass_on + count, len(self._membership.peers))

    def came_back(self) -> None:
        """A push of this node was not taken. One that passed something on is made again, after a pause."""
        if self._service.serving.finished:
            self.took_pushes(1)
            self._pass_on_from_s = self._monotonic_s() + BETWEEN_ASKS_S

    def keep_all(self) -> None:
        """Nothing that this node has taken is passed on any more: its model is let be, or trains on."""
        self._to_pass_on = 0

    @property
    def has_to_pass_on(self) -> bool:
        """Whether this node has finished, and has taken a push that a peer that trains should have by now."""
        now_s = self._monotonic_s()
        is_due = self._to_pass_on > 0 and now_s >= self._pass_on_from_s and not self._joining.is_on
        return is_due and bool(self._farewell.waited_for(now_s))

    def _plan_to_pass_on(self) -> Plan | None:
        """A push to a peer that trains, or to one that passes it on if none of the method's neighbours trains."""
        if not self.has_to_pass_on:
            return None
        self._to_pass_on -= 1
        training = dict.fromkeys(self._farewell.waited_for(self._monotonic_s()), 1.0)
        plans = []
        for _ in self._membership.peers:  # where each round has its own neighbours, one round after the other
            plan = plan_to_pass_on(self._method, self._membership.peers)
            if plan is None or plan.peers is None:
                return plan and replace(plan, peers=training)
            peers = {peer: weight for peer, weight in plan.peers.items() if peer in training}
            if peers:
                return replace(plan, peers=peers)
            plans.append(plan)
        # By a fixed choice it could go round among those that have finished, for ever.
        return self._rng.choice(plans) if plans else None

    def _plan_of_the_end(self) -> Plan | None:
        """What a node that has finished begins: pulls, and a push for a push.

        It only asks beyond its budget, before a merge, and where it never pulls.
        """
        # Asks have every other turn: they tell who is silent, however many push.
        plan = None if self._has_passed_on else self._plan_to_pass_on()
        self._has_passed_on = plan is not None
        if plan is not None:
            return plan
        if not self._farewell.may_ask(self._monotonic_s()):
            return None
        peers = dict.fromkeys(self._farewell.to_tell, 1.0) or None
        is_pull = self._method.kind is ExchangeKind.PULL and self._method.exchanges_per_step > 0
        # Pulls conserve no mean: for the merge, each node keeps the model that its training ended with.
        is_pull = is_pull and not self._service.serving.merges
        pull = self._within_budget(Plan(ExchangeKind.PULL, peers=peers)) if is_pull else None
        return pull or Plan(None, peers=peers)

    def _within_budget(self, plan: Plan) -> Plan | None:
        step_interval_s = self._service.serving.step_interval_s
        if plan.kind is ExchangeKind.PUSH:
            return plan  # brings nothing; its peer takes it when it can
        if plan.kind is ExchangeKind.GATHER:
            return plan if self._intake.has_turn(self._method.round, step_interval_s) else None
        fraction = self._intake.next_fraction(step_interval_s)
        return None if fraction is None else replace(plan, fraction=min(fraction, plan.fraction))


def _never() -> bool:
    """The node is closed."""
    return False

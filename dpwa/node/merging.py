"""The merge at the end: all nodes that are there end with one model, the mean of their last ones.

A node that has finished pulls no more, because pulls conserve no mean. Once it waits for nobody any more it lets its
model be: it is *final*. The first node of the cluster file that is there fetches the final models of all others,
averages them, and serves the mean as its newest snapshot; the others take it over. When that node vanishes, the next
one has its turn. Nobody is asked who leads: each node judges by itself who is there. Two of them may so come to two
means. Each says which one it holds, the one of more models wins (of two of as many the one with the larger id), and
nobody leaves before all that are there hold the same.

Must not know: sockets, files. Runs in: the trainer's thread.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence

from dpwa.exchange.context import ExchangeContext
from dpwa.exchange.service import Service
from dpwa.methods.base import ExchangeKind, Method
from dpwa.methods.checked import mass_and_round
from dpwa.methods.exchange import ExchangeRequest, ExchangeResult, Outcome, Plan
from dpwa.node.extended_model import ExtendedModel
from dpwa.node.farewell import BETWEEN_ASKS_S, PACE, STANDSTILL_S, Farewell
from dpwa.node.last_models import LastModels
from dpwa.node.publishing import SnapshotPublisher, Taken
from dpwa.snapshot.state import UNMARKED, Mark, MergeStage, State
from dpwa.transport.interface import Transport

__all__ = ["Merging"]

_logger = logging.getLogger("dpwa")

# One failure to reach a peer that has finished may be an accident; so many, over so long, are none.
_SURE_TRIES = 2
_SURE_S = 0.5

# Pulls of one peer's model that may fail before the merge goes on without it, and the pause after each.
_TRIES = 3
_PAUSE_S = 0.1

# Of one peer so many merged models are taken at most: an honest one has a second after a split, hardly ever a third.
_MOST_ADOPTED = 3

# A peer that waits for another one, and not for its own trainer, may stand still so many times as long.
_WAITING = 2.0

_FINAL = Mark(MergeStage.FINAL)


class Merging:
    """The merge of one node.

    Args:
        node: its name.
        order: names of all nodes, in the order of the cluster file; empty where nodes come and go: then that of their
            names.
        model: the model.
        method: the averaging method.
        context: of the node's exchanges.
        service: says how far this node is.
        publisher: takes the snapshots.
        transport: makes the exchanges.
        farewell: knows who is silent.
        replaced: called when the model has been replaced.
        event: writes a line of the journal.
        serves: whether other nodes can fetch this one's model; if not, it cannot take part.
    """

    def __init__(
        self,
        node: str,
        order: Sequence[str],
        *,
        serves: bool,
        model: ExtendedModel,
        method: Method,
        context: ExchangeContext,
        service: Service,
        publisher: SnapshotPublisher,
        transport: Transport,
        farewell: Farewell,
        replaced: Callable[[], None],
        event: Callable[..., None],
    ) -> None:
        self.is_on = False
        """Whether this node takes part, from the begin of `finish` to the next training step."""
        self.held = UNMARKED
        """The mark of the merged model that this node has."""
        self._node = node
        self._order = tuple(order)
        self._model = model
        self._method = method
        self._membership = context.membership
        self._standing = context.standing
        self._staging = context.stagings[0]
        self._monotonic_s = context.monotonic_s
        self._incarnation = context.fetcher.identity.incarnation
        self._service = service
        self._publisher = publisher
        self._transport = transport
        self._farewell = farewell
        self._replaced = replaced
        self._event = event
        self._serves = serves
        self._begin_anew()

    @property
    def _peers(self) -> Sequence[str]:
        if not self._order:
            return sorted(self._membership.peers)
        return [name for name in self._order if name != self._node]

    @property
    def _before(self) -> Sequence[str]:
        """The nodes whose turn to average comes before this one's."""
        if not self._order:
            return [name for name in self._peers if name < self._node]
        return self._order[: self._order.index(self._node)]

    def _begin_anew(self) -> None:
        self.held = UNMARKED
        self._final: Taken | None = None
        self._published = UNMARKED  # the mark of the newest snapshot
        self._copying: Taken | None = None
        self._gathering: LastModels | None = None
        self._heard: set[str] = set()  # peers that have said how far they are since this node must know it
        self._was_first = False
        self._gone: dict[str, tuple[float, int]] = {}  # since when, and how often in a row a peer could not be reached
        self._seen: dict[str, tuple[Mark, float]] = {}  # how far each peer is, and since when
        self._foreign: set[str] = set()  # peers that train another model, or in another run
        self._refused: set[str] = set()  # peers whose final or merged models were refused
        self._tries: dict[str, tuple[float, int]] = {}  # pulls of each peer: when the first began, how many failed
        self._adopted: Counter[str] = Counter()
        self._frozen_s = self._moved_s = self._next_s = 0.0
        self._asked = 0
        self._is_alone = False  # what this node holds is its own model
        self._problem = ""

    def begin(self) -> None:
        """The training has ended: this node will take part."""
        if self._peers and not self.is_on:
            self._begin_anew()
            if not self._serves:
                self._problem = "no other node can fetch it (serve: false)"
                return
            self.is_on = True
            self._service.tell(merges=True, fetched=0)

    def stop(self) -> None:
        """The training goes on."""
        if self.is_on:
            self.is_on = False
            self._begin_anew()
            self._service.tell(merges=False)

    def close(self) -> None:
        """Let go of the snapshots, and of the node."""
        self.is_on, self._final, self._copying, self._gathering = False, None, None, None
        self._event, self._replaced = _ignore, _nothing

    @property
    def is_frozen(self) -> bool:
        """Whether nothing but the merge changes the model."""
        return self._final is not None

    def freeze(self, step: int) -> None:
        """Let the model be, and serve it as final. Tried again at the next turn if no buffer is free."""
        now_s = self._monotonic_s()
        mass, round_ = mass_and_round(self._method)
        own = self._standing.own
        self._standing.own = State(own.loss, own.clock, mass, round_, own.lineage)
        self._publish(_FINAL, step)
        self._frozen_s = self._moved_s = now_s

    def _publish(self, mark: Mark, step: int) -> Taken | None:
        """Serve the model with a mark; None if no buffer is free."""
        now_s = self._monotonic_s()
        taken = self._publisher.take(step=step, taken_s=now_s, state=self._standing.own, mark=mark)
        if taken is None:
            return None
        self._published, self._final = mark, taken
        snapshot = taken.snapshot

        def hand_out() -> None:
            self._publisher.hand_out(snapshot)
            self._transport.published()

        if taken.ready is None:
            hand_out()
        else:
            self._copying = taken
            self._transport.defer(taken.complete, hand_out)
        return taken

    # --- Who is there -------------------------------------------------------------------------------------------------

    def note(self, result: ExchangeResult) -> None:
        """Note what the end of an exchange says of a peer."""
        peer, outcome, now_s = result.peer, result.outcome, self._monotonic_s()
        if peer is None or not self.is_on:
            return
        if outcome is Outcome.GONE:
            since_s, times = self._gone.get(peer, (now_s, 0))
            self._gone[peer] = (since_s, times + 1)
        elif outcome in (Outcome.MISMATCH, Outcome.REFUSED):
            self._foreign.add(peer)
        elif outcome is Outcome.REJECTED and result.request is not None and result.request.merging:
            self._refused.add(peer)  # nobody waits for it, nor takes its mean
        elif not outcome.is_failure:
            self._gone.pop(peer, None)
        mark = self._membership[peer].mark
        if self._seen.get(peer, (None, 0.0))[0] != mark:
            self._seen[peer] = (mark, now_s)
        if self._membership[peer].finished and (outcome is Outcome.TOLD or outcome.has_snapshot):
            self._heard.add(peer)  # not by a snapshot of its training, which takes part in no merge yet

    def _is_there(self, peer: str, now_s: float) -> bool:
        """Whether a peer has finished, and can still do something for the merge, or wait for it."""
        if (
            not self._membership[peer].finished
            or peer in self._foreign | self._refused
            or self._farewell.is_silent(peer, now_s)
        ):
            return False
        since_s, times = self._gone.get(peer, (now_s, 0))
        if times >= _SURE_TRIES and now_s - since_s >= _SURE_S:
            return False
        mark, seen_s = self._seen.get(peer, (UNMARKED, self._frozen_s))
        waits = mark.stage is not MergeStage.COMING
        return now_s - max(seen_s, self._moved_s) < STANDSTILL_S * (_WAITING if waits else 1.0)

    def _takes_part(self, peer: str) -> bool:
        """Whether a peer that is there takes part, as far as is known."""
        return peer not in self._heard or self._mark(peer).stage is not MergeStage.APART

    def _agrees(self, peer: str) -> bool:
        """Whether a peer that takes part has nothing to wait for, nor this node for it."""
        return self._mark(peer) == self.held or self._adopted[peer] >= _MOST_ADOPTED

    def _mark(self, peer: str) -> Mark:
        """How far a peer is; what it cannot hold does not count."""
        mark = self._membership[peer].mark
        return UNMARKED if mark.models > len(self._peers) + 1 else mark

    def _may_pull(self, peer: str, now_s: float) -> bool:
        since_s, failures = self._tries.get(peer, (now_s, 0))
        return failures < _TRIES and now_s - since_s < STANDSTILL_S

    # --- What is to be done -------------------------------------------------------------------------------------------

    def turn(self, step: int) -> ExchangeRequest | None:
        """Do what is due, and return the exchange to begin, if there is one. Not called while one is under way."""
        now_s = self._monotonic_s()
        if self._copying is not None and not self._copying.is_complete.is_set():
            return None
        self._copying = None
        if self.held not in (UNMARKED, self._published):
            self._publish(self.held, step)
            return None
        if now_s < self._next_s or self._problem:
            return None
        there = [peer for peer in self._peers if self._is_there(peer, now_s) and self._takes_part(peer)]
        better = self._better(there)
        if better:
            return self._pull_of_better(better, now_s)
        if self.held is not UNMARKED:
            return self._ask([peer for peer in there if not self._agrees(peer)], now_s)
        if not self._is_first(there):
            return self._ask(there, now_s)
        unknown = [peer for peer in there if peer not in self._heard or self._mark(peer).stage < MergeStage.FINAL]
        return self._ask(unknown, now_s) if unknown else self._gather(there, now_s)

    def _better(self, there: Sequence[str]) -> list[str]:
        """Peers that hold what this node is to have."""
        marks = {peer: self._mark(peer) for peer in there if self._adopted[peer] < _MOST_ADOPTED}
        best = self.held
        for mark in marks.values():
            best = mark if mark.beats(best) else best
        return [] if best is self.held else [peer for peer, mark in marks.items() if mark == best]

    def _pull_of_better(self, holders: Sequence[str], now_s: float) -> ExchangeRequest | None:
        able = [peer for peer in holders if self._may_pull(peer, now_s)]
        if able:
            # Not all of them fetch it from the same one.
            return self._pull(able[len(self._before) % len(able)], now_s)
        self._problem = f"it could not be fetched from {', '.join(holders[:8])}"
        return None

    def _is_first(self, there: Sequence[str]) -> bool:
        """Whether it is this node's turn to average. What was heard before it was may be out of date."""
        is_first = not any(peer in there for peer in self._before)
        if is_first and not self._was_first:
            self._heard.clear()
        self._was_first = is_first
        return is_first

    def _ask(self, peers: Sequence[str], now_s: float) -> ExchangeRequest | None:
        """Ask one of them how far it is, each in turn, and each about twice a second after a while."""
        if not peers:
            return None
        self._asked += 1
        self._next_s = now_s + min(BETWEEN_ASKS_S, PACE * (now_s - self._frozen_s)) / len(peers)
        return self.word_to([peers[self._asked % len(peers)]])

    def word_to(self, peers: Sequence[str]) -> ExchangeRequest | None:
        """A word to one of these peers that this node has finished, to any if there are none."""
        if self._final is None:
            return None
        plan = Plan(None, peers=dict.fromkeys(peers, 1.0) or None)
        return ExchangeRequest(plan, self._final.snapshot, finished=True)

    def _pull(self, peer: str, now_s: float) -> ExchangeRequest | None:
        if self._final is None:
            return None
        self._tries.setdefault(peer, (now_s, 0))
        plan = Plan(ExchangeKind.PULL, peers={peer: 1.0})
        return ExchangeRequest(plan, self._final.snapshot, finished=True, merging=True)

    # --- What comes ---------------------------------------------------------------------------------------------------

    def take(self, result: ExchangeResult) -> None:
        """Take a final or merged model that was pulled, or note that it did not come."""
        peer, now_s = result.peer, self._monotonic_s()
        if peer is None or not self.is_on:
            self._next_s = now_s + _PAUSE_S
        elif result.outcome is Outcome.BLENDED and self._is_of_use(peer, result):
            self._tries.pop(peer, None)
            self._moved_s = now_s
        else:
            self._next_s = now_s + _PAUSE_S
            since_s, failures = self._tries.get(peer, (now_s, 0))
            is_failure = result.outcome is Outcome.BLENDED or result.outcome.is_failure
            self._tries[peer] = (since_s, _TRIES if result.outcome is Outcome.REJECTED else failures + is_failure)

    def _is_of_use(self, peer: str, result: ExchangeResult) -> bool:
        """Do with a model what is to be done with it; False if that is nothing."""
        gathering, mark = self._gathering, result.mark
        if mark.beats(self.held) and mark.models <= len(self._peers) + 1 and self._adopted[peer] < _MOST_ADOPTED:
            self._adopted[peer] += 1
            self._is_alone = False
            self._model.blend(result.values, 1.0)
            self._hold(mark, result.peer_state, source=peer)
            return True
        if gathering is None or mark.stage is not MergeStage.FINAL:
            return False
        if not gathering.add(peer, self._membership[peer].incarnation or b"", result):
            self._gathering = gathering = gathering.restarted(result.peer_state)
        self._service.tell(fetched=len(gathering.done))
        return True

    def _hold(self, mark: Mark, state: State, **about: object) -> None:
        """This node's model is a merged one by now."""
        own = self._standing.own
        self._standing.own = State(own.loss, state.clock, own.mass, own.round, state.lineage)
        # Masses stay: all have one model, whatever its weight is where. What a method keeps beside it begins anew.
        self._method.joined(state, takes_over=False)
        self._replaced()
        self.held, self._gathering, self._moved_s = mark, None, self._monotonic_s()
        self._event("merge", models=mark.models, merge_id=mark.merge_id.hex(), clock=state.clock, **about)

    # --- Averaging ----------------------------------------------------------------------------------------------------

    def _gather(self, there: Sequence[str], now_s: float) -> ExchangeRequest | None:
        """Fetch the next final model, or average those that have come."""
        final = self._final
        if final is None:
            return None
        if self._gathering is None:
            final.wait()
            relation = self._standing.relation
            self._gathering = LastModels(self._node, self._incarnation, final, self._model, self._method, relation)
        gathering = self._gathering
        missing = [peer for peer in there if peer not in gathering.done and self._may_pull(peer, now_s)]
        if missing:
            return self._pull(missing[0], now_s)
        if gathering.is_weightless:
            self._gathering = gathering.restarted(None)
        elif not gathering.names:
            self._problem = "no node has a model whose values and loss are finite"
        elif gathering.names != [self._node] and not gathering.write(self._staging, self._model):
            self._problem = "the mean of the models is not finite"
        else:
            self._is_alone = gathering.names == [self._node]
            self._hold(gathering.mark, gathering.state, of=gathering.names)
        return None

    # --- The end ------------------------------------------------------------------------------------------------------

    def is_over(self) -> bool:
        """Whether this node has what it can have, and nobody who is there waits for it."""
        if not self.is_on or self._problem:
            return True
        if self.held is UNMARKED or self._published != self.held or self._copying is not None:
            return False
        now_s = self._monotonic_s()
        there = [peer for peer in self._peers if self._is_there(peer, now_s) and self._takes_part(peer)]
        return all(map(self._agrees, there)) and not self._better(there)

    def end(self) -> bool:
        """Say in the log and the journal if this node has no merged model.

        Returns:
            Whether it has one: the mean of its own model and of others, or of others alone.
        """
        if not (self.is_on or self._problem) or (
            self.held is not UNMARKED and not self._is_alone and not self._problem
        ):
            return True
        problem = self._problem
        if self._is_alone:
            refused = f"what {', '.join(sorted(self._refused))} gave was refused" if self._refused else ""
            problem = problem or refused or "no other node was there to merge with"
        problem = problem or "the time ran out" + ("" if self.is_frozen else " before all had finished")
        self._problem = self._problem if self.is_on else ""
        self._event("merge", models=self.held.models, reason=problem)
        _logger.warning("node %s: has no merged model, and keeps its own: %s", self._node, problem)
        return False


def _nothing() -> None:
    """Nothing is kept beside the model any more."""


def _ignore(event: str, **fields: object) -> None:
    """What follows the end is in no journal."""

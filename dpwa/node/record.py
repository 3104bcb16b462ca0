"""What a node did: counts, the statistics made of them, and their lines in journal and metrics.

Must not know: how an exchange is made, files. Runs in: `note` and `log` in the trainer's thread; the rest in any.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice

from dpwa.methods.exchange import NO_EXCHANGE, ExchangeKind, ExchangeResult, Outcome
from dpwa.observe.plain_values import plain
from dpwa.observe.process_use import process_use
from dpwa.snapshot.model import Inventory
from dpwa.snapshot.state import State

__all__ = ["NodeStatistics", "Record", "closing_fields", "exchange_fields"]

# What a script may add to the lines of metrics: so many values, each with about so many characters.
_LOGGED_LIMIT = 256
_LOGGED_CHARS = 8192

_logger = logging.getLogger("dpwa")


@dataclass(frozen=True)
class NodeStatistics:
    """What a node did so far. Frozen: hand it around freely.

    Attributes:
        step: training steps of this life of the node.
        clock: age of the model in updates; not whole after a blend.
        loss: the published loss (smoothed if so configured); None before the first.
        exchanges: how many exchanges ended with each outcome, whoever had begun them.
        asked: exchanges that the method asks for in so many steps, when nothing is in the way.
        completed: exchanges that this node's steps have begun, and that came to something: values came, or were taken.
            The pull with which a node joins is not among them, nor those of `finish()`: no method asks for them.
        blended: exchanges that changed the model.
        failures: exchanges with an outcome that is a failure.
        last_peer: peer of the last blend.
        last_factor: factor of the last blend.
        bytes_in: bytes of snapshots received.
        bytes_out: bytes of snapshots sent; one that a peer read from shared memory counts whole, because how much of it
            the peer wanted is not known here.
        served: snapshots sent completely.
        published: snapshots made.
        publish_skipped: publishes left out because slow peers held all buffers.
        protocol_errors: illegal messages that peers sent to the serving side.
        scores: flow control's score of each peer.
        method: numbers of the averaging method, such as the mass of a push method.
        faults: how many faults of each kind were injected; empty if none were asked for.
        exchanged_tensors: tensors of the model that are exchanged; tied ones count once.
        exchanged_bytes: their bytes in a snapshot, without what a method sends beside them.
        kept_tensors: tensors that the config keeps local: frozen parameters, and with `buffers: keep` the buffers.
        kept_bytes: their bytes.
        ignored_tensors: tensors that cannot be averaged or are no state, such as integers and infinite masks.
        ignored_bytes: their bytes.
        merged_models: of how many nodes' last models this one is the mean, after `finish(merge=True)`; else 0.
        members: with `join`: each member that this node knows, and what is said of it: alive, suspect, left or dead.
        ignored_entries: with `join`: entries of members' tables that were not believed, by reason.
    """

    step: int
    clock: float
    loss: float | None
    exchanges: Mapping[str, int]
    asked: float
    completed: int
    blended: int
    failures: int
    last_peer: str | None
    last_factor: float | None
    bytes_in: int
    bytes_out: int
    served: int
    published: int
    publish_skipped: int
    protocol_errors: int
    scores: Mapping[str, float]
    method: Mapping[str, float]
    faults: Mapping[str, int] = field(default_factory=dict)
    exchanged_tensors: int = 0
    exchanged_bytes: int = 0
    kept_tensors: int = 0
    kept_bytes: int = 0
    ignored_tensors: int = 0
    ignored_bytes: int = 0
    merged_models: int = 0
    members: Mapping[str, str] = field(default_factory=dict)
    ignored_entries: Mapping[str, int] = field(default_factory=dict)


class Record:
    """Keeps count for one node.

    Args:
        started_s: monotonic time of the node's start.
    """

    def __init__(self, started_s: float) -> None:
        self.publish_skipped = 0
        self._outcomes: Counter[str] = Counter()
        self.asked = 0.0
        self._completed = 0
        self._failures = 0
        self._bytes_in = 0
        self._last_blend: tuple[str | None, float | None] = (None, None)
        self._logged: dict[str, object] = {}
        self._started_s = started_s
        self._sampled = (started_s, 0)
        self._stepped_s: float | None = None
        self._longest_step_s = 0.0
        self._longest_held_s = 0.0
        self._has_told = False

    def note(self, result: ExchangeResult, factor: float, *, is_training: bool) -> None:
        """Count an exchange that has ended.

        Args:
            result: of the exchange.
            factor: by which it was applied, if there was something to apply.
            is_training: whether the node still trains.
        """
        self._outcomes[result.outcome.value] += 1
        is_of_step = is_training and result.request is not None and not result.request.joining
        self._completed += is_of_step and result.outcome in (Outcome.BLENDED, Outcome.PUSHED)
        self._failures += result.outcome.is_failure
        self._bytes_in += result.received_bytes
        if result.outcome is Outcome.BLENDED:
            self._last_blend = (result.peer, factor)

    def fetched(self, result: ExchangeResult) -> None:
        """Count a pull for the merge: no exchange of the method, but what it took, and how it failed."""
        self._bytes_in += result.received_bytes
        if result.outcome is not Outcome.BLENDED:
            self._outcomes[result.outcome.value] += 1
            self._failures += result.outcome.is_failure

    def stepped(self, began_s: float, ended_s: float) -> None:
        """Note the monotonic times at which the trainer has come for a step, and has been let go."""
        if self._stepped_s is not None:
            self._longest_step_s = max(self._longest_step_s, ended_s - self._stepped_s)
        self._stepped_s = ended_s
        self._longest_held_s = max(self._longest_held_s, ended_s - began_s)

    def log(self, values: Mapping[str, object]) -> None:
        """Add values of the training script, as they are now, to every further line of metrics.

        Where the line has a value of the node with such a name, it keeps that.
        """
        logged = dict(self._logged)
        for name, value in values.items():
            logged[name] = plain(value, limit_chars=_LOGGED_CHARS, tell=self._tell_problem)
        if len(logged) > _LOGGED_LIMIT:
            self._tell_problem(f"only {_LOGGED_LIMIT} different names are kept, further ones are left out")
            logged = dict(islice(logged.items(), _LOGGED_LIMIT))
        self._logged = logged  # swapped whole: the journal's thread may be reading it

    def _tell_problem(self, problem: str) -> None:
        if not self._has_told:
            self._has_told = True
            _logger.warning("log: %s (told once; training goes on)", problem)

    def statistics(
        self,
        *,
        step: int,
        state: State,
        published: int,
        served: int,
        bytes_out: int,
        protocol_errors: int,
        scores: Mapping[str, float],
        method: Mapping[str, float],
        faults: Mapping[str, int],
        inventory: Inventory,
        merged_models: int,
        members: Mapping[str, str],
        ignored_entries: Mapping[str, int],
    ) -> NodeStatistics:
        """The counts together with what the node and its transport know."""
        last_peer, last_factor = self._last_blend
        exchanges = dict(self._outcomes)
        return NodeStatistics(
            step=step,
            clock=state.clock,
            loss=state.loss,
            exchanges=exchanges,
            asked=self.asked,
            completed=self._completed,
            blended=exchanges.get(Outcome.BLENDED.value, 0),
            failures=self._failures,
            last_peer=last_peer,
            last_factor=last_factor,
            bytes_in=self._bytes_in,
            bytes_out=bytes_out,
            served=served,
            published=published,
            publish_skipped=self.publish_skipped,
            protocol_errors=protocol_errors,
            scores=scores,
            method=method,
            faults=faults,
            **asdict(inventory),
            merged_models=merged_models,
            members=members,
            ignored_entries=ignored_entries,
        )

    def metrics(self, statistics: NodeStatistics, now_s: float) -> Mapping[str, object]:
        """One line of metrics; its step rate is that since the line before."""
        then_s, then_step = self._sampled
        self._sampled = (now_s, statistics.step)
        longest_step_s, self._longest_step_s = self._longest_step_s, 0.0
        longest_held_s, self._longest_held_s = self._longest_held_s, 0.0
        own: dict[str, object] = {
            "elapsed_s": round(now_s - self._started_s, 3),
            "step": statistics.step,
            "clock": statistics.clock,
            "loss": statistics.loss,
            "steps_per_s": round((statistics.step - then_step) / max(now_s - then_s, 1e-9), 3),
            "longest_step_s": round(longest_step_s, 6),
            "longest_held_s": round(longest_held_s, 6),
            "exchanges": statistics.blended,
            "failures": statistics.failures,
            "skipped": sum(statistics.exchanges.values()) - statistics.blended - statistics.failures,
            "last_peer": statistics.last_peer,
            "last_factor": statistics.last_factor,
            "bytes_in": statistics.bytes_in,
            "bytes_out": statistics.bytes_out,
            "protocol_errors": statistics.protocol_errors,
            "publish_skipped": statistics.publish_skipped,
            **process_use(),
        }
        return {**own, **self._logged, **own}  # the script's values come last, and replace none of the node's


def closing_fields(statistics: NodeStatistics) -> dict[str, object]:
    """What the journal's last event says of a whole life: `dpwa launch` shows it, `dpwa average` goes by its clock."""
    return {
        "clock": statistics.clock,
        "loss": statistics.loss,
        "outcomes": dict(statistics.exchanges),
        "blended": statistics.blended,
        "failures": statistics.failures,
        "exchanged_tensors": statistics.exchanged_tensors,
        "kept_tensors": statistics.kept_tensors,
        "ignored_tensors": statistics.ignored_tensors,
    }


def exchange_fields(result: ExchangeResult, step: int, factor: float) -> dict[str, object]:
    """What the journal says of an exchange whose result was taken at a step of the trainer, and applied by a factor."""
    fields: dict[str, object] = {
        "outcome": result.outcome.value,
        "peer": result.peer,
        "duration_s": round(result.duration_s, 6),
    }
    if result.kind not in (None, ExchangeKind.PULL):
        fields |= {"kind": result.kind.value, "own": result.request is not None}
    if result.exchange_id != NO_EXCHANGE:
        fields["exchange_id"] = result.exchange_id.hex()
    if result.outcome is Outcome.PUSHED:
        fields["codec"] = result.codec.name.lower()
    elif result.staging is not None:
        fields |= _blend_fields(result, step, factor)
    if result.missed:
        fields["missed"] = result.missed
    if result.reason:
        fields["reason"] = result.reason
    if result.note:
        fields["note"] = result.note
    return fields


def _blend_fields(result: ExchangeResult, step: int, factor: float) -> dict[str, object]:
    fields: dict[str, object] = {
        "version": result.version,
        "incarnation": result.incarnation.hex(),
        "peer_clock": result.said.clock,
        "peer_loss": result.said.loss,
        "factor": factor,
        "bytes": result.received_bytes,
        "share": result.share,
        "via": "shared_memory" if result.is_shared else "stream",
        "codec": result.codec.name.lower(),
    }
    if result.checksum is not None and result.merged == 1:
        fields["checksum"] = result.checksum
    reference = result.reference
    if reference is not None:
        fields |= {
            "own_version": reference.version,
            "clock": reference.state.clock,
            "loss": reference.state.loss,
            "late_steps": step - reference.step,
        }
    if result.believed_share < 1.0:
        fields["clipped"] = round(result.believed_share, 6)
    if result.takes_over:
        fields["takes_over"] = True
    if result.distance is not None:
        fields["distance"] = result.distance
    if result.kind in (ExchangeKind.PUSH, ExchangeKind.GATHER):
        fields |= {"weight": result.weight, "merged": result.merged}
    return fields

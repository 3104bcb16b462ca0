"""What a node did: counts, the statistics made of them, and their lines in journal and metrics.

Must not know: how an exchange is made, files. Runs in: `note` and `log` in the trainer's thread; the rest in any.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice

from dpwa.exchange.messages import NO_EXCHANGE
from dpwa.exchange.result import Exchange, Outcome
from dpwa.methods.base import ExchangeKind
from dpwa.observe.plain_values import plain
from dpwa.snapshot.model import Inventory
from dpwa.snapshot.state import State

__all__ = ["NodeStatistics", "Record", "exchange_fields"]

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
        exchanges: how many exchanges ended with each outcome.
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
    """

    step: int
    clock: float
    loss: float | None
    exchanges: Mapping[str, int]
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


class Record:
    """Keeps count for one node.

    Args:
        started_s: monotonic time of the node's start.
    """

    def __init__(self, started_s: float) -> None:
        self.publish_skipped = 0
        self._outcomes: Counter[str] = Counter()
        self._failures = 0
        self._bytes_in = 0
        self._last_blend: tuple[str | None, float | None] = (None, None)
        self._logged: dict[str, object] = {}
        self._started_s = started_s
        self._sampled = (started_s, 0)
        self._has_told = False

    def note(self, exchange: Exchange, factor: float) -> None:
        """Count an exchange that has ended, and was applied if there was something to apply.

        Args:
            exchange: it.
            factor: by which it was applied.
        """
        self._outcomes[exchange.outcome.value] += 1
        self._failures += exchange.outcome.is_failure
        self._bytes_in += exchange.received_bytes
        if exchange.outcome is Outcome.BLENDED:
            self._last_blend = (exchange.peer, factor)

    def log(self, values: Mapping[str, object]) -> None:
        """Add values of the training script, as they are now, to every further line of metrics."""
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
    ) -> NodeStatistics:
        """The counts together with what the node and its transport know."""
        last_peer, last_factor = self._last_blend
        exchanges = dict(self._outcomes)
        return NodeStatistics(
            step=step,
            clock=state.clock,
            loss=state.loss,
            exchanges=exchanges,
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
        )

    def metrics(self, statistics: NodeStatistics, now_s: float) -> Mapping[str, object]:
        """One line of metrics; its step rate is that since the line before."""
        then_s, then_step = self._sampled
        self._sampled = (now_s, statistics.step)
        return {
            "elapsed_s": round(now_s - self._started_s, 3),
            "step": statistics.step,
            "clock": statistics.clock,
            "loss": statistics.loss,
            "steps_per_s": round((statistics.step - then_step) / max(now_s - then_s, 1e-9), 3),
            "exchanges": statistics.blended,
            "failures": statistics.failures,
            "skipped": sum(statistics.exchanges.values()) - statistics.blended - statistics.failures,
            "last_peer": statistics.last_peer,
            "last_factor": statistics.last_factor,
            "bytes_in": statistics.bytes_in,
            "bytes_out": statistics.bytes_out,
            "protocol_errors": statistics.protocol_errors,
            "publish_skipped": statistics.publish_skipped,
            **self._logged,
        }


def exchange_fields(exchange: Exchange, step: int, factor: float) -> dict[str, object]:
    """What the journal tells of an exchange that was taken at a step of the trainer, and applied by a factor."""
    fields: dict[str, object] = {
        "outcome": exchange.outcome.value,
        "peer": exchange.peer,
        "duration_s": round(exchange.duration_s, 6),
    }
    if exchange.kind not in (None, ExchangeKind.PULL):
        fields |= {"kind": exchange.kind.value, "own": exchange.ask is not None}
    if exchange.exchange != NO_EXCHANGE:
        fields["exchange"] = exchange.exchange.hex()
    if exchange.peer_state is not None:
        fields |= _blend_fields(exchange, exchange.peer_state, step, factor)
    if exchange.missed:
        fields["missed"] = exchange.missed
    if exchange.reason:
        fields["reason"] = exchange.reason
    if exchange.note:
        fields["note"] = exchange.note
    return fields


def _blend_fields(exchange: Exchange, peer: State, step: int, factor: float) -> dict[str, object]:
    fields: dict[str, object] = {
        "version": exchange.version,
        "peer_clock": peer.clock,
        "peer_loss": peer.loss,
        "factor": factor,
        "bytes": exchange.received_bytes,
        "share": exchange.share,
        "via": "shared_memory" if exchange.is_shared else "stream",
        "codec": exchange.codec.name.lower(),
    }
    reference = exchange.reference
    if reference is not None:
        fields |= {
            "own_version": reference.version,
            "clock": reference.state.clock,
            "loss": reference.state.loss,
            "late_steps": step - reference.step,
        }
    if exchange.takes_over:
        fields["takes_over"] = True
    if exchange.distance is not None:
        fields["distance"] = exchange.distance
    if exchange.kind in (ExchangeKind.PUSH, ExchangeKind.GATHER):
        fields |= {"weight": exchange.weight, "merged": exchange.merged}
    return fields

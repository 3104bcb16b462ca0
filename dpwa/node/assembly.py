"""Puts the parts of a node together.

Must not know: the trainer, sockets. Runs in: the trainer's thread, once per node.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from dpwa.config.cluster import ClusterConfig
from dpwa.exchange.accept import Accepter
from dpwa.exchange.exchanger import Exchanger
from dpwa.exchange.fetch import Fetcher, Identity
from dpwa.exchange.flow_control import FlowControl
from dpwa.exchange.gather import Gatherer
from dpwa.exchange.lineage import Standing
from dpwa.exchange.link_codecs import LinkCodecs
from dpwa.exchange.membership import Membership
from dpwa.exchange.pair import Pairer
from dpwa.exchange.proposals import Proposals
from dpwa.exchange.propose import Proposer
from dpwa.exchange.push import Pusher
from dpwa.exchange.results import Results
from dpwa.exchange.service import Service
from dpwa.exchange.slices import Rotation
from dpwa.methods.base import ExchangeKind, Method
from dpwa.snapshot.codecs import Codec
from dpwa.snapshot.layout import Layout
from dpwa.snapshot.staging import Staging, encoded_chunk_bytes
from dpwa.transport.faults import Faults
from dpwa.transport.faulty import FaultyWay, LossyProposals
from dpwa.transport.interface import Ends

__all__ = ["Assembly", "assemble"]


@dataclass(frozen=True)
class Assembly:
    """What a node holds of its parts.

    Attributes:
        wiring: the two ends for the transport.
        membership: who is there.
        proposals: pushes and pairs under way.
        standing: what the own model is.
        stagings: hold the values to blend.
        faults: to inject; None without.
    """

    wiring: Ends
    membership: Membership
    proposals: Proposals
    standing: Standing
    stagings: tuple[Staging, ...]
    faults: Faults | None = None

    def close(self) -> None:
        """Let go of all memory as large as the model; the threads have ended. Counts and scores stay."""
        for staging in self.stagings:
            staging.close()
        self.wiring.exchanger.close()
        self.proposals.close_all()


def assemble(
    config: ClusterConfig,
    name: str,
    *,
    run: str,
    incarnation: bytes,
    layout: Layout,
    method: Method,
    monotonic_s: Callable[[], float] = time.monotonic,
    faults: Faults | None = None,
) -> Assembly:
    """Make the parts of a node.

    Args:
        config: the cluster.
        name: the node.
        run: what requests name as their run.
        incarnation: random id of this life of it.
        layout: of what is exchanged.
        method: the averaging method.
        monotonic_s: the clock that scores and durations go by.
        faults: to inject.

    Raises:
        ConfigError: the interpolation cannot be made.
    """

    def rng(purpose: str) -> random.Random:
        # Own streams of random numbers per node: with one seed for all, every node would make the same choices.
        return random.Random(f"{config.seed}/{name}/{purpose}")  # noqa: S311  (no secret)

    peers = tuple(peer.name for peer in config.peers_of(name))
    identity = Identity(run, name, incarnation)
    membership, results = Membership(peers), Results()
    proposals = Proposals(name, incarnation) if faults is None else LossyProposals(name, incarnation, faults)
    interpolator = config.interpolator()
    standing = Standing(incarnation, heeds_age=method.heeds_age)
    kind = method.kind
    is_merging = kind in (ExchangeKind.PUSH, ExchangeKind.GATHER)
    stagings = tuple(
        Staging(
            layout,
            absolute=kind is ExchangeKind.PUSH or config.blend == "absolute",
            measures_distance=interpolator.uses_distance,
        )
        for _ in range(2 if is_merging else 1)
    )
    if faults is not None and faults.options.noise.scale > 0:
        for staging in stagings:
            staging.disturb = faults.disturb
    rotation = Rotation(layout, rng("part"), method.fraction)
    flow_control = FlowControl(peers, config.flow_control, rng("peer"))
    fetcher = Fetcher(
        identity=identity,
        layout=layout,
        membership=membership,
        link_codecs=LinkCodecs(
            config.codec,
            sizes={codec: encoded_chunk_bytes(layout, 0, layout.total_bytes, codec) for codec in Codec},
            timeout_s=config.timeout_s,
        ),
        bears_parts=config.blend == "delta",
        flow_control=flow_control,
        standing=standing,
    )
    proposer = Proposer(fetcher, proposals)
    exchanger = Exchanger(
        fetcher=fetcher,
        stagings=stagings,
        interpolator=interpolator,
        standing=standing,
        blends_when_joining=kind is ExchangeKind.PULL,
        flow_control=flow_control,
        membership=membership,
        rotation=rotation,
        proposer=proposer,
        pusher=Pusher(
            proposer=proposer,
            proposals=proposals,
            membership=membership,
            standing=standing,
            monotonic_s=monotonic_s,
        ),
        pairer=Pairer(
            proposer=proposer,
            fetcher=fetcher,
            proposals=proposals,
            standing=standing,
            repays=method.repays,
            monotonic_s=monotonic_s,
        ),
        accepter=Accepter(
            fetcher=fetcher,
            stagings=stagings,
            rotation=rotation,
            proposals=proposals,
            standing=standing,
            results=results,
            monotonic_s=monotonic_s,
        ),
        gatherer=Gatherer(
            fetcher=fetcher,
            stagings=stagings,
            rotation=rotation,
            flow_control=flow_control,
            membership=membership,
            standing=standing,
            rng=rng("order"),
            monotonic_s=monotonic_s,
        ),
        results=results,
        monotonic_s=monotonic_s,
        through=None if faults is None else FaultyWay(faults, layout=layout, monotonic_s=monotonic_s).through,
    )
    service = Service(
        run=run,
        incarnation=incarnation,
        layout=layout,
        membership=membership,
        proposals=proposals,
        kind=kind,
        standing=standing,
    )
    return Assembly(Ends(service, exchanger), membership, proposals, standing, stagings, faults)

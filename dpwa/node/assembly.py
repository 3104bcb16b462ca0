"""Puts the parts of a node together.

Runs in: the trainer's thread, once per node.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from dpwa.config.cluster import ClusterConfig
from dpwa.config.sections import NodeConfig
from dpwa.exchange.budget import Budget
from dpwa.exchange.client import Client
from dpwa.exchange.context import ExchangeContext
from dpwa.exchange.exchanger import Exchanger
from dpwa.exchange.fetch import Fetcher, Identity
from dpwa.exchange.flow_control import FlowControl
from dpwa.exchange.guard import Guard
from dpwa.exchange.intake import Intake
from dpwa.exchange.leasing import Leasing
from dpwa.exchange.link_codecs import LinkCodecs
from dpwa.exchange.meetings import Meetings
from dpwa.exchange.member_table import Member, MemberState
from dpwa.exchange.members import Members
from dpwa.exchange.membership import Membership
from dpwa.exchange.proposals import Proposals
from dpwa.exchange.propose import Proposer
from dpwa.exchange.results import Results
from dpwa.exchange.round_codec import RoundCodec
from dpwa.exchange.service import Service
from dpwa.exchange.slices import Rotation
from dpwa.methods.base import ExchangeKind, Method
from dpwa.methods.diloco import OuterMomentum
from dpwa.node.pacing import Pacing
from dpwa.snapshot.checksum import Checksum
from dpwa.snapshot.layout import Layout
from dpwa.snapshot.lineage import Standing
from dpwa.snapshot.model import Model
from dpwa.snapshot.staging import Staging, encoded_chunk_bytes
from dpwa.snapshot.state import MAX_MASS, Codec
from dpwa.transport.faults import Faults
from dpwa.transport.faulty import FaultyWay, LossyProposals
from dpwa.transport.interface import Ends

__all__ = ["Assembly", "assemble", "outer_momentum", "pacing_of"]

# A node that is started again brings the mass of a new one, while what its former life gave away is still there.
_SPARE = 2.0

# Smaller parts than this are not asked for to stay within a bandwidth limit; there are fewer exchanges then.
_LEAST_FRACTION = 1 / 16


@dataclass(frozen=True)
class Assembly:
    """What a node holds of its parts.

    Attributes:
        wiring: the two ends for the transport.
        context: what its exchanges work with.
        leasing: shares out the blocks of data.
        faults: to inject; None: none.
    """

    wiring: Ends
    context: ExchangeContext
    leasing: Leasing
    faults: Faults | None = None

    def close(self) -> None:
        """Let go of all memory as large as the model; the threads have ended. Counts and scores stay."""
        for staging in self.context.stagings:
            staging.close()
        self.wiring.exchanger.close()
        self.leasing.close()
        self.context.proposals.close_all()


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
    members = _members(config, name, rng("members")) if config.is_open else None
    identity = Identity(run, name, incarnation)
    asked = tuple(peer.name for peer in config.asked_by(name))
    membership = Membership(peers, is_open=config.is_open, unasked=set(peers).difference(asked))
    proposals = Proposals(name, incarnation) if faults is None else LossyProposals(name, incarnation, faults)
    interpolator = config.interpolator()
    guard = Guard(config.guard)
    standing = Standing(incarnation, heeds_age=method.heeds_age)
    kind = method.kind
    is_merging = kind in (ExchangeKind.PUSH, ExchangeKind.GATHER)
    stagings = tuple(
        Staging(
            layout,
            absolute=kind is ExchangeKind.PUSH or config.blend == "absolute",
            measures_distance=interpolator.uses_distance or guard.compares,
        )
        for _ in range(3 if guard.combines else 2 if is_merging else 1)
    )
    if faults is not None and (faults.options.noise.scale > 0 or faults.options.lies):
        for staging in stagings:
            staging.disturb = faults.disturb
    if config.journal_checksums:
        for staging in stagings:
            staging.sums = Checksum()
    flow_control = FlowControl(asked, config.flow_control, rng("peer"))
    fetcher = Fetcher(
        identity=identity,
        layout=layout,
        membership=membership,
        link_codecs=LinkCodecs(
            config.codec,
            sizes={codec: encoded_chunk_bytes(layout, 0, layout.total_bytes, codec) for codec in Codec},
            timeout_s=config.timeout_s,
            longest_s=config.longest_s,
        ),
        bears_parts=config.blend == "delta"
        and not guard.combines
        and (kind is ExchangeKind.PULL or method.exchanges_slices),
        flow_control=flow_control,
        standing=standing,
        guard=guard,
        monotonic_s=monotonic_s,
    )
    intake = _intake(config, layout, method, fetcher, proposals, monotonic_s)
    fetcher.spent = intake.spent
    context = ExchangeContext(
        fetcher=fetcher,
        proposer=Proposer(fetcher, proposals),
        proposals=proposals,
        stagings=stagings,
        rotation=Rotation(layout, rng("part"), method.fraction),
        results=Results(),
        flow_control=flow_control,
        membership=membership,
        standing=standing,
        guard=guard,
        intake=intake,
        most_mass=_SPARE * method.total_mass if guard.compares else MAX_MASS,
        monotonic_s=monotonic_s,
    )

    def way() -> Callable[[Client], Client] | None:
        """One for each thread that asks."""
        if faults is None:
            return None
        return FaultyWay(faults, layout=layout, monotonic_s=monotonic_s, timeout_s=config.timeout_s).through

    leasing = Leasing(identity, [node.name for node in config.nodes], monotonic_s, through=way())
    exchanger = Exchanger(
        context,
        method,
        interpolator,
        rng("order"),
        through=way(),
        meetings=None if members is None else Meetings(context, members, rng("meetings")),
    )
    service = Service(
        run=run,
        incarnation=incarnation,
        layout=layout,
        membership=membership,
        proposals=proposals,
        kind=kind,
        standing=standing,
        leasing=leasing,
        round_codec=RoundCodec(None if config.codec == "auto" else Codec[config.codec.upper()]),
        members=members,
    )
    fetcher.newest = lambda: service.serving.snapshot
    service.takes, service.fitting = intake.takes, context.rotation.fitting
    return Assembly(Ends(service, exchanger), context, leasing, faults)


def _intake(
    config: ClusterConfig,
    layout: Layout,
    method: Method,
    fetcher: Fetcher,
    proposals: Proposals,
    monotonic_s: Callable[[], float],
) -> Intake:
    """What a node takes in: parts where the method bears them, else whole models, of a round all at a time."""
    is_whole = method.kind is not ExchangeKind.PULL and not method.exchanges_slices
    models = max(1, len(method.links.row(method.round))) if method.kind is ExchangeKind.GATHER else 1
    budget = Budget(
        config.bandwidth_limit_bytes_per_s,
        model_bytes=models * layout.total_bytes,
        least_fraction=1.0 if is_whole else _LEAST_FRACTION,
        most_fraction=1.0 if is_whole else method.fraction,
    )
    return Intake(
        budget,
        bears=lambda peer: fetcher.fitting_fraction(peer, 1.0),
        models=models,
        is_whole=is_whole,
        is_waiting=lambda: proposals.is_waiting,
        monotonic_s=monotonic_s,
    )


def _members(config: ClusterConfig, name: str, rng: random.Random) -> Members:
    """The members of a cluster that nodes may join, as far as its file says who they are."""

    def member(node: NodeConfig) -> Member:
        return Member(node.name, node.host, node.port, 0, MemberState.ALIVE)

    node = config.node(name)
    # One that cannot be asked has no address, and tells nobody of itself.
    own = member(node) if node.serve else Member(name, "", 0, 0, MemberState.ALIVE)
    seeds = [seed for seed in config.seeds if seed != own.address]
    return Members(own, map(member, config.asked_by(name)), seeds, rng, is_told=node.serve)


def outer_momentum(config: ClusterConfig, model: Model) -> OuterMomentum | None:
    """The outer momentum of a node, which begins with the model as it is; None: disabled."""
    outer = config.outer
    if outer.every is None:
        return None
    momentum = OuterMomentum(
        model,
        every=outer.every,
        by_speed=outer.by_speed,
        learning_rate=outer.learning_rate,
        momentum=outer.momentum,
        nesterov=outer.nesterov,
    )
    momentum.restart()
    return momentum


def pacing_of(
    parts: Assembly, method: Method, outer: OuterMomentum | None, event: Callable[..., None]
) -> Pacing | None:
    """What tells method and outer momentum how fast the node is; None: neither goes by that.

    Args:
        parts: of the node.
        method: of the node.
        outer: on top of it.
        event: writes a line of the journal.
    """
    paced = [part for part in (method, outer) if part is not None and part.follows_speed_over is not None]
    return Pacing(paced, parts.context.membership, parts.wiring.exchanger.questions.ask, event) if paced else None

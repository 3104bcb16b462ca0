"""A node that stood still itself blames no peer for what it missed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dpwa.config.cluster import ClusterConfig
from dpwa.errors import PeerTimeout, PeerUnreachable
from dpwa.methods.exchange import ExchangeKind, ExchangeRequest, Outcome, Plan
from dpwa.node.node import Node
from dpwa.transport.in_memory import InMemoryNetwork, InMemoryTransport
from support import VectorModel

# Longer than any patience: the rest of an answer may take a minute on a slow link.
LASTED_S = 50.0


@pytest.mark.parametrize("kind", [PeerTimeout, PeerUnreachable])
@pytest.mark.parametrize(("late_s", "is_blamed"), [(0.0, True), (0.4, True), (0.6, False)])
def test_a_peer_is_blamed_for_what_ended_in_time_and_not_for_what_this_node_slept_through(kind, late_s, is_blamed):
    clock = [100.0]
    node = Node(
        ClusterConfig.for_localhost(2),
        "w1",
        VectorModel([0.0]),
        make_transport=lambda wiring: InMemoryTransport(InMemoryNetwork(), "w1", wiring),
        monotonic_s=lambda: clock[0],
    )
    exchanger = node._parts.wiring.exchanger

    def pull(*_arguments: object) -> None:
        clock[0] += LASTED_S
        error = kind("w2", "no answer")
        error.late_s = late_s
        raise error

    exchanger._puller = SimpleNamespace(pull=pull)
    request = ExchangeRequest(Plan(ExchangeKind.PULL), reference=None)
    result = exchanger._with("w2", request, SimpleNamespace(patience_s=2.5))
    assert result.outcome in (Outcome.TIMED_OUT, Outcome.UNREACHABLE)
    assert exchanger.context.flow_control.is_failing("w2") is is_blamed
    assert ("stood still" in result.reason) is not is_blamed
    node.close()

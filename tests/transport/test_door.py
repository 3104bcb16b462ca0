"""The door's parts: connections by their descriptors, and the copy that own exchanges are made with."""

from __future__ import annotations

import contextlib
import socket

import numpy as np
import pytest
import zmq
from fake_peers import node_with_absent_peer, pull_of
from strangers import Stranger

from dpwa.exchange.fetch import Identity
from dpwa.exchange.leasing import Leasing
from dpwa.exchange.membership import Membership
from dpwa.exchange.proposals import Proposals
from dpwa.exchange.round_codec import RoundCodec
from dpwa.exchange.service import Service
from dpwa.methods.base import ExchangeKind
from dpwa.node.publishing import SnapshotPublisher
from dpwa.snapshot.lineage import Standing
from dpwa.snapshot.state import State
from dpwa.transport import wire
from dpwa.transport.connections import Connections
from support import VectorModel


def test_a_number_that_was_given_to_something_else_is_never_touched(tmp_path):
    """Descriptors are numbers, and the user's files get those that connections have left."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    connections = Connections(context, router, 4711)
    one, other = socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as server, open(tmp_path / "users", "wb") as file:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        for descriptor in (file.fileno(), one.fileno(), client.fileno(), accepted.fileno(), server.fileno(), 10_000):
            assert connections._accepted(descriptor, 0.0)
        assert not connections.standing
        connections._refuse(client.fileno())
        client.sendall(b"still there")
        assert accepted.recv(100) == b"still there"
        one.sendall(b"still there")
        assert other.recv(100) == b"still there"
        for each in (client, accepted, one, other):
            each.close()
    connections.close()
    router.close(0)
    context.term()


def test_the_copy_aside_gives_its_memory_back_when_it_is_not_needed_any_more():
    source = VectorModel(np.ones(100_000))
    service = node_service(source)
    publisher = SnapshotPublisher(source, service, 1)
    served = publisher.take(step=1, taken_s=0.0, state=State(None, 0.0))
    assert publisher.take(step=2, taken_s=1.0, state=State(None, 0.0)) is None
    assert service.serving.is_short
    aside = publisher.take_aside(step=2, taken_s=1.0, state=State(None, 0.0))
    assert bytes(aside.snapshot.memory) == source.vector.tobytes()
    assert publisher.take_aside(step=2, taken_s=1.0, state=State(None, 0.0)) is None  # it is in use
    buffer = aside.buffer
    del aside, served
    for taken_s in (5.0, 20.0):
        assert publisher.take(step=3, taken_s=taken_s, state=State(None, 0.0)) is not None
        assert not service.serving.is_short
    assert not buffer.any()  # the system has it back
    again = publisher.take_aside(step=4, taken_s=21.0, state=State(None, 0.0))
    assert bytes(again.snapshot.memory) == source.vector.tobytes()
    del again
    publisher.close()


def node_service(source: VectorModel) -> Service:
    return Service(
        run="run",
        incarnation=bytes(8),
        layout=source.layout,
        membership=Membership(()),
        proposals=Proposals("w1", bytes(8)),
        standing=Standing(bytes(8)),
        leasing=Leasing(Identity("run", "w1", bytes(8)), ["w1"], lambda: 0.0),
        round_codec=RoundCodec(None),
        kind=ExchangeKind.PULL,
    )


@pytest.mark.seconds
def test_what_a_stranger_has_left_behind_is_not_taken_for_a_message_of_who_got_its_number(zeromq):
    """Thousands of its illegal messages wait when it goes, and the next connection has its descriptor's number."""
    node, _ = node_with_absent_peer(zeromq)
    port = zeromq.config.nodes[0].port
    refused = 0
    for _ in range(30):
        rogue = Stranger(port)
        rogue.socket.setblocking(False)
        with contextlib.suppress(OSError):
            rogue.socket.send(b"\0\5hello" * 8000)
        rogue.close()
        try:
            honest = Stranger(port)
        except OSError:
            refused += 1
            continue
        honest.send(wire.encode(pull_of(node, count=1)))
        refused += honest.socket.recv(4096) == b""
        honest.close()
    assert node.statistics().protocol_errors > 0
    assert refused == 0

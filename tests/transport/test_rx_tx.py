"""The Rx and Tx threads over real sockets: faults, limits, shutdown."""

from __future__ import annotations

import os
import random
import socket
import threading
import time

import msgpack
import numpy as np
import psutil
import pytest
from fake_peers import Peers, node_with_absent_peer, pull_of
from strangers import Stranger

from dpwa.config.cluster import ClusterConfig
from dpwa.errors import ConfigError, InternalError
from dpwa.exchange import messages
from dpwa.exchange.slices import CHUNK_BYTES
from dpwa.launch.ports import free_ports
from dpwa.node.node import Node
from dpwa.transport import wire
from support import DEADLINE_S, VectorModel, step_until, wait_until

BIG = 3_000_000  # float64: 24 MB, 46 chunks


@pytest.fixture
def peers():
    made = Peers()
    yield made
    made.close()


# --- What peers may send --------------------------------------------------------------------------------------------

_GARBAGE = {
    "random bytes": [b"\xc1\xff\x00garbage" * 20],
    "a pickle": [b"cos\nsystem\n(S'touch pickled'\ntR."],
    "an empty message": [b""],
    "too many frames": [b"x", b"y", b"z"],
    "an answer": [wire.encode(messages.NotReady(1))],
    "another protocol version": [msgpack.packb([99, 1])],
}


@pytest.mark.parametrize("frames", _GARBAGE.values(), ids=_GARBAGE.keys())
def test_a_peer_that_sends_garbage_is_cut_off_and_counted_and_others_are_served(zeromq, peers, frames):
    node, _ = node_with_absent_peer(zeromq)
    rogue, honest = Stranger(zeromq.config.nodes[0].port), peers.dealer(zeromq)
    for index, frame in enumerate(frames):
        rogue.send(frame, more=index < len(frames) - 1)
    assert rogue.is_closed(within_s=DEADLINE_S)
    rogue.close()
    wait_until(lambda: node.statistics().protocol_errors == 1, "the garbage is counted")
    honest.send(wire.encode(pull_of(node)))
    assert isinstance(wire.decode(honest.recv(), "w1"), messages.Offer)
    assert node.statistics().protocol_errors == 1
    node.step(1.0)
    assert not os.path.exists("pickled")


@pytest.mark.parametrize("size", [messages.MAX_HEADER_BYTES + 1, 1 << 20, 1 << 30])
def test_a_frame_longer_than_any_header_ends_the_connection_before_it_takes_memory(zeromq, size):
    node, _ = node_with_absent_peer(zeromq)
    before = psutil.Process().memory_info().rss
    stranger = Stranger(zeromq.config.nodes[0].port)
    stranger.send(wire.encode(pull_of(node, count=1)))
    assert stranger.socket.recv(4096)  # the connection stands, and its requests are answered
    assert not stranger.is_closed(within_s=0.05)
    stranger.socket.sendall(b"\x02" + size.to_bytes(8, "big"))  # such a frame begins
    assert stranger.is_closed(within_s=DEADLINE_S)
    stranger.close()
    assert psutil.Process().memory_info().rss - before < 64 << 20
    node.step(1.0)


def test_a_server_that_sends_garbage_is_a_counted_failure(zeromq, peers):
    node, port = node_with_absent_peer(zeromq, flow_control={"probe_s": 0.01, "probe_max_s": 0.05})
    impostor = peers.router(port)
    before = list(zeromq.models[0].vector)

    def answered() -> bool:
        if impostor.poll(0):
            identity, _ = impostor.recv_multipart()
            impostor.send_multipart([identity, b"\x80\x04garbage"])
        return node.statistics().exchanges.get("protocol_error", 0) >= 2

    step_until(node, answered, "garbage twice, over a connection made anew")
    assert list(zeromq.models[0].vector) == before


def _offer(nonce: int, total_bytes: int, **changed) -> messages.Offer:
    fields = {
        "nonce": nonce,
        "incarnation": b"j" * 8,
        "version": 1,
        "clock": 1.0,
        "loss": 1.0,
        "total_bytes": total_bytes,
        "slot": -1,
        "token": bytes(messages.TOKEN_BYTES),
        "finished": False,
    }
    return messages.Offer(**{**fields, **changed})


_LIES = {
    "more bytes than the model has": lambda nonce: [[_offer(nonce, 81), None]],
    "fewer bytes than the model has": lambda nonce: [[_offer(nonce, 8), None]],
    "an unknown codec": lambda nonce: [[_offer(nonce, 80), None], [messages.Chunk(nonce, 0, 7), bytes(80)]],
    "a codec that was not asked for": lambda nonce: [
        [_offer(nonce, 80), None],
        [messages.Chunk(nonce, 0, 1), bytes(20)],
    ],
    "shared memory that was not asked for": lambda nonce: [[_offer(nonce, 80, slot=0), None]],
    "a chunk with two bodies": lambda nonce: [
        [_offer(nonce, 80), None],
        [messages.Chunk(nonce, 0, 0), bytes(80), b"more"],
    ],
    "a chunk that is too long": lambda nonce: [[_offer(nonce, 80), None], [messages.Chunk(nonce, 0, 0), bytes(81)]],
    "a chunk that is too short": lambda nonce: [[_offer(nonce, 80), None], [messages.Chunk(nonce, 0, 0), bytes(79)]],
    "a wrong chunk": lambda nonce: [[_offer(nonce, 80), None], [messages.Chunk(nonce, 1, 0), bytes(80)]],
    "a chunk without a body": lambda nonce: [[_offer(nonce, 80), None], [messages.Chunk(nonce, 0, 0), None]],
    "a chunk before any offer": lambda nonce: [[messages.Chunk(nonce, 0, 0), bytes(80)]],
    "a request": lambda nonce: [[messages.More(nonce, 0, 1), None]],
}


@pytest.mark.parametrize("lie", _LIES.values(), ids=_LIES.keys())
def test_a_lying_server_is_found_out_and_never_blended(zeromq, peers, lie):
    node, port = node_with_absent_peer(zeromq, flow_control={"probe_s": 0.01, "probe_max_s": 0.05})
    liar = peers.router(port)

    def answered() -> bool:
        if liar.poll(0):
            identity, header = liar.recv_multipart()
            for message, *bodies in lie(wire.decode(header, "w1").nonce):
                liar.send_multipart([identity, wire.encode(message), *(body for body in bodies if body is not None)])
        return node.statistics().exchanges.get("protocol_error", 0) >= 1

    step_until(node, answered, "the lie is counted")
    assert list(zeromq.models[0].vector) == list(range(10))


def test_a_late_answer_is_dropped_and_the_next_pull_is_right(zeromq, peers):
    settings = {"timeout_ms": 100, "flow_control": {"probe_s": 0.01, "probe_max_s": 0.05}}
    node, port = node_with_absent_peer(zeromq, constant={"value": 1.0}, **settings)
    slow = peers.router(port)
    pulls: list[tuple[bytes, messages.PullRequest]] = []

    def timed_out() -> bool:
        while slow.poll(0):
            identity, header = slow.recv_multipart()
            pulls.append((identity, wire.decode(header, "w1")))
        return node.statistics().exchanges.get("timed_out", 0) >= 1

    step_until(node, timed_out, "a timeout")
    identity, late = pulls[0]

    def blended() -> bool:
        timed_out()
        newest = pulls[-1][1]
        if newest.nonce != late.nonce:
            for nonce, value in ((late.nonce, 666.0), (newest.nonce, 5.0)):
                slow.send_multipart([identity, wire.encode(_offer(nonce, 80, version=nonce))])
                slow.send_multipart([identity, wire.encode(messages.Chunk(nonce, 0, 0)), np.full(10, value).tobytes()])
            pulls.append((identity, late))
        return node.statistics().blended >= 1

    step_until(node, blended, "an answer in time")
    assert list(zeromq.models[0].vector) == [5.0] * 10


@pytest.mark.parametrize("size", [20_000, 10])
def test_a_late_model_that_stands_before_all_further_answers_is_left_behind_with_its_connection(zeromq, peers, size):
    """Over a slow link it would take the time of each further pull, whose model would come late, too, and so on."""
    settings = {"timeout_ms": 100, "flow_control": {"probe_s": 0.01, "probe_max_s": 0.05}}
    node, port = node_with_absent_peer(zeromq, size=size, **settings)
    slow = peers.router(port)
    pulls: list[tuple[bytes, int]] = []

    def third() -> bool:
        if slow.poll(0):
            identity, header = slow.recv_multipart()
            pulls.append((identity, wire.decode(header, "w1").nonce))
            if len(pulls) == 2:  # the first has timed out
                late = pulls[0][1]
                slow.send_multipart([identity, wire.encode(_offer(late, 8 * size))])
                slow.send_multipart([identity, wire.encode(messages.Chunk(late, 0, 0)), bytes(8 * size)])
        return len(pulls) == 3

    step_until(node, third, "three pulls")
    (first, _), (second, _), (last, _) = pulls
    assert first == second
    assert (last == second) == (size == 10)


# --- Slow and vanished peers ----------------------------------------------------------------------------------------


def test_a_peer_that_reads_nothing_costs_the_server_a_window_and_no_more(zeromq, peers):
    node, _ = node_with_absent_peer(zeromq, size=BIG)
    stuck = [peers.dealer(zeromq) for _ in range(8)]
    for dealer in stuck:
        dealer.send(wire.encode(pull_of(node, count=messages.MAX_WINDOW)))
    wait_until(lambda: node.statistics().bytes_out >= 8 * messages.MAX_WINDOW * CHUNK_BYTES, "eight windows are sent")
    for _ in range(20):
        node.step(1.0)
    assert node.statistics().bytes_out == 8 * messages.MAX_WINDOW * CHUNK_BYTES
    assert node.statistics().served == 0


def test_peers_that_hold_all_snapshots_never_stop_the_trainer(zeromq, peers):
    """Each stuck reader holds another snapshot; when none is free, publishing is left out and training goes on."""
    node, _ = node_with_absent_peer(zeromq, size=BIG)
    for _ in range(6):
        reader = peers.dealer(zeromq)
        reader.send(wire.encode(pull_of(node, count=1)))
        assert isinstance(wire.decode(reader.recv(), "w1"), messages.Offer)
        node.step(1.0)
        node.step(1.0)
    assert node.statistics().publish_skipped > 0


def test_a_transfer_that_is_not_asked_on_is_given_up_and_frees_its_snapshot(zeromq, peers):
    node, _ = node_with_absent_peer(zeromq, size=BIG, timeout_ms=100)
    reader = peers.dealer(zeromq)
    reader.send(wire.encode(pull_of(node, count=1)))
    assert isinstance(wire.decode(reader.recv(), "w1"), messages.Offer)
    counters = node._transport.counters
    step_until(node, lambda: counters.dropped == 1, "the transfer is given up")


def test_many_peers_pull_one_large_snapshot_at_once(zeromq, peers):
    node, _ = node_with_absent_peer(zeromq, size=BIG)
    readers = [peers.dealer(zeromq) for _ in range(4)]
    received = [bytearray() for _ in readers]
    for reader in readers:
        reader.send(wire.encode(pull_of(node)))
    deadline_s = time.monotonic() + DEADLINE_S
    while any(len(got) < 8 * BIG for got in received):
        assert time.monotonic() < deadline_s
        for reader, got in zip(readers, received, strict=True):
            if not reader.poll(1):
                continue
            header, *body = reader.recv_multipart()
            if isinstance(wire.decode(header, "w1"), messages.Chunk):
                got.extend(body[0])
                first_not_asked = len(got) // CHUNK_BYTES + 7
                if first_not_asked * CHUNK_BYTES < 8 * BIG:
                    reader.send(wire.encode(messages.More(1, first_not_asked, 1)))
                elif len(got) == 8 * BIG:
                    reader.send(wire.encode(messages.Done(1)))
    expected = np.arange(float(BIG)).tobytes()
    assert all(got == expected for got in received)
    wait_until(lambda: node.statistics().served == 4, "all four are counted")


# --- Shutdown -------------------------------------------------------------------------------------------------------


def _closes_quickly(node: Node) -> None:
    start_s = time.monotonic()
    node.close()
    node.close()
    assert time.monotonic() - start_s < 2.0


def test_close_before_start():
    config = ClusterConfig.for_localhost(2, ports=free_ports(2))
    _closes_quickly(Node(config, "w1", VectorModel([1.0])))


def test_close_during_a_transfer(zeromq, peers):
    node, port = node_with_absent_peer(zeromq, flow_control={"probe_s": 0.01, "probe_max_s": 0.05}, timeout_ms=60_000)
    silent = peers.router(port)
    step_until(node, lambda: silent.poll(0), "a pull that is never answered")
    reader = peers.dealer(zeromq)
    reader.send(wire.encode(pull_of(node, count=1)))
    assert reader.poll(DEADLINE_S * 1000)
    _closes_quickly(node)


def test_close_with_a_dead_peer(zeromq):
    node, peer = zeromq.start([VectorModel([0.0]), VectorModel([1.0])])
    zeromq.step_all(10)
    peer.close()
    node.step(1.0)
    _closes_quickly(node)


def test_close_while_connecting(zeromq):
    zeromq.config = ClusterConfig.for_localhost(2, ports=free_ports(2), connect_timeout_ms=30_000, timeout_ms=60_000)
    node = zeromq.add("w1", VectorModel([1.0]))
    node.step(1.0)
    _closes_quickly(node)


def test_close_after_a_failed_start():
    port = free_ports(1)[0]
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        config = ClusterConfig.for_localhost(2, ports=[port, *free_ports(1)])
        node = Node(config, "w1", VectorModel([1.0]))
        with pytest.raises(ConfigError, match=f"node w1: cannot listen on localhost:{port}"):
            node.start()
    _closes_quickly(node)


def test_a_bug_in_a_background_thread_reaches_the_trainer(zeromq, monkeypatch):
    node, _ = node_with_absent_peer(zeromq)
    broken = RuntimeError("a bug")

    def fail(*_args: object) -> None:
        raise broken

    monkeypatch.setattr(node._parts.wiring.exchanger, "perform", fail)
    with pytest.raises(InternalError, match="a bug") as raised:
        step_until(node, lambda: False, "the error is raised")
    assert raised.value.__cause__ is broken
    with pytest.raises(InternalError):
        node.close()
    zeromq.nodes.clear()


# --- Processes that fork --------------------------------------------------------------------------------------------


def test_a_forked_child_does_not_hold_the_port(zeromq):
    """As a DataLoader worker that outlives its trainer would."""
    node, _ = node_with_absent_peer(zeromq)
    port = zeromq.config.nodes[0].port
    parent_end, child_end = socket.socketpair()
    child = os.fork()
    if child == 0:
        child_end.send(b"forked")
        child_end.recv(1)  # lives until the test is over
        os._exit(0)
    try:
        assert parent_end.recv(6) == b"forked"
        node.close()
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", port))
            again.listen()
    finally:
        parent_end.send(b"!")
        assert os.waitpid(child, 0)[1] == 0
        parent_end.close()
        child_end.close()


@pytest.mark.seconds
def test_threads_and_descriptors_do_not_grow_with_the_number_of_exchanges(zeromq):
    nodes = zeromq.start([VectorModel([0.0]), VectorModel([1.0])])
    zeromq.step_all(20)
    before = threading.active_count(), psutil.Process().num_fds()
    zeromq.step_all(300)
    assert nodes[0].statistics().blended > 250
    assert (threading.active_count(), psutil.Process().num_fds()) == before


def test_many_nodes_started_in_any_order_all_meet(zeromq):
    order = list(range(1, 7))
    random.Random(4).shuffle(order)
    zeromq.config = ClusterConfig.for_localhost(6, ports=free_ports(6), connect_timeout_ms=50)
    for number in order:
        zeromq.add(f"w{number}", VectorModel(np.full(3, float(number))))
        zeromq.step_all(1)

    def met() -> bool:
        zeromq.step_all(1)
        return np.ptp(zeromq.vectors()) < 1e-6

    wait_until(met, "consensus of all six")

"""`close` from anywhere at any time: in the middle of a step, of a large read, while the resolver is silent."""

from __future__ import annotations

import random
import signal
import socket
import threading
import time

import numpy as np
import psutil
import pytest
from fake_peers import Peers, node_with_absent_peer

from dpwa.config.cluster import ClusterConfig
from dpwa.errors import ConfigError, InternalError, NodeClosed
from dpwa.exchange import messages
from dpwa.launch.ports import free_ports
from dpwa.node import node as node_module
from dpwa.node.node import Node
from dpwa.snapshot.staging import Staging
from dpwa.transport import wire
from dpwa.transport.conversation import Conversation
from dpwa.transport.doorbell import Doorbell
from dpwa.transport.names import HostNames
from support import DEADLINE_S, Cluster, VectorModel, step_until, wait_until

pytestmark = pytest.mark.seconds

METHODS = ["pull", "gosgd", "sgp", "adpsgd", "dpsgd", "noloco"]


@pytest.fixture
def peers():
    made = Peers()
    yield made
    made.close()


@pytest.fixture
def patient(monkeypatch):
    """Two trainers that step without a pause leave little time to a node's threads; others test how soon they end."""
    monkeypatch.setattr(node_module, "_CLOSE_TIMEOUT_S", DEADLINE_S)


def threads() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("dpwa-"))


def descriptors() -> int:
    return psutil.Process().num_fds()


# --- In the middle of a step ----------------------------------------------------------------------------------------


def trained_to_the_end(node: Node) -> None:
    """Steps until the node is closed; whatever else a step raises is an error of the test."""
    with pytest.raises(NodeClosed):  # noqa: PT012  (the step at which it is raised is the question)
        while True:
            node.step(1.0)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("method", METHODS)
def test_close_from_another_thread_in_the_middle_of_a_step_is_a_clean_step_or_says_that_the_node_is_closed(method):
    rng = random.Random(3)
    for _ in range(12):
        made = Cluster("zeromq")
        node, other = made.start([VectorModel(np.full(2000, value)) for value in (0.0, 1.0)], method=method, wait_ms=50)
        step_until(node, lambda other=other, node=node: other.step(1.0) or node.statistics().blended > 0, "exchanges")
        stop = threading.Event()

        def train_other(other: Node = other, stop: threading.Event = stop) -> None:
            while not stop.is_set():
                other.step(1.0)

        beside = threading.Thread(target=train_other)
        closer = threading.Timer(rng.random() * 0.03, node.close)
        beside.start()
        closer.start()
        trained_to_the_end(node)
        closer.join()
        stop.set()
        beside.join()
        made.close()


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.no_cover  # coverage's lock is held where the signal comes
def test_close_in_a_signal_handler_in_the_middle_of_a_step_is_a_clean_step_or_says_that_the_node_is_closed(method):
    rng, closed = random.Random(4), []
    made = Cluster("zeromq")
    before = signal.signal(signal.SIGALRM, lambda *_: closed.append(made.nodes[0].close()))
    try:
        for number in range(12):
            made.nodes.clear()
            node, other = made.start([VectorModel(np.full(2000, v)) for v in (0.0, 1.0)], method=method, wait_ms=50)
            step_until(node, lambda other=other, n=node: other.step(1.0) or n.statistics().blended > 0, "exchanges")
            signal.setitimer(signal.ITIMER_REAL, 0.001 + rng.random() * 0.03)
            trained_to_the_end(node)
            wait_until(lambda number=number: len(closed) > number, "the handler has returned")
            made.close()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert len(closed) == 12


def test_close_while_the_values_of_an_exchange_are_blended_says_that_the_node_is_closed(zeromq):
    """The very moment: what is to be blended is taken away between the arrival and the blend."""
    node, other = zeromq.start([VectorModel([0.0]), VectorModel([4.0])])
    blend = node._model.blend

    def closed_first(_values: object, factor: float) -> None:
        node.close()
        blend(node._parts.context.stagings[0].values, factor)
        raise AssertionError("a closed node has blended")

    node._model.blend = closed_first
    with pytest.raises(NodeClosed, match="w1 was closed in the middle of a step"):
        step_until(node, lambda: other.step(1.0), "the blend")


def test_close_ends_the_wait_for_an_exchange(zeromq, peers):
    node, port = node_with_absent_peer(zeromq, timeout_ms=60_000, flow_control={"probe_s": 0.01, "probe_max_s": 0.05})
    silent = peers.router(port)
    step_until(node, lambda: silent.poll(0), "a pull that is never answered")
    node._boundary.wait_s = 30.0
    closer = threading.Timer(0.1, node.close)
    closer.start()
    start_s = time.monotonic()
    trained_to_the_end(node)
    assert time.monotonic() - start_s < 5.0
    closer.join()


# --- What holds up the threads --------------------------------------------------------------------------------------


def begin_a_large_read(zeromq, monkeypatch, **settings) -> Node:
    """A node that is reading 24 MiB from shared memory, which takes three seconds, as gigabytes would."""
    models = [VectorModel(np.full(3 << 20, value)) for value in (0.0, 4.0)]
    node, other = zeromq.start(models, wait_ms=0, **settings)
    wait_until(lambda: zeromq.step_all() or all(one.statistics().blended for one in (node, other)), "both have joined")
    accept, begun = Staging.accept, threading.Event()

    def slowly(self, first_byte, stop_byte, data, *codec) -> None:
        begun.set()
        time.sleep((stop_byte - first_byte) / (8 << 20))  # the work itself: nothing is waited for
        accept(self, first_byte, stop_byte, data, *codec)

    monkeypatch.setattr(Staging, "accept", slowly)
    step_until(node, lambda: other.step(1.0) or begun.is_set(), "the read begins")
    return node


def test_close_ends_a_large_read_from_shared_memory(zeromq, monkeypatch):
    for node in (begin_a_large_read(zeromq, monkeypatch, timeout_ms=60_000), zeromq.nodes[1]):
        start_s = time.monotonic()
        node.close()
        assert time.monotonic() - start_s < 2.0
    assert threads() == []


def test_a_large_read_from_shared_memory_ends_at_the_deadline(zeromq, monkeypatch):
    node = begin_a_large_read(zeromq, monkeypatch, timeout_ms=1000, flow_control={"probe_s": 0.01, "probe_max_s": 0.05})
    blended = node.statistics().blended
    step_until(node, lambda: node.statistics().exchanges.get("timed_out", 0) >= 1, "the timeout")
    assert node.statistics().blended <= blended + 1  # one that had come before


def test_an_exchange_with_a_peer_whose_frames_never_end_has_its_deadline(zeromq, peers):
    """There is always something to read: old answers, faster than they are thrown away."""
    node, port = node_with_absent_peer(zeromq, timeout_ms=500, flow_control={"probe_s": 0.01, "probe_max_s": 0.05})
    flooder = peers.router(port)
    late, stop = wire.encode(messages.NotReady(1)), threading.Event()
    step_until(node, lambda: flooder.poll(0), "a pull")
    identity, _ = flooder.recv_multipart()

    def flood() -> None:
        while not stop.is_set():
            flooder.send_multipart([identity, late])

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        step_until(node, lambda: node.statistics().exchanges.get("timed_out", 0) >= 1, "the timeout")
        start_s = time.monotonic()
        node.close()
        assert time.monotonic() - start_s < 2.0
    finally:
        stop.set()
        thread.join()


def test_data_that_are_ready_do_not_hide_the_deadline_and_the_end():
    """Without a socket: the conversation looks before it takes what is there."""
    looked = []

    class Ready:
        def recv(self, *_: object, **__: object) -> None:
            raise AssertionError("taken without a look")

    def look() -> None:
        looked.append(1)
        raise NodeClosed("the node was closed")

    pull = messages.PullRequest(1, "run", "w2", bytes(8), bytes(8), bytes(8), 0, 0, 1 << 20, 0, 1, True, False)
    talk = Conversation("w1", Ready(), lambda: True, pull, look)
    with pytest.raises(NodeClosed):
        talk.next()
    assert looked == [1]


def test_a_thread_that_is_stuck_is_told_the_other_ends_and_nothing_stays_when_it_comes_back(zeromq, monkeypatch):
    before = threads(), descriptors()
    node, _ = node_with_absent_peer(zeromq)
    stuck, leave = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        stuck.set()
        assert leave.wait(DEADLINE_S)

    monkeypatch.setattr(node._parts.wiring.exchanger, "perform", hang)
    step_until(node, stuck.is_set, "the thread is stuck")
    start_s = time.monotonic()
    with pytest.raises(InternalError, match=r"the Tx thread did not end within 1\.5 s"):
        node.close()
    assert time.monotonic() - start_s < 2.0
    assert threads() == ["dpwa-end-w1", "dpwa-tx-w1"], "the Rx thread had its share of the time"
    leave.set()
    wait_until(lambda: (threads(), descriptors()) == before, "threads and descriptors are as before")
    node.close()


def test_open_threads_and_descriptors_are_as_before_after_close():
    made = Cluster("zeromq")
    made.start([VectorModel([0.0])] * 2)
    made.close()  # what is made once per process is there
    wait_until(lambda: not threads(), "what other tests have left has ended")
    before = threads(), descriptors()
    for _ in range(5):
        made.nodes.clear()
        made.start([VectorModel(np.full(1000, value)) for value in (0.0, 1.0)])
        made.step_all(10)
        made.close()
    assert threads() == before[0]
    assert descriptors() <= before[1], "one that an earlier test has left may be closed meanwhile"


# --- Names ----------------------------------------------------------------------------------------------------------


class Resolver:
    """In the place of the system's: answers, is silent, or does not know."""

    def __init__(self, monkeypatch) -> None:
        self.numbers: dict[str, str] = {}
        self.speaks = threading.Event()
        self.speaks.set()
        self.asked: list[str] = []
        monkeypatch.setattr(socket, "gethostbyname", self.look_up)
        monkeypatch.setattr(socket, "getaddrinfo", self.look_up_ipv6)

    def look_up(self, host: str) -> str:
        self.asked.append(host)
        assert self.speaks.wait(DEADLINE_S)
        if ":" in self.numbers.get(host, ":"):
            raise OSError(f"{host} is not known")
        return self.numbers[host]

    def look_up_ipv6(self, host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        if host not in self.numbers:
            raise OSError(f"{host} has no IPv6 address")
        return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", (self.numbers[host], 0, 0, 0))]


@pytest.fixture
def resolver(monkeypatch):
    made = Resolver(monkeypatch)
    yield made
    made.speaks.set()
    wait_until(lambda: not any("lookup" in name for name in threads()), "the look-ups have ended")


def named_cluster(zeromq) -> Node:
    """A node whose one peer has a host name."""
    own, other = free_ports(2)
    zeromq.config = ClusterConfig(
        nodes=[{"name": "w1", "port": own}, {"name": "w2", "host": "peer.example", "port": other}],
        insecure=True,
        connect_timeout_ms=100,
        timeout_ms=400,
        flow_control={"probe_s": 0.01, "probe_max_s": 0.05},
    )
    return zeromq.add("w1", VectorModel([0.0]))


def test_a_silent_resolver_costs_an_exchange_its_time_to_connect_and_close_nothing(zeromq, resolver):
    resolver.speaks.clear()
    node = named_cluster(zeromq)
    step_until(node, lambda: node.statistics().exchanges.get("unreachable", 0) >= 3, "asks fail in time")
    assert resolver.asked == ["peer.example"], "one look-up is under way, not one per ask"
    start_s = time.monotonic()
    node.close()
    assert time.monotonic() - start_s < 1.0


def test_when_the_resolver_falls_silent_the_last_known_address_is_used(zeromq, resolver):
    resolver.numbers["peer.example"] = "127.0.0.1"
    node = named_cluster(zeromq)
    other = zeromq.add("w2", VectorModel([4.0]))  # which looks its own name up
    wait_until(lambda: not any("lookup" in name for name in threads()), "the name is known")
    resolver.speaks.clear()
    step_until(node, lambda: other.step(1.0) or node.statistics().blended >= 2, "blends")


def test_a_name_that_means_another_machine_is_found_at_the_next_connection(resolver):
    resolver.numbers["peer.example"] = "127.0.0.1"
    known = HostNames(["peer.example", "10.0.0.7", "localhost"])
    soon_s = time.monotonic() + DEADLINE_S
    assert known.number("peer.example", soon_s) == "127.0.0.1"
    resolver.numbers["peer.example"] = "127.0.0.2"
    assert known.number("peer.example", soon_s) == "127.0.0.2"
    # A slow resolver: the old address at once, the new one when it is known.
    resolver.speaks.clear()
    resolver.numbers["peer.example"] = "127.0.0.3"
    assert known.number("peer.example", soon_s) == "127.0.0.2"
    resolver.speaks.set()
    wait_until(lambda: known.number("peer.example", soon_s) == "127.0.0.3", "the new address")
    # One that has an IPv6 address by now, and no other.
    resolver.numbers["peer.example"] = "2001:db8::7"
    assert known.number("peer.example", soon_s) == "2001:db8::7"
    resolver.numbers["peer.example"] = "127.0.0.3"
    assert known.number("peer.example", soon_s) == "127.0.0.3"
    # One that does not know it any more.
    del resolver.numbers["peer.example"]
    assert known.number("peer.example", soon_s) == "127.0.0.3"
    asked = len(resolver.asked)
    assert (known.number("10.0.0.7", 0.0), known.number("localhost", 0.0)) == ("10.0.0.7", "127.0.0.1")
    assert len(resolver.asked) == asked
    known.close()


def test_of_hosts_that_nobody_is_asked_at_nothing_is_kept(resolver):
    """Members may name any hosts of others."""
    resolver.numbers["peer.example"] = "127.0.0.1"
    known = HostNames([])
    assert known.number("peer.example", time.monotonic() + DEADLINE_S) == "127.0.0.1"
    known.forget("peer.example")
    resolver.speaks.clear()
    for number in range(5):
        with pytest.raises(ConfigError, match="cannot be resolved"):
            known.number(f"made-up-{number}.example", time.monotonic())
        known.forget(f"made-up-{number}.example")
    resolver.speaks.set()
    known.close()
    wait_until(lambda: not any(thread.is_alive() for thread in known._threads), "all look-ups have ended")
    assert (known._numbers, known._reasons, known._under_way) == ({}, {}, {})


def test_a_wait_for_the_resolver_ends_with_the_bell(resolver):
    resolver.speaks.clear()
    bell, known = Doorbell(), HostNames([])
    threading.Timer(0.05, bell.ring).start()
    with pytest.raises(NodeClosed):
        known.number("peer.example", time.monotonic() + DEADLINE_S, bell)
    resolver.speaks.set()
    known.close()
    bell.close()

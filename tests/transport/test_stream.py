"""The stream between nodes: fair, bounded, with codecs, over few connections, and over other links than plain TCP."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import numpy as np
import psutil
import pytest
import zmq
from fake_peers import Peers, node_with_absent_peer, pull_of

from dpwa.config.cluster import ClusterConfig
from dpwa.exchange import messages
from dpwa.exchange.slices import CHUNK_BYTES, RUN, chunk_count
from dpwa.launch.ports import free_ports
from dpwa.node.node import Node
from dpwa.snapshot.state import Codec
from dpwa.transport import client, wire
from dpwa.transport.sockets import CurveKeys, Links
from dpwa.transport.zeromq import ZmqTransport
from support import Cluster, VectorModel, events_of, step_until, wait_until

pytestmark = pytest.mark.seconds

BIG = 3_000_000  # float64: 24 MB


@pytest.fixture
def peers():
    made = Peers()
    yield made
    made.close()


# --- Fair and bounded -----------------------------------------------------------------------------------------------


class Puller:
    """Pulls one snapshot after the other from a node, as a peer does, over a bare socket."""

    def __init__(self, socket: zmq.Socket, node: Node) -> None:
        self.socket = socket
        self._node = node
        self._total = node._model.layout.total_bytes
        self._chunks = chunk_count(self._total, CHUNK_BYTES)
        self._nonce = 0
        self.chunks = 0
        self.begin()

    def begin(self) -> None:
        self._nonce += 1
        self._received, self._asked = 0, RUN
        self.socket.send(wire.encode(pull_of(self._node, nonce=self._nonce, count=RUN)))

    def read(self) -> None:
        """Take one message, and ask for what comes next."""
        header, *_ = self.socket.recv_multipart()
        if not isinstance(wire.decode(header, "w1"), messages.Chunk):
            return
        self.chunks += 1
        self._received += 1
        if self._received == self._chunks:
            self.socket.send(wire.encode(messages.Done(self._nonce)))
            self.begin()
        elif self._asked < self._chunks and self._asked - self._received <= RUN:
            self.socket.send(wire.encode(messages.More(self._nonce, self._asked, RUN)))
            self._asked += RUN


def _read_for(pullers: list[Puller], seconds: float) -> None:
    poller = zmq.Poller()
    by_socket = {puller.socket: puller for puller in pullers}
    for socket in by_socket:
        poller.register(socket, zmq.POLLIN)
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        for socket, _ in poller.poll(100):
            by_socket[socket].read()


def test_of_eight_pullers_none_waits_more_than_twice_its_fair_share(zeromq, peers):
    node, _ = node_with_absent_peer(zeromq, size=BIG, timeout_ms=20_000)
    pullers = [Puller(peers.dealer(zeromq), node) for _ in range(8)]
    _read_for(pullers, 1.0)
    before = [puller.chunks for puller in pullers]
    _read_for(pullers, 1.0)
    chunks = [puller.chunks - early for puller, early in zip(pullers, before, strict=True)]
    assert sum(chunks) > 8 * 20, chunks
    assert min(chunks) >= np.mean(chunks) / 2, chunks
    assert node._transport.counters.dropped == 0


def test_a_small_pull_among_large_ones_is_answered_within_two_turns_of_the_others(zeromq, peers):
    node, _ = node_with_absent_peer(zeromq, size=BIG, timeout_ms=20_000)
    pullers = [Puller(peers.dealer(zeromq), node) for _ in range(7)]
    _read_for(pullers, 0.5)
    node._service.tell(step_interval_s=0.0)  # nobody waits for the next publish
    small = peers.dealer(zeromq)
    turn = 7 * 2 * RUN  # chunks that the others may have asked for at one time
    for nonce in range(1, 21):
        before = sum(puller.chunks for puller in pullers)
        small.send(wire.encode(pull_of(node, nonce=nonce, count=1)))
        while small.poll(0) == 0:
            _read_for(pullers, 0.001)
        small.recv_multipart()  # the offer
        while small.poll(0) == 0:
            _read_for(pullers, 0.001)
        small.recv_multipart()  # its chunk
        # What was on its way to the others already, and at most twice the fair share of waiting.
        assert sum(puller.chunks for puller in pullers) - before <= turn + 2 * turn


def test_a_puller_that_vanishes_in_the_middle_leaves_nothing_behind(zeromq, peers):
    node, _ = node_with_absent_peer(zeromq, size=BIG, timeout_ms=200, memory="low")
    for _ in range(3):
        reader = peers.dealer(zeromq)
        reader.send(wire.encode(pull_of(node, count=1)))
        assert isinstance(wire.decode(reader.recv_multipart()[0], "w1"), messages.Offer)
        reader.close()
    counters = node._transport.counters
    step_until(node, lambda: counters.dropped == 3, "all three are given up")
    assert node._transport._rx._peers.transfers == {}
    published = node.statistics().published

    def served_again() -> bool:
        reader = peers.dealer(zeromq)
        reader.send(wire.encode(pull_of(node, count=1)))
        wait_until(lambda: bool(node.step(1.0)) or reader.poll(0) > 0, "an offer")
        reader.recv_multipart()
        reader.close()
        return node.statistics().published >= published + 3

    wait_until(served_again, "both buffers are used again")


def test_a_transfer_that_fails_in_the_middle_frees_the_own_snapshot(zeromq, peers):
    """With two buffers, one that stays in use would end publishing, and so the asking, for ever."""
    settings = {"flow_control": {"probe_s": 0.01, "probe_max_s": 0.02}, "memory": "low"}
    node, port = node_with_absent_peer(zeromq, **settings)
    liar, reader = peers.router(port), peers.dealer(zeromq)

    def failed_often() -> bool:
        if liar.poll(0):
            identity, header = liar.recv_multipart()
            offer = messages.Offer(wire.decode(header, "w1").nonce, b"j" * 8, 1, 1.0, 1.0, 80, -1, bytes(16), False)
            liar.send_multipart([identity, wire.encode(offer)])
            liar.send_multipart([identity, b"garbage"])
        reader.send(wire.encode(pull_of(node)))  # somebody wants the newest snapshot in every step
        return node.statistics().exchanges.get("protocol_error", 0) >= 4

    step_until(node, failed_often, "exchanges go on after failures")


@pytest.mark.parametrize("memory", ["normal", "low"])
@pytest.mark.parametrize("shared_memory", ["auto", "off"])
def test_nodes_that_do_not_wait_for_their_exchanges_never_run_out_of_buffers(zeromq, memory, shared_memory):
    models = [VectorModel(np.full(20_000, float(value))) for value in range(3)]
    nodes = zeromq.start(models, memory=memory, shared_memory=shared_memory, wait_ms=0)
    wait_until(lambda: zeromq.step_all() or all(node.statistics().blended >= 20 for node in nodes), "20 blends each")
    assert sum(node.statistics().failures for node in nodes) == 0


@pytest.mark.parametrize("codec", [Codec.RAW, Codec.FP16, Codec.INT8])
def test_pullers_that_do_not_read_cost_a_bounded_amount_of_memory(zeromq, peers, codec):
    node, _ = node_with_absent_peer(zeromq, size=BIG)
    for _ in range(10):
        node.step(1.0)
    process = psutil.Process()
    memory = [process.memory_info().rss]
    counters = node._transport.counters
    for number in range(1, 9):
        stuck = peers.dealer(zeromq, receive_queue=1)
        stuck.send(wire.encode(pull_of(node, codec=int(codec), count=RUN)))
        assert isinstance(wire.decode(stuck.recv(), "w1"), messages.Offer)  # and that is all that it reads
        stuck.send(wire.encode(messages.More(1, RUN, RUN)))
        sent = number * 2 * RUN
        wait_until(lambda sent=sent: _chunks_sent(node, codec) >= sent, "two runs are sent")
        node.step(1.0)
        memory.append(process.memory_info().rss)
    assert counters.served == 0
    assert memory[-1] - memory[0] < 64 << 20, "two further buffers for snapshots among them"
    assert memory[-1] - memory[3] < 16 << 20, "five readers, when all buffers are in use"


def _chunks_sent(node: Node, codec: Codec) -> float:
    bytes_per_value = {Codec.RAW: 8, Codec.FP16: 2, Codec.INT8: 1 + 4 / 256}[codec]
    return node._transport.counters.bytes_out / (CHUNK_BYTES / 8 * bytes_per_value)


def test_a_peer_that_dies_between_chunks_is_a_counted_failure_and_training_goes_on(zeromq, peers):
    settings = {"flow_control": {"probe_s": 0.01, "probe_max_s": 0.02}, "timeout_ms": 5000}
    node, port = node_with_absent_peer(zeromq, size=BIG, **settings)
    before = zeromq.models[0].vector.copy()
    doomed = peers.router(port)
    step_until(node, lambda: doomed.poll(0), "a pull")
    identity, header = doomed.recv_multipart()
    nonce = wire.decode(header, "w1").nonce
    offer = messages.Offer(nonce, b"j" * 8, 1, 1.0, 1.0, 8 * BIG, -1, bytes(16), False)
    doomed.send_multipart([identity, wire.encode(offer)])
    doomed.send_multipart([identity, wire.encode(messages.Chunk(nonce, 0, 0)), bytes(CHUNK_BYTES)])
    failures = node.statistics().failures
    doomed.close()
    start_s = time.monotonic()
    step_until(node, lambda: node.statistics().failures > failures, "the failure is counted")
    assert time.monotonic() - start_s < 2, "the broken connection is noticed, not the timeout"
    assert node.statistics().exchanges["unreachable"] > 0
    steps = node.statistics().step
    node.step(1.0)
    assert node.statistics().step == steps + 1
    assert np.array_equal(zeromq.models[0].vector, before)


# --- Codecs ---------------------------------------------------------------------------------------------------------


def test_a_codec_that_the_server_does_not_know_gets_plain_chunks(zeromq, peers):
    node, _ = node_with_absent_peer(zeromq)
    reader = peers.dealer(zeromq)
    reader.send(wire.encode(pull_of(node, codec=77)))
    assert isinstance(wire.decode(reader.recv(), "w1"), messages.Offer)
    header, body = reader.recv_multipart()
    assert wire.decode(header, "w1") == messages.Chunk(1, 0, Codec.RAW)
    assert body == np.arange(10.0).tobytes()
    assert node.statistics().protocol_errors == 0


@pytest.mark.parametrize(
    ("codec", "error", "bytes_per_value"),
    [("raw", 0.0, 8), ("fp16", 2**-11, 2), ("bf16", 2**-8, 2), ("int8", 1 / 254, 1 + 4 / 256)],
)
def test_a_blend_over_a_codec_stays_within_the_codecs_error(zeromq, tmp_path, codec, error, bytes_per_value):
    rng = np.random.default_rng(3)
    own, peer = rng.uniform(-1, 1, 200_000), rng.uniform(-1, 1, 200_000)
    settings = {"codec": codec, "shared_memory": "off", "constant": {"value": 0.25}}
    first, second = zeromq.start([VectorModel(own), VectorModel(peer)], run_dir=tmp_path, **settings)
    step_until(first, lambda: first.statistics().exchanges.get("not_ready"), "the peer has published nothing yet")
    second.step(1.0)
    before = zeromq.vectors()
    step_until(first, lambda: first.statistics().blended == 1, "first blend")
    exact = 0.75 * before[0] + 0.25 * before[1]
    # fp16 and bf16: half of the last digit; int8: half of the 127th part of the largest value of a block.
    assert np.abs(zeromq.models[0].vector - exact).max() <= 0.25 * error * 1.01 + 1e-12
    zeromq.close()
    (event,) = events_of(tmp_path, "w1", outcome="blended")
    assert (event["codec"], event["via"]) == (codec, "stream")
    assert event["bytes"] == pytest.approx(200_000 * bytes_per_value, rel=0.001)


# --- Connections ----------------------------------------------------------------------------------------------------


def test_a_node_keeps_no_more_connections_than_it_may_and_still_meets_all_peers(zeromq, monkeypatch, tmp_path):
    opened: dict[str, list[zmq.Socket]] = {}
    most: dict[str, int] = {}
    make = client.dealer

    def counted(*arguments: object) -> zmq.Socket:
        made = make(*arguments)
        mine = opened.setdefault(threading.current_thread().name, [])
        mine[:] = [socket for socket in mine if not socket.closed] + [made]
        most[threading.current_thread().name] = max(most.get(threading.current_thread().name, 0), len(mine))
        return made

    monkeypatch.setattr(client, "dealer", counted)
    models = [VectorModel(np.full(3, float(value))) for value in range(11)]
    settings = {"max_connections": 3, "shared_memory": "off", "connect_timeout_ms": 1000}
    nodes = zeromq.start(models, run_dir=tmp_path, **settings)
    zeromq.step_all(10)
    process = psutil.Process()
    descriptors = [process.num_fds()]
    for _ in range(6):
        zeromq.step_all(10)
        descriptors.append(process.num_fds())
    assert most == {f"dpwa-tx-w{number}": 3 for number in range(1, 12)}
    # A closed connection's descriptors go a little later; without the bound there would be 11 * 7 connections more.
    assert max(descriptors) - min(descriptors) < 40, descriptors
    assert sum(node.statistics().failures for node in nodes) == 0
    zeromq.close()
    blended_with = {event["peer"] for event in events_of(tmp_path, "w1", outcome="blended")}
    assert blended_with == {f"w{number}" for number in range(2, 12)}


def _start_linked(cluster: Cluster, links: list[Links], **settings: object) -> list[Node]:
    cluster.config = ClusterConfig.for_localhost(
        len(links), ports=free_ports(len(links)), shared_memory="off", constant={"value": 0.5}, **settings
    )
    for number, link in enumerate(links, start=1):
        name, model = f"w{number}", VectorModel(np.full(100_000, float(number)))
        make = lambda wiring, name=name, link=link: ZmqTransport(cluster.config, name, wiring, links=link)  # noqa: E731
        node = Node(cluster.config, name, model, make_transport=make)
        node.start()
        cluster.nodes.append(node)
        cluster.models.append(model)
    return cluster.nodes


def test_nodes_exchange_over_ipc(zeromq, tmp_path):
    addresses = {name: f"ipc://{name}" for name in ("w1", "w2")}  # in the test's own folder
    links = [Links(listen=addresses[own], peers={peer: addresses[peer]}) for own, peer in (("w1", "w2"), ("w2", "w1"))]
    _start_linked(zeromq, links, wait_ms=2000)
    wait_until(lambda: zeromq.step_all() or np.ptp(zeromq.vectors(), axis=0).max() < 1e-6, "consensus")
    assert sum(node.statistics().failures for node in zeromq.nodes) == 0
    assert (tmp_path / "w1").is_socket()


def _keys(count: int) -> list[tuple[bytes, bytes]]:
    return [zmq.curve_keypair() for _ in range(count)]


def test_nodes_exchange_over_encrypted_links(zeromq):
    (one, two) = _keys(2)
    links = [
        Links(curve=CurveKeys(public=one[0], secret=one[1], peers={"w2": two[0]})),
        Links(curve=CurveKeys(public=two[0], secret=two[1], peers={"w1": one[0]})),
    ]
    _start_linked(zeromq, links, wait_ms=2000)
    wait_until(lambda: zeromq.step_all() or np.ptp(zeromq.vectors(), axis=0).max() < 1e-6, "consensus")
    assert sum(node.statistics().failures for node in zeromq.nodes) == 0
    plain = zmq.Context()
    with plain.socket(zmq.DEALER) as reader:
        reader.setsockopt(zmq.LINGER, 0)
        reader.setsockopt(zmq.SNDTIMEO, 0)
        reader.connect(f"tcp://127.0.0.1:{zeromq.config.nodes[0].port}")
        with suppress(zmq.Again):  # if the connection has been refused by now, there is nowhere to send to
            reader.send(wire.encode(pull_of(zeromq.nodes[0])))
        assert reader.poll(300) == 0, "who does not speak the encryption gets nothing"
    plain.term()


def test_a_peer_with_another_key_than_expected_is_never_connected_to(zeromq):
    one, two, other = _keys(3)
    links = [
        Links(curve=CurveKeys(public=one[0], secret=one[1], peers={"w2": other[0]})),
        Links(curve=CurveKeys(public=two[0], secret=two[1], peers={"w1": other[0]})),
    ]
    flow = {"probe_s": 0.01, "probe_max_s": 0.02}
    nodes = _start_linked(zeromq, links, wait_ms=0, connect_timeout_ms=100, flow_control=flow)
    wait_until(
        lambda: zeromq.step_all() or all(node.statistics().exchanges.get("unreachable", 0) >= 3 for node in nodes),
        "three refusals each",
    )
    assert [node.statistics().blended for node in nodes] == [0, 0]
    assert [node.statistics().served for node in nodes] == [0, 0]

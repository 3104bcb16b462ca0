"""Strangers at the port of a node that trains with others: they cost little, and stop nothing."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from fake_peers import node_with_absent_peer, pull_of
from strangers import Stranger

from dpwa.exchange import messages
from dpwa.exchange.slices import CHUNK_BYTES
from dpwa.transport import wire
from dpwa.transport.allowed_list import read_list
from dpwa.transport.invitations import make_signer
from dpwa.transport.key_files import ALLOWED_FILE
from dpwa.transport.key_folder import KeyFolder, make_keys
from support import DEADLINE_S, TESTS, VectorModel, events_of, mostly_slow, wait_until

pytestmark = pytest.mark.heavy

SIZE = 50_000  # float64: 400 KB
PACE_S = 0.05
STRANGERS = TESTS / "strangers.py"


class Training:
    """Nodes of one process that train at a steady pace in a thread of their own."""

    def __init__(self, cluster, nodes: int, size: int = SIZE, **settings) -> None:
        self.nodes = cluster.start(_models(nodes, size), shared_memory="off", wait_ms=0, **settings)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._train)
        self.error: BaseException | None = None
        self._thread.start()
        wait_until(lambda: all(node.statistics().blended >= 3 for node in self.nodes), "all exchange")

    def _train(self) -> None:
        next_s = time.monotonic()
        try:
            while not self._stop.is_set():
                for node in self.nodes:
                    node.step(1.0)
                next_s = max(next_s + PACE_S, time.monotonic())
                self._stop.wait(next_s - time.monotonic())
        except Exception as error:  # noqa: BLE001  (kept for the test)
            self.error = error

    def rates(self, seconds: float) -> tuple[float, float, float, float]:
        """Exchanges per second of the first node and of the others, its steps, and cores that its Rx thread uses."""
        before, start_s = self._counts(), time.monotonic()
        threading.Event().wait(seconds)  # what is measured is a rate over this time
        after, took_s = self._counts(), time.monotonic() - start_s
        return tuple((late - early) / took_s for early, late in zip(before, after, strict=True))

    def _counts(self) -> tuple[float, ...]:
        first, *others = [node.statistics() for node in self.nodes]
        thread = self.nodes[0]._transport._rx._thread.native_id
        times = next(one for one in psutil.Process().threads() if one.id == thread)
        return first.blended, sum(each.blended for each in others), first.step, times.user_time + times.system_time

    def end(self) -> None:
        self._stop.set()
        self._thread.join()


def _models(nodes: int, size: int = SIZE) -> list[VectorModel]:
    return [VectorModel(np.full(size, float(number))) for number in range(nodes)]


@pytest.fixture
def training(zeromq):
    made = []

    def start(nodes: int, **settings) -> Training:
        made.append(Training(zeromq, nodes, **settings))
        return made[-1]

    yield start
    for each in made:
        each.end()


def _attacked(training: Training, kind: str, seconds: float):
    """Rates before, during and after; the most memory that it took, and what the strangers did."""
    node = training.nodes[0]
    before = training.rates(min(seconds, 2.0))
    process = psutil.Process()
    rss = process.memory_info().rss
    pull = wire.encode(pull_of(node, count=1 if kind == "holders" else 2))
    if kind == "unknown_key":
        pull = KeyFolder(Path(node.config.keys), "w1", []).public
    if kind in _GUESTS:
        allowed = read_list(Path(node.config.keys) / ALLOWED_FILE)[0]
        pull = allowed.keys["w1"][0] + allowed.signers[0]
    port = node.config.nodes[0].port
    attack = subprocess.Popen(
        [sys.executable, STRANGERS, kind, str(port), str(seconds), pull.hex()], stdout=subprocess.PIPE, text=True
    )
    assert attack.stdout.readline() == "begun\n"
    peak, done = [rss], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    during = training.rates(seconds)
    output, _ = attack.communicate()
    done.set()
    watcher.join()
    assert attack.returncode == 0
    return before, during, (max(peak) - rss) / 2**20, json.loads(output)


# --- Attacks --------------------------------------------------------------------------------------------------------

_KINDS = ("silent", "multipart", "incomplete", "slow", "flood", "holders")
_KINDS_WITHOUT_KEYS = ("silent", "plain", "half", "announces", "garbage", "unknown_key")
_GUESTS = ("guests_silent", "guests_garbage", "guests_forged")


def _costs_little_and_stops_nothing(training: Training, kind: str, seconds: float, caplog, least_share: float) -> None:
    with caplog.at_level(logging.WARNING, "dpwa"):
        before, during, grown_mb, did = _attacked(training, kind, seconds)
    figures = f"{kind}: before {before}, during {during}, {grown_mb:.0f} MB, {did}, {_guarded(training)}"
    print(figures)
    assert training.error is None
    # It has happened.
    assert did["connections"] > {"silent": 1000, "half": 1000, "incomplete": 90, "slow": 90}.get(kind, 3), figures
    assert (did.get("in", 0) > 0) == (kind in _GUESTS), figures
    assert did.get("bytes", 0) > {"multipart": 1_000_000, "flood": 100_000}.get(kind, -1), figures
    is_patient = kind == "guests_silent"  # few and silent they are shown out after 5 s: see test_guests.py
    assert is_patient or sum(_guarded(training).values()) > 0, figures
    # It cost little.
    assert sum(during[:2]) >= least_share * sum(before[:2]), figures
    assert during[2] >= least_share * before[2], figures
    assert grown_mb < 64, figures
    # A flood at full speed costs more: whoever is closed is back at once with hundreds of requests, which must be read
    # to be dropped. Reading them later would cost honest peers their answers, and memory.
    assert during[3] < (0.9 if kind == "flood" else 0.25), figures
    # It is over.
    node = training.nodes[0]
    wait_until(lambda: len(node._transport._rx._door.connections.standing) <= len(training.nodes), "they are gone", 5.0)
    wait_until(lambda: sum(training.rates(0.5)[:2]) >= 0.7 * sum(before[:2]), "exchanges are as before", 5.0)
    # The user was told, of each kind once.
    told = [record.message for record in caplog.records if "node w1, port" in record.message]
    assert told or is_patient
    assert len(told) == len(set(told)) <= 3


def _guarded(training: Training) -> dict[str, int]:
    counts = training.nodes[0]._transport.counters.guarded
    return {str(cause.value): count for cause, count in counts.items() if count}


@pytest.mark.parametrize("kind", mostly_slow(_KINDS, "multipart", "flood", "holders"))
def test_strangers_cost_little_and_stop_nothing(training, kind, caplog):
    """All nodes share one interpreter and few cores here, and moments are short: hence a quarter, and half below."""
    _costs_little_and_stops_nothing(training(3), kind, 1.5, caplog, least_share=0.25)


@pytest.mark.parametrize("kind", mostly_slow(_KINDS_WITHOUT_KEYS, "unknown_key", "plain"))
def test_whoever_has_no_key_costs_little_and_stops_nothing(training, kind, caplog, tmp_path):
    """Of nodes with keys."""
    make_keys(tmp_path, ["w1", "w2", "w3"])
    trains = training(3, keys=str(tmp_path))
    _costs_little_and_stops_nothing(trains, kind, 1.5, caplog, least_share=0.25)
    assert trains.nodes[0].statistics().protocol_errors == 0, "nothing of it was read"


@pytest.mark.parametrize("kind", mostly_slow(_GUESTS, "guests_forged"))
def test_guests_without_a_certificate_cost_little_and_stop_nothing(training, kind, caplog, tmp_path):
    """Of nodes whose list names a signer."""
    make_keys(tmp_path, ["w1", "w2", "w3"])
    make_signer(tmp_path)
    trains = training(3, keys=str(tmp_path))
    _costs_little_and_stops_nothing(trains, kind, 1.5, caplog, least_share=0.25)
    node = trains.nodes[0]
    assert node.statistics().protocol_errors == 0
    assert node._transport._rx._links.curve.certified.keys == []


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["normal", "low"])
@pytest.mark.parametrize("kind", _KINDS)
def test_strangers_cost_little_and_stop_nothing_for_ten_seconds(training, kind, memory, caplog):
    _costs_little_and_stops_nothing(training(4, size=800_000, memory=memory), kind, 10.0, caplog, least_share=0.5)


def test_what_was_closed_is_counted_in_the_journal_in_few_lines(training, tmp_path, zeromq):
    trains = training(2, run_dir=tmp_path)
    port = zeromq.config.nodes[0].port
    for _ in range(20):
        stranger = Stranger(port)
        stranger.send(b"garbage")
        assert stranger.is_closed(within_s=DEADLINE_S)
        stranger.close()
    wait_until(lambda: _guarded(trains) == {"illegal": 20}, "all are counted")
    trains.end()
    zeromq.close()
    counts = [line["illegal"] for line in events_of(tmp_path, "w1", "guard")]
    assert counts[-1] == 20
    assert len(counts) <= 2
    metrics = (tmp_path / "nodes/w1/metrics.jsonl").read_text().splitlines()
    assert json.loads(metrics[-1])["publish_skipped"] == 0


# --- One connection -------------------------------------------------------------------------------------------------


@pytest.fixture
def stranger(zeromq):
    """A node without its peer, and a connection to it."""
    node, _ = node_with_absent_peer(zeromq, size=3 * CHUNK_BYTES // 8)
    made = Stranger(zeromq.config.nodes[0].port)
    yield node, made
    made.close()


def test_asking_beyond_the_end_of_a_snapshot_ends_the_connection(stranger):
    node, made = stranger
    made.send(wire.encode(pull_of(node, count=1)))
    assert made.socket.recv(4096)
    made.send(wire.encode(messages.More(1, 3, 1)))
    assert made.is_closed(within_s=DEADLINE_S)
    assert node.statistics().protocol_errors == 1


def test_pulls_one_after_the_other_whose_answers_are_not_read_end_the_connection(zeromq):
    node, _ = node_with_absent_peer(zeromq, size=3 * CHUNK_BYTES // 8)
    made = Stranger(zeromq.config.nodes[0].port, receive_buffer=4096)
    counters = node._transport.counters
    for nonce in range(1, 7):
        sent = counters.bytes_out
        with contextlib.suppress(OSError):  # closed by now
            made.send(wire.encode(pull_of(node, nonce=nonce, count=3)))
        wait_until(
            lambda sent=sent: bool(node.step(1.0)) or counters.bytes_out > sent or sum(counters.guarded.values()) > 0,
            "it is answered, or closed",
        )
    wait_until(lambda: sum(counters.guarded.values()) > 0, "it is closed")
    made.close()
    assert counters.bytes_out <= 6 * 3 * CHUNK_BYTES


def test_an_endless_message_ends_its_connection_and_gives_its_memory_back(stranger):
    node, made = stranger
    made.send(wire.encode(pull_of(node, count=1)))
    assert made.socket.recv(4096)
    sent = 0
    with contextlib.suppress(OSError):
        while sent < 1 << 30:
            sent += made.socket.send(b"\x01\x00" * 5000)
    assert sent < 32 << 20
    assert node._transport.counters.guarded["incomplete"] == 1


def test_a_client_whose_idle_connection_was_closed_exchanges_again_without_a_failure(zeromq):
    served, asking = zeromq.start([VectorModel([0.0]), VectorModel([1.0])], wait_ms=2000)
    zeromq.step_all(5)
    door = served._transport._rx._door
    (connection,) = door.connections.standing
    counters = served._transport.counters

    def is_closed() -> bool:
        connection.last_request_s = time.monotonic() - 1000  # also after the last exchange has ended
        return counters.guarded["silent"] == 1

    def answered() -> int:
        return sum(asking.statistics().exchanges.get(outcome, 0) for outcome in ("blended", "not_modified"))

    wait_until(is_closed, "it is closed")
    before = answered()
    zeromq.step_all(5)
    assert answered() >= before + 4
    assert asking.statistics().failures == served.statistics().failures == 0
    assert set(door.connections.standing) - {connection}, "the client has connected again"


# --- Descriptors ----------------------------------------------------------------------------------------------------


def test_connections_that_break_off_in_a_flood_of_messages_do_not_end_the_process(tmp_path):
    """An assertion of libzmq 4.3.5 ended it: messages waited to be read, the connection broke, a heartbeat was due."""
    (tmp_path / "node.py").write_text(_NODE)
    node = subprocess.Popen(
        [sys.executable, tmp_path / "node.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    port = int(node.stdout.readline())
    flood = (b"\0\5hello" * 40 + b"\4\7\4PING\0\x10") * 600
    broken = 0
    for _ in range(300):
        if node.poll() is not None:
            break
        try:
            made = Stranger(port)
        except OSError:
            continue
        made.socket.setblocking(False)
        with contextlib.suppress(OSError):
            for _ in range(4):
                made.socket.send(flood)
        made.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # ends by a reset
        made.close()
        broken += 1
    assert broken > 200
    output, _ = node.communicate("end\n", timeout=30)
    assert node.returncode == 0
    assert output == "trained to its end\n"


_NODE = f"""
import select, sys
sys.path.insert(0, {str(STRANGERS.parent)!r})
from support import VectorModel
from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports
from dpwa.node.node import Node
ports = free_ports(2)
node = Node(ClusterConfig.for_localhost(2, ports=ports, connect_timeout_ms=50), "w1", VectorModel([1.0] * 10))
node.start()
print(ports[0], flush=True)
while not select.select([sys.stdin], [], [], 0.01)[0]:
    node.step(1.0)
node.close()
print("trained to its end")
"""


def test_a_process_without_descriptors_trains_on_without_spinning_and_serves_again_afterwards(training, caplog):
    trains = training(2)
    node = trains.nodes[0]
    port = node.config.nodes[0].port
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    waiting = [socket.socket() for _ in range(5)]
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (psutil.Process().num_fds() + 20, limits[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for each in waiting:
            with contextlib.suppress(ConnectionRefusedError, ConnectionResetError):  # it listens no more for the moment
                each.connect(("127.0.0.1", port))  # the system takes it; the node cannot
        with caplog.at_level(logging.WARNING, "dpwa"):
            wait_until(lambda: node._transport.counters.guarded["descriptors"] > 0, "somebody could not come in")
            before, cpu_s, start_s = node.statistics(), time.process_time(), time.monotonic()
            wait_until(lambda: node.statistics().step >= before.step + 20, "training goes on")
            cores = (time.process_time() - cpu_s) / (time.monotonic() - start_s)
        assert trains.error is None
        assert node.statistics().blended > before.blended, "connections that stand are served"
        assert cores < 0.6
        assert len([one for one in caplog.records if "no file descriptor" in one.message]) == 1
    finally:
        for number in taken:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for each in waiting:
            each.close()

    def answered() -> bool:
        try:
            made = Stranger(port)
        except OSError:
            return False
        made.close()
        return True

    wait_until(answered, "the node lets peers in again", 5.0)


def test_the_soft_limit_of_descriptors_is_raised():
    script = (
        "import resource; from dpwa.transport.sockets import raise_descriptor_limit, descriptor_limit\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, min(hard, 5000)))\n"
        "raise_descriptor_limit(); print(descriptor_limit())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) == min(5000, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


# --- Buffers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["pull", "gosgd", "sgp", "adpsgd", "dpsgd"])
def test_whoever_holds_all_buffers_does_not_stop_the_own_exchanges(zeromq, method):
    """They are held in a way that nothing can end."""
    # One thread steps both, so in rounds each waits for the other in vain now and then, and asks rarely for a while.
    soon = {"dpsgd": {"deadline_ms": 100}, "flow_control": {"probe_s": 0.01, "probe_max_s": 0.05}}
    nodes = zeromq.start(_models(2), method=method, shared_memory="off", **soon)
    zeromq.step_all(5)
    node, held = nodes[0], {}
    slots = node.config.snapshot_slots + (method == "dpsgd")

    def holds_all() -> bool:
        snapshot = node._service.serving.snapshot
        held[snapshot.version] = snapshot
        zeromq.step_all()
        return len(held) == slots

    wait_until(holds_all, "all buffers are held")
    before, skipped = node.statistics(), node.statistics().publish_skipped
    zeromq.step_all(20)
    wait_until(lambda: zeromq.step_all() or _own_ends(node) >= _own_ends_of(before) + 8, "own exchanges go on")
    assert node.statistics().publish_skipped >= skipped + 8
    assert node.statistics().failures == 0


def _own_ends(node) -> int:
    return _own_ends_of(node.statistics())


def _own_ends_of(statistics) -> int:
    return sum(statistics.exchanges.get(outcome, 0) for outcome in ("blended", "pushed"))


def test_a_node_that_cannot_publish_says_so_once(zeromq, caplog):
    node, _ = node_with_absent_peer(zeromq)
    held = []
    with caplog.at_level(logging.WARNING, "dpwa"):

        def told() -> bool:
            held.append(node._service.serving.snapshot)
            node._service.wanted = True
            node.step(1.0)
            return any("held all buffers" in record.message for record in caplog.records)

        wait_until(told, "the warning")
        for _ in range(50):
            told()
    assert len([record for record in caplog.records if "held all buffers" in record.message]) == 1

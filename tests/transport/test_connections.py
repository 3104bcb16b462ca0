"""Connections to peers that refuse, hang, flood, or cannot be opened at all; over real sockets."""

from __future__ import annotations

import itertools
import logging
import re
import socket
import statistics
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from fake_peers import Peers, node_with_absent_peer

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports
from dpwa.node.node import Node
from dpwa.transport.connection import Connection
from support import TESTS, VectorModel, events_of, step_until, wait_until

pytestmark = pytest.mark.seconds

AT_ONCE = {"probe_s": 0.01, "probe_max_s": 0.05}


@pytest.fixture
def peers():
    made = Peers()
    yield made
    made.close()


def _exchanges(run_dir: Path, name: str, outcome: str) -> list[dict]:
    return [event for event in events_of(run_dir, name, outcome=outcome) for _ in range(event.get("repeats", 1))]


def _count(node: Node, outcome: str) -> int:
    return node.statistics().exchanges.get(outcome, 0)


# --- Connections that are not made ----------------------------------------------------------------------------------


def test_a_refused_connection_costs_the_connect_timeout_once_and_then_milliseconds(zeromq, tmp_path):
    settings = {"connect_timeout_ms": 300, "flow_control": AT_ONCE}
    zeromq.config = ClusterConfig.for_localhost(2, ports=free_ports(2), **settings)
    node = zeromq.add("w1", VectorModel(np.zeros(10)), run_dir=tmp_path)
    step_until(node, lambda: _count(node, "unreachable") >= 9, "nine refusals")
    zeromq.close()
    refused = _exchanges(tmp_path, "w1", "unreachable")
    assert refused[0]["duration_s"] > 0.2, "the first time the peer may be starting just now"
    assert statistics.median(event["duration_s"] for event in refused[1:]) < 0.1  # of 0.3; 2 ms on a quiet machine
    port = zeromq.config.nodes[1].port
    assert {event["reason"] for event in refused} == {f"peer w2: no connection to localhost:{port}: connection refused"}


def test_a_port_held_by_another_program_is_told_from_one_that_is_slow(zeromq, tmp_path):
    """A program that hangs up on what it does not understand, as a server of another protocol does."""
    settings = {"connect_timeout_ms": 300, "flow_control": AT_ONCE}
    zeromq.config = ClusterConfig.for_localhost(2, ports=free_ports(2), **settings)
    with socket.create_server(("127.0.0.1", zeromq.config.nodes[1].port)) as other:

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = other.accept()
                    connection.recv(1)
                    connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        node = zeromq.add("w1", VectorModel(np.zeros(10)), run_dir=tmp_path)
        step_until(node, lambda: _count(node, "unreachable") >= 5, "five failures")
        zeromq.close()
        other.shutdown(socket.SHUT_RDWR)
        thread.join()
    failed = _exchanges(tmp_path, "w1", "unreachable")
    assert statistics.median(event["duration_s"] for event in failed) < 0.1
    told = [event for event in failed if re.search("is no dpwa node|connection lost", event["reason"])]
    assert len(told) > len(failed) / 2, failed


_WITHOUT_DESCRIPTORS = """
import logging, os, sys
sys.path.insert(0, {tests!r})
import numpy as np
from support import Cluster, VectorModel, wait_until

told = []

class Told(logging.Handler):
    def emit(self, record):
        told.append(record.getMessage())

logging.getLogger("dpwa").addHandler(Told())
logging.getLogger("dpwa").addHandler(logging.StreamHandler())

def take_all():
    try:
        while True:
            taken.append(os.dup(0))
    except OSError as error:
        return error.strerror

cluster = Cluster("zeromq")
models = [VectorModel(np.full(1000, float(value))) for value in range(4)]
# With one connection at a time a new one is needed all the time.
settings = dict(wait_ms=100, max_connections=1, flow_control={{"probe_s": 0.01, "probe_max_s": 0.05}})
nodes = cluster.start(models, **settings)
wait_until(lambda: cluster.step_all() or all(node.statistics().blended > 3 for node in nodes), "blends")
taken = []
print("taken until:", take_all())

def is_short():
    cluster.step_all()
    take_all()  # what connections that have ended gave back
    return any("no connection can be opened" in line for line in told)

wait_until(is_short, "exchanges that fail for lack of descriptors")
for descriptor in taken:
    os.close(descriptor)
before = [node.statistics().blended for node in nodes]
wait_until(
    lambda: cluster.step_all()
    or all(node.statistics().blended > blended + 3 for node, blended in zip(nodes, before)),
    "blends after the shortage",
)
cluster.close()
print("all is well")
"""


def test_a_process_without_descriptors_trains_on_and_exchanges_again_when_there_are_some(tmp_path):
    script = _WITHOUT_DESCRIPTORS.format(tests=str(TESTS))
    limited = f'ulimit -n 256; exec {sys.executable} -W error -c "$SCRIPT"'
    ended = subprocess.run(
        ["/bin/bash", "-c", limited],
        env={"SCRIPT": script, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stdout.splitlines() == ["taken until: Too many open files", "all is well"], ended.stderr
    assert ended.returncode == 0
    warnings = [line for line in ended.stderr.splitlines() if "file descriptors" in line]
    assert len(warnings) == len(set(warnings)), "each node says it once for each peer"
    expected = "no connection can be opened: Too many open files; this process has no file descriptors left"
    assert any(expected in line for line in warnings), ended.stderr


# --- Peers that hang ------------------------------------------------------------------------------------------------


def test_a_peer_that_never_answers_costs_its_whole_timeout_only_once(zeromq, peers, tmp_path):
    settings = {"timeout_ms": 1000, "flow_control": AT_ONCE, "shared_memory": "off"}
    zeromq.config = ClusterConfig.for_localhost(3, ports=free_ports(3), **settings)
    node = zeromq.add("w1", VectorModel(np.zeros(10)), run_dir=tmp_path)
    zeromq.add("w2", VectorModel(np.zeros(10)))
    step_until(node, lambda: zeromq.nodes[1].step(1.0) or node.statistics().blended >= 3, "exchanges with w2")
    silent = peers.router(zeromq.config.nodes[2].port)
    step_until(node, lambda: zeromq.nodes[1].step(1.0) or _count(node, "timed_out") >= 3, "three timeouts")
    assert silent.poll(0), "the pulls have come there"
    zeromq.close()
    durations_s = [event["duration_s"] for event in _exchanges(tmp_path, "w1", "timed_out")]
    assert durations_s[0] >= 1.0
    assert max(durations_s[1:]) < 0.6


def test_a_peer_that_was_restarted_between_two_exchanges_is_connected_to_anew(zeromq):
    settings = {"wait_ms": 2000, "shared_memory": "off"}
    first, second = zeromq.start([VectorModel(np.zeros(10)), VectorModel(np.ones(10))], **settings)
    wait_until(lambda: zeromq.step_all() or first.statistics().blended >= 2, "blends")
    failures = first.statistics().failures
    second.close()
    zeromq.nodes.pop()
    zeromq.models.pop()
    again = zeromq.add("w2", VectorModel(np.ones(10)))
    blended = first.statistics().blended
    step_until(first, lambda: again.step(1.0) or first.statistics().blended > blended, "a blend with its next life")
    assert first.statistics().failures <= failures + 1, "at most the exchange in which its former life ended"


def test_a_flood_that_begins_while_all_connections_are_looked_at_ends_the_exchange_and_not_the_node(
    zeromq, peers, monkeypatch
):
    node, port = node_with_absent_peer(zeromq, flow_control=AT_ONCE, timeout_ms=5000)
    peers.router(port)  # takes a request, and never answers
    looks = itertools.count()
    monkeypatch.setattr(Connection, "excess", lambda _: "too much" if next(looks) % 2 else None)
    step_until(node, lambda: _count(node, "protocol_error") >= 3, "three floods", loss=1.0)


# --- Peers that send too much ---------------------------------------------------------------------------------------


def test_a_peer_whose_answer_never_ends_is_cut_off_before_it_fills_the_memory(zeromq, caplog):
    node, port = node_with_absent_peer(zeromq, flow_control=AT_ONCE)
    command = [sys.executable, str(TESTS / "flooding_peer.py"), str(port)]
    process, most_bytes = psutil.Process(), 0
    before = process.memory_info().rss
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as peer, caplog.at_level(logging.WARNING):
        try:
            assert peer.stdout.readline() == "up\n"

            def cut_off() -> bool:
                nonlocal most_bytes
                most_bytes = max(most_bytes, process.memory_info().rss)
                return _count(node, "protocol_error") >= 5

            step_until(node, cut_off, "five floods")
        finally:
            peer.kill()
        sent_bytes = [int(line) for line in peer.stdout]
    floods = [size for size in sent_bytes if size]  # not a connection that was given up before
    assert len(floods) >= 4  # killed, it may not have told the last one
    assert min(floods) > 2 << 20, "each was a flood"
    assert most_bytes - before < 128 << 20
    assert any("where at most" in record.message and "were asked for" in record.message for record in caplog.records)
    start = node.statistics().step
    step_until(node, lambda: node.statistics().step > start + 3, "training goes on", loss=1.0)

"""IPv6: literal addresses, names that have no other, all addresses at once, and what watches over connections there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from open_clusters import Training, all_know
from strangers import Stranger

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports, port_problem
from dpwa.launch.this_host import is_local
from dpwa.node.node import Node
from dpwa.transport.connection import Connection
from dpwa.transport.connection_rules import Cause
from dpwa.transport.key_folder import make_keys
from dpwa.transport.sockets import close_inherited
from support import DEADLINE_S, VectorModel, events_of, step_until, wait_until


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


pytestmark = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 address ::1")

SIX = "::1"


def config_of(*nodes: dict[str, object], **settings: object) -> ClusterConfig:
    """w1, w2 ... of this machine."""
    ports = free_ports(len(nodes))
    given = [
        {"name": f"w{number}", "port": port, **keys}
        for number, (port, keys) in enumerate(zip(ports, nodes, strict=True), 1)
    ]
    return ClusterConfig.from_mapping({"nodes": given, "insecure": True, "wait_ms": 2000, **settings})


def start(zeromq, config: ClusterConfig, run_dir: Path | None = None) -> list[Node]:
    return [
        zeromq.add(node.name, VectorModel(np.full(1000, 1.0 + 0.01 * index)), config=config, run_dir=run_dir)
        for index, node in enumerate(config.nodes)
    ]


def agree(nodes: list[Node]) -> None:
    """All blend with nobody failing."""
    step_until(
        nodes[0],
        lambda: [node.step(1.0) for node in nodes[1:]] and all(node.statistics().blended >= 3 for node in nodes),
        "all have blended",
    )
    assert [node.statistics().failures for node in nodes] == [0] * len(nodes)


@pytest.mark.parametrize("shared_memory", ["auto", "off"])
def test_nodes_at_an_ipv6_address_exchange(zeromq, shared_memory, tmp_path):
    config = config_of({"host": SIX}, {"host": "0:0:0::1"}, shared_memory=shared_memory)
    agree(start(zeromq, config, tmp_path))
    zeromq.close()
    ways = {event["via"] for name in ("w1", "w2") for event in events_of(tmp_path, name, outcome="blended")}
    assert ways == ({"shared_memory"} if shared_memory == "auto" else {"stream"})


def test_nodes_at_addresses_of_both_kinds_exchange(zeromq):
    nodes = start(zeromq, config_of({"host": SIX}, {"host": "127.0.0.1"}, {"host": "::ffff:127.0.0.1"}))
    agree(nodes)


def test_a_node_that_listens_on_all_addresses_is_reached_at_either(zeromq):
    """w2 is listed at its IPv6 address, w3 at its IPv4 address, and both listen at `::`."""
    nodes = start(zeromq, config_of({}, {"host": SIX, "bind": "::"}, {"bind": "::"}))
    agree(nodes)


def test_a_forwarded_port_leads_to_where_a_node_listens(zeromq):
    """The port of the file is another than the one that the node listens on; in between a program passes bytes on."""
    inner, outer, first = free_ports(3)
    config = ClusterConfig.from_mapping(
        {
            "nodes": [
                {"name": "w1", "port": first},
                {"name": "w2", "host": SIX, "port": outer, "bind": f"127.0.0.1:{inner}"},
            ],
            "insecure": True,
            "wait_ms": 2000,
        }
    )
    forward = (
        "import socket, sys, threading\n"
        "def copy(a, b):\n"
        "    while data := a.recv(65536): b.sendall(data)\n"
        "    b.shutdown(socket.SHUT_WR)\n"
        f"server = socket.create_server(('::1', {outer}), family=socket.AF_INET6)\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    one = server.accept()[0]\n"
        f"    two = socket.create_connection(('127.0.0.1', {inner}))\n"
        "    for pair in ((one, two), (two, one)): threading.Thread(target=copy, args=pair, daemon=True).start()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", forward], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            nodes = start(zeromq, config)
            agree(nodes)
            zeromq.close()
        finally:
            process.kill()


def test_a_name_that_has_an_ipv6_address_alone_is_found(zeromq, monkeypatch):
    look_up = socket.getaddrinfo

    def by_name(_: str) -> str:
        raise socket.gaierror(socket.EAI_NODATA, "No address associated with hostname")

    def any_family(name: object, *args: object, **options: object) -> object:
        return look_up(SIX if name == "six.example" else name, *args, **options)

    monkeypatch.setattr(socket, "gethostbyname", by_name)
    monkeypatch.setattr(socket, "getaddrinfo", any_family)
    agree(start(zeromq, config_of({"host": "six.example"}, {"host": "six.example"}, shared_memory="off")))
    zeromq.close()


def test_keys_hold_over_ipv6(zeromq, tmp_path):
    make_keys(tmp_path / "keys", ["w1", "w2"])
    config = config_of({"host": SIX}, {"host": SIX}, keys=str(tmp_path / "keys"), insecure=False)
    agree(start(zeromq, config))


def test_strangers_at_an_ipv6_address_are_seen_and_shown_out(zeromq):
    nodes = start(zeromq, config_of({"host": SIX}, {"host": SIX}))
    guarded = nodes[0]._transport.counters.guarded
    stranger = Stranger(nodes[0].config.nodes[0].port, host=SIX)
    try:
        with suppress(OSError):  # the parts of a message that never ends
            for _ in range(5000):
                stranger.send(bytes(250), more=True)
        assert stranger.is_closed(DEADLINE_S)
    finally:
        stranger.close()
    wait_until(lambda: guarded[Cause.INCOMPLETE] >= 1, "what was no request is counted", DEADLINE_S)
    agree(nodes)


@pytest.mark.skipif(sys.platform != "linux", reason="TCP's counts are Linux's")
def test_what_comes_over_an_ipv6_connection_is_counted(zeromq, monkeypatch):
    counted: list[int | None] = []
    end = Connection.end

    def noted(self: Connection) -> None:
        counted.append(self.received_bytes())
        end(self)

    monkeypatch.setattr(Connection, "end", noted)
    agree(start(zeromq, config_of({"host": SIX}, {"host": SIX}, shared_memory="off")))
    assert max(counted) > 8000, "a model and more"


def test_a_forked_child_lets_go_of_an_ipv6_port():
    with socket.create_server((SIX, 0), family=socket.AF_INET6) as server:
        port = server.getsockname()[1]
        child = os.fork()
        if child == 0:
            close_inherited({port})
            try:
                os.fstat(server.fileno())
            except OSError:
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.seconds
def test_nodes_join_through_an_ipv6_address(tmp_path):
    first, second = free_ports(2)
    join = [f"[{SIX}]:{first}"]

    def file(name: str, port: int) -> ClusterConfig:
        nodes = [{"name": name, "host": SIX, "port": port}]
        return ClusterConfig.from_mapping({"nodes": nodes, "join": join, "shared_memory": "off"})

    begins, joins = file("w1", first), file("w2", second)
    assert (begins.is_newcomer, joins.is_newcomer) == (False, True)
    trainings = [Training(begins, "w1", 1.0, tmp_path), Training(joins, "w2", 1.0, tmp_path)]
    try:
        trainings[0].start()
        wait_until(lambda: trainings[0].step > 0, "the first one trains", DEADLINE_S)
        trainings[1].start()
        all_know(trainings)
    finally:
        for training in reversed(trainings):
            training.end()
    assert f"[{SIX}]:{second}" in (tmp_path / "nodes" / "w1" / "events.jsonl").read_text()


def test_a_node_at_an_address_of_another_machine_is_told_about_bind(zeromq):
    config = config_of({"host": "2001:db8::7"}, {})
    with pytest.raises(ValueError, match=r"cannot listen on \[2001:db8::7\]:\d+ .*write bind: 0.0.0.0"):
        zeromq.add("w1", VectorModel([0.0]), config=config)


def test_the_launcher_knows_ports_and_hosts_of_ipv6():
    (port,) = free_ports(1)
    assert is_local(SIX)
    assert not is_local("2001:db8::7")
    assert port_problem(SIX, port) is None
    with socket.create_server((SIX, 0), family=socket.AF_INET6) as server:
        held = server.getsockname()[1]
        assert f"port {held} on ::1 is in use; stop process {os.getpid()}" in port_problem(SIX, held)
        assert f"port {held} on :: is in use" in port_problem("::", held)

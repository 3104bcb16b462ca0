"""Which hosts are this one, and which ports can be had."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import closing
from pathlib import Path

import pytest

from dpwa.config.cluster import ClusterConfig
from dpwa.errors import DpwaError
from dpwa.launch import ports
from dpwa.launch.ports import HIGHEST_PORT, LOWEST_PORT, free_ports, port_problem
from dpwa.launch.this_host import is_local, local_node_names

ELSEWHERE = "203.0.113.77"  # TEST-NET-3: nobody's address


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.2", socket.gethostname()])
def test_this_machines_names_and_addresses_are_local(host: str) -> None:
    assert is_local(host)


@pytest.mark.parametrize("host", [ELSEWHERE, "no-such-host.invalid", "a..b", "x" * 64 + ".example"])
def test_other_machines_and_unknown_names_are_not_local(host: str) -> None:
    assert not is_local(host)


def test_the_nodes_of_this_host_come_in_the_order_of_the_file() -> None:
    config = ClusterConfig.from_text(
        f"""
        insecure: true
        nodes:
          - {{name: here-2, host: 127.0.0.1, port: 21002}}
          - {{name: there, host: {ELSEWHERE}, port: 21001}}
          - {{name: here-1, host: localhost, port: 21001}}
        """
    )
    assert local_node_names(config) == ["here-2", "here-1"]


def test_free_ports_are_different_and_can_all_be_bound_at_once() -> None:
    found = free_ports(50)
    assert len(set(found)) == 50
    assert all(LOWEST_PORT <= port <= HIGHEST_PORT for port in found)
    sockets = [socket.create_server(("127.0.0.1", port)) for port in found]
    for held in sockets:
        held.close()


def test_free_ports_lie_below_the_range_of_outgoing_connections() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        assert server.getsockname()[1] > HIGHEST_PORT  # the kernel chose it from that range


def test_a_port_in_use_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = sorted(free_ports(2))
    with socket.create_server(("127.0.0.1", first)):
        monkeypatch.setattr(ports, "LOWEST_PORT", first)
        monkeypatch.setattr(ports, "HIGHEST_PORT", first)
        with pytest.raises(
            DpwaError, match=f"looking for 1 free ports on 127.0.0.1 from {first} to {first}: found only 0"
        ):
            free_ports(1)
        monkeypatch.setattr(ports, "LOWEST_PORT", second)
        monkeypatch.setattr(ports, "HIGHEST_PORT", second)
        assert free_ports(1) == [second]


def test_a_port_that_can_be_had_is_no_problem() -> None:
    (port,) = free_ports(1)
    assert port_problem("localhost", port) is None
    assert port_problem("localhost", port) is None  # the first look left nothing behind


def test_a_port_just_left_by_a_server_with_a_client_is_no_problem() -> None:
    (port,) = free_ports(1)
    with (
        socket.create_server(("127.0.0.1", port)) as server,
        socket.create_connection(("127.0.0.1", port)) as client,
    ):
        accepted, _ = server.accept()
        accepted.close()  # the side that closes first keeps the port in TIME_WAIT
        assert client.recv(1) == b""
    assert port_problem("127.0.0.1", port) is None


def test_a_port_in_use_is_named_with_its_host_and_a_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        problem = port_problem("localhost", port)
    who = "the program that holds it"
    if sys.platform == "linux":
        who = f"process {os.getpid()} ({Path('/proc/self/comm').read_text().strip()})"
    assert problem == f"port {port} on localhost is in use; stop {who} or change the port"


@pytest.mark.parametrize(
    ("host", "words"),
    [(ELSEWHERE, "203.0.113.77 is not an address of this machine"), ("no-such-host.invalid", "cannot be resolved")],
)
def test_a_host_that_is_not_ours_is_a_problem_in_words(host: str, words: str) -> None:
    problem = port_problem(host, 21000)
    assert problem is not None
    assert words in problem


def _bound(*nodes: str) -> ClusterConfig:
    lines = "".join(f"  - {{{node}}}\n" for node in nodes)
    return ClusterConfig.from_text(f"insecure: true\nnodes:\n{lines}")


def test_other_ports_move_the_port_within_bind_by_as_much() -> None:
    config = _bound(
        f'name: a, host: {ELSEWHERE}, port: 21000, bind: "0.0.0.0:22000"',
        f'name: b, host: {ELSEWHERE}, port: 21001, bind: "[::]:22001"',
        'name: c, host: 192.168.1.7, port: 21000, bind: "::"',
        "name: d, host: 192.168.1.7, port: 21001",
    )
    moved = config.with_ports_from(24000).nodes
    assert [node.port for node in moved] == [24000, 24001, 24002, 24003]
    assert [node.bind for node in moved] == ["0.0.0.0:25000", "[::]:25001", "::", None]
    assert moved[1].listens_at == ("::", 25001)


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        ([(21000, 22000), (21002, 22001)], "a and b would both listen on port 25000"),
        ([(21000, 64000), (21001, 64001)], "node a: .* would move to port 67000; expected 1 to 65535"),
    ],
)
def test_other_ports_that_cannot_be_are_refused(ports: list[tuple[int, int]], expected: str) -> None:
    nodes = [
        f'name: {name}, host: {ELSEWHERE}, port: {port}, bind: "0.0.0.0:{inner}"'
        for name, (port, inner) in zip("ab", ports, strict=True)
    ]
    with pytest.raises(DpwaError, match=expected):
        _bound(*nodes).with_ports_from(24000)

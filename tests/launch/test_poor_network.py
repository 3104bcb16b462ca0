"""The network of the tests has the links that it says: what runs on it would prove nothing otherwise."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import poor_network
import pytest
from poor_network import CUT_OFF, Link, PoorNetwork

pytestmark = pytest.mark.heavy

BYTES = 1_000_000
BYTES_PER_S = 2e6
DELAY_S = 0.05

SERVES = f"""
import socket, sys, threading
def serve(line):
    with line:
        line.sendall(bytes({BYTES}))
listening = socket.create_server((sys.argv[1], 21000))
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()
"""
ASKS = """
import json, socket, sys, time
print("ready", flush=True)
sys.stdin.readline()
began_s = time.monotonic()
try:
    with socket.create_connection((sys.argv[1], 21000), 1.5) as line:
        connected_s, got = time.monotonic() - began_s, 0
        while data := line.recv(65536):
            got += len(data)
    print(json.dumps([connected_s, began_s, time.monotonic(), got]))
except OSError as error:
    print(json.dumps(type(error).__name__))
"""


@pytest.fixture
def network() -> Iterator[PoorNetwork]:
    if missing := poor_network.needs():
        pytest.skip(missing)
    made = PoorNetwork(3)
    try:
        made.build()
        yield made
    finally:
        made.remove()


def at(network: PoorNetwork, place: int, code: str) -> subprocess.Popen[str]:
    """Python on one of the hosts, ready to begin; it is told the address of the first one."""
    command = ["ip", "netns", "exec", network.places[place], sys.executable, "-c", code, network.hosts[0]]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def asked(network: PoorNetwork, *places: int) -> list:
    """What hosts get from the first one: seconds to connect, time of the beginning and of the end, bytes."""
    asking = [at(network, place, ASKS) for place in places]
    for process in asking:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return [json.loads(process.communicate(timeout=60)[0]) for process in asking]


def test_each_direction_of_a_cable_has_its_rate_and_its_delay_and_none_when_it_is_pulled(network):
    network.link = Link.of_rate(BYTES_PER_S, DELAY_S)
    serving = at(network, 0, SERVES)
    try:
        ((connected_s, began_s, ended_s, got),) = asked(network, 1)
        assert got == BYTES
        assert connected_s >= 2 * DELAY_S
        assert ended_s - began_s >= BYTES / BYTES_PER_S
        assert network.queued > 0
        # One direction of one cable has to carry both answers.
        both = asked(network, 1, 2)
        assert [got for *_, got in both] == [BYTES, BYTES]
        assert max(end_s for *_, end_s, _ in both) - min(both[0][1], both[1][1]) >= 2 * BYTES / BYTES_PER_S
        assert network.carried_bytes > 3 * BYTES
        network.own_links[network.hosts[2]] = CUT_OFF
        carried, lost = network.carried_bytes, network.lost
        assert asked(network, 2) == ["TimeoutError"]
        assert network.lost > lost
        assert network.carried_bytes - carried < BYTES / 20, "no more than what still comes of the answers before"
    finally:
        serving.kill()
        serving.communicate()

"""Meetings of many nodes in one process, in a time of their own: how news spread, and what becomes of tables."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from dpwa.config.sections import FlowControlOptions
from dpwa.errors import PeerUnreachable
from dpwa.exchange.flow_control import FlowControl
from dpwa.exchange.meetings import Meetings
from dpwa.exchange.member_table import Member, MemberState
from dpwa.exchange.members import DEAD_S, Members
from dpwa.exchange.membership import Membership
from dpwa.exchange.messages import MAX_HEADER_BYTES, Meet, Met
from dpwa.transport.wire import decode, encode
from support import mostly_slow

STEP_S = 0.05


class Simulation:
    """Nodes that do nothing but meet."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.nodes: dict[str, Node] = {}

    def add(self, number: int, seed: int = 1) -> Node:
        node = Node(self, number, seed)
        self.nodes[node.name] = node
        return node

    def kill(self, name: str) -> None:
        del self.nodes[name]

    def run(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s += STEP_S
            for node in list(self.nodes.values()):
                if node.meetings.deadline_s <= self.now_s or node.members.has_knocks:
                    node.meetings.work(node)

    def until_all_know_all(self, limit_s: float) -> float:
        start_s = self.now_s
        while any(node.alive != set(self.nodes) - {node.name} for node in self.nodes.values()):
            assert self.now_s - start_s < limit_s, {name: sorted(node.alive) for name, node in self.nodes.items()}
            self.run(STEP_S)
        return self.now_s - start_s


class Node:
    """One of them, and its own client."""

    def __init__(self, simulation: Simulation, number: int, seed: int) -> None:
        self._simulation = simulation
        self._rng = random.Random(number)
        self.name = f"w{number}"
        own = Member(self.name, "10.0.0.1", 20000 + number, 0, MemberState.ALIVE)
        self.members = Members(own, [], [] if number == seed else [("10.0.0.1", 20000 + seed)], self._rng)
        self._addresses: dict[str, int] = {}
        self.membership = Membership([], is_open=True)
        self.flow_control = FlowControl([], FlowControlOptions(), self._rng)
        self.most_bytes = 0
        context = SimpleNamespace(
            monotonic_s=lambda: simulation.now_s,
            flow_control=self.flow_control,
            membership=self.membership,
            forget=self.flow_control.forget,
            fetcher=SimpleNamespace(
                identity=SimpleNamespace(run="run", node=self.name, incarnation=b"i" * 8),
                layout=SimpleNamespace(fingerprint=b"f" * 16),
                next_nonce=lambda: 1,
            ),
        )
        self.meetings = Meetings(context, self.members, self._rng)

    @property
    def alive(self) -> set[str]:
        return {member.name for member in self.members.known if member.state is MemberState.ALIVE}

    def know(self, peer: str, _host: str, port: int, _teller: str = "") -> None:
        self._addresses[peer] = port

    def forget(self, peer: str) -> None:
        self._addresses.pop(peer, None)

    def request(self, peer: str, message: Meet) -> Met:
        there = self._simulation.nodes.get(f"w{self._addresses[peer] - 20000}")
        if there is None:
            raise PeerUnreachable(peer, "gone")
        asked = decode(encode(message), peer)
        answer = encode(Met(1, b"i" * 8, there.members.answer(self.name, asked.claims, there._rng)))
        self.most_bytes = max(self.most_bytes, len(answer))
        return decode(answer, peer)


@pytest.mark.seconds
@pytest.mark.parametrize("count", mostly_slow([4, 50], 4))
def test_all_hear_of_all_through_one_seed_and_of_deaths(count):
    simulation = Simulation()
    simulation.add(1)
    for number in range(2, count + 1):
        simulation.add(number)
    took_s = simulation.until_all_know_all(30.0)
    dead = [f"w{number}" for number in range(1, count // 2)]  # the seed among them
    for name in dead:
        simulation.kill(name)
    simulation.until_all_know_all(60.0)
    late = simulation.add(count + 1, seed=count)
    simulation.until_all_know_all(30.0)
    assert late.alive
    simulation.run(150.0)
    for node in simulation.nodes.values():
        assert not {member.name for member in node.members.known} & set(dead)  # nobody brings them back
        assert len(node.members.table) == len(simulation.nodes) - 1
        assert node.most_bytes < MAX_HEADER_BYTES
        assert set(node.membership.peers) == set(node.flow_control.scores()) == node.alive
    print(f"{count} nodes: all knew all after {took_s:.1f} s")


def test_one_that_dies_is_forgotten_by_all_soon_after_the_first_has_found_out():
    simulation = Simulation()
    for number in range(1, 9):
        simulation.add(number)
    simulation.until_all_know_all(20.0)
    simulation.kill("w3")
    start_s = simulation.now_s
    while any("w3" in node.membership.peers for node in simulation.nodes.values()):
        assert simulation.now_s - start_s < DEAD_S + 40.0
        simulation.run(STEP_S)
    assert simulation.now_s - start_s > DEAD_S


def test_two_halves_of_a_split_network_find_each_other_by_the_seed():
    simulation = Simulation()
    for number in range(1, 9):
        simulation.add(number)
    simulation.until_all_know_all(20.0)
    away = {name: simulation.nodes[name] for name in ("w5", "w6", "w7", "w8")}
    here = {name: node for name, node in simulation.nodes.items() if name not in away}
    start_s = simulation.now_s
    while simulation.now_s - start_s < 60.0:  # each half runs without the other
        for half in (here, away):
            simulation.nodes = dict(half)
            simulation.run(STEP_S)
            simulation.now_s -= STEP_S
        simulation.now_s += STEP_S
    assert all(node.alive < set(here) for node in here.values())
    assert all(node.alive < set(away) for node in away.values())
    simulation.nodes = {**here, **away}
    assert simulation.until_all_know_all(30.0) < 20.0

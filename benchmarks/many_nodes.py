"""What grows with the number of nodes, up to clusters that no one machine can hold as processes.

    python benchmarks/many_nodes.py --quick
    python benchmarks/many_nodes.py --json many_nodes.json

All of it is computed in one process:

- `start_ms`, `step_us`, `node_kb`: processor time to start a node, processor time of a step with its exchange (trainer,
  asking, serving together; the model has ten numbers, so that it is bookkeeping alone), and memory that a node takes
  for itself. The nodes call each other's functions and are stepped in turn.
- `join_steps`: steps until all know all, when all but one come at once and know that one alone, and `told_bytes`, the
  entries of a message. The rules about members are the real ones; the way between nodes is a function call, each step
  asks one member and at most one stranger, and nobody fails.
- `pull_rounds`, `ring_rounds`, `torus_rounds`, `exponential_rounds`: rounds until the distance from consensus is a
  thousandth. For pulls of a random peer with a factor of one half, by the expectation of a round; for mixing over a
  graph, by the second largest singular value of its matrix.

`growth` is each quantity at the largest cluster over the one at the smallest.

Must not know: sockets, threads, processes. Runs in: the main thread.
"""

from __future__ import annotations

import gc
import math
import random
import time
import tracemalloc
from collections.abc import Sequence
from typing import Any

from measure import Ratio, Result, arguments
from scale_worker import SmallModel

from dpwa.config.cluster import ClusterConfig
from dpwa.exchange.member_table import Member, MemberState
from dpwa.exchange.members import Members
from dpwa.node.node import Node
from dpwa.topology.schedule import TopologySpec, default_weights, make_topology
from dpwa.topology.spectrum import largest_singular_value
from dpwa.transport.in_memory import InMemoryNetwork, InMemoryTransport

COUNTS = (8, 32, 64, 256, 1000)
_WARM_UP_STEPS = 6
_STEPS, _STEPS_QUICK = 8000, 100  # of all nodes together
_LEFT = 1e-3
_GRAPHS = ("ring", "torus", "exponential")
UNITS = {
    "start_ms": "ms",
    "step_us": "us",
    "node_kb": "kB",
    "told_bytes": "bytes",
    "join_steps": "steps",
    **{f"{graph}_rounds": "rounds" for graph in ("pull", *_GRAPHS)},
}


def main() -> None:
    """Compute, measure and report."""
    parser = arguments("What grows with the number of nodes, computed in one process.")
    parser.add_argument("--counts", type=int, nargs="+", metavar="N", help="sizes of the cluster")
    given = parser.parse_args()
    counts = sorted(given.counts or ([4, 8] if given.quick else COUNTS))
    result = Result("many_nodes", settings={"left": _LEFT})
    for count in counts:
        rounds = {f"{graph}_rounds": _rounds_until_left(_contraction(graph, count)) for graph in _GRAPHS}
        row: dict[str, Any] = {
            "nodes": count,
            **_bookkeeping(count, steps=_STEPS_QUICK if given.quick else _STEPS),
            **joining(count),
        }
        result.rows.append({**row, "pull_rounds": _rounds_until_left(pull_contraction(count)), **rounds})
    for quantity, unit in UNITS.items():
        rows = [row for row in result.rows if quantity in row]
        last, first = rows[-1], rows[0]
        sides = [{"what": f"at {row['nodes']} nodes:", "unit": unit, "median": row[quantity]} for row in (last, first)]
        growth = last[quantity] / first[quantity]
        result.add_ratio("growth", quantity, Ratio(growth, growth, growth, 1, *sides))
    result.finish(given.json)


# --- Bookkeeping ------------------------------------------------------------------------------------------------------


def _bookkeeping(count: int, steps: int) -> dict[str, float]:
    """Processor time and memory of nodes of one process, each with all others for peers."""
    config = ClusterConfig.for_localhost(count, ports=range(20000, 20000 + count), run="benchmark")
    tracemalloc.start()
    nodes = _started(config)
    node_kb = tracemalloc.get_traced_memory()[0] / count / 1000
    tracemalloc.stop()
    _close(nodes)
    begun_s = time.process_time()
    nodes = _started(config)
    start_ms = (time.process_time() - begun_s) / count * 1000
    gc.freeze()  # a thousand nodes in one process are no node's garbage
    times = max(2, steps // count)
    _step(nodes, _WARM_UP_STEPS)
    begun_s = time.process_time()
    _step(nodes, times)
    step_us = (time.process_time() - begun_s) / (times * count) * 1e6
    gc.unfreeze()
    _close(nodes)
    return {"start_ms": start_ms, "step_us": step_us, "node_kb": node_kb}


def _started(config: ClusterConfig) -> list[Node]:
    network = InMemoryNetwork()

    def make(name: str) -> Node:
        return Node(
            config,
            name,
            SmallModel(10, 1.0),
            make_transport=lambda wiring: InMemoryTransport(network, name, wiring),
        )

    nodes = [make(node.name) for node in config.nodes]
    for node in nodes:
        node.start()
    return nodes


def _step(nodes: Sequence[Node], times: int) -> None:
    for _ in range(times):
        for node in nodes:
            node.step(1.0)


def _close(nodes: Sequence[Node]) -> None:
    for node in nodes:
        node.close()


# --- Joining ----------------------------------------------------------------------------------------------------------


def joining(count: int) -> dict[str, float]:
    """How long it takes until all know all, and how long the tables are that they tell each other by then."""
    rng = random.Random(1)  # noqa: S311 - no secret
    entries = [
        Member(f"w{number}", f"10.0.{number // 250}.{number % 250 + 1}", 21000, 0, MemberState.ALIVE)
        for number in range(count)
    ]
    everybody = {own.name: Members(own, [], [], random.Random(number)) for number, own in enumerate(entries)}  # noqa: S311
    first = entries[0]
    for members in everybody.values():
        if members.own is not first:
            members.remember([first])
    steps, told = 0, 0
    while any(len(members.known) < count - 1 for members in everybody.values()):
        steps += 1
        for members in everybody.values():
            told = max(told, _ask(members, everybody, rng, float(steps)))
    return {"join_steps": steps, "told_bytes": told}


def _ask(members: Members, everybody: dict[str, Members], rng: random.Random, now_s: float) -> int:
    """A step of one node: it asks a stranger, if one waits, and a member; the longest table that it got, in bytes."""
    stranger = members.strangers.next(now_s)
    asked = [] if stranger is None else [stranger.member.name]
    if members.known:
        asked.append(rng.choice(members.known).name)
    longest = 0
    for name in asked:
        peer = everybody[name]
        answer = peer.answer(members.own.name, members.claims_for(name), rng)
        if stranger is not None and name == stranger.member.name:
            members.joined(name, peer.own, now_s, 0.0)
        members.hear(name, answer, now_s)
        if peer.has_knocks:
            peer.knock(now_s)
        longest = max(longest, sum(len(entry.name) + len(entry.host) + 8 for entry in answer))
    return longest


# --- Mixing -----------------------------------------------------------------------------------------------------------


def pull_contraction(count: int, factor: float = 0.5) -> float:
    """The share of the distance from consensus that a round leaves in which each node pulls a random peer.

    Args:
        count: of the nodes.
        factor: by which each blends.
    """
    stays, moves = (1 - factor) ** 2 + factor**2, factor * (1 - factor)
    squared = stays - 2 * moves / (count - 1) - factor**2 / count * (1 - 1 / (count - 1) ** 2)
    return math.sqrt(squared)


def _contraction(graph: str, count: int) -> float:
    """The same for a round of mixing over all edges of a graph."""
    topology = make_topology(TopologySpec(graph, default_weights(graph)), count)
    return largest_singular_value(topology.matrix(0))


def _rounds_until_left(contraction: float) -> int:
    return math.ceil(math.log(_LEFT) / math.log(contraction))


if __name__ == "__main__":
    main()

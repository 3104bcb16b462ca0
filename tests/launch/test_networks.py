"""Nodes of several hosts, each a network namespace with its own launch: behind a router, at names, over IPv6."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import poor_network
import pytest
import yaml
from poor_network import PoorNetwork
from steady_cluster import METRICS_MS, SteadyCluster
from switch import Switch, ip

from dpwa.transport.key_folder import make_keys
from support import events_of, wait_until

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(180)]

# The system's own list of names, as `ip netns exec` gives each namespace one of its own.
NAMES = Path("/etc/netns")


@pytest.fixture
def network() -> Iterator[PoorNetwork]:
    """Three hosts, 10.78.0.1 to 10.78.0.3."""
    if missing := poor_network.needs():
        pytest.skip(missing)
    made = PoorNetwork(3)
    try:
        made.build()
        yield made
    finally:
        made.remove()


class Hosts:
    """Two namespaces with a cable between them, and their names of hosts."""

    def __init__(self, cable: Switch) -> None:
        self.places = cable.sides

    def move(self, place: str, old: str, new: str) -> None:
        """Another address in the place of the one that there is."""
        ip("-n", place, "address", "delete", old, "dev", "eth0")
        ip("-n", place, "address", "add", new, "dev", "eth0", *(["nodad"] if ":" in new else []))

    def name(self, names: dict[str, str]) -> None:
        """Tell both hosts where these names are, from now on."""
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in names.items())]
        for place in self.places:
            (NAMES / place).mkdir(parents=True, exist_ok=True)
            # In place: programs that run already see this very file.
            (NAMES / place / "hosts").write_text("\n".join([*lines, ""]))

    def close(self) -> None:
        for place in self.places:
            shutil.rmtree(NAMES / place, ignore_errors=True)


@pytest.fixture
def hosts(two_hosts: Switch) -> Iterator[Hosts]:
    made = Hosts(two_hosts)
    yield made
    made.close()


@pytest.fixture
def launches() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def write(folder: Path, nodes: list[dict[str, object]], **settings: object) -> None:
    """A cluster file and keys for its nodes."""
    folder.mkdir(exist_ok=True)
    values = {"nodes": nodes, "keys": "keys", "metrics_interval_ms": METRICS_MS, **settings}
    (folder / "cluster.yaml").write_text(yaml.safe_dump(values))
    make_keys(folder / "keys", [str(node["name"]) for node in nodes])


def launch(launches: ExitStack, folder: Path, place: str, *names: str) -> SteadyCluster:
    """`dpwa launch` on one host; which nodes of the file belong there it finds out itself."""
    made = SteadyCluster(folder, list(names), "ip", "netns", "exec", place)
    launches.callback(made.end)
    return made


def blended_with(folder: Path, name: str) -> dict[str, list[dict]]:
    """The exchanges of a node that brought something, by peer."""
    found: dict[str, list[dict]] = {}
    for event in events_of(folder / "run", name, "exchange", outcome="blended"):
        found.setdefault(event["peer"], []).append(event)
    return found


def asked_by(folder: Path, name: str) -> set[str]:
    """Whom a node has asked, with success or without."""
    return {event["peer"] for event in events_of(folder / "run", name, "exchange") if event.get("peer")}


def said_by(folder: Path, name: str) -> str:
    path = folder / "run" / "nodes" / name / "output.log"
    return path.read_text() if path.exists() else ""


# --- Behind a router --------------------------------------------------------------------------------------------------


def three_nodes(network: PoorNetwork, **of_third: object) -> list[dict[str, object]]:
    one, two, three = network.hosts
    return [
        {"name": "w1", "host": one, "port": 21001},
        {"name": "w2", "host": two, "port": 21002, "bind": "0.0.0.0"},  # noqa: S104
        {"name": "w3", "host": three, **of_third},
    ]


@pytest.mark.slow
def test_a_node_behind_a_router_pulls_from_others_and_nobody_knocks_at_the_router(network, launches, tmp_path):
    network.one_way = {network.hosts[2]}
    write(tmp_path, three_nodes(network, serve=False))
    for number, place in enumerate(network.places, 1):
        launch(launches, tmp_path, place, f"w{number}")

    def all_blend() -> bool:
        third = blended_with(tmp_path, "w3")
        return (
            all(len(third.get(peer, ())) >= 20 for peer in ("w1", "w2"))
            and len(blended_with(tmp_path, "w1").get("w2", ())) >= 20
            and len(blended_with(tmp_path, "w2").get("w1", ())) >= 20
        )

    wait_until(all_blend, "all blend with those that they can ask", 90)
    assert network.turned_away == 0
    assert (asked_by(tmp_path, "w1"), asked_by(tmp_path, "w2"), asked_by(tmp_path, "w3")) == (
        {"w2"},
        {"w1"},
        {"w1", "w2"},
    )
    assert not any("none has asked it" in said_by(tmp_path, name) for name in ("w1", "w2", "w3"))


@pytest.mark.slow
def test_a_node_behind_a_router_that_says_it_can_be_reached_is_named_on_both_sides(network, launches, tmp_path):
    network.one_way = {network.hosts[2]}
    write(tmp_path, three_nodes(network, port=21003))
    for number, place in enumerate(network.places, 1):
        launch(launches, tmp_path, place, f"w{number}")
    address = f"{network.hosts[2]}:21003"

    def is_named() -> bool:
        return f"no connection to {address} within 0.5 s; but it asks this node" in said_by(
            tmp_path, "w1"
        ) and "peers answer it, and none has asked it in 1" in said_by(tmp_path, "w3")

    wait_until(is_named, "both sides have said so", 90)
    assert f"can they reach {address}?" in said_by(tmp_path, "w3")
    assert network.turned_away > 0
    assert blended_with(tmp_path, "w3"), "it pulls all the same"


# --- Names ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_host_that_changes_its_address_is_found_again_by_its_name(hosts, launches, tmp_path):
    """First under the running nodes, then between two lives of one, as when a container is started again."""
    left, right = hosts.places
    hosts.name({"left.box": "10.77.0.1", "right.box": "10.77.0.2"})
    nodes: list[dict[str, object]] = [
        {"name": "w1", "host": "left.box", "port": 21001},
        {"name": "w2", "host": "right.box", "port": 21002, "bind": "0.0.0.0"},  # noqa: S104
    ]
    settings = {"flow_control": {"probe_max_s": 2}}
    write(tmp_path, nodes, **settings)
    launch(launches, tmp_path, left, "w1")
    second = launch(launches, tmp_path, right, "w2")

    def exchanges() -> tuple[int, int]:
        return len(blended_with(tmp_path, "w1").get("w2", ())), len(blended_with(tmp_path, "w2").get("w1", ()))

    wait_until(lambda: min(exchanges()) >= 5, "both blend", 90)
    hosts.move(right, "10.77.0.2/24", "10.77.0.7/24")
    hosts.name({"left.box": "10.77.0.1", "right.box": "10.77.0.7"})
    before = exchanges()
    wait_until(lambda: min(now - then for now, then in zip(exchanges(), before, strict=True)) >= 20, "both go on", 60)
    # A new life at a third address, with a run folder of its own: this is another machine.
    second.end()
    hosts.move(right, "10.77.0.7/24", "10.77.0.8/24")
    hosts.name({"left.box": "10.77.0.1", "right.box": "10.77.0.8"})
    before = exchanges()
    other = tmp_path / "other"
    other.mkdir()
    shutil.copytree(tmp_path / "keys", other / "keys")
    shutil.copy(tmp_path / "cluster.yaml", other)
    launch(launches, other, right, "w2")
    wait_until(lambda: exchanges()[0] - before[0] >= 20, "w1 finds the new life", 60)
    wait_until(lambda: len(blended_with(other, "w2").get("w1", ())) >= 20, "the new life blends", 60)


# --- IPv6 -----------------------------------------------------------------------------------------------------------


def test_hosts_that_have_ipv6_alone_with_two_nodes_on_one_of_them(hosts, launches, tmp_path):
    left, right = hosts.places
    for place, number in ((left, 1), (right, 2)):
        hosts.move(place, f"10.77.0.{number}/24", f"fd77::{number}/64")
    hosts.name({"left.box": "fd77::1", "right.box": "fd77::2"})
    write(
        tmp_path,
        [
            {"name": "w1", "host": "left.box", "port": 21001},
            {"name": "w2", "host": "left.box", "port": 21002, "bind": "::"},
            {"name": "w3", "host": "fd77::2", "port": 21001},
        ],
    )
    launch(launches, tmp_path, left, "w1", "w2")
    launch(launches, tmp_path, right, "w3")

    def all_blend() -> bool:
        names = ("w1", "w2", "w3")
        return all(
            len(blended_with(tmp_path, name).get(peer, ())) >= 5 for name in names for peer in names if peer != name
        )

    wait_until(all_blend, "all blend with all", 90)
    ways = {
        (name, peer): {event["via"] for event in events}
        for name in ("w1", "w2", "w3")
        for peer, events in blended_with(tmp_path, name).items()
    }
    on_one_host = {("w1", "w2"), ("w2", "w1")}
    assert ways == {pair: {"shared_memory" if pair in on_one_host else "stream"} for pair in ways}

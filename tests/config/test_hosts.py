"""How addresses are written and taken apart: closed cases, and whatever else somebody may write or send."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwa.config import hosts
from dpwa.config.cluster import ClusterConfig
from dpwa.config.describe import describe

PORTS = st.integers(1, 65535)
# All addresses of a machine.
ANY = "0.0.0.0"  # noqa: S104

NUMBERS = st.ip_addresses()
NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,20}[a-z](\.[a-z]{2,10}){0,3}", fullmatch=True)
# What people and programs write by mistake is near to what is right.
NEARLY = st.text("0123456789abcdef:.[]%- x\n", max_size=45)


# --- Host and port as one text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("10.0.0.7:21000", ("10.0.0.7", 21000)),
        ("[2001:db8::7]:21000", ("2001:db8::7", 21000)),
        ("box.example:1", ("box.example", 1)),
        ("[::1]:65535", ("::1", 65535)),
        ("::1:21000", None),  # an address of IPv6, or one and a port: nobody can know
        ("::1", None),
        ("[::1]", None),
        ("[::1]:", None),
        ("[box]:1", None),
        ("10.0.0.7", None),
        ("10.0.0.7:0", None),
        ("10.0.0.7:65536", None),
        ("10.0.0.7:1e3", None),
        (":1", None),
        ("", None),
    ],
)
def test_an_address_is_taken_apart_where_that_can_be_done_in_one_way_only(text, parts):
    assert hosts.split_address(text) == parts


@given(host=NUMBERS.map(str) | NAMES, port=PORTS)
def test_what_is_written_is_read_again(host, port):
    assert hosts.split_address(hosts.address_text(host, port)) == (host, port)


@given(NEARLY | st.text(max_size=300))
def test_whatever_is_written_is_taken_apart_without_an_error_and_put_together_again(text):
    parts = hosts.split_address(text)
    if parts is not None:
        host, port = parts
        assert 1 <= port <= 65535
        assert hosts.split_address(hosts.address_text(host, port)) == parts


# --- Hosts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["::1", "2001:db8::7", "2001:DB8:0:0::7", "fd00::1", "::ffff:10.0.0.1", "64:ff9b::1"])
def test_an_ipv6_address_can_be_a_host(host):
    assert hosts.problem_with(host) is None
    assert not hosts.needs_resolving(host)


@pytest.mark.parametrize(
    "host",
    ["::", "0::0", "fe80::1", "fe80::1%eth0", "2001:db8::7%eth0", "ff02::1", "[::1]", "::1.", "1:2:3", ":::1", "::g"],
)
def test_an_ipv6_address_that_peers_cannot_reach_and_what_is_none_cannot(host):
    assert hosts.problem_with(host) is not None


@pytest.mark.parametrize("host", ["::1", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1", "::FFFF:127.1.2.3"])
def test_loopback_of_ipv6_is_known_in_all_its_forms(host):
    assert hosts.is_loopback(host)


@pytest.mark.parametrize("host", ["::2", "2001:db8::1", "::ffff:10.0.0.1", "fd00::1"])
def test_other_addresses_of_ipv6_are_not_loopback(host):
    assert not hosts.is_loopback(host)


@pytest.mark.parametrize(("host", "is_any"), [(ANY, True), ("::", True), ("0::0", True), ("::1", False), ("x", False)])
def test_all_addresses_of_a_machine_are_known(host, is_any):
    assert hosts.is_any(host) == is_any


@given(st.ip_addresses(v=6))
def test_all_ways_of_writing_an_ipv6_address_are_one_host(address):
    written = {address.compressed, address.exploded, address.compressed.upper(), address.exploded.upper()}
    assert len({hosts.address_key(text) for text in written}) == 1
    assert len({hosts.problem_with(text) is None for text in written}) == 1


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_within_an_ipv6_address_is_the_same_host(address):
    assert hosts.address_key(f"::ffff:{address}") == str(address)
    assert hosts.is_loopback(f"::ffff:{address}") == hosts.is_loopback(str(address))


@given(NEARLY | st.text(max_size=300))
def test_whatever_is_written_is_a_host_or_none_and_a_host_is_plain_text(text):
    """Members tell each other hosts of others, which become a part of addresses and messages."""
    if hosts.problem_with(text) is None:
        assert len(text) <= 253
        assert set(text.lower()) <= set("0123456789abcdefghijklmnopqrstuvwxyz.:-_")
        assert ":" not in text or ipaddress.IPv6Address(text)
        assert hosts.split_address(hosts.address_text(text, 21000)) == (text, 21000)


# --- Names ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def resolver(monkeypatch):
    """Names and their addresses, in the place of the system's resolver."""
    known: dict[str, list[str]] = {}

    def by_name(name: str) -> str:
        numbers = [number for number in known.get(name, ()) if ":" not in number]
        if not numbers:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return numbers[0]

    def any_family(name: str, port: object, *, family: int, type: int) -> list[tuple[object, ...]]:  # noqa: A002, ARG001
        numbers = [number for number in known.get(name, ()) if ":" in number]
        if not numbers:
            raise socket.gaierror(socket.EAI_NODATA, "No address associated with hostname")
        return [(family, type, 6, "", (number, 0, 0, 0)) for number in numbers]

    monkeypatch.setattr(socket, "gethostbyname", by_name)
    monkeypatch.setattr(socket, "getaddrinfo", any_family)
    return known


def test_a_name_has_its_ipv4_address_and_only_without_one_its_ipv6_address(resolver):
    resolver.update({"both": ["2001:db8::7", "10.0.0.7"], "new": ["2001:db8::7", "2001:db8::8"], "old": ["10.0.0.7"]})
    assert [hosts.number_of(name) for name in ("both", "new", "old")] == ["10.0.0.7", "2001:db8::7", "10.0.0.7"]
    with pytest.raises(OSError, match="Name or service not known"):
        hosts.number_of("none")


def test_a_name_with_an_ipv6_address_alone_resolves_when_a_file_is_loaded(resolver, tmp_path):
    resolver["six.example"] = ["2001:db8::7"]
    path = tmp_path / "cluster.yaml"
    path.write_text("nodes: [{name: a, port: 1, host: six.example}]\ninsecure: true\n")
    assert ClusterConfig.load(path).nodes[0].host == "six.example"


# --- Where a node listens, and where it belongs -----------------------------------------------------------------------


def node(**keys: object):
    return ClusterConfig.from_mapping({"nodes": [{"name": "w1", "port": 21000, **keys}], "insecure": True}).nodes[0]


@pytest.mark.parametrize(
    ("keys", "listens_at", "home", "is_private"),
    [
        ({}, ("localhost", 21000), "localhost", True),
        ({"host": "10.0.0.7"}, ("10.0.0.7", 21000), "10.0.0.7", False),
        ({"host": "::1"}, ("::1", 21000), "::1", True),
        # Behind a forwarded port, or in a container.
        ({"host": "gate.example", "bind": ANY}, (ANY, 21000), "gate.example", False),
        ({"host": "gate.example", "bind": ANY + ":22000"}, (ANY, 22000), "gate.example", False),
        ({"host": "gate.example", "bind": "::"}, ("::", 21000), "gate.example", False),
        ({"host": "gate.example", "bind": "[::]:22000"}, ("::", 22000), "gate.example", False),
        ({"host": "gate.example", "bind": "192.168.0.7"}, ("192.168.0.7", 21000), "192.168.0.7", False),
        ({"host": "gate.example", "bind": "[fd00::7]:22000"}, ("fd00::7", 22000), "fd00::7", False),
        # At the end of a tunnel.
        ({"host": "gate.example", "bind": "127.0.0.1:22000"}, ("127.0.0.1", 22000), "gate.example", False),
        ({"bind": ANY}, (ANY, 21000), "localhost", False),
        ({"bind": "inner.example:7"}, ("inner.example", 7), "inner.example", False),
    ],
)
def test_a_node_listens_at_its_host_and_port_or_where_bind_says(keys, listens_at, home, is_private):
    made = node(**keys)
    assert (made.listens_at, made.home, made.is_private) == (listens_at, home, is_private)


@pytest.mark.parametrize(
    "text", ["", "eth0 ", ANY + ":0", "[::]", ANY + ":99999", ":21000", "*", "21000", "fe80::1%eth0"]
)
def test_what_cannot_be_listened_on_is_refused_with_what_can(text):
    with pytest.raises(ValueError, match=r"nodes\[0\]\.bind: expected an address of this machine, such as 0\.0\.0\.0"):
        node(bind=text)


@pytest.mark.parametrize(("word", "key"), [("advertise", "host"), ("address", "host"), ("listen", "bind")])
def test_what_others_call_host_and_bind_is_answered_with_our_words(word, key):
    with pytest.raises(ValueError, match=f'{word}: unknown key, did you mean "{key}"'):
        node(**{word: "10.0.0.7"})


def test_a_node_that_listens_on_all_addresses_needs_keys_although_its_host_is_this_machine():
    with pytest.raises(ValueError, match=r'bind: "0\.0\.0\.0" is reached over a network, and without keys'):
        ClusterConfig.from_mapping({"nodes": [{"name": "w1", "port": 21000, "bind": ANY}]})


def test_a_node_without_a_port_is_one_that_cannot_be_asked():
    laptop = {"name": "laptop", "serve": False}
    config = ClusterConfig.from_mapping({"nodes": [{"name": "w1", "port": 21000}, laptop]})
    assert [peer.name for peer in config.asked_by("w1")] == []
    assert [peer.name for peer in config.asked_by("laptop")] == ["w1"]
    again = ClusterConfig.from_text(config.to_yaml())
    assert again == config
    with pytest.raises(ValueError, match=r"nodes.1..port: missing; expected a whole number from 1 to 65535"):
        ClusterConfig.from_mapping({"nodes": [{"name": "w1", "port": 21000}, {"name": "laptop"}]})


def test_nodes_of_one_cluster_agree_on_who_can_be_asked():
    both = [{"name": "w1", "port": 21000}, {"name": "w2", "port": 21001}, {"name": "w3", "port": 21002}]
    ids = [
        ClusterConfig.from_mapping({"nodes": [both[0], {**both[1], "serve": two}, {**both[2], "serve": three}]}).run_id
        for two, three in [(True, True), (False, True), (True, False)]
    ]
    assert len(set(ids)) == 3


def test_check_says_where_nodes_listen_and_which_cannot_be_asked():
    text = describe(
        ClusterConfig.from_mapping(
            {
                "nodes": [
                    {"name": "w1", "host": "2001:db8::7", "port": 21000},
                    {"name": "w2", "host": "gate.example", "port": 21000, "bind": "[::]:22000"},
                    {"name": "laptop", "serve": False},
                ],
                "insecure": True,
                "merge_at_end": True,
            }
        ),
        ["w1"],
    )
    assert "w2      gate.example:21000, listens on [::]:22000  no" in text
    assert "laptop  cannot be asked" in text
    assert (
        "warning: laptop cannot be asked (serve: false): what is learnt there reaches no other node, and at the "
        "end it keeps its own model"
    ) in text
    assert "loopback address" not in text

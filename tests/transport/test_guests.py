"""Guests at a node's port: whose key nobody knows, who may show a certificate and do nothing else, on real sockets."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zmq
from fake_peers import pull_of
from zmq.utils import z85

from dpwa.exchange.messages import MAX_PRESENT_BYTES, Done, Meet, More, Present, Refused, Vouch, Vouched
from dpwa.transport import connection_rules, key_folder, signing, wire
from dpwa.transport.allowed_list import read_list
from dpwa.transport.certificate import Certificate
from dpwa.transport.connection_rules import Cause
from dpwa.transport.guests import Guests
from dpwa.transport.invitations import SIGNING_FILE, make_signer, revoke
from dpwa.transport.key_folder import make_keys
from dpwa.transport.sockets import CurveKeys, dealer
from support import Cluster, VectorModel, wait_until

DAY_S = 24 * 3600


@pytest.fixture
def folder(tmp_path) -> Path:
    """Of the members: without the signing key, and without certificates."""
    owner = tmp_path / "owner"
    make_keys(owner, ["w1", "w2"])
    make_signer(owner)
    made = tmp_path / "keys"
    shutil.copytree(owner, made)
    (made / SIGNING_FILE).unlink()
    return made


@pytest.fixture
def signer(folder) -> bytes:
    return z85.decode((folder.parent / "owner" / SIGNING_FILE).read_bytes().strip())


@pytest.fixture
def nodes(zeromq: Cluster, folder, monkeypatch) -> list:
    monkeypatch.setattr(key_folder, "_BETWEEN_LOOKS_S", 0.0)
    flow = {"probe_s": 0.01, "probe_max_s": 0.02}
    return zeromq.start([VectorModel([1.0] * 50)] * 2, keys=str(folder), flow_control=flow, wait_ms=2000)


def signed(signer: bytes, name: str, public: bytes, *, from_s: float = 0.0, days: float = 30) -> Certificate:
    issued = int(time.time() + from_s)
    draft = Certificate(signing.public_half(signer), name, z85.decode(public), issued, int(issued + days * DAY_S))
    return draft._replace(signature=signing.sign(signer, draft.signed_part))


class Guest:
    """A connection to w1 with a key of its own."""

    def __init__(self, zeromq: Cluster, folder: Path, pair: tuple[bytes, bytes] | None = None) -> None:
        self.public, secret = pair or zmq.curve_keypair()
        (server_key,) = read_list(folder / "allowed.yaml")[0].keys["w1"]
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = dealer(self.context, CurveKeys(self.public, secret, {"w1": server_key}), "w1")
        self.monitor = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        self.socket.connect(f"tcp://127.0.0.1:{zeromq.config.nodes[0].port}")

    def is_in(self) -> bool:
        return bool(int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT)

    def come_in(self) -> Guest:
        wait_until(self.is_in, "the handshake")
        return self

    def is_shown_out(self) -> bool:
        return bool(self.monitor.poll(0))

    def say(self, message) -> None:
        self.socket.send(message if isinstance(message, bytes) else wire.encode(message))

    def hears(self):
        assert self.socket.poll(5000), "an answer"
        return wire.decode(self.socket.recv(), "w1")

    def close(self) -> None:
        self.socket.disable_monitor()
        self.monitor.close()
        self.socket.close(linger=0)
        self.context.term()


@pytest.fixture
def come(zeromq, folder, nodes) -> Iterator:
    made: list[Guest] = []

    def begin(pair: tuple[bytes, bytes] | None = None) -> Guest:
        assert nodes
        made.append(Guest(zeromq, folder, pair))
        return made[-1]

    yield begin
    for guest in made:
        guest.close()


def counted(node, cause: Cause = Cause.STRANGER) -> int:
    return node._transport.counters.guarded[cause]


def knows(node):
    return node._transport._rx._links.curve.certified


def test_who_shows_a_certificate_may_ask_in_its_name_and_in_no_other(come, nodes, signer):
    guest = come().come_in()
    certificate = signed(signer, "w9", guest.public).to_bytes()
    guest.say(Present(0, certificate))
    guest.say(replace(pull_of(nodes[1]), node="w9"))
    answer = guest.hears()
    assert isinstance(answer, Refused)
    assert "not in this node's cluster file" in answer.reason, "it is heard as w9, who is none of this closed cluster"
    assert knows(nodes[0]).certificate_of("w9") == certificate
    guest.say(Present(0, certificate))
    guest.say(Vouch(3, "w9", "w9"))
    assert guest.hears() == Vouched(3, certificate)
    guest.say(Vouch(4, "w9", "w2"))
    assert guest.hears() == Vouched(4, b""), "of who is on the list there is none"
    assert counted(nodes[0]) == counted(nodes[0], Cause.ILLEGAL) == 0
    guest.say(pull_of(nodes[1]))
    wait_until(lambda: guest.is_shown_out() and counted(nodes[0], Cause.ILLEGAL) == 1, "it spoke in the name of w2")


def test_the_key_is_known_from_then_on(come, nodes, signer):
    pair = zmq.curve_keypair()
    come(pair).come_in().say(Present(0, signed(signer, "w9", pair[0]).to_bytes()))
    wait_until(lambda: knows(nodes[0]).key_of("w9") == pair[0], "it is taken")
    again = come(pair).come_in()
    again.say(Vouch(3, "w9", "w2"))
    assert isinstance(again.hears(), Vouched)


def _by_another_signer(_signer: bytes, public: bytes) -> Certificate:
    return signed(signing.make_signing_key(), "w9", public)


@pytest.mark.parametrize(
    "make",
    [
        _by_another_signer,
        lambda signer, public: signed(signer, "w9", public)._replace(signature=bytes(64)),
        lambda signer, public: signed(signer, "w9", public)._replace(name="w8"),
        lambda signer, public: signed(signer, "w9", public, from_s=-2 * DAY_S, days=1),
        lambda signer, public: signed(signer, "w2", public),
        lambda signer, _: signed(signer, "w9", zmq.curve_keypair()[0]),
        lambda signer, public: signed(signer, "w7", public),
    ],
    ids=["wrong signer", "no signature", "other name", "expired", "listed name", "stolen", "revoked"],
)
def test_a_certificate_that_does_not_count_ends_the_connection(come, nodes, folder, signer, make):
    revoke(folder, "w7")
    guest = come().come_in()
    guest.say(Present(0, make(signer, guest.public).to_bytes()))
    wait_until(lambda: guest.is_shown_out() and counted(nodes[0]) == 1, "it is closed and counted")
    assert knows(nodes[0]).keys == []
    assert nodes[0].statistics().protocol_errors == 0


@pytest.mark.parametrize("what", ["pull", "meet", "more", "done", "vouch", "long", "several", "garbage", "empty"])
def test_of_a_guest_nothing_else_is_read(come, nodes, monkeypatch, what):
    decoded = []
    monkeypatch.setattr(wire, "msgpack", type("Spy", (), {"unpackb": decoded.append, "packb": wire.msgpack.packb}))
    guest = come().come_in()
    pull = pull_of(nodes[1])
    said = {
        "pull": pull,
        "meet": Meet(1, pull.run, "w9", pull.incarnation, pull.fingerprint, ()),
        "more": More(1, 0, 4),
        "done": Done(1),
        "vouch": Vouch(1, "w2", "w2"),
        "long": bytes([0x94, 1, 18]) + bytes(MAX_PRESENT_BYTES),
        "garbage": b"\xff" * 60,
        "empty": b"",
    }
    if what == "several":
        guest.socket.send_multipart([wire.encode(Present(0, b"x" * 200)), b"x"])
    else:
        guest.say(said[what])
    wait_until(lambda: guest.is_shown_out() and counted(nodes[0]) == 1, "it is closed and counted")
    assert decoded == [], "nothing was decoded"
    assert not guest.socket.poll(0), "nothing was answered"


def test_a_guest_that_stays_silent_is_shown_out_soon(come, nodes, monkeypatch):
    monkeypatch.setattr(connection_rules, "_SILENT_WHEN_CROWDED_S", 0.3)
    guest = come().come_in()
    wait_until(lambda: guest.is_shown_out() and counted(nodes[0], Cause.SILENT) >= 1, "it is closed")


def test_so_many_guests_come_in_at_a_time_and_members_all_the_same(come, nodes, zeromq, monkeypatch):
    guests = nodes[0]._transport._rx._guests
    monkeypatch.setattr(guests, "_monotonic_s", lambda: 0.0)
    guests._room, guests._since_s = 3.0, 0.0
    crowd = [come() for _ in range(8)]
    wait_until(lambda: counted(nodes[0]) >= 5, "five are refused")
    wait_until(lambda: sum(guest.is_in() for guest in crowd) == 3, "three are in")
    served = nodes[0].statistics().served
    wait_until(lambda: zeromq.step_all() or nodes[0].statistics().served > served + 5, "the members exchange on")


def test_without_a_signer_nobody_unknown_comes_in(come, nodes, folder):
    text = (folder / "allowed.yaml").read_text()
    (folder / "allowed.yaml").write_text(text[: text.index("# Whoever")])
    guest = come()
    wait_until(lambda: guest.is_shown_out() and counted(nodes[0]) >= 1, "it is refused")
    assert not guest.is_in()


@pytest.mark.parametrize("how", ["revoked", "expired", "off the list"])
def test_who_may_no_longer_ask_is_shown_out_of_a_connection_that_stands(come, nodes, folder, signer, monkeypatch, how):
    pair = zmq.curve_keypair()
    if how == "off the list":
        pair = (*read_list(folder / "allowed.yaml")[0].keys["w2"], (folder / "w2.key").read_bytes().strip())
    name = "w2" if how == "off the list" else "w9"
    guest = come(pair).come_in()
    if name == "w9":
        guest.say(Present(0, signed(signer, "w9", pair[0]).to_bytes()))
    guest.say(Vouch(3, name, "w1"))
    assert isinstance(guest.hears(), Vouched)
    if how == "expired":
        monkeypatch.setattr(knows(nodes[0]), "_now_s", lambda: time.time() + 31 * DAY_S)
    else:
        revoke(folder, name)
    guest.say(Vouch(4, name, "w1"))
    wait_until(lambda: guest.is_shown_out() and counted(nodes[0]) == 1, "it is closed and counted")


def test_a_node_shows_a_later_certificate_of_its_key_and_that_holds(come, signer):
    guest = come().come_in()
    guest.say(Present(0, signed(signer, "w9", guest.public, days=1).to_bytes()))
    later = signed(signer, "w9", guest.public, from_s=5, days=9).to_bytes()
    guest.say(Present(0, later))
    guest.say(Vouch(3, "w9", "w9"))
    assert guest.hears() == Vouched(3, later)


def test_a_replayed_certificate_of_a_key_that_was_replaced_does_not_count(come, nodes, signer):
    old, new = come().come_in(), come().come_in()
    first = signed(signer, "w9", old.public).to_bytes()
    old.say(Present(0, first))
    wait_until(lambda: knows(nodes[0]).key_of("w9") == old.public, "the first is taken")
    new.say(Present(0, signed(signer, "w9", new.public, from_s=5).to_bytes()))
    wait_until(lambda: knows(nodes[0]).key_of("w9") == new.public, "the second holds")
    old.say(Present(0, first))
    wait_until(lambda: old.is_shown_out() and counted(nodes[0]) == 1, "the first counts no more")


# --- How many, by the clock alone -----------------------------------------------------------------------------------


class _Nobody:
    """Keys of which none is known."""

    class certified:  # noqa: N801
        takes_guests = True

    @staticmethod
    def name_of(_public: bytes) -> None:
        return None


def test_guests_come_at_a_pace():
    now_s = [100.0]
    guests = Guests(_Nobody(), lambda: now_s[0])  # type: ignore[arg-type]

    def let_in(times: int) -> int:
        return sum(guests.user_id(b"k" * 40) is not None for _ in range(times))

    assert let_in(100) == 32
    now_s[0] += 1.0
    assert let_in(100) == 10
    now_s[0] += 0.05
    assert let_in(100) == 0
    now_s[0] += 3600.0
    assert let_in(100) == 32

"""Which connections must go: the rules alone, without sockets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwa.errors import RemoteProtocolError
from dpwa.exchange.messages import More, PullRequest
from dpwa.snapshot.layout import Snapshot
from dpwa.snapshot.state import State
from dpwa.transport.connection_rules import Cause, ConnectionRules, PeerConnection
from dpwa.transport.door import most_connections
from dpwa.transport.transfers import Transfer, TransferRules

RULES = ConnectionRules(most=8, transfer_s=3.75)
MIB = 1 << 20


def _nobody(_connection: PeerConnection) -> bool:
    return False


def connection(accepted_s: float = 0.0, **fields) -> PeerConnection:
    made = PeerConnection(accepted_s)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def causes(connections, now_s: float, is_engaged=_nobody) -> list[Cause]:
    return [cause for _, cause in RULES.overdue(connections, now_s, is_engaged)]


# --- One connection -------------------------------------------------------------------------------------------------


def test_a_connection_that_never_asks_goes_soon_when_there_are_many_and_later_when_there_is_room():
    silent = connection()
    assert causes([silent], 59.0) == []
    assert causes([silent], 61.0) == [Cause.SILENT]
    others = [connection(last_request_s=6.0) for _ in range(5)]
    assert causes([silent, *others], 4.0) == []
    assert causes([silent, *others], 6.0) == [Cause.SILENT]


def test_a_connection_that_asked_may_be_idle_for_minutes_and_one_that_is_answered_for_longer():
    one = connection(last_request_s=10.0)
    assert causes([one], 300.0) == []
    assert causes([one], 320.0) == [Cause.SILENT]
    assert causes([one], 320.0, lambda _: True) == []


def test_heartbeats_explain_bytes_and_what_else_comes_and_is_not_read_does_not():
    one = connection(last_request_s=0.0)
    one.measured(5000, 0, 0.0)
    assert one.unexplained_bytes == 5000  # the request has arrived, and is not read yet
    one.read_bytes = 4900
    one.measured(5000 + 18 * 290, 0, 290.0)  # two heartbeats a second
    assert one.unexplained_bytes == 0
    one.measured(5000 + 18 * 290 + 80_000, 0, 290.0)
    assert causes([one], 290.0) == [Cause.INCOMPLETE]
    one.read_bytes += 80_000  # these were requests after all
    one.measured(5000 + 18 * 290 + 80_000, 0, 290.0)
    assert causes([one], 290.0) == []


def test_time_without_a_message_is_no_credit_for_later():
    one = connection(last_request_s=0.0)
    one.measured(100, 0, 1000.0)
    one.measured(100 + 70_000, 0, 1000.1)
    assert causes([one], 10.0) == [Cause.INCOMPLETE]


def test_bytes_that_arrive_at_the_other_side_beside_the_messages_do_not_hide_unread_ones():
    one = connection()
    one.measured(0, 130, 0.0)  # the handshake
    one.sent_bytes = 1000
    one.measured(0, 130 + 400, 0.0)
    assert one.unread_bytes == 600
    one.measured(0, 130 + 1000 + 5000, 0.0)  # all of it, and heartbeats of ten minutes
    assert one.unread_bytes == 0
    one.sent_bytes = 3000
    one.measured(0, 130 + 1000 + 5000, 0.0)
    assert one.unread_bytes == 2000


def test_what_was_replaced_is_forgotten_when_it_was_read_and_ends_the_connection_when_it_is_not():
    one = connection(last_request_s=4.0)
    one.sent_bytes = 4000
    one.replaced.append((3000, 1.0))
    one.measured(0, 2000, 4.0)
    assert causes([one], 4.0) == []
    assert causes([one], 5.0) == [Cause.UNREAD]
    one.measured(0, 3000, 5.0)
    assert causes([one], 5.0) == []


# --- All of them ----------------------------------------------------------------------------------------------------

_TIMES = st.floats(0, 100)
_CONNECTIONS = st.lists(
    st.builds(
        lambda accepted_s, asked, received, sent, copies: connection(
            accepted_s,
            last_request_s=accepted_s + 1 if asked else None,
            unexplained_bytes=float(received),
            sent_bytes=sent,
            has_copies=copies,
        ),
        _TIMES,
        st.booleans(),
        st.integers(0, 100_000),
        st.integers(0, 20 * MIB),
        st.booleans(),
    ),
    max_size=60,
)


@given(_CONNECTIONS, st.floats(100, 200))
def test_what_is_left_costs_no_more_than_it_may(connections, now_s):
    gone = {one for one, _ in RULES.overdue(connections, now_s, _nobody)}
    left = [one for one in connections if one not in gone]
    assert all(one.unexplained_bytes <= 64 << 10 for one in left)
    assert sum(one.unexplained_bytes for one in left) <= MIB
    assert sum(one.unread_bytes for one in left if one.has_copies) <= 24 * MIB
    assert all(one.unread_bytes <= 17 * MIB for one in left)
    assert len([one for one, _ in RULES.overdue(left, now_s, _nobody)]) == 0 or len(left) < len(connections)


@given(_CONNECTIONS, st.sets(st.integers(0, 59)))
def test_of_too_many_those_that_never_asked_go_first_and_then_the_least_recently_useful(connections, engaged):
    is_engaged = {one: number in engaged for number, one in enumerate(connections)}
    gone = [one for one, _ in RULES.crowd(connections, is_engaged.__getitem__)]
    assert len(gone) == max(0, len(connections) - 8)
    left = [one for one in connections if one not in gone]
    if any(one.last_request_s is not None for one in gone):
        assert all(one.last_request_s is not None for one in left)
    for one in gone:
        for other in left:
            if (one.last_request_s is None) == (other.last_request_s is None) and is_engaged[one] == is_engaged[other]:
                assert one.last_useful_s <= other.last_useful_s


def test_there_is_room_for_every_peer_and_never_for_more_than_an_eighth_of_the_descriptors(monkeypatch):
    monkeypatch.setattr("dpwa.transport.door.descriptor_limit", lambda: 8192)
    assert most_connections(3) == 64
    assert most_connections(100) == 416
    monkeypatch.setattr("dpwa.transport.door.descriptor_limit", lambda: 64)
    assert most_connections(100) == 8


# --- Transfers ------------------------------------------------------------------------------------------------------

TRANSFERS = TransferRules(2.5, 2.5)


def transfer(version: int = 1, began_s: float = 0.0, total_bytes: int = 45_000_000, **fields) -> Transfer:
    pull = PullRequest(1, "run", "w2", bytes(8), bytes(16), bytes(8), 0, 0, MIB, 0, 2, False, False)
    snapshot = Snapshot(version, 1, 0.0, State(None, 0.0), None, memoryview(bytes(total_bytes)))
    made = Transfer(pull, snapshot, False, connection(), began_s, began_s)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def read(one: Transfer, sent_bytes: int, acked_bytes: int, now_s: float) -> None:
    one.connection.sent_bytes = sent_bytes
    one.connection.measured(0, acked_bytes, now_s)
    one.last_request_s = now_s


def test_a_slow_transfer_that_goes_on_is_spared_while_buffers_are_short():
    one = transfer()
    for tenth in range(1, 20):  # 100 Mbit/s
        now_s = tenth / 10
        read(one, tenth * 1_250_000 + 2 * MIB, tenth * 1_250_000, now_s)
        assert TRANSFERS.in_the_way({b"x": one}, None, 1.0, now_s) == []


def test_a_transfer_that_stands_still_makes_way_when_buffers_are_short_and_not_before():
    one = transfer()
    read(one, 2 * MIB, 50_000, 0.1)
    assert TRANSFERS.in_the_way({b"x": one}, None, 0.1, 0.15) == []
    assert TRANSFERS.in_the_way({b"x": one}, None, 0.3, 1.0) == [b"x"]
    assert TRANSFERS.in_the_way({b"x": one}, one.snapshot, 0.3, 1.0) == []  # the newest is needed anyway
    assert TRANSFERS.deadline_s(one) > 2.5


def test_a_reader_that_has_all_it_asked_for_and_asks_for_no_more_is_a_holder():
    one = transfer(total_bytes=1000)
    read(one, 1100, 1100, 0.0)
    assert not TRANSFERS.is_hopeless(one, 0.1)
    assert TRANSFERS.is_hopeless(one, 0.3)
    one.connection.has_completed = True
    assert not TRANSFERS.is_hopeless(one, 0.3)  # a peer of old may make a pause
    assert TRANSFERS.is_hopeless(one, 0.6)


def test_all_transfers_of_one_snapshot_make_way_together_or_none_does():
    """One reader less frees no buffer."""
    first, second, good = transfer(1), transfer(1), transfer(2)
    now_s = 1.0
    for one in (first, second):
        read(one, 2 * MIB, 10_000, 0.1)
    read(good, 12 * MIB, 10 * MIB, now_s)
    under_way = {b"a": first, b"b": second, b"c": good}
    assert sorted(TRANSFERS.in_the_way(under_way, None, 0.5, now_s)) == [b"a", b"b"]
    read(second, 12 * MIB, 10 * MIB, now_s)
    assert TRANSFERS.in_the_way(under_way, None, 0.5, now_s) == []
    assert sorted(TRANSFERS.in_the_way(under_way, None, 2.6, now_s)) == [b"a", b"b"]  # nothing published for a timeout


def test_nothing_that_is_asked_for_lengthens_a_transfer_beyond_its_end():
    one = transfer()
    for tenth in range(1, 40):
        one.ask_more(More(1, tenth + 1, 1), tenth / 10)
    assert TRANSFERS.deadline_s(one) == pytest.approx(3.75)


@pytest.mark.parametrize("first", [43, 10_000], ids=["just beyond", "far beyond"])
def test_asking_beyond_the_end_is_illegal(first):
    with pytest.raises(RemoteProtocolError):
        transfer().ask_more(More(1, first, 1), 0.1)


def test_asking_for_a_chunk_again_and_again_is_illegal():
    one = transfer()
    one.ask(0, 2)
    one.ask_more(More(1, 2, 16), 0.1)
    one.ask_more(More(1, 2, 16), 0.1)
    with pytest.raises(RemoteProtocolError):
        one.ask_more(More(1, 2, 16), 0.1)

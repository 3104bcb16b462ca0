"""The wire format: whatever comes in, a legal message or a RemoteProtocolError goes out."""

from __future__ import annotations

import dataclasses
import math
import random
import tracemalloc
from typing import get_args

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwa.errors import RemoteProtocolError
from dpwa.exchange import messages
from dpwa.exchange.lease_words import MAX_ENTRIES, MAX_GRANT, MAX_HOME_BLOCKS, Block, Entry
from dpwa.exchange.member_table import MAX_CLAIMS, MAX_TOLD, Member, MemberState, fitting
from dpwa.snapshot.state import MAX_COUNTER, MAX_MASS, Codec, MergeStage
from dpwa.transport import wire

_NAMES = st.text(st.characters(categories=["L", "N"]), max_size=64)
_COUNTERS = st.integers(0, MAX_COUNTER)
_MEMBERS = st.builds(
    Member,
    st.integers(0, 10**9).map(lambda number: f"w{number}") | st.integers(0, 9).map(lambda digit: str(digit) * 64),
    st.sampled_from(["localhost", "10.0.0.1", "gpu1.example.org", ".".join(["x" * 62] * 4)]),
    st.integers(1, 65535),
    _COUNTERS,
    st.sampled_from(MemberState),
)
_ENTRIES = st.integers(0, MAX_HOME_BLOCKS // 8).flatmap(
    lambda size: st.builds(Entry, _COUNTERS, st.integers(0, 4095), *[st.binary(min_size=size, max_size=size)] * 2)
)
_FIELDS = {
    "nonce": _COUNTERS,
    "run": _NAMES,
    "node": _NAMES,
    "incarnation": st.binary(min_size=8, max_size=8),
    "lineage": st.binary(min_size=8, max_size=8),
    "fingerprint": st.binary(min_size=16, max_size=16),
    "have_incarnation": st.binary(min_size=8, max_size=8),
    "have_version": _COUNTERS,
    "version": st.integers(1, MAX_COUNTER),
    "codec": st.integers(0, 255),
    "finished": st.booleans(),
    "first": st.integers(0, messages.MAX_CHUNKS),
    "count": st.integers(1, messages.MAX_WINDOW),
    "index": st.integers(0, messages.MAX_CHUNKS),
    "clock": st.floats(0, MAX_COUNTER),
    "loss": st.none() | st.floats(),
    "total_bytes": st.integers(1, 2**40),
    "chunk_bytes": st.integers(1, messages.MAX_CHUNK_BYTES // 64).map(lambda lines: 64 * lines),
    "shared": st.booleans(),
    "slot": st.integers(-1, messages.MAX_SLOTS - 1),
    "token": st.binary(min_size=16, max_size=16),
    "reason": _NAMES,
    "exchange_id": st.binary(min_size=16, max_size=16),
    "previous": st.binary(min_size=16, max_size=16),
    "round": st.integers(-1, MAX_COUNTER),
    "mass": st.floats(0, MAX_MASS),
    "is_pair": st.booleans(),
    "gives_up": st.booleans(),
    "piece": st.integers(0, messages.MAX_CHUNKS),
    "pieces": st.integers(0, messages.MAX_CHUNKS),
    "step": _COUNTERS,
    "origin": st.binary(min_size=4, max_size=4),
    "verdict": st.sampled_from([int(verdict) for verdict in messages.Verdict]),
    "stage": st.sampled_from([int(stage) for stage in MergeStage]),
    "models": st.integers(0, messages.MAX_MODELS),
    "merge_id": st.binary(min_size=8, max_size=8),
    "name": _NAMES,
    "certificate": st.binary(max_size=messages.MAX_CERTIFICATE_BYTES),
    "claims": st.lists(_MEMBERS, max_size=MAX_CLAIMS, unique_by=lambda member: member.name).map(tuple),
    "members": st.lists(_MEMBERS, max_size=MAX_TOLD, unique_by=lambda member: member.name).map(
        lambda members: fitting((), members, random.Random(0))
    ),
    "cut": st.binary(min_size=16, max_size=16),
    "epoch": _COUNTERS,
    "want": st.integers(0, MAX_GRANT),
    "word": _COUNTERS,
    "floor": _COUNTERS,
    "entries": st.lists(_ENTRIES, max_size=MAX_ENTRIES, unique_by=lambda entry: entry[:2]).map(tuple),
    "granted": st.lists(st.builds(Block, _COUNTERS, st.integers(0, 2**22 - 1)), max_size=MAX_GRANT).map(tuple),
    "left": st.integers(0, 2**22),
}
_MESSAGES = st.one_of(
    st.builds(cls, **{field.name: _FIELDS[field.name] for field in dataclasses.fields(cls)})
    for cls in get_args(messages.Message)
)


@given(_MESSAGES)
def test_every_legal_message_survives_the_round_trip(message):
    header = wire.encode(message)
    decoded = wire.decode(header, "w2")
    assert len(header) <= messages.MAX_HEADER_BYTES
    assert type(decoded) is type(message)
    for field in dataclasses.fields(message):
        sent, got = getattr(message, field.name), getattr(decoded, field.name)
        assert got == sent or (math.isnan(got) and math.isnan(sent))


@given(_MESSAGES)
def test_of_a_guest_nothing_is_read_but_a_certificate(message):
    header = wire.encode(message)
    if isinstance(message, messages.Present) and len(header) <= messages.MAX_PRESENT_BYTES:
        assert wire.decode_present(header, "?") == message
    else:
        with pytest.raises(RemoteProtocolError, match="something else than a certificate"):
            wire.decode_present(header, "?")


@given(st.binary(max_size=400) | st.binary(max_size=300).map(lambda rest: bytes([0x94, 1, 18]) + rest))
def test_any_bytes_of_a_guest_give_a_certificate_or_a_protocol_error(header):
    try:
        message = wire.decode_present(header, "?")
    except RemoteProtocolError:
        return
    assert wire.decode_present(wire.encode(message), "?") == message


def test_the_longest_certificate_fits_into_what_is_read_of_a_guest():
    message = messages.Present(0, bytes(messages.MAX_CERTIFICATE_BYTES))
    assert wire.decode_present(wire.encode(message), "?") == message


@given(st.binary(max_size=5000))
def test_any_bytes_give_a_message_or_a_protocol_error(header):
    try:
        wire.decode(header, "w2")
    except RemoteProtocolError as error:
        said = str(error)
    else:
        said = "peer w2"
    assert said.startswith("peer w2")


_ATOMS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=300) | st.binary()
)


@given(st.integers(0, 21), st.lists(_ATOMS | st.lists(_ATOMS), max_size=12))
def test_lists_of_wrong_values_are_refused_or_legal(kind, values):
    header = msgpack.packb([messages.PROTOCOL_VERSION, kind, *values])
    try:
        message = wire.decode(header, "w2")
    except RemoteProtocolError:
        return
    assert wire.decode(wire.encode(message), "w2").nonce == message.nonce


_PULL = messages.PullRequest(1, "run", "w1", b"i" * 8, b"f" * 16, b"h" * 8, 0, 0, 4096, 0, 8, False, False)
_OFFER = messages.Offer(1, b"i" * 8, 1, 1.0, 0.5, 100, -1, bytes(16), False)
_CHUNK = messages.Chunk(1, 0, 0)
_PROPOSE = messages.Propose(1, "run", "w1", b"i" * 8, b"f" * 16, b"e" * 16, False, 0.5, 1.0, None, 3, 0, 0)
_ACCEPTED = messages.Accepted(1, b"i" * 8, 1.0, b"l" * 8)
_MEET = messages.Meet(1, "run", "w1", b"i" * 8, b"f" * 16, (Member("w1", "localhost", 1, 0, MemberState.ALIVE),))
_MET = messages.Met(1, b"i" * 8, _MEET.claims)
_SETTLED = messages.Settled(1, b"i" * 8, 1, False)


@pytest.mark.parametrize(
    ("message", "field", "value"),
    [
        (_PULL, "nonce", -1),
        (_PULL, "nonce", True),
        (_PULL, "nonce", 1.0),
        (_PULL, "nonce", 2**63),
        (_PULL, "node", "x" * 65),
        (_PULL, "node", "w1\x1b[31m"),
        (_PULL, "incarnation", b"short"),
        (_PULL, "first", -1),
        (_PULL, "first", messages.MAX_CHUNKS + 1),
        (_PULL, "count", 0),
        (_PULL, "count", messages.MAX_WINDOW + 1),
        (_PULL, "chunk_bytes", 0),
        (_PULL, "chunk_bytes", 65),
        (_PULL, "chunk_bytes", 2**30),
        (_PULL, "chunk_bytes", "4096"),
        (_PULL, "codec", 256),
        (_PULL, "shared", 1),
        (_PULL, "finished", 1),
        (_OFFER, "stage", 4),
        (_OFFER, "stage", -1),
        (_OFFER, "models", messages.MAX_MODELS + 1),
        (_SETTLED, "models", -1),
        (_SETTLED, "merge_id", b"short"),
        (_OFFER, "version", 0),
        (_OFFER, "clock", -1.0),
        (_OFFER, "clock", float("nan")),
        (_OFFER, "clock", float("inf")),
        (_OFFER, "clock", 2.0**63),
        (_OFFER, "loss", "0.5"),
        (_OFFER, "total_bytes", 0),
        (_OFFER, "total_bytes", 2**60),
        (_OFFER, "slot", -2),
        (_OFFER, "slot", messages.MAX_SLOTS),
        (_OFFER, "slot", False),
        (_OFFER, "token", b"short"),
        (_OFFER, "token", "x" * 16),
        (_OFFER, "lineage", b"short"),
        (_OFFER, "lineage", "x" * 8),
        (_OFFER, "step", -1),
        (_OFFER, "step", 2**63),
        (_OFFER, "origin", b"fives"),
        (_SETTLED, "step", 1.0),
        (_PROPOSE, "lineage", b"nine byte"),
        (_ACCEPTED, "lineage", None),
        (_ACCEPTED, "clock", -1.0),
        (_PULL, "exchange_id", b"short"),
        (_PULL, "round", -2),
        (_OFFER, "mass", -1.0),
        (_OFFER, "mass", float("nan")),
        (_OFFER, "mass", 2.0 * MAX_MASS),
        (_PROPOSE, "is_pair", 1),
        (_PROPOSE, "mass", float("inf")),
        (_PROPOSE, "piece", -1),
        (_PROPOSE, "pieces", messages.MAX_CHUNKS + 1),
        (_SETTLED, "verdict", 3),
        (_CHUNK, "index", -1),
        (_CHUNK, "codec", -1),
    ],
)
def test_a_field_outside_its_limit_is_named(message, field, value):
    header = wire.encode(dataclasses.replace(message, **{field: value}))
    with pytest.raises(RemoteProtocolError, match=f"illegal {field}"):
        wire.decode(header, "w2")


def test_the_largest_table_fits_into_a_header():
    host = ".".join(["x" * 62] * 4)
    table = [Member(f"{number:064}", host, 65535, MAX_COUNTER, MemberState.DEAD) for number in range(100)]
    header = wire.encode(messages.Met(MAX_COUNTER, b"i" * 8, fitting((), table, random.Random(0))))
    assert 3000 < len(header) <= messages.MAX_HEADER_BYTES
    assert len(wire.decode(header, "w2").members) >= 10


_ENTRY = ["w2", "localhost", 21000, 0, 0]


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param([_ENTRY, _ENTRY], id="one name twice"),
        pytest.param([["w2", "localhost", 21000, 0, 0], ["w2", "10.0.0.1", 1, 5, 3]], id="one name with two addresses"),
        pytest.param([[f"w{number}", "localhost", 21000, 0, 0] for number in range(MAX_TOLD + 1)], id="too many"),
        pytest.param([[]], id="empty entry"),
        pytest.param([_ENTRY[:4]], id="entry that is too short"),
        pytest.param([[*_ENTRY, 1]], id="entry that is too long"),
        pytest.param(["w2"], id="no entry"),
        pytest.param("w2", id="no list"),
        pytest.param(None, id="nothing"),
        *(
            pytest.param([[*_ENTRY[:place], value, *_ENTRY[place + 1 :]]], id=f"{value!r} at {place}"[:40])
            for place, value in [
                (0, ""),
                (0, "x" * 65),
                (0, "../w2"),
                (0, "w2\x1b[31m"),
                (0, "127.0.0.1:80"),
                (0, b"w2"),
                (1, ""),
                (1, "x" * 254),
                (1, "a b"),
                (1, "0.0.0.0"),  # noqa: S104
                (1, "[::1]"),
                (1, "host\n"),
                (2, 0),
                (2, 65536),
                (2, -1),
                (2, 1.0),
                (2, True),
                (3, -1),
                (3, MAX_COUNTER + 1),
                (3, 2**63),
                (3, None),
                (4, -1),
                (4, len(MemberState)),
                (4, False),
            ]
        ),
    ],
)
@pytest.mark.parametrize("message", [_MEET, _MET])
def test_a_table_with_anything_illegal_is_no_message(message, entries):
    values = [getattr(message, field.name) for field in dataclasses.fields(message)]
    header = msgpack.packb([messages.PROTOCOL_VERSION, int(message.KIND), *values[:-1], entries])
    with pytest.raises(RemoteProtocolError, match=r"illegal (claims|members)|not msgpack"):
        wire.decode(header, "w2")


def test_another_protocol_version_is_named():
    header = msgpack.packb([2, 1, "whatever a later version has"])
    with pytest.raises(RemoteProtocolError, match="protocol version 2; this node speaks version 1"):
        wire.decode(header, "w2")


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b"\xdd\xff\xff\xff\xff", id="list that claims four billion items"),
        pytest.param(b"\xc6\xff\xff\xff\xff", id="bytes that claim four gigabytes"),
        pytest.param(b"\x91" * 4000, id="four thousand lists in each other"),
        pytest.param(msgpack.packb([[]] * 2000), id="two thousand empty lists"),
        pytest.param(msgpack.packb({"a": {"b": 1}}), id="maps"),
        pytest.param(msgpack.packb(msgpack.ExtType(5, b"x")), id="extension type"),
        pytest.param(b"\x00" * 4097, id="longer than a header may be"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_a_bomb_is_refused_before_it_takes_memory(header):
    tracemalloc.start()
    with pytest.raises(RemoteProtocolError):
        wire.decode(header, "w2")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1_000_000


def test_numbers_of_messages_are_never_reused():
    assert [(kind.name, kind.value) for kind in messages.MessageKind] == [
        ("PULL", 1),
        ("MORE", 2),
        ("OFFER", 3),
        ("CHUNK", 4),
        ("NOT_MODIFIED", 5),
        ("NOT_READY", 6),
        ("BUSY", 7),
        ("MISMATCH", 8),
        ("REFUSED", 9),
        ("DONE", 10),
        ("PROPOSE", 11),
        ("ACCEPTED", 12),
        ("SETTLE", 13),
        ("SETTLED", 14),
        ("PAST", 15),
        ("MEET", 16),
        ("MET", 17),
        ("PRESENT", 18),
        ("VOUCH", 19),
        ("VOUCHED", 20),
        ("LEASE", 21),
        ("LEASED", 22),
    ]
    assert [(codec.name, codec.value) for codec in Codec] == [
        ("RAW", 0),
        ("FP16", 1),
        ("BF16", 2),
        ("INT8", 3),
    ]

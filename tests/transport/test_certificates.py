"""Certificates: their bytes, what is read of them, which count, and how an owner makes them."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import time
from pathlib import Path

import pytest
import yaml
import zmq
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85

from dpwa.cli import main
from dpwa.errors import ConfigError
from dpwa.exchange.messages import MAX_CERTIFICATE_BYTES
from dpwa.transport import certified as certified_module
from dpwa.transport import key_folder, signing
from dpwa.transport.allowed_list import read_list
from dpwa.transport.certificate import MAX_TEXT_BYTES, Certificate, from_text, read_certificate, to_text
from dpwa.transport.certified import Certified
from dpwa.transport.invitations import SIGNING_FILE, invite, make_signer, revoke
from dpwa.transport.key_folder import KeyFolder, make_keys, rotate_key

NOW_S = 1_800_000_000.0
DAY_S = 24 * 3600

# RFC 8032, section 7.1, test 2.
RFC_SECRET = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
RFC_PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
RFC_SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)

SIGNER = signing.make_signing_key()
PUBLIC = signing.public_half(SIGNER)


def signed(
    name: str = "w9", key: bytes | None = None, issued: float = NOW_S, days: float = 30, signer: bytes = SIGNER
) -> Certificate:
    raw = os.urandom(32) if key is None else z85.decode(key)
    draft = Certificate(signing.public_half(signer), name, raw, int(issued), int(issued + days * DAY_S))
    return draft._replace(signature=signing.sign(signer, draft.signed_part))


@pytest.fixture(autouse=True)
def _reads_lists_at_once(monkeypatch):
    monkeypatch.setattr(key_folder, "_BETWEEN_LOOKS_S", 0.0)


# --- Bytes ----------------------------------------------------------------------------------------------------------


def test_signatures_are_those_of_the_rfc():
    assert signing.public_half(RFC_SECRET) == RFC_PUBLIC
    assert signing.sign(RFC_SECRET, b"\x72") == RFC_SIGNATURE
    assert signing.is_signed(RFC_PUBLIC, b"\x72", RFC_SIGNATURE)
    assert not signing.is_signed(RFC_PUBLIC, b"\x73", RFC_SIGNATURE)
    assert not signing.is_signed(RFC_PUBLIC, b"\x72", RFC_SIGNATURE[:-1])
    assert not signing.is_signed(b"short", b"\x72", RFC_SIGNATURE)


def test_the_bytes_of_a_certificate():
    certificate = Certificate(b"S" * 32, "w9", b"K" * 32, 1, 258, b"s" * 64)
    data = certificate.to_bytes()
    assert data == (
        b"dpwacrt1" + b"S" * 32 + b"K" * 32 + b"\0\0\0\0\0\0\0\x01" + b"\0\0\0\0\0\0\x01\x02" + b"\x02w9" + b"s" * 64
    )
    assert read_certificate(data) == certificate
    assert certificate.end == "1970-01-01"
    assert len(Certificate(b"S" * 32, "w" * 64, b"K" * 32, 1, 2).to_bytes()) == MAX_CERTIFICATE_BYTES


_CERTIFICATES = st.builds(
    lambda signer, name, key, times, signature: Certificate(signer, name, key, *sorted(times), signature),
    st.binary(min_size=32, max_size=32),
    st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", fullmatch=True),
    st.binary(min_size=32, max_size=32),
    st.tuples(st.integers(0, 253402300799), st.integers(0, 253402300799)),
    st.binary(min_size=64, max_size=64),
)


@given(_CERTIFICATES)
def test_every_certificate_survives_the_round_trip_as_bytes_and_as_a_file(certificate):
    assert read_certificate(certificate.to_bytes()) == certificate
    text = to_text(certificate)
    assert len(text) <= MAX_TEXT_BYTES
    assert from_text(text) == certificate


@given(
    st.binary(max_size=300)
    | st.tuples(_CERTIFICATES, st.integers(0, 216), st.integers(1, 255)).map(
        lambda spoilt: bytes(
            byte ^ (spoilt[2] if place == spoilt[1] else 0) for place, byte in enumerate(spoilt[0].to_bytes())
        )
    )
)
def test_there_is_one_way_to_write_a_certificate_and_nothing_else_is_read(data):
    try:
        found = read_certificate(data)
    except ValueError:
        return
    assert found.to_bytes() == data


@given(st.text(max_size=400))
def test_any_text_is_a_certificate_or_a_value_error(text):
    try:
        found = from_text(text)
    except ValueError:
        return
    assert from_text(to_text(found)) == found


@given(st.integers(0, 8 * (len(signed().to_bytes())) - 1))
def test_no_bit_of_a_certificate_can_be_changed(bit):
    knows = Certified("w1", lambda: NOW_S)
    knows.go_by((PUBLIC,), (), ())
    data = bytearray(signed().to_bytes())
    data[bit // 8] ^= 1 << bit % 8
    assert knows.take(bytes(data)) != ""
    assert knows.keys == []


# --- Which count ----------------------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> list[float]:
    return [NOW_S]


@pytest.fixture
def knows(clock) -> Certified:
    made = Certified("w1", lambda: clock[0])
    made.go_by((PUBLIC,), frozenset({"w1", "w2"}), frozenset())
    return made


def _key() -> bytes:
    return zmq.curve_keypair()[0]


def test_a_certificate_by_the_signer_counts_for_its_name_and_key_until_its_end(knows, clock):
    key = _key()
    data = signed("w9", key).to_bytes()
    assert knows.take(data, key=key, name="w9") == ""
    assert (knows.name_of(key), knows.key_of("w9"), knows.certificate_of("w9")) == ("w9", key, data)
    assert knows.take(data, key=key) == "", "it may be shown again"
    clock[0] += 30 * DAY_S
    assert knows.name_of(key) == "w9", "to the last second"
    clock[0] += 1
    assert (knows.name_of(key), knows.key_of("w9"), knows.certificate_of("w9"), knows.keys) == (None, None, b"", [])
    assert "ended on 2027-02-14" in knows.take(data, key=key)
    assert knows.take(signed("w9", key, issued=clock[0]).to_bytes(), key=key) == "", "a later one for the same key"
    assert knows.name_of(key) == "w9"


@pytest.mark.parametrize(
    ("given", "told", "words"),
    [
        (signed(signer=signing.make_signing_key()), {}, "signed with another key"),
        (signed()._replace(signature=bytes(64)), {}, "a wrong signature"),
        (signed()._replace(name="w8"), {}, "a wrong signature"),
        (signed()._replace(until=int(NOW_S + 999 * DAY_S)), {}, "a wrong signature"),
        (signed(issued=NOW_S - 31 * DAY_S), {}, "ended on 2027-01-14"),
        (signed("w2"), {}, "a name whose keys are on the list"),
        (signed("w9"), {"name": "w8"}, "of another node"),
        (signed("w9"), {"key": _key()}, "of another key"),
    ],
)
def test_what_does_not_count_says_why(knows, given, told, words):
    assert words in knows.take(given.to_bytes(), **told)
    assert knows.keys == []
    assert knows.key_of(given.name) is None


def test_of_two_certificates_for_one_name_the_later_one_holds_whatever_comes_first(knows):
    old, new = _key(), _key()
    first, second = signed("w9", old), signed("w9", new, issued=NOW_S + 10)
    assert knows.take(first.to_bytes()) == ""
    assert knows.take(second.to_bytes()) == ""
    assert (knows.name_of(old), knows.name_of(new)) == (None, "w9")
    assert "older than another one" in knows.take(first.to_bytes(), key=old), "replayed by whoever has the old key"
    assert knows.key_of("w9") == new
    assert "older" in knows.take(signed("w9", issued=NOW_S + 10).to_bytes()), "a tie is no reason to change"
    assert knows.take(signed("w9", new, issued=NOW_S + 5).to_bytes()) == "", "harmless: the same key"
    assert knows.certificate_of("w9") == second.to_bytes()


def test_a_later_certificate_may_end_earlier(knows, clock):
    key = _key()
    long, short = signed("w9", key, days=90), signed("w9", key, issued=NOW_S + 5, days=1)
    assert [knows.take(each.to_bytes()) for each in (long, short)] == ["", ""]
    clock[0] += 2 * DAY_S
    assert knows.name_of(key) is None
    assert "ended on 2027-01-16" in knows.take(long.to_bytes(), key=key)
    assert knows.name_of(key) is None


def test_a_key_belongs_to_one_name(knows):
    key = _key()
    assert knows.take(signed("w8", key).to_bytes()) == ""
    assert "a key that another node has" in knows.take(signed("w9", key, issued=NOW_S + 1).to_bytes())
    assert knows.name_of(key) == "w8"


@pytest.mark.parametrize("what", ["name", "key", "signer", "listed"])
def test_when_the_list_changes_what_no_longer_counts_is_forgotten(knows, what):
    key = _key()
    data = signed("w9", key).to_bytes()
    assert knows.take(data) == ""
    revoked = {"name": {"w9"}, "key": {key.decode()}}.get(what, set())
    knows.go_by(() if what == "signer" else (PUBLIC,), {"w1", "w9"} if what == "listed" else {"w1"}, revoked)
    assert knows.name_of(key) is None
    assert knows.take(data) != ""
    assert knows.keys == []


def test_so_many_are_known_and_those_that_ended_make_room(knows, clock, monkeypatch):
    monkeypatch.setattr(certified_module, "MAX_NODES", 3)
    for name in ("a", "b"):
        assert knows.take(signed(name, days=1).to_bytes()) == ""
    assert knows.take(signed("c").to_bytes()) == ""
    assert "at most 3" in knows.take(signed("d").to_bytes())
    clock[0] += 2 * DAY_S
    assert knows.take(signed("d").to_bytes()) == ""
    assert sorted(map(knows.name_of, knows.keys)) == ["c", "d"]


def test_a_certificate_of_the_signer_that_does_not_count_is_told_once_and_others_never(knows, caplog):
    key = _key()
    ended = signed("w9", key, issued=NOW_S - 60 * DAY_S).to_bytes()
    for _ in range(5):
        knows.take(ended, key=key)
        knows.take(signed("w7", key, signer=signing.make_signing_key()).to_bytes(), key=key)
    assert [text for text in caplog.messages if "certificate" in text] == [
        "node w1: a certificate of w9 ended on 2026-12-16: it is not let in (told once)"
    ]


# --- Files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    made = tmp_path / "keys"
    make_keys(made, ["w1", "w2"])
    make_signer(made)
    return made


def test_a_signing_key_is_secret_stays_and_is_no_part_of_the_list(folder):
    path = folder / SIGNING_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = (folder / "allowed.yaml").read_text()
    assert path.read_text().strip() not in text
    before = text, path.read_bytes()
    assert make_signer(folder) == (False, 0)
    make_keys(folder, ["w1", "w2", "w3"])
    rotate_key(folder, "w1")
    assert read_list(folder / "allowed.yaml")[0].signers == (signing.public_half(z85.decode(before[1].strip())),)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="nobody else can read"):
        invite(folder, "w9", days=1, now_s=NOW_S)


def test_a_signing_key_is_changed_by_a_second_one(folder):
    old = folder / SIGNING_FILE
    certificate = invite(folder, "w9", days=9, now_s=time.time()).certificate.to_bytes()
    old.rename(folder / "old")
    assert make_signer(folder) == (True, 1)
    knows = KeyFolder(folder, "w1", ["w2"]).certified
    assert knows.certificate_of("w9") == certificate, "what the old one has signed still counts"
    newer = invite(folder, "w9", days=9, now_s=time.time() + 1).certificate
    assert newer.signer != read_certificate(certificate).signer
    assert newer.key == read_certificate(certificate).key
    old.unlink()
    with pytest.raises(ConfigError, match="has two signers already"):
        make_signer(folder)


def test_an_invited_node_has_a_key_of_its_own_and_a_second_invitation_is_for_the_same(folder):
    first, is_new = invite(folder, "w9", days=30, now_s=NOW_S)
    assert is_new
    assert stat.S_IMODE((folder / "w9.key").stat().st_mode) == 0o600
    assert z85.encode(first.key) == zmq.curve_public((folder / "w9.key").read_bytes().strip())
    assert first.until - first.issued == 30 * DAY_S
    (folder / "w9.key").unlink()  # it belongs on the machine of w9
    second, is_new = invite(folder, "w9", days=60, now_s=NOW_S + 5)
    assert (is_new, second.key, second.until) == (False, first.key, int(NOW_S) + 5 + 60 * DAY_S)
    assert from_text((folder / "w9.cert").read_text()) == second
    third, is_new = invite(folder, "w9", days=1, now_s=NOW_S, new_key=True)
    assert is_new
    assert third.issued == second.issued + 1, "later, whatever the clock says"
    assert third.key != first.key
    assert z85.encode(third.key) == zmq.curve_public((folder / "w9.key").read_bytes().strip())


@pytest.mark.parametrize(
    ("spoil", "node", "words"),
    [
        (lambda _: None, "w1", "is on the list and needs no invitation"),
        (lambda _: None, "../w9", "expected a name of letters"),
        (lambda _: None, "signers", "no word of allowed.yaml"),
        (lambda folder: (folder / SIGNING_FILE).unlink(), "w9", "signing key of the cluster is not there"),
        (lambda folder: (folder / SIGNING_FILE).write_text("short"), "w9", "expected a signing key of 40 characters"),
        (lambda folder: (folder / "w9.cert").write_text("x"), "w9", "is no certificate"),
        (lambda folder: revoke(folder, "w9"), "w9", "is revoked; invite a node by another name"),
        (
            lambda folder: ((folder / SIGNING_FILE).rename(folder / "old"), (folder / SIGNING_FILE).touch()),
            "w9",
            "nobody else can read|expected a signing key",
        ),
    ],
)
def test_who_cannot_be_invited_is_said_why(folder, spoil, node, words):
    spoil(folder)
    with pytest.raises(ConfigError, match=words):
        invite(folder, node, days=1, now_s=NOW_S)
    assert not (folder / f"{node}.key").exists() or node == "w1"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("signers: 3", "expected at most two in a list"),
        ("signers: [a, b, c]", "expected at most two in a list"),
        ("signers: ['{key}']", "expected ed25519: and 40 characters"),
        ("signers: ['ed25519:~{key}']", "expected ed25519: and 40 characters"),
        ("signers: ['ed25519:########################################']", "expected ed25519: and 40 characters"),
        ("revoked: w9", "expected names of nodes, or public keys"),
        ("revoked: [9]", "expected names of nodes, or public keys"),
    ],
)
def test_a_list_whose_words_are_wrong_is_refused(folder, line, words):
    key = read_list(folder / "allowed.yaml")[0].keys["w1"][0].decode()
    (folder / "allowed.yaml").write_text(f"w1: ['{key}']\n" + line.replace("{key}", key[:39]) + "\n")
    with pytest.raises(ConfigError, match=words):
        read_list(folder / "allowed.yaml")


@pytest.mark.parametrize("how", ["name", "key"])
def test_who_is_revoked_is_nobody_though_it_is_on_the_list(folder, how):
    peer, other = KeyFolder(folder, "w1", ["w2"]), KeyFolder(folder, "w2", ["w1"])
    assert peer.name_of(other.public) == "w2"
    values = yaml.safe_load((folder / "allowed.yaml").read_text())
    values["revoked"] = ["w2" if how == "name" else other.public.decode()]
    (folder / "allowed.yaml").write_text(yaml.safe_dump(values))
    assert peer.name_of(other.public) is None
    with pytest.raises(ConfigError, match="has no key of w2"):
        peer.server_key("w2")
    with pytest.raises(ConfigError, match="w2 is revoked" if how == "name" else "has no key of w2"):
        KeyFolder(folder, "w1", ["w2"])


def _as_newcomer(folder: Path, to: Path, node: str = "w9") -> Path:
    to.mkdir(mode=0o700)
    for name in ("allowed.yaml", f"{node}.key", f"{node}.cert"):
        if (folder / name).exists():
            shutil.copy2(folder / name, to)
    return to


def _invited(folder: Path, to: Path) -> Path:
    invite(folder, "w9", days=30, now_s=time.time())
    return _as_newcomer(folder, to)


def test_an_invited_node_starts_and_shows_its_certificate(folder, tmp_path):
    made = invite(folder, "w9", days=30, now_s=time.time()).certificate
    keys = KeyFolder(_as_newcomer(folder, tmp_path / "its"), "w9", [])
    assert keys.certified.own == made.to_bytes()
    assert keys.public == z85.encode(made.key)
    assert KeyFolder(folder, "w1", ["w2"]).certified.own == b"", "who is on the list needs none"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda its: (its / "w9.cert").unlink(), "has no key of w9.*or have it invited"),
        (lambda its: (its / "w9.cert").write_text("x"), "w9.cert: is no certificate"),
        (lambda its: (its / "w9.cert").write_text(to_text(signed("w9"))), "signed with another key than that"),
        (lambda its: (its / "w9.key").unlink(), "this node's secret key is not there"),
        (lambda its: (its / "w9.key").write_bytes(zmq.curve_keypair()[1]), "does not belong to any key of w9"),
    ],
)
def test_what_is_wrong_with_an_invitation_is_said_at_the_start(folder, tmp_path, spoil, words):
    invite(folder, "w9", days=30, now_s=time.time())
    its = _as_newcomer(folder, tmp_path / "its")
    spoil(its)
    with pytest.raises(ConfigError, match=words):
        KeyFolder(its, "w9", [])


def test_an_invitation_that_has_ended_is_said_at_the_start(folder, tmp_path):
    end = invite(folder, "w9", days=1, now_s=time.time() - 2 * DAY_S).certificate.end
    with pytest.raises(ConfigError, match=f"w9.cert: ended on {end}; have the owner of the cluster make it anew"):
        KeyFolder(_as_newcomer(folder, tmp_path / "its"), "w9", [])


def test_a_certificate_that_is_put_into_a_folder_is_seen_there_without_a_restart(folder, tmp_path):
    first = invite(folder, "w9", days=1, now_s=time.time() - 100).certificate
    (folder / "w9.cert").rename(tmp_path / "w9.cert")
    member = KeyFolder(folder, "w1", ["w2"])
    assert member.name_of(z85.encode(first.key)) is None
    shutil.copy2(tmp_path / "w9.cert", folder)
    assert member.name_of(z85.encode(first.key)) == "w9"
    assert member.server_key("w9") == z85.encode(first.key)
    keys = KeyFolder(_as_newcomer(folder, tmp_path / "its"), "w9", [])
    renewed = invite(folder, "w9", days=90, now_s=time.time()).certificate
    shutil.copy2(folder / "w9.cert", tmp_path / "its" / "copied")
    (tmp_path / "its" / "copied").replace(tmp_path / "its" / "w9.cert")
    keys.name_of(b"")
    assert keys.certified.own == renewed.to_bytes()


def test_at_an_address_whose_name_is_not_known_every_key_may_be(folder):
    invite(folder, "w8", days=1, now_s=time.time())
    invite(folder, "w9", days=1, now_s=time.time())
    keys = KeyFolder(folder, "w9", [])
    allowed = read_list(folder / "allowed.yaml")[0].keys
    expected = [*allowed["w1"], *allowed["w2"], z85.encode(from_text((folder / "w8.cert").read_text()).key)]
    found = []
    for _ in expected:
        found.append(keys.server_key("127.0.0.1:1"))
        keys.failed("127.0.0.1:1")
    assert found == expected


def test_a_certificate_of_another_key_by_this_nodes_own_name_is_never_shown(folder, tmp_path):
    keys = KeyFolder(_invited(folder, tmp_path / "its"), "w9", [])
    own = keys.certified.own
    later = invite(folder, "w9", days=30, now_s=time.time() + 60, new_key=True).certificate
    assert keys.certified.take(later.to_bytes()) == ""
    shutil.copy2(folder / "w9.cert", tmp_path / "its" / "again.cert")
    keys.name_of(b"")
    assert keys.certified.own == own


def test_who_was_on_the_list_and_is_invited_now_is_expected_with_its_new_key(folder):
    member = KeyFolder(folder, "w1", ["w2"])
    before = member.server_key("w2")
    values = yaml.safe_load((folder / "allowed.yaml").read_text())
    del values["w2"]
    (folder / "allowed.yaml").write_text(yaml.safe_dump(values))
    assert member.server_key("w2") == before, "peers of the file keep their last keys for connecting to"
    made = invite(folder, "w2", days=1, now_s=time.time(), new_key=True).certificate
    assert member.server_key("w2") == z85.encode(made.key)


def test_a_list_that_stays_damaged_is_told_once(folder, caplog):
    member = KeyFolder(folder, "w1", ["w2"])
    (folder / "allowed.yaml").write_text("w1: [")
    for _ in range(3 * key_folder._LOOKS_AT_HALF_A_LIST):
        assert member.name_of(member.public) == "w1"
    assert len([text for text in caplog.messages if "goes by the list that it has read before" in text]) == 1


def test_without_the_package_for_signatures_the_line_says_what_to_install(folder, monkeypatch):
    make_keys(folder.parent / "plain", ["w1"])
    monkeypatch.setitem(sys.modules, "nacl.signing", None)
    assert KeyFolder(folder.parent / "plain", "w1", []).public, "without a signer nothing needs it"
    for attempt in (lambda: KeyFolder(folder, "w1", ["w2"]), lambda: invite(folder, "w9", days=1, now_s=NOW_S)):
        with pytest.raises(ConfigError, match=r"PyNaCl, which is not installed; .* pip install 'dpwa\[invite\]'"):
            attempt()


# --- By the command line --------------------------------------------------------------------------------------------


def _dpwa(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, [*map(str, arguments)])
    return done.exit_code, done.output


def test_the_commands_invite_and_revoke_and_print_no_secret(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("cluster.yaml").write_text("keys: keys\nnodes: [{name: w1, port: 21000}, {name: w2, port: 21001}]\n")
    shown = ""
    for arguments, words in (
        (("init", "cluster.yaml"), "wrote"),
        (("invite", "cluster.yaml", "w9"), "signing key of the cluster is not there"),
        (("init", "cluster.yaml", "--signer"), "cluster.signing-key: a secret, which stays with you"),
        (("invite", "cluster.yaml", "w9", "--days", "7"), "copy w9.key, w9.cert, allowed.yaml and its cluster file"),
        (("invite", "cluster.yaml", "w9"), "copy w9.cert to the machine of w9"),
        (("invite", "cluster.yaml", "w9", "--days", "0"), "0 is not in the range"),
    ):
        code, output = _dpwa("keys", *arguments)
        assert words in output
        assert code == (2 if "not" in words else 0), output
        shown += output
    secrets = [path.read_text().strip() for path in Path("keys").iterdir() if path.suffix in (".key", ".signing-key")]
    assert len(secrets) == 4
    assert not any(secret in shown for secret in secrets)
    code, output = _dpwa("keys", "revoke", "cluster.yaml", "w9")
    assert (code, "copy that to every machine" in output) == (0, True)
    assert not Path("keys/w9.cert").exists()
    assert read_list(Path("keys/allowed.yaml"))[0].revoked == ("w9",)
    code, output = _dpwa("keys", "revoke", "cluster.yaml", "w2")
    assert code == 0
    code, output = _dpwa("keys", "init", "cluster.yaml")
    assert (code, "w2 is revoked; take it out of the cluster file" in output) == (2, True)
    code, output = _dpwa("keys", "revoke", "cluster.yaml", "a b")
    assert (code, "expected the name of a node" in output) == (2, True)

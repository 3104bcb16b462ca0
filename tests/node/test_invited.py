"""Nodes that are on nobody's list join by a certificate, through one member, and exchange with all; on real sockets."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import zmq
from open_clusters import Process, Processes, Training, all_know, open_config
from zmq.utils import z85

from dpwa.exchange import members as rules
from dpwa.launch.ports import free_ports
from dpwa.transport import key_folder, signing
from dpwa.transport.allowed_list import read_list
from dpwa.transport.certificate import from_text, to_text
from dpwa.transport.invitations import SIGNING_FILE, invite, make_signer, revoke
from dpwa.transport.key_folder import make_keys
from support import wait_until

pytestmark = pytest.mark.seconds

FOUNDERS = ["w1", "w2", "w3"]


class Owner:
    """Whoever has the signing key; the folders that it gives to nodes are copies, and have what each machine needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "owner"
        self._given = folder / "given"
        make_keys(self.folder, FOUNDERS)
        make_signer(self.folder)
        self.members = self._copy("members", [f"{name}.key" for name in FOUNDERS])

    def invite(self, name: str, *, new_key: bool = False) -> Path:
        """The folder of keys of a newcomer."""
        invite(self.folder, name, days=30, now_s=time.time(), new_key=new_key)
        return self._copy(name, [f"{name}.key", f"{name}.cert"])

    def _copy(self, to: str, files: list[str]) -> Path:
        made = self._given / to
        made.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("allowed.yaml", *files):
            shutil.copy2(self.folder / name, made / name)
        return made

    def take_back_list(self) -> None:
        """Copy the list to the members."""
        shutil.copy2(self.folder / "allowed.yaml", self.members / "draft")
        (self.members / "draft").replace(self.members / "allowed.yaml")

    def sign_until(self, folder: Path, name: str, until_s: float, *, signer: bytes | None = None) -> None:
        """Write another end into a newcomer's certificate, and sign that."""
        path = folder / f"{name}.cert"
        key = signer or z85.decode((self.folder / SIGNING_FILE).read_bytes().strip())
        draft = from_text(path.read_text())._replace(
            until=int(until_s), issued=int(time.time()), signer=signing.public_half(key)
        )
        (folder / "draft").write_text(to_text(draft._replace(signature=signing.sign(key, draft.signed_part))))
        (folder / "draft").replace(path)


@pytest.fixture
def owner(tmp_path, monkeypatch) -> Owner:
    monkeypatch.setattr(key_folder, "_BETWEEN_LOOKS_S", 0.05)
    return Owner(tmp_path)


@pytest.fixture
def ports() -> list[int]:
    return free_ports(6)


@pytest.fixture
def founders(train, owner, ports) -> list[Training]:
    config = open_config(FOUNDERS, ports[:3], [ports[0]], keys=str(owner.members))
    made = [train(config, name) for name in FOUNDERS]
    wait_until(lambda: all(training.step > 30 for training in made), "they train")
    return made


def newcomer(train, name: str, keys: Path, port: int, through: int, value: float = 100.0) -> Training:
    return train(open_config([name], [port], [through], keys=str(keys)), name, value)


def certificates(training: Training):
    return training.node._transport._rx._links.curve.certified


def strangers(training: Training) -> int:
    return training.node._transport.counters.guarded.get("stranger", 0)


def exchange_both_ways(trainings: list[Training]) -> None:
    """Wait until each has fetched, from each of the others, what is served over encrypted links."""
    names = {training.node.name for training in trainings}

    def has_blended(training: Training) -> bool:
        scores = training.node.statistics().scores
        return all(scores.get(name, 0) > 500 for name in names - {training.node.name})

    wait_until(lambda: all(map(has_blended, trainings)), "all exchange with all", 30.0)


def test_an_invited_node_joins_through_one_member_and_exchanges_with_all(train, owner, founders, ports):
    keys = owner.invite("w9")
    assert "w9" not in read_list(owner.members / "allowed.yaml")[0].keys
    assert not list(owner.members.glob("*.cert"))
    made = newcomer(train, "w9", keys, ports[3], ports[1])
    all_know([*founders, made])
    assert made.value_at_start() == pytest.approx(1.0)
    exchange_both_ways([*founders, made])
    assert all(certificates(training).certificate_of("w9") for training in founders)
    counts = [training.node.statistics() for training in (*founders, made)]
    assert sum(count.protocol_errors for count in counts) == 0


def test_two_invited_nodes_learn_each_others_keys_from_members(train, owner, founders, ports):
    first = newcomer(train, "w8", owner.invite("w8"), ports[3], ports[0])
    all_know([*founders, first])
    second = newcomer(train, "w9", owner.invite("w9"), ports[4], ports[2])
    all_know([*founders, first, second])
    exchange_both_ways([first, second])
    assert certificates(first).certificate_of("w9")
    assert certificates(second).certificate_of("w8")
    assert not certificates(first).certificate_of("w1"), "of who is on the list nobody has one"


def test_one_joins_through_another_that_was_invited(train, owner, founders, ports):
    """Its own folder has the other's certificate, so that it knows whom to expect there."""
    first = newcomer(train, "w8", owner.invite("w8"), ports[3], ports[0])
    all_know([*founders, first])
    keys = owner.invite("w9")
    shutil.copy2(owner.folder / "w8.cert", keys)
    second = newcomer(train, "w9", keys, ports[4], ports[3])
    all_know([*founders, first, second])


def test_one_that_expects_another_member_at_an_address_alarms_nobody(founders, ports, owner, caplog):
    """A newcomer does not know which member is at an address of `join`: it tries the keys of its list."""
    members = read_list(owner.members / "allowed.yaml")[0].keys
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.curve_publickey, dealer.curve_secretkey = zmq.curve_keypair()
        dealer.curve_serverkey = members["w2"][0]
        dealer.linger = 0
        dealer.connect(f"tcp://127.0.0.1:{ports[0]}")
        wait_until(lambda: strangers(founders[0]) > 0, "it breaks the handshake off")
    assert not [text for text in caplog.messages if "knocks" in text]


def test_a_node_with_a_certificate_by_another_signer_stays_out(train, owner, founders, ports, tmp_path):
    other = Owner(tmp_path / "other")
    keys = other.invite("w9")
    mixed = read_list(owner.folder / "allowed.yaml")[0]
    theirs = read_list(keys / "allowed.yaml")[0]
    key_folder.write_list(keys, type(mixed)(mixed.keys, theirs.signers))
    made = newcomer(train, "w9", keys, ports[3], ports[0])
    wait_until(lambda: made.step > 20 and strangers(founders[0]) > 0, "it knocks, and trains alone", 20.0)
    assert made.members == {}
    assert not any("w9" in training.members for training in founders)
    assert made.value_at_start() == 100.0


@pytest.mark.slow
def test_a_node_whose_certificate_ends_is_out_and_one_that_has_a_later_one_comes_back(
    train, owner, founders, ports, monkeypatch
):
    monkeypatch.setattr(rules, "DEAD_S", 1.0)
    keys = owner.invite("w9")
    end_s = time.time() + 6.0
    owner.sign_until(keys, "w9", end_s)
    made = newcomer(train, "w9", keys, ports[3], ports[0])
    all_know([*founders, made])
    wait_until(lambda: not any("w9" in training.members for training in founders), "they forget it", 30.0)
    assert time.time() > end_s
    assert all(certificates(training).keys == [] for training in founders)
    steps = made.step
    wait_until(lambda: made.step > steps + 20, "it trains on alone")
    owner.sign_until(keys, "w9", end_s + 3600)
    all_know([*founders, made], 40.0)


def test_a_node_that_is_revoked_while_it_trains_is_out(train, owner, founders, ports, monkeypatch):
    monkeypatch.setattr(rules, "DEAD_S", 1.0)
    made = newcomer(train, "w9", owner.invite("w9"), ports[3], ports[0])
    all_know([*founders, made])
    revoke(owner.folder, "w9")
    owner.take_back_list()
    wait_until(lambda: not any("w9" in training.members for training in founders), "they forget it", 30.0)
    blended = [training.node.statistics().blended for training in founders]
    served = made.node.statistics().served
    wait_until(
        lambda: all(
            training.node.statistics().blended > old + 20 for training, old in zip(founders, blended, strict=True)
        ),
        "the others go on",
    )
    assert made.node.statistics().served == served, "nobody asks it"


def test_an_invited_node_that_has_a_new_key_comes_back_with_it(train, owner, founders, ports):
    made = newcomer(train, "w9", owner.invite("w9"), ports[3], ports[0])
    all_know([*founders, made])
    old = certificates(founders[0]).key_of("w9")
    made.end()
    again = newcomer(train, "w9", owner.invite("w9", new_key=True), ports[3], ports[2])
    all_know([*founders, again])
    exchange_both_ways([*founders, again])
    for training in founders:
        assert certificates(training).key_of("w9") not in (None, old)
        assert certificates(training).name_of(old) is None


@pytest.mark.slow
@pytest.mark.heavy
def test_killed_nodes_come_back_as_invited_ones_and_learn_of_invited_ones_again(owner, tmp_path):
    """A restarted member has no certificate in memory; a restarted newcomer shows its own again."""
    cluster = Processes(tmp_path, 3, keys=str(owner.members))
    try:
        cluster.begin()
        for name in ("w8", "w9"):
            cluster.settings["keys"] = str(owner.invite(name))
            cluster.add(name, through="w2")
        _agree(cluster)
        wait_until(lambda: _lives(cluster, "w9") == 1, "the journal of the first life is on the disk")
        for name in ("w2", "w9"):
            cluster.kill(name)
            path = tmp_path / ("cluster.yaml" if name == "w2" else "w9.yaml")
            cluster.running[name] = Process(path, name, cluster.run_dir, 1.0)
        _agree(cluster)
        wait_until(lambda: _lives(cluster, "w9") == 2, "it lives again")
        blended = {name: process.end()["blended"] for name, process in list(cluster.running.items())}
        assert all(blended.values()), blended
    finally:
        cluster.close()


def _lives(cluster: Processes, name: str) -> int:
    return [event["event"] for event in cluster.events(name)].count("start")


def _agree(cluster: Processes) -> None:
    names = set(cluster.running)

    def is_known() -> bool:
        return all(
            process.members == dict.fromkeys(names - {name}, "alive") for name, process in cluster.running.items()
        )

    wait_until(is_known, "all know all", 60.0)

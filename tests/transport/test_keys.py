"""Keys: files that only their user can read, who gets in by them and who does not, and how a node changes its own."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
import zmq
from click.testing import CliRunner
from fake_peers import pull_of
from zmq.utils.monitor import parse_monitor_message

from dpwa.cli import main
from dpwa.config import hosts
from dpwa.config.cluster import ClusterConfig
from dpwa.errors import ConfigError
from dpwa.transport import key_folder, wire
from dpwa.transport.allowed_list import read_list
from dpwa.transport.connection_rules import Cause
from dpwa.transport.invitations import revoke
from dpwa.transport.key_folder import KeyFolder, make_keys, rotate_key
from dpwa.transport.sockets import dealer
from support import DEADLINE_S, Cluster, VectorModel, wait_until

NODES = ("w1", "w2", "w3")


@pytest.fixture
def folder(tmp_path) -> Path:
    made = tmp_path / "keys"
    assert make_keys(made, NODES) == list(NODES)
    return made


@pytest.fixture(autouse=True)
def _reads_lists_at_once(monkeypatch):
    monkeypatch.setattr(key_folder, "_BETWEEN_LOOKS_S", 0.0)


def _keys(folder: Path, node: str) -> KeyFolder:
    return KeyFolder(folder, node, [name for name in NODES if name != node])


def _allowed(folder: Path) -> dict[str, list[str]]:
    return yaml.safe_load((folder / "allowed.yaml").read_text())


# --- Files ----------------------------------------------------------------------------------------------------------


def test_secrets_are_readable_by_their_user_alone_and_the_list_holds_none(folder):
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for node in NODES:
        path = folder / f"{node}.key"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_text().strip() not in (folder / "allowed.yaml").read_text()
    assert {key for keys in _allowed(folder).values() for key in keys} == {
        zmq.curve_public((folder / f"{node}.key").read_bytes().strip()).decode() for node in NODES
    }


def test_a_second_init_keeps_what_is_there_and_adds_who_is_new(folder):
    before = _allowed(folder)
    assert make_keys(folder, [*NODES, "w4"]) == ["w4"]
    after = _allowed(folder)
    assert {name: after[name] for name in NODES} == before
    assert len(after["w4"]) == 1


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "w1.key").chmod(0o640), "nobody else can read"),
        (lambda folder: (folder / "w1.key").write_text("x" * 500), "expected at most 41 bytes"),
        (lambda folder: (folder / "w1.key").write_text("too short"), "expected a secret key of 40 characters"),
        (lambda folder: (folder / "w1.key").unlink(), "this node's secret key is not there"),
        (lambda folder: (folder / "w2.key").replace(folder / "w1.key"), "does not belong to any key of w1"),
        (lambda folder: (folder / "allowed.yaml").unlink(), "make it by `dpwa keys init"),
        (lambda folder: (folder / "allowed.yaml").write_text("w1: 3"), "w1: expected one or two keys in a list"),
        (lambda folder: (folder / "allowed.yaml").write_text("w1: [short]"), "expected public keys of 40 characters"),
        (lambda folder: (folder / "allowed.yaml").write_text("[" * 5000), "cannot be read as YAML"),
        (lambda folder: (folder / "allowed.yaml").write_text("- w1"), "expected names of nodes with lists of keys"),
        (lambda folder: (folder / "allowed.yaml").write_text("#" * (2 << 20)), "expected at most 1048576 bytes"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_path(folder, spoil, words):
    spoil(folder)
    with pytest.raises(ConfigError, match=words) as error:
        _keys(folder, "w1")
    assert str(folder) in str(error.value)


def test_two_that_make_keys_at_the_same_time_are_both_on_the_list(folder, monkeypatch):
    both_have_read = threading.Barrier(2)
    make_key = key_folder.make_key

    def slow_make_key(*arguments):
        with suppress(threading.BrokenBarrierError):  # the other one waits for this one's end, and does not come
            both_have_read.wait(0.5)
        return make_key(*arguments)

    monkeypatch.setattr(key_folder, "make_key", slow_make_key)
    threads = [threading.Thread(target=make_keys, args=(folder, [node])) for node in ("w4", "w5")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(_allowed(folder)) == {*NODES, "w4", "w5"}


def test_a_list_of_which_the_last_node_is_revoked_can_be_read(folder):
    for node in NODES:
        revoke(folder, node)
    found, _ = read_list(folder / "allowed.yaml")
    assert (found.keys, set(found.revoked)) == ({}, set(NODES))


def test_a_key_that_two_nodes_have_is_refused(folder):
    allowed = _allowed(folder)
    (folder / "allowed.yaml").write_text(yaml.safe_dump({**allowed, "w2": allowed["w1"]}))
    with pytest.raises(ConfigError, match="two nodes have the same key"):
        _keys(folder, "w1")


def test_a_node_that_is_not_on_the_list_is_named(folder):
    with pytest.raises(ConfigError, match="has no key of w9"):
        KeyFolder(folder, "w1", ["w2", "w9"])


def test_no_key_is_shown(folder):
    keys = _keys(folder, "w1")
    assert keys.secret.decode() not in f"{keys!r} {keys}"


# --- Changing a key -------------------------------------------------------------------------------------------------


def test_while_a_key_changes_both_count_and_afterwards_the_new_one_alone(folder):
    peer, old = _keys(folder, "w2"), _keys(folder, "w1")
    rotate_key(folder, "w1")
    new = _keys(folder, "w1")
    assert new.public != old.public
    assert [peer.name_of(each.public) for each in (old, new)] == ["w1", "w1"]
    assert peer.server_key("w1") == new.public
    peer.failed("w1")
    assert peer.server_key("w1") == old.public, "w1 still runs with its old one"
    with pytest.raises(ConfigError, match="has two keys already"):
        rotate_key(folder, "w1")
    rotate_key(folder, "w1", finish=True)
    assert [peer.name_of(each.public) for each in (old, new)] == [None, "w1"]
    assert peer.server_key("w1") == new.public
    assert sorted(path.name for path in folder.iterdir()) == ["allowed.yaml", "w1.key", "w2.key", "w3.key"]
    with pytest.raises(ConfigError, match="nothing to finish"):
        rotate_key(folder, "w1", finish=True)


def test_half_a_list_is_not_believed_and_the_one_in_memory_holds(folder):
    peer, other = _keys(folder, "w2"), _keys(folder, "w1")
    (folder / "allowed.yaml").write_text("w1: [")
    assert peer.name_of(other.public) == "w1"
    assert peer.server_key("w1") == other.public


def test_who_is_taken_off_the_list_gets_in_no_more(folder):
    peer, gone = _keys(folder, "w2"), _keys(folder, "w3")
    (folder / "allowed.yaml").write_text(yaml.safe_dump({k: v for k, v in _allowed(folder).items() if k != "w3"}))
    assert peer.name_of(gone.public) is None


def test_the_list_is_not_read_for_every_knock(folder, monkeypatch):
    monkeypatch.setattr(key_folder, "_BETWEEN_LOOKS_S", 3600.0)
    peer, other, looks = _keys(folder, "w2"), _keys(folder, "w1"), []
    monkeypatch.setattr(key_folder, "_stamp", looks.append)
    for _ in range(1000):
        assert peer.name_of(other.public) == "w1"
        assert peer.name_of(b"x" * 40) is None
    assert looks == []


# --- By the command line --------------------------------------------------------------------------------------------


def _dpwa(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, [*map(str, arguments)])
    return done.exit_code, done.output


def test_the_commands_make_and_change_keys_and_print_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nodes = [{"name": name, "host": f"10.0.0.{number}", "port": 21000} for number, name in enumerate(NODES, start=1)]
    Path("cluster.yaml").write_text(yaml.safe_dump({"nodes": nodes, "keys": "secrets"}))
    code, output = _dpwa("keys", "init", "cluster.yaml")
    assert code == 0, output
    assert "secrets/w2.key: a secret, which belongs on the machine of w2 alone" in output
    shown = output
    code, output = _dpwa("keys", "init", "cluster.yaml")
    assert (code, "every node has a key; kept" in output) == (0, True)
    for arguments in (("w1",), ("w1", "--finish")):
        code, output = _dpwa("keys", "rotate", "cluster.yaml", *arguments)
        assert code == 0, output
        shown += output
    for path in Path("secrets").glob("*.key"):
        assert path.read_text().strip() not in shown
    code, output = _dpwa("check", "cluster.yaml")
    assert code == 0
    assert "encrypted, among those whose keys are in" in output
    assert "without encryption" not in output


def test_a_file_for_a_network_needs_keys_or_says_that_it_does_without(tmp_path):
    text = "nodes:\n- {name: w1, host: 10.0.0.1, port: 21000}\n"
    with pytest.raises(ConfigError, match="write `keys: keys` and run `dpwa keys init`"):
        ClusterConfig.from_text(text)
    assert ClusterConfig.from_text(text + "keys: keys\n").keys == "keys"
    assert ClusterConfig.from_text(text + "insecure: true\n").keys is None
    (tmp_path / "c.yaml").write_text("nodes: [{name: w1, port: 21000}]\n")
    code, output = _dpwa("keys", "init", tmp_path / "c.yaml")
    assert code == 2
    assert "write `keys: keys` into it first" in output


# --- On real sockets ------------------------------------------------------------------------------------------------


def _disagreement(cluster: Cluster) -> float:
    vectors = cluster.vectors()
    return float((vectors.max(axis=0) - vectors.min(axis=0)).max())


def _cluster(cluster: Cluster, folder: Path, **options: object) -> Cluster:
    flow = {"probe_s": 0.01, "probe_max_s": 0.02}
    models = [VectorModel([value] * 100) for value in (1.0, 2.0, 3.0)]
    cluster.start(models, keys=str(folder), flow_control=flow, wait_ms=2000, **options)
    return cluster


@pytest.mark.parametrize("shared_memory", ["auto", "off"])
def test_nodes_with_keys_come_to_one_model(zeromq, folder, shared_memory):
    _cluster(zeromq, folder, shared_memory=shared_memory)
    wait_until(lambda: zeromq.step_all() or _disagreement(zeromq) < 1e-6, "consensus")
    for node in zeromq.nodes:
        counts = node.statistics()
        assert counts.blended > 0
        assert counts.failures == counts.protocol_errors == 0


def test_what_encryption_adds_is_not_taken_for_bytes_that_are_no_requests(zeromq, folder):
    """A stranger's bytes that never become requests close its connection: an honest one stands for ever."""
    _cluster(zeromq, folder, shared_memory="off")
    for _ in range(400):
        zeromq.step_all()
    for node in zeromq.nodes:
        door = node._transport._rx._door
        wait_until(lambda door=door: all(one.unread_bytes == 0 for one in door.connections.standing), "all is read")
        asked = [one for one in door.connections.standing if one.received_bytes > 20_000]
        assert asked, "many requests came over it"
        assert all(one.unexplained_bytes < 1000 for one in asked)
        assert sum(node._transport.counters.guarded.values()) == 0


def test_a_node_beyond_this_machine_without_keys_says_so_at_each_start(zeromq, folder, monkeypatch, caplog):
    monkeypatch.setattr(hosts, "is_loopback", lambda _host: False)
    zeromq.start([VectorModel([1.0])] * 2, insecure=True)
    words = "works without keys"
    assert sum(words in text for text in caplog.messages) == 2
    caplog.clear()
    _cluster(zeromq, folder)
    assert not any(words in text for text in caplog.messages)


class Knocker:
    """Connects to a node of a cluster, with keys or without."""

    def __init__(self, port: int, keys: KeyFolder | None, node: str = "w1") -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = dealer(self.context, keys, node)
        self.monitor = self.socket.get_monitor_socket()
        self.socket.connect(f"tcp://127.0.0.1:{port}")

    def is_in(self) -> bool:
        return bool(int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT)

    def is_broken_off(self) -> bool:
        seen = parse_monitor_message(self.monitor.recv_multipart())["event"] if self.monitor.poll(0) else None
        return seen == zmq.EVENT_DISCONNECTED

    def close(self) -> None:
        self.socket.disable_monitor()
        self.monitor.close()
        self.socket.close()
        self.context.term()


def _counted(node, cause: Cause) -> int:
    return node._transport.counters.guarded[cause]


def test_a_key_that_is_on_no_list_is_refused_counted_and_told_once(zeromq, folder, tmp_path, caplog):
    _cluster(zeromq, folder)
    make_keys(tmp_path / "theirs", NODES)
    theirs = _keys(tmp_path / "theirs", "w2")
    first = zeromq.nodes[0]
    known = KeyFolder(folder, "w2", ["w1"])
    theirs._allowed = known._allowed  # they know w1's public key: it is no secret
    knockers = [Knocker(zeromq.config.nodes[0].port, theirs) for _ in range(5)]
    wait_until(lambda: _counted(first, Cause.STRANGER) >= 5, "all were refused")
    assert not any(knocker.is_in() for knocker in knockers)
    assert sum("somebody without a key of this cluster knocks" in text for text in caplog.messages) == 1
    for knocker in knockers:
        knocker.close()
    wait_until(lambda: zeromq.step_all() or _disagreement(zeromq) < 1e-6, "the others exchange on")


def test_a_connection_without_encryption_is_never_let_in(zeromq, folder):
    _cluster(zeromq, folder)
    first = zeromq.nodes[0]
    knocker = Knocker(zeromq.config.nodes[0].port, None)
    wait_until(lambda: zeromq.step_all() or _disagreement(zeromq) < 1e-6, "the others exchange")
    assert not knocker.is_in()
    assert first.statistics().protocol_errors == 0, "nothing of it was read"
    knocker.close()


def test_nobody_speaks_in_the_name_of_another(zeromq, folder):
    _cluster(zeromq, folder)
    first, second = zeromq.nodes[:2]
    knocker = Knocker(zeromq.config.nodes[0].port, KeyFolder(folder, "w3", ["w1", "w2"]))
    wait_until(knocker.is_in, "w3's key gets in")
    request = pull_of(second)
    assert request.node == "w2"
    knocker.socket.send(wire.encode(request))
    wait_until(lambda: _counted(first, Cause.ILLEGAL) == 1, "it is closed")
    assert first.statistics().protocol_errors == 1
    knocker.close()


def test_whoever_stands_at_an_address_without_its_key_is_not_asked(zeromq, folder, tmp_path):
    """w2 is told another key of w1: it connects to nobody who has not that one."""
    make_keys(tmp_path / "theirs", NODES)
    allowed = {**_allowed(folder), "w1": _allowed(tmp_path / "theirs")["w1"]}
    misled = tmp_path / "misled"
    misled.mkdir(mode=0o700)
    (misled / "allowed.yaml").write_text(yaml.safe_dump(allowed))
    shutil.copy2(folder / "w2.key", misled)
    _cluster(zeromq, folder)
    knocker = Knocker(zeromq.config.nodes[0].port, KeyFolder(misled, "w2", ["w1", "w3"]))
    wait_until(knocker.is_broken_off, "the connection is broken off")
    assert not knocker.is_in()
    assert _counted(zeromq.nodes[0], Cause.STRANGER) <= 1, "w1 was never told whose key it is, only that it knocked"
    knocker.close()


def test_a_node_that_changed_its_key_exchanges_with_peers_that_were_never_restarted(zeromq, folder):
    _cluster(zeromq, folder)
    wait_until(lambda: zeromq.step_all() or all(node.statistics().blended for node in zeromq.nodes), "they exchange")
    rotate_key(folder, "w1")
    zeromq.nodes.pop(0).close()
    first = zeromq.add("w1", zeromq.models.pop(0))
    rotate_key(folder, "w1", finish=True)
    before = [node.statistics().blended for node in zeromq.nodes]
    asked = [node.statistics().served for node in zeromq.nodes]

    def all_on() -> bool:
        zeromq.step_all()
        counts = [node.statistics() for node in zeromq.nodes]
        more = all(count.blended > old for count, old in zip(counts, before, strict=True))
        return more and first.statistics().served > asked[-1]

    wait_until(all_on, "w1 blends, and is asked", DEADLINE_S)
    assert os.listdir(folder).count("w1.key") == 1

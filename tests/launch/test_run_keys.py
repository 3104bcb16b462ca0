"""The keys of a run that one launch has started: its nodes take part, and nobody else on the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import zmq
from fake_peers import pull_of

from dpwa.config.cluster import ClusterConfig
from dpwa.errors import ConfigError
from dpwa.launch.launch_record import NodeLocks
from dpwa.launch.local import launch
from dpwa.launch.ports import free_ports
from dpwa.transport import key_folder, wire
from dpwa.transport.key_folder import KeyFolder, make_keys
from dpwa.transport.run_keys import run_keys, run_keys_folder
from support import VectorModel, step_until, wait_until

# Says what a node sees of the keys while the run lasts, and the mode of each file.
SCRIPT = """
import json, os, pathlib
folder = pathlib.Path(os.environ["DPWA_RUN_DIR"])
seen = {str(path.relative_to(folder)): oct(path.stat().st_mode & 0o777) for path in folder.glob("keys*/**")}
seen |= {str(path.relative_to(folder)): oct(path.stat().st_mode & 0o777) for path in folder.glob("keys/*")}
secret = folder / "keys" / (os.environ["DPWA_NODE"] + ".key")
said = {"seen": seen, "secret": secret.read_text() if secret.exists() else None}
print("a node of", sorted(seen))
pathlib.Path(os.environ["SAID"], os.environ["DPWA_NODE"]).write_text(json.dumps(said))
"""


def launched(
    folder: Path, monkeypatch: pytest.MonkeyPatch, keys: str = "insecure: false\n", **options: object
) -> dict[str, dict]:
    """What the nodes of a launch in this folder have said, by name."""
    said = folder / "said"
    said.mkdir()
    monkeypatch.setenv("SAID", str(said))
    config = ClusterConfig.for_localhost(2, ports=free_ports(2))
    file = folder / "cluster.yaml"
    file.write_text(config.to_yaml().replace("insecure: false\n", keys))
    assert launch(file, [sys.executable, "-c", SCRIPT], run_dir=folder / "run", **options) == 0
    return {path.name: json.loads(path.read_text()) for path in said.iterdir()}


@pytest.mark.seconds
def test_a_launch_of_all_nodes_makes_keys_for_as_long_as_they_run(tmp_path, monkeypatch):
    said = launched(tmp_path, monkeypatch)
    assert set(said) == {"w1", "w2"}
    for node in said.values():
        assert node["seen"].pop("keys") == "0o700"
        assert node["seen"].pop("keys/allowed.yaml")
        assert node["seen"] == {"keys/w1.key": "0o600", "keys/w2.key": "0o600"}
    secrets = {node["secret"].strip() for node in said.values()}
    assert len(secrets) == 2
    assert not (tmp_path / "run" / "keys").exists(), "nothing is left of them"
    kept = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert kept
    assert not any(secret.encode() in content for secret in secrets for content in kept)


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("keys", "options"),
    [("insecure: false\n", {"names": ["w1"]}), ("insecure: true\n", {})],
    ids=["a part", "insecure"],
)
def test_a_launch_makes_no_keys_that_other_nodes_could_not_know_or_the_file_does_without(
    tmp_path, monkeypatch, keys, options
):
    said = launched(tmp_path, monkeypatch, keys, **options)
    assert said["w1"] == {"seen": {}, "secret": None}


def test_keys_that_a_killed_launcher_has_left_are_used_again(tmp_path):
    make_keys(tmp_path / "keys", ["w1", "w2"])
    before = KeyFolder(tmp_path / "keys", "w1", ["w2"]).public
    with run_keys(tmp_path, ["w1", "w2"]):
        folder = run_keys_folder(tmp_path)
        assert folder is not None
        assert KeyFolder(folder, "w1", ["w2"]).public == before
    assert run_keys_folder(tmp_path) is None


def test_keys_stay_while_nodes_of_another_launch_work_with_them(tmp_path):
    with run_keys(tmp_path, ["w1"], lambda: True):
        pass
    assert run_keys_folder(tmp_path) is not None
    with run_keys(tmp_path, ["w1"], lambda: False):
        pass
    assert run_keys_folder(tmp_path) is None


def test_a_launch_sees_the_nodes_of_another_and_not_its_own(tmp_path):
    other = (
        "import sys; from pathlib import Path; from dpwa.launch.launch_record import NodeLocks; "
        "NodeLocks(Path(sys.argv[1])).take(['w9']); print('has it', flush=True); sys.stdin.read()"
    )
    locks = NodeLocks(tmp_path)
    locks.take(["w1"])
    assert not locks.others_run()
    command = [sys.executable, "-c", other, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "has it\n"
        assert locks.others_run()
        process.stdin.close()
        process.wait(10.0)
    assert not locks.others_run()


def test_a_run_folder_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "keys").write_text("in the way")
    words = pytest.raises(ConfigError, match=r"run folder .*keys.*; name another with --run-dir")
    with words, run_keys(tmp_path, ["w1"]):
        pytest.fail("nothing runs without keys")


def test_no_launch_has_the_keys_of_another(tmp_path):
    with run_keys(tmp_path / "a", ["w1"]), run_keys(tmp_path / "b", ["w1"]):
        first, second = (KeyFolder(tmp_path / name / "keys", "w1", []) for name in ("a", "b"))
        assert first.public != second.public
        assert second.name_of(first.public) is None


def _two_of_three(zeromq, folder: Path):
    """Two nodes with the keys of a run, of a cluster of three."""
    make_keys(folder / "keys", ["w1", "w2", "w3"])
    zeromq.config = ClusterConfig.for_localhost(3, ports=free_ports(3))
    return [zeromq.add(name, VectorModel([1.0]), run_dir=folder) for name in ("w1", "w2")]


def test_nodes_of_a_run_exchange_and_one_outside_is_told_what_to_do(zeromq, tmp_path):
    """A neighbour that has the same cluster file, and is another user, or was started by hand without the folder."""
    first, second = _two_of_three(zeromq, tmp_path / "run")
    outside = zeromq.add("w3", VectorModel([2.0]), run_dir=tmp_path / "own")
    events = tmp_path / "own" / "nodes" / "w3" / "events.jsonl"

    def have_met() -> bool:
        for node in zeromq.nodes:
            node.step(1.0)
        return first.statistics().blended > 0 and "DPWA_RUN_DIR must name their run folder" in events.read_text()

    step_until(second, have_met, "those inside have met, and the one outside was told")
    assert outside.statistics().blended == outside.statistics().served == 0


def test_whoever_takes_the_port_of_a_dead_node_is_never_asked(zeromq, tmp_path):
    """It answers nothing that could be read: without the node's key it does not even hear what is asked."""
    first, _ = _two_of_three(zeromq, tmp_path)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    impostor = context.socket(zmq.ROUTER)
    impostor.bind(f"tcp://127.0.0.1:{zeromq.config.nodes[2].port}")

    def has_tried() -> bool:
        for node in zeromq.nodes:
            node.step(1.0)
        return first.statistics().exchanges.get("unreachable", 0) > 0

    step_until(first, has_tried, "the impostor was tried")
    assert not impostor.poll(0), "and has heard nothing"
    context.destroy(linger=0)


def test_a_stranger_who_has_read_the_cluster_file_cannot_ask(zeromq, tmp_path, monkeypatch):
    monkeypatch.setattr(key_folder, "_BETWEEN_LOOKS_S", 0.0)
    node, second = _two_of_three(zeromq, tmp_path)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    stranger = context.socket(zmq.DEALER)
    stranger.connect(f"tcp://127.0.0.1:{zeromq.config.nodes[0].port}")
    stranger.send(wire.encode(pull_of(node)))

    def have_met() -> bool:
        node.step(1.0)
        second.step(1.0)
        return second.statistics().blended > 3

    wait_until(have_met, "the nodes exchange")
    assert not stranger.poll(0)
    assert node.statistics().protocol_errors == 0, "its request was never read"
    context.destroy(linger=0)

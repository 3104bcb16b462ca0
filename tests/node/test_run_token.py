"""The secret of a run that one launch has started: who has read it takes part, and nobody else."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
from pathlib import Path

import pytest
from fake_peers import Peers, pull_of

from dpwa.config.cluster import ClusterConfig
from dpwa.errors import ConfigError
from dpwa.exchange import messages
from dpwa.launch.local import launch
from dpwa.launch.ports import free_ports
from dpwa.node.run_token import TOKEN_FILE, make_token, run_in_requests
from dpwa.transport.wire import decode, encode
from support import VectorModel, step_until

# Says what the nodes would name as their run, and what they see of the token.
SCRIPT = """
import json, os, pathlib, stat
from dpwa.config.cluster import ClusterConfig
from dpwa.node.run_token import run_in_requests
folder = pathlib.Path(os.environ["DPWA_RUN_DIR"])
run_id = ClusterConfig.load(os.environ["DPWA_CONFIG"]).run_id
said = {"run": run_in_requests(run_id, folder), "public": run_id}
(folder / "nodes" / os.environ["DPWA_NODE"] / "said.json").write_text(json.dumps(said))
"""


def launched(folder: Path, **options: object) -> dict[str, dict[str, str]]:
    """What the nodes of a launch in this folder have said, by name."""
    config = ClusterConfig.for_localhost(2, ports=free_ports(2))
    file = folder / "cluster.yaml"
    if not file.exists():
        file.write_text(config.to_yaml())
    run_dir = folder / "run"
    assert launch(file, [sys.executable, "-c", SCRIPT], run_dir=run_dir, **options) == 0
    return {path.parent.name: json.loads(path.read_text()) for path in run_dir.glob("nodes/*/said.json")}


@pytest.mark.heavy
def test_a_launch_of_all_nodes_makes_a_secret_that_they_share_and_that_is_kept(tmp_path):
    said = launched(tmp_path)
    token = tmp_path / "run" / TOKEN_FILE
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert set(said) == {"w1", "w2"}
    assert len({each["run"] for each in said.values()}) == 1
    assert said["w1"]["run"] != said["w1"]["public"]
    assert said["w1"]["run"].startswith(said["w1"]["public"])
    secret = token.read_bytes()
    assert launched(tmp_path) == said, "the same folder, the same run"
    assert token.read_bytes() == secret


def test_a_launch_of_a_part_makes_none_because_the_other_part_could_not_know_it(tmp_path):
    said = launched(tmp_path, names=["w1"])
    assert not (tmp_path / "run" / TOKEN_FILE).exists()
    assert said["w1"]["run"] == said["w1"]["public"]


def test_every_run_has_a_secret_of_its_own(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        make_token(tmp_path / name)
    assert len({run_in_requests("x", tmp_path / name) for name in ("a", "b")} | {run_in_requests("x", None)}) == 3


@pytest.mark.parametrize("umask", [0o000, 0o277])
def test_nobody_else_can_read_the_token_whatever_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        make_token(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / TOKEN_FILE).stat().st_mode) & 0o077 == 0


def _open_to_all(path: Path) -> None:
    path.chmod(0o644)


def _cut_off(path: Path) -> None:
    path.write_bytes(b"short")


def _a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("harm", [_open_to_all, _cut_off, _a_link])
def test_a_token_that_is_no_secret_is_refused_in_words(tmp_path, harm):
    make_token(tmp_path)
    harm(tmp_path / TOKEN_FILE)
    with pytest.raises(ConfigError, match=f"{TOKEN_FILE}: (expected|cannot be read)"):
        run_in_requests("x", tmp_path)


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be written .*; name another with --run-dir"):
        make_token(tmp_path / "missing")


def test_nodes_with_the_token_exchange_and_one_without_it_is_told_what_to_do(zeromq, tmp_path):
    """A neighbour that has the same cluster file, and is another user, or was started by hand without the folder."""
    make_token(tmp_path)
    zeromq.config = ClusterConfig.for_localhost(3, ports=free_ports(3))
    first, second = (zeromq.add(name, VectorModel([1.0]), run_dir=tmp_path) for name in ("w1", "w2"))
    outside = zeromq.add("w3", VectorModel([2.0]), run_dir=tmp_path / "own")

    def have_met() -> bool:
        for node in zeromq.nodes:
            node.step(1.0)
        return first.statistics().blended > 0 and outside.statistics().exchanges.get("refused", 0) > 0

    step_until(second, have_met, "those inside have met, and the one outside has been refused")
    assert outside.statistics().blended == 0
    events = (tmp_path / "own" / "nodes" / "w3" / "events.jsonl").read_text
    step_until(outside, lambda: "DPWA_RUN_DIR must name their run folder" in events(), "it is told")
    step_until(first, lambda: first.statistics().exchanges.get("refused", 0) > 0, "and refuses those inside")


def test_a_stranger_who_knows_the_public_run_can_neither_pull_nor_propose(zeromq, tmp_path):
    make_token(tmp_path)
    zeromq.config = ClusterConfig.for_localhost(2, ports=free_ports(2), method="gosgd")
    node = zeromq.add("w1", VectorModel([1.0]), run_dir=tmp_path)
    with contextlib.closing(Peers()) as peers:
        dealer = peers.dealer(zeromq)
        pull = pull_of(node)
        propose = messages.Propose(
            2, pull.run, "w2", b"i" * 8, pull.fingerprint, b"i" * 8 + bytes(8), False, 0.5, 1.0, None, 0, 0, 0
        )
        settle = messages.Settle(3, pull.run, "w2", b"i" * 8, propose.exchange_id, gives_up=True, finished=True)
        for request in (pull, propose, settle):
            dealer.send(encode(request))
            (frame,) = dealer.recv_multipart()
            assert isinstance(decode(frame, "w1"), messages.Refused)

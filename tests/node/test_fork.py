"""Children of a training process: whatever they do at their end, nothing of the parent's node changes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fake_peers import node_with_absent_peer
from torch_support import local_cluster

from dpwa.errors import InternalError, NodeClosed
from dpwa.transport.doorbell import Doorbell
from dpwa.transport.shared_memory import SEGMENT_FOLDER
from support import DEADLINE_S, VectorModel, mostly_slow, step_until

pytestmark = pytest.mark.heavy

# Two nodes in one process; a child of it does what `CHILD` says; then the parent looks at everything that is its own.
SCRIPT = """
import multiprocessing, os, signal, sys, threading, time
from pathlib import Path
import torch
from dpwa.adapters.pytorch import DpwaPyTorchAdapter
from dpwa.config.cluster import ClusterConfig
from dpwa.errors import NodeClosed

CLUSTER, RUN = sys.argv[1:3]

def make(name, value):
    model = torch.nn.Linear(3, 2)
    torch.nn.init.constant_(model.bias, value)
    return DpwaPyTorchAdapter(model, name, CLUSTER)

def blend(times):
    wanted = first.statistics().blended + times
    end_s = time.monotonic() + 20
    while first.statistics().blended < wanted:
        assert time.monotonic() < end_s, f"no blends any more: {first.statistics()}"
        second.step(1.0)
        first.step(1.0)

def own():
    threads = sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("dpwa-"))
    segments = sorted(path.name for path in Path("/dev/shm").glob(f"dpwa-{RUN}-*"))
    saved = sorted(Path(os.environ["DPWA_RUN_DIR"]).rglob("*.safetensors"))
    return threads, segments, saved

def close():
    assert first.closed is False
    first.close()
    second.close()
    try:
        first.step(1.0)
    except NodeClosed as error:
        assert "forked child of node w1" in str(error), error
    else:
        raise AssertionError("a forked child has made a step")

def forked(act):
    child = os.fork()
    if child == 0:
        act()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def with_processes(method, target):
    child = multiprocessing.get_context(method).Process(target=target)
    child.start()
    child.join(30)
    return child.exitcode

def exit_with_block():
    with first, second:
        raise KeyError("in the child")

def nothing():
    pass

if __name__ == "__main__":
    first, second = make("w1", 0.0), make("w2", 4.0)
    blend(3)
    before = own()
    assert len(before[0]) >= 4 and len(before[1]) == 2 and before[2] == [], before
    code = CHILD
    print("child", code, flush=True)
    assert own() == before, (before, own())
    blend(20)
    first.close()
    second.close()
    threads, segments, saved = own()
    assert (threads, segments, len(saved)) == ([], [], 2), own()
    print("parent is well")
"""

CHILDREN = {
    "sys.exit": ("forked(lambda: sys.exit(0))", 0),
    "an error": ("forked(lambda: 1 / 0)", 1),
    "an error in the with-block": ("forked(exit_with_block)", 1),
    "close": ("forked(close)", 0),
    "SIGTERM": ("forked(lambda: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(20)))", -15),
    "close in multiprocessing": ("with_processes('fork', close)", 0),
    "the end of a spawned process": ("with_processes('spawn', nothing)", 0),
}


@pytest.mark.parametrize("kind", mostly_slow(CHILDREN, "close", "SIGTERM"))
def test_whatever_a_child_does_the_parents_node_exchanges_on_and_saves_its_own_model(
    monkeypatch, tmp_path: Path, kind: str
) -> None:
    child, code = CHILDREN[kind]
    config = local_cluster(run=f"fork-{os.getpid()}", timeout_ms=5000)
    (tmp_path / "cluster.yaml").write_text(config.to_yaml(), encoding="utf-8")
    (tmp_path / "script.py").write_text(SCRIPT.replace("CHILD", child), encoding="utf-8")
    monkeypatch.setenv("DPWA_RUN_DIR", str(tmp_path / "run"))
    done = subprocess.run(
        [sys.executable, "script.py", "cluster.yaml", config.run_id],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"child {code}", "parent is well"]
    assert list(SEGMENT_FOLDER.glob(f"dpwa-{config.run_id}-*")) == []


def in_child(act) -> str:
    """What a function gives in a forked child."""
    parent_end, child_end = socket.socketpair()
    child = os.fork()
    if child == 0:
        try:
            said = act()
        except BaseException as error:  # noqa: BLE001  to be shown by the parent
            said = repr(error)
        child_end.send(said.encode() + b".")
        os._exit(0)
    parent_end.settimeout(DEADLINE_S)
    said = parent_end.recv(4096).decode().removesuffix(".")
    assert os.waitpid(child, 0)[1] == 0
    parent_end.close()
    child_end.close()
    return said


@pytest.mark.parametrize("use", ["step", "update_send", "update_wait", "finish", "start"])
def test_in_a_forked_child_a_node_says_where_it_lives(zeromq, use):
    node, _ = zeromq.start([VectorModel([0.0]), VectorModel([1.0])])

    def act() -> str:
        arguments = (0.1,) if use == "finish" else ()
        with pytest.raises(NodeClosed) as raised:
            getattr(node, use)(*arguments)
        return str(raised.value)

    said = in_child(act)
    assert said.startswith(f"this is a forked child of node w1 (process {os.getpid()})")


def test_a_bell_rung_in_a_forked_child_is_not_heard_in_the_parent():
    bell = Doorbell()
    assert in_child(lambda: bell.ring() or "rung") == "rung"
    assert not bell.has_rung()
    bell.ring()
    assert bell.has_rung()
    bell.silence()
    assert not bell.has_rung()
    bell.close()


def test_a_forked_child_keeps_the_users_udp_socket_on_the_nodes_port(zeromq):
    node_with_absent_peer(zeromq)
    port = zeromq.config.nodes[0].port
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mine:
        mine.bind(("127.0.0.1", port))
        assert in_child(lambda: str(mine.getsockname()[1])) == str(port)


@pytest.mark.parametrize("error", [NodeClosed("nobody asked for that"), SystemExit(0)], ids=repr)
def test_a_tx_thread_that_ends_although_nobody_asked_is_an_error_of_the_trainers_next_call(zeromq, monkeypatch, error):
    node, _ = node_with_absent_peer(zeromq)

    def fail(*_args: object) -> None:
        raise error

    monkeypatch.setattr(node._parts.wiring.exchanger, "perform", fail)
    with pytest.raises(InternalError) as raised:
        step_until(node, lambda: False, "the error is raised")
    assert raised.value.__cause__ is error
    with pytest.raises(InternalError):
        node.close()
    zeromq.nodes.clear()

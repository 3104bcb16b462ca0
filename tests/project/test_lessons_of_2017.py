"""What went wrong in the dpwa of 2017 and cannot go wrong here.

Many of its defects have their tests elsewhere: shutdown, slow readers, cut-off peers and late answers in test_rx_tx.py;
lost progress in test_closed_forms.py; zero sums, NaN and lying peers in test_interpolation.py; peers that come back in
test_conformance.py and test_faults.py; BatchNorm, dtypes and writing in place in test_pytorch_models.py; the
config's schema in test_config.py. What may import what is held by import-linter: see pyproject.toml and `make lint`.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports
from support import ROOT, VectorModel, step_until, wait_until

WINGS = ("dpwa", "adapters")
SOURCES = sorted(path for folder in ("dpwa", "adapters", "examples") for path in (ROOT / folder).rglob("*.py"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@cache
def _trees() -> list[tuple[Path, ast.Module]]:
    assert len(SOURCES) > 40
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in SOURCES]


def test_nothing_is_ever_unpickled_or_evaluated():
    forbidden_modules = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    forbidden_calls = {"eval", "exec", "yaml.load", "torch.load"}
    forbidden_methods = {"recv_pyobj", "send_pyobj", "unsafe_load", "full_load"}
    found = []
    for path, tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found += [(path, alias.name) for alias in node.names if alias.name.split(".")[0] in forbidden_modules]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in forbidden_modules:
                found.append((path, node.module))
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                is_safe = called == "torch.load" and "weights_only=True" in ast.unparse(
                    node
                )  # tensors and plain values
                if (called in forbidden_calls and not is_safe) or called.split(".")[-1] in forbidden_methods:
                    found.append((path, called))
    assert found == []


def test_broad_excepts_stand_only_at_the_top_of_threads_around_the_users_code_and_where_they_raise_again():
    broad, raised_again = [], []
    for path, tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                caught = "" if node.type is None else ast.unparse(node.type)
                if caught in ("", "Exception", "BaseException"):
                    is_raised = isinstance(node.body[-1], ast.Raise)
                    (raised_again if is_raised else broad).append(path.name)
    assert broad == [
        "journal.py",  # the thread
        "journal.py",  # a method's statistics
        "plain_values.py",  # what a script has logged
        "copy_waiter.py",  # one job that fails is no end of the others
        "worker_thread.py",  # the top of every thread of the transport
    ]
    assert raised_again == ["running.py", "worker.py", "node.py", "publishing.py", "door.py"]


def test_a_statement_of_assert_is_never_validation():
    assert [path for path, tree in _trees() for node in ast.walk(tree) if isinstance(node, ast.Assert)] == []


def test_milliseconds_of_the_file_are_seconds_inside():
    config = ClusterConfig.for_localhost(
        2, timeout_ms=2500, connect_timeout_ms=250, wait_ms=40, metrics_interval_ms=500
    )
    seconds = (config.timeout_s, config.connect_timeout_s, config.wait_s, config.metrics_interval_s)
    assert seconds == (2.5, 0.25, 0.04, 0.5)


def test_the_clock_on_the_wall_stamps_and_decides_nothing_of_a_training():
    """It may jump by a day. Deadlines, pauses and paces are of the monotonic clock."""
    stamped = {
        "dpwa/observe/journal.py",
        "dpwa/observe/steady_file.py",
        "dpwa/observe/run_record.py",
        "adapters/checkpoints.py",
        # Whoever makes a partition is another process: the two have no other clock in common.
        "dpwa/transport/faults.py",
        "dpwa/launch/breaking.py",
        "dpwa/launch/chaos.py",
        # A certificate ends on a day: who may come in is decided by it, and nothing of a training.
        "dpwa/transport/certified.py",
        "dpwa/cli_keys.py",
    }
    found = {
        path.relative_to(ROOT).as_posix()
        for path, tree in _trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "time.time"
    }
    names = {
        alias.name
        for _, tree in _trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "time"
        for alias in node.names
    }
    assert {path for path in found if not path.startswith(("dpwa/lab/", "examples/"))} == stamped
    assert "time" not in names


def test_a_model_that_nobody_wants_is_not_copied(zeromq):
    """A step without a pull and without an ask costs no copy."""
    nodes = zeromq.start([VectorModel([0.0]), VectorModel([1.0])], pull_probability=0.0)
    zeromq.step_all(10)
    before = nodes[0].statistics().published
    zeromq.step_all(100)
    assert nodes[0].statistics().published == before


def test_a_peer_with_nothing_to_give_is_asked_once_a_step_and_is_no_better_for_it(zeromq):
    first, _ = zeromq.start([VectorModel([0.0]), VectorModel([1.0])])
    zeromq.step_all(5)
    empty = first.statistics().exchanges.get("not_modified", 0)
    # The first of two may answer an ask from before the peer's last step.
    step_until(first, lambda: first.statistics().exchanges.get("not_modified", 0) >= empty + 2, "empty answers")
    score, asked = first.statistics().scores["w2"], sum(first.statistics().exchanges.values())
    for _ in range(20):
        first.step(1.0)
    assert first.statistics().scores["w2"] == score
    assert sum(first.statistics().exchanges.values()) <= asked + 20


def test_a_peer_that_times_out_stays_in_the_cluster(zeromq):
    settings = {"connect_timeout_ms": 20, "flow_control": {"probe_s": 0.01, "probe_max_s": 0.02}}
    zeromq.config = ClusterConfig.for_localhost(2, ports=free_ports(2), **settings)
    node = zeromq.add("w1", VectorModel([0.0]))
    step_until(node, lambda: node.statistics().exchanges.get("unreachable", 0) >= 8, "many failures")
    assert node.statistics().scores == {"w2": 400}
    zeromq.add("w2", VectorModel([1.0]))

    def met() -> bool:
        zeromq.step_all(1)
        return node.statistics().blended > 0

    wait_until(met, "it is asked again")


@pytest.mark.heavy
def test_a_script_that_ends_leaves_nothing_running(tmp_path):
    """The process of 2017 never ended: its threads were no daemons and one could not be stopped."""
    script = f"""
import torch
from dpwa import ClusterConfig, DpwaPyTorchAdapter
node = DpwaPyTorchAdapter(torch.nn.Linear(2, 2), "w1", ClusterConfig.for_localhost(2, ports={free_ports(2)}))
node.step(1.0)
print("done", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout.read(4) == b"done"
        printed_s = time.monotonic()
        assert process.wait(20) == 0
        assert time.monotonic() - printed_s < 5.0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_file_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if not link.startswith("http")]
    named = re.findall(r"(?:samples|examples|tests|docs)/[\w/-]+\.(?:yaml|py|md)", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [name for name in named if not (ROOT / name).exists()]
    assert missing == []


def test_every_test_that_a_page_names_exists():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    tests = {name for source in sources for name in re.findall(r"^def (test_\w+)\(", source, re.MULTILINE)}
    named = {name for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8"))}
    assert len(named) > 50
    assert named - tests == set()


def _map_of_the_code() -> list[list[str]]:
    """The lines of each wing: blocks of the section "Map" that are indented."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.split("\n## Map\n")[1].split("\n## ")[0]
    blocks = [block.splitlines() for block in section.split("\n\n")]
    return [block for block in blocks if block[0].startswith("    ")]


def test_the_map_of_the_code_names_every_file_in_its_folder_and_no_other():
    named, folders = [], {}
    for line in (line for wing in _map_of_the_code() for line in wing):
        depth = len(line) - len(line.lstrip())
        opened = re.match(r"\s+([a-z_/]+)/", line)
        parents = [folder for at, folder in sorted(folders.items()) if at < depth]
        if opened:
            folders = {at: folder for at, folder in folders.items() if at < depth}
            folders[depth] = "/".join([*parents[-1:], opened[1]])
        where = folders[depth] if opened else parents[-1]
        named += [f"{where}/{name}" for name in re.findall(r"\b\w+\.py\b", line) if where.split("/")[0] in WINGS]
    files = [path for folder in WINGS for path in (ROOT / folder).rglob("*.py")]
    there = [str(path.relative_to(ROOT)) for path in files if path.name not in ("__init__.py", "_version.py")]
    assert sorted(named) == sorted(there)


def test_a_wing_of_the_map_can_be_read_at_one_glance():
    assert all(len(wing) <= 60 for wing in _map_of_the_code())

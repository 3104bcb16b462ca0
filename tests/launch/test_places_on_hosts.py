"""Which node goes to which host, and what is refused before ssh is asked for anything."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest

from dpwa.errors import ConfigError
from dpwa.launch import on_hosts
from dpwa.launch.hosts_file import Host
from dpwa.launch.launch_record import read_record
from dpwa.launch.on_hosts import launch_on_hosts
from dpwa.launch.processes import NodeCommand, NodeEnd
from dpwa.transport.key_folder import make_keys


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; its `ssh` knows no configuration and reaches nobody."""
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text("#!/bin/sh\nexit 255\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[NodeCommand]:
    """The commands of a launch, which are not started."""
    found: list[NodeCommand] = []

    async def note(commands, *_):
        for command in commands:
            order = json.loads(Path(command.argv[-1]).read_text())
            found.append(command)
            ORDERS[command.name] = order
        return tuple(NodeEnd(command.name, 0, 0) for command in commands), None

    ORDERS.clear()
    monkeypatch.setattr(on_hosts, "run_shown", note)
    return found


ORDERS: dict[str, dict] = {}


def launch(hosts: str, cluster: str = "{}\n", **options: object) -> int:
    Path("hosts.txt").write_text(hosts)
    Path("cluster.yaml").write_text(cluster)
    return launch_on_hosts(Path("cluster.yaml"), ["python", "train.py"], Path("hosts.txt"), **options)


def test_a_file_without_nodes_gets_them_by_slots(started):
    assert launch("10.0.0.1 slots=2\n10.0.0.2:2222\n") == 0
    places = {name: (order["told"], order["errand"]["host"], order["errand"]["port"]) for name, order in ORDERS.items()}
    assert places == {
        "w1": ("10.0.0.1", "10.0.0.1", 21000),
        "w2": ("10.0.0.1", "10.0.0.1", 21001),
        "w3": ("10.0.0.2:2222", "10.0.0.2", 21002),
    }
    assert [ORDERS[name]["errand"]["neighbours"] for name in ORDERS] == [2, 2, 1]
    assert ORDERS["w3"]["ssh"][-4:-1] == ["-p", "2222", "10.0.0.2"]
    assert len({command.first_life["DPWA_LAUNCH_ID"] for command in started}) == 1
    assert read_record(next(Path("runs").iterdir())).hosts_file == str(Path("hosts.txt").absolute())


@pytest.mark.usefixtures("started")
def test_nodes_of_the_file_go_to_the_lines_with_their_hosts_in_order_of_the_slots():
    nodes = "".join(f"  - {{name: n{number}, host: 10.0.0.1, port: {21000 + number}}}\n" for number in range(3))
    nodes += "  - {name: far, host: 10.9.9.9, port: 21000}\n"
    hosts = "a@10.0.0.1 slots=1\nb@10.0.0.1 slots=2\ngpu address=10.9.9.9\n"
    assert launch(hosts, f"insecure: true\nnodes:\n{nodes}") == 0
    assert [ORDERS[name]["told"] for name in ("n0", "n1", "n2", "far")] == ["a@10.0.0.1"] + ["b@10.0.0.1"] * 2 + ["gpu"]
    assert ORDERS["far"]["keys"] is None


@pytest.mark.usefixtures("started")
def test_a_host_is_to_try_the_address_on_which_the_node_listens_and_none_where_it_does_not_listen():
    nodes = "  - {name: door, host: 203.0.113.5, port: 21000, bind: '0.0.0.0:22000'}\n"
    nodes += "  - {name: mute, host: 10.0.0.1, serve: false}\n"
    assert launch("gpu address=203.0.113.5\n10.0.0.1\n", f"insecure: true\nnodes:\n{nodes}") == 0
    door, mute = (ORDERS[name]["errand"] for name in ("door", "mute"))
    assert (door["host"], door["port"], door["serves"]) == ("0.0.0.0", 22000, True)  # noqa: S104
    assert not mute["serves"]


@pytest.mark.usefixtures("started")
def test_no_key_stands_in_an_order_or_a_command():
    make_keys(Path("secrets"), ["w1", "w2"])
    assert launch("10.0.0.1 slots=2\n", "keys: secrets\n") == 0
    secrets = [(Path("secrets") / f"{name}.key").read_text().strip() for name in ("w1", "w2")]
    assert not any(secret in json.dumps(ORDERS) for secret in secrets)
    assert ORDERS["w1"]["keys"] == str(Path("secrets").absolute())
    assert "keys: keys\n" in ORDERS["w1"]["errand"]["config"], "of the far run folder"


@pytest.mark.usefixtures("started")
def test_the_line_for_the_hosts_shell_keeps_every_word_as_it_is():
    assert launch("""10.0.0.1 dir='~/my $HOME' python="a b/python"\n""") == 0
    line = ORDERS["w1"]["ssh"][-1]
    assert line.startswith("""cd "$HOME"/'my $HOME' && exec 'a b/python' -c """)
    assert "far_end" in shlex.split(line)[-1]


@pytest.mark.parametrize(
    ("hosts", "cluster", "told"),
    [
        (
            "10.0.0.1",
            "insecure: true\nnodes: [{name: w1, host: 10.0.0.9, port: 21000}]",
            "hosts.txt: names no host 10.0.0.9, where node w1 is; add it, with address=10.0.0.9 if ssh has another",
        ),
        (
            "10.0.0.1 slots=1",
            "insecure: true\nnodes: [{name: w1, host: 10.0.0.1, port: 1}, {name: w2, host: 10.0.0.1, port: 2}]",
            "hosts.txt:1: has no slot left for node w2 at 10.0.0.1; raise slots=",
        ),
        ("10.0.0.1 slots=2", "keys: nowhere", "nowhere"),
        ("10.0.0.1", "metod: pull", "metod"),
        ("10.0.0.1 slots=x", "{}", "hosts.txt:1: expected slots from 1 to 256, got x"),
        ("[fe80::1]", "{}", "fe80::1"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(folder, hosts, cluster, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        launch(hosts + "\n", cluster + "\n")
    assert not (folder / "runs").exists()


def test_a_part_of_the_nodes_needs_keys_of_the_owner():
    with pytest.raises(ConfigError, match="without keys whoever reaches the port"):
        launch("10.0.0.1 slots=2\n", names=["w1"])


def test_without_ssh_it_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="ssh: there is no such program here; install OpenSSH's client"):
        launch("10.0.0.1\n")


def test_a_host_is_told_as_it_stands_in_the_file():
    assert [str(Host("a@b", 7)), str(Host("b"))] == ["a@b:7", "b"]

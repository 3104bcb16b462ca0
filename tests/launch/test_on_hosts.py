"""`dpwa launch --hosts`: nodes on two hosts, over a real sshd; what their users see, and what stays: nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from background_launch import BackgroundLaunch, remains
from engine_runs import TRAINER, environment, said_in
from ssh_server import ADDRESSES, SshServer, loopback_addresses

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports
from dpwa.transport.key_folder import make_keys
from support import wait_until

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(300)]

DEADLINE_S = 60.0
TRAINING_S = 200.0

# Says who it is and looks for its own secret key in what any process of this machine shows of itself.
SEEKER = """
import os, pathlib
folder = pathlib.Path(os.environ["DPWA_RUN_DIR"])
secret = (folder / "keys" / (os.environ["DPWA_NODE"] + ".key")).read_bytes().strip()
assert len(secret) == 40
seen = 0
for name in ("cmdline", "environ"):
    for path in pathlib.Path("/proc").glob("[0-9]*/" + name):
        try:
            shown = path.read_bytes()
        except OSError:
            continue
        seen += 1
        assert secret not in shown, path
here = sorted(path.name for path in (folder / "keys").glob("*.key"))
print("looked at", seen > 10, "and has", here, os.getcwd())
"""

# Lives until it is told to end; keeps a record of that, and a worker that ignores signals.
STAYS = """
import os, pathlib, signal, sys, time
record = pathlib.Path(sys.argv[1], os.environ["DPWA_NODE"])
def note(what):
    with record.open("a") as file:
        file.write(f"{what} {os.getpid()} {time.monotonic()}\\n")
def end(number, frame):
    note(f"signal-{number}")
    time.sleep(0.3)
    note("end")
    sys.exit(0)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, end)
if os.fork() == 0:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        signal.pause()
note("begin")
print("pid", os.getpid(), flush=True)
while True:
    signal.pause()
"""


class Hosts:
    """Two hosts, a folder for each, and the launcher's."""

    def __init__(self, folder: Path, server: SshServer, client: Path) -> None:
        self.server = server
        self.folder = folder / "here"
        self.folders = (folder / "a", folder / "b")
        for each in (self.folder, *self.folders):
            each.mkdir()
        self._client = client
        self.launches: list[Launch] = []
        self.write_hosts(1, 1)

    def write_hosts(self, *slots: int, **settings: object) -> None:
        lines = [
            self.server.line(address, slots=count, dir=folder, **{"python": sys.executable, **settings})
            for address, folder, count in zip(ADDRESSES, self.folders, slots, strict=True)
        ]
        (self.folder / "hosts.txt").write_text("".join(lines))
        first = free_ports(1)[0]
        nodes = [
            {"name": f"w{number + 1}", "host": address, "port": first + number}
            for number, address in enumerate(
                address for address, count in zip(ADDRESSES, slots, strict=True) for _ in range(count)
            )
        ]
        (self.folder / "cluster.yaml").write_text(f"nodes: {json.dumps(nodes)}\n")

    def launch(self, *words: str, **more: str) -> Launch:
        self.launches.append(Launch(self, self._client, *words, **more))
        return self.launches[-1]


class Launch(BackgroundLaunch):
    """`dpwa launch --hosts` in the background."""

    def __init__(self, hosts: Hosts, client: Path, *words: str, **more: str) -> None:
        variables = environment(PATH=f"{client}:{os.environ['PATH']}", OMP_NUM_THREADS="1", **more)
        super().__init__(list(words), hosts.folder, variables, DEADLINE_S)

    def connections(self) -> dict[str, tuple[psutil.Process, psutil.Process]]:
        """By node: the launcher's end, and its ssh."""
        found = {}
        for end in psutil.Process(self.process.pid).children():
            words = end.cmdline()
            if words and words[-1].endswith("far.json"):
                (ssh,) = end.children()
                found[Path(words[-1]).parent.name] = (end, ssh)
        return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    loopback_addresses()
    started = SshServer(tmp_path_factory.mktemp("sshd"))
    yield started
    started.close()


@pytest.fixture
def hosts(tmp_path: Path, server: SshServer) -> Iterator[Hosts]:
    made = Hosts(tmp_path, server, server.client(tmp_path / "client"))
    yield made
    for launch in made.launches:
        launch.close()
    wait_until(lambda: not remains(tmp_path), "nothing is left", DEADLINE_S)


def all_have_ended(family: list[psutil.Process], within_s: float = DEADLINE_S) -> None:
    _, alive = psutil.wait_procs(family, within_s)
    assert alive == []


def lives(folder: Path, node: str) -> list[list[str]]:
    path = folder / node
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def stays(hosts: Hosts, *options: str, count: int = 2) -> tuple[Launch, Path, list[psutil.Process]]:
    """A launch of nodes that stay, the folder with their records, and what runs of them."""
    record = hosts.folder / "record"
    record.mkdir()
    launch = hosts.launch(
        *("--hosts", "hosts.txt", "cluster.yaml", *options, "--run-dir", "run"),
        *("--", "python", "-c", STAYS, str(record)),
    )
    family = []
    for line in launch.wait_lines(r"\| pid", count):
        leader = psutil.Process(int(line.split()[-1]))
        family += [leader, *leader.children()]
    assert len(family) == 2 * count, "each has its worker"
    return launch, record, family


@pytest.mark.slow
def test_a_file_without_nodes_trains_on_all_slots_with_keys_and_the_journals_come_home(hosts, tmp_path):
    hosts.write_hosts(2, 1)
    (hosts.folder / "cluster.yaml").write_text("run: digits\n")
    words = ("--hosts", "hosts.txt", "cluster.yaml", "--port-base", str(free_ports(1)[0]), "--", "python", TRAINER)
    launch = hosts.launch(*words, str(tmp_path), "60")
    assert launch.end(TRAINING_S) == 0, launch.text
    said = said_in_many(tmp_path)
    assert said["hosts"] == [ADDRESSES[0], ADDRESSES[0], ADDRESSES[1]]
    assert said["keys"] is not None
    places = [json.loads((tmp_path / f"w{number}.json").read_text())["local_rank"] for number in (1, 2, 3)]
    assert places == [0, 1, 0]
    assert "dpwa: 3 of 3 nodes ended well" in launch.text
    (run_dir,) = (hosts.folder / "runs").iterdir()
    assert run_dir.name.startswith("digits-")
    for name in ("w1", "w2", "w3"):
        events = (run_dir / "nodes" / name / "events.jsonl").read_text()
        assert '"event":"close"' in events
        assert {path.name for path in (run_dir / "nodes" / name).iterdir()} == {
            "events.jsonl",
            "metrics.jsonl",
            "output.log",
        }
    assert sum('"started"' in line for line in (run_dir / "launch.jsonl").read_text().splitlines()) == 3
    for folder in (hosts.folder, *hosts.folders):
        assert list(folder.glob("runs/*/keys")) == [], "the keys end with the run"
        assert list(folder.glob("runs/*/config.yaml"))


def said_in_many(folder: Path) -> dict[str, object]:
    """As of `engine_runs.said_in`, where each host has a run folder of its own."""
    said = [json.loads((folder / f"w{number}.json").read_text()) for number in (1, 2, 3)]
    assert all(node["blended"] > 0 for node in said)
    assert len({tuple(node["model"]) for node in said}) == 1
    assert len({node["run_dir"] for node in said}) == 2
    return said[0]


@pytest.mark.slow
def test_a_run_folder_that_both_see_is_used_by_both(hosts, tmp_path):
    hosts.write_hosts(1, 1)
    lines = (hosts.folder / "hosts.txt").read_text()
    for folder in hosts.folders:
        lines = lines.replace(f"dir={folder}", f"dir={hosts.folder}")
    (hosts.folder / "hosts.txt").write_text(lines)
    launch = hosts.launch(
        "--hosts", "hosts.txt", "cluster.yaml", "--run-dir", "run", "--", "python", TRAINER, str(tmp_path), "60"
    )
    assert launch.end(TRAINING_S) == 0, launch.text
    assert said_in(tmp_path, 2)[0]["run_dir"] == str(hosts.folder / "run")
    events = (hosts.folder / "run" / "launch.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in events].count("ended") == 2
    assert (hosts.folder / "run" / "nodes" / "w1" / "model.safetensors").exists()
    assert not (hosts.folder / "run" / "keys").exists()


@pytest.mark.slow
def test_a_key_goes_to_its_own_host_alone_and_no_process_shows_it(hosts):
    text = (hosts.folder / "cluster.yaml").read_text()
    (hosts.folder / "cluster.yaml").write_text(f"keys: secrets\n{text}")
    make_keys(hosts.folder / "secrets", ["w1", "w2"])
    launch = hosts.launch("--hosts", "hosts.txt", "cluster.yaml", "--", "python", "-c", SEEKER)
    assert launch.end() == 0, launch.text
    assert f"w1 | looked at True and has ['w1.key'] {hosts.folders[0]}" in launch.text
    assert f"w2 | looked at True and has ['w2.key'] {hosts.folders[1]}" in launch.text
    for folder in hosts.folders:
        assert list(folder.rglob("*.key")) == []
    left = [path for path in hosts.folder.rglob("*") if path.is_file() and "secrets" not in path.parts]
    secrets = [(hosts.folder / "secrets" / f"{name}.key").read_bytes().strip() for name in ("w1", "w2")]
    assert left
    assert not any(secret in path.read_bytes() for path in left for secret in secrets)


@pytest.mark.slow
def test_exit_codes_and_signals_are_those_of_the_nodes(hosts):
    hosts.write_hosts(2, 1)
    script = "case $DPWA_NODE in w1) exit 7;; w2) kill -9 $$;; *) echo fine;; esac"
    launch = hosts.launch("--hosts", "hosts.txt", "cluster.yaml", "--", "sh", "-c", script)
    assert launch.end() == 1
    for line in (
        "w1 | [dpwa] exit code 7; the launch goes on without this node",
        "w2 | [dpwa] killed by SIGKILL; the launch goes on without this node",
        "w3 | fine",
    ):
        assert launch.lines.count(line) == 1, launch.text
    assert "node w1 failed: exit code 7; its output is in" in launch.text
    assert "node w2 failed: killed by SIGKILL" in launch.text
    assert launch.text.count("exit code 7") == 2, "nothing is said twice"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_launcher_reaches_each_node_once_and_all_end(hosts, number):
    launch, record, family = stays(hosts)
    launch.process.send_signal(number)
    assert launch.end() == 128 + number
    all_have_ended(family, 2.0)  # all are killed by now; whoever is process 1 here collects them
    for node in ("w1", "w2"):
        assert [line[0] for line in lives(record, node)] == ["begin", f"signal-{int(number)}", "end"]


@pytest.mark.slow
def test_a_launcher_that_is_killed_leaves_nothing_running_anywhere(hosts):
    launch, record, family = stays(hosts)
    launch.process.kill()
    all_have_ended(family)
    for node in ("w1", "w2"):
        assert [line[0] for line in lives(record, node)] == ["begin", "signal-15", "end"]


@pytest.mark.slow
@pytest.mark.parametrize("which", ["ssh", "end", "far end"])
def test_a_connection_that_dies_ends_its_node_and_the_node_starts_again_after_that(hosts, which):
    launch, record, family = stays(hosts, "--on-failure", "restart")
    end, ssh = launch.connections()["w2"]
    leader = psutil.Process(int(lives(record, "w2")[0][1]))
    victim = {"ssh": ssh, "end": end, "far end": leader.parent()}[which]
    assert victim is not None
    victim.kill()
    launch.wait_lines(r"w2 \| pid", 2)
    events = lives(record, "w2")
    assert [event[0] for event in events] == ["begin", "signal-15", "end", "begin"], "one life after the other"
    assert len(lives(record, "w1")) == 1
    assert re.search(r"w2 \| \[dpwa\] .*; restart 1 of 5 in 1 s", launch.text)
    told = "the connection to .* is lost" if which != "end" else "killed by SIGKILL"
    assert re.search(told, launch.text)
    launch.process.terminate()
    assert launch.end() == 143
    all_have_ended(family)


@pytest.mark.parametrize("policy", ["continue", "stop"])
def test_a_host_that_cannot_be_reached_is_named_and_the_others_do_as_on_failure_says(hosts, policy):
    port = free_ports(1)[0]  # nobody listens there
    lines = (hosts.folder / "hosts.txt").read_text().splitlines()
    lines[1] = lines[1].replace(f":{hosts.server.port}", f":{port}")
    (hosts.folder / "hosts.txt").write_text("\n".join(lines))
    script = "echo here" if policy == "continue" else "sleep 600"
    launch = hosts.launch("--hosts", "hosts.txt", "cluster.yaml", "--on-failure", policy, "--", "sh", "-c", script)
    assert launch.end() == 1
    assert re.search(rf"w2 \| ssh: connect to host {ADDRESSES[1]} port {port}: Connection refused", launch.text)
    assert re.search(
        rf"w2 \| \[dpwa\] \S+@{ADDRESSES[1]}:{port} cannot be reached by ssh; try: ssh -o BatchMode=yes -p {port} ",
        launch.text,
    )
    assert "node w2 failed: exit code 255" in launch.text
    if policy == "continue":
        assert "w1 | here" in launch.lines
        assert "dpwa: 1 of 2 nodes ended well" in launch.text
    else:
        assert "w2 | [dpwa] exit code 255; ending all nodes" in launch.lines


@pytest.mark.slow
@pytest.mark.parametrize(
    ("python", "told"),
    [
        (
            "/no/such/python",
            r"w1 \| \[dpwa\] dpwa does not start on .* \(exit code 12[67]\); try: ssh .* -m dpwa --version",
        ),
        ("OLD", r"w1 \| \[dpwa\] .*: has dpwa 0\.0\.1, and here is .*; install the same on all hosts"),
        ("BARE", r"w1 \| ModuleNotFoundError: No module named 'dpwa'"),
    ],
)
def test_a_host_without_this_dpwa_is_named(hosts, tmp_path, python, told):
    scripts = {"OLD": "echo dpwa far end 0.0.1; cat", "BARE": f'exec {sys.executable} -I -S "$@"'}
    if python in scripts:
        script = tmp_path / "python"
        script.write_text(f"#!/bin/sh\n{scripts[python]}\n")
        script.chmod(0o755)
    hosts.write_hosts(1, 1, python=tmp_path / "python" if python in scripts else python)
    launch = hosts.launch("--hosts", "hosts.txt", "cluster.yaml", "--node", "w1", "--", "true")
    assert launch.end() == 1
    assert re.search(told, launch.text), launch.text
    assert "dpwa: 1 nodes start on 1 hosts: w1 on" in launch.text
    assert f"nothing is started on {hosts.server.line(ADDRESSES[1]).strip()}" in launch.text


@pytest.mark.slow
def test_words_of_the_login_are_shown_and_an_alias_of_ssh_is_a_host(hosts, tmp_path):
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\necho Welcome, $USER\necho to the machine\nexec {sys.executable} "$@"\n')
    script.chmod(0o755)
    (hosts.folder / "hosts.txt").write_text(f"first:{hosts.server.port} dir={hosts.folders[0]} python={script}\n")
    (hosts.folder / "cluster.yaml").write_text("{}\n")
    launch = hosts.launch("--hosts", "hosts.txt", "cluster.yaml", "--", "sh", "-c", 'cat "$DPWA_CONFIG"')
    assert launch.end() == 0, launch.text
    shown = [line for line in launch.lines if line.startswith("w1 | ")]
    assert [line[:14] for line in shown[:2]] == ["w1 | Welcome, ", "w1 | to the ma"]
    assert "w1 |   host: 127.0.0.2" in shown


@pytest.mark.slow
def test_a_run_on_hosts_is_resumed_with_the_hosts_and_the_command_of_then(hosts):
    script = 'echo "$DPWA_NODE in $DPWA_RUN_DIR" >> lives'
    first = hosts.launch("--hosts", "hosts.txt", "cluster.yaml", "--run-dir", "run", "--", "sh", "-c", script)
    assert first.end() == 0, first.text
    second = hosts.launch("--resume", "run")
    assert second.end() == 0, second.text
    for node, folder in zip(("w1", "w2"), hosts.folders, strict=True):
        assert (folder / "lives").read_text() == f"{node} in {folder}/run\n" * 2


@pytest.mark.slow
def test_what_a_host_refuses_is_said_with_the_nodes_name(hosts):
    config = ClusterConfig.load(hosts.folder / "cluster.yaml")
    node = config.node("w1")
    with socket.create_server((node.host, node.port)):
        launch = hosts.launch("--hosts", "hosts.txt", "cluster.yaml", "--", "no-such-program")
        assert launch.end() == 1
        assert (
            "w2 | [dpwa] cannot start no-such-program: there is no such program in PATH; correct the command"
            in launch.lines
        )
        again = hosts.launch("--hosts", "hosts.txt", "cluster.yaml", "--", "true")
        assert again.end() == 1
    assert re.search(r"w1 \| \[dpwa\] port \d+ on 127.0.0.2 is in use; stop process \d+", again.text)
    assert "dpwa: 1 of 2 nodes ended well" in again.text

"""`dpwa run`: the process that was asked for a node becomes its script."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpwa.launch.local import launch
from dpwa.launch.ports import free_ports

pytestmark = pytest.mark.seconds

DEADLINE_S = 20.0
OWN = ("DPWA_", "OMP_", "PYTHONUNBUFFERED")
SAYS_ITS_PLACE = "import json, os; print(json.dumps(dict(os.environ)))"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a cluster.yaml of the nodes w1 and w2."""
    first, second = free_ports(2)
    (tmp_path / "cluster.yaml").write_text(f"nodes: [{{name: w1, port: {first}}}, {{name: w2, port: {second}}}]\n")
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("DPWA_"):
            monkeypatch.delenv(name)
    return tmp_path


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "dpwa", "run", "cluster.yaml", *words]


def ran(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def place(output: str) -> dict[str, str]:
    found = json.loads(output)
    return {name: value for name, value in found.items() if name.startswith(OWN) and name != "DPWA_LAUNCH_ID"}


def test_a_node_has_the_environment_that_a_launch_of_it_gives(folder):
    done = ran("--node", "w2", "--run-dir", "run", "--", sys.executable, "-c", SAYS_ITS_PLACE)
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"dpwa: this is node w2, of 2; run folder {folder}/run\n"
    argv = [sys.executable, "-c", SAYS_ITS_PLACE]
    assert launch(folder / "cluster.yaml", argv, names=["w2"], run_dir=folder / "run") == 0
    launched = (folder / "run" / "nodes" / "w2" / "output.log").read_text()
    assert place(done.stdout) == place(launched)
    assert place(done.stdout)["DPWA_NODE"] == "w2"


@pytest.mark.parametrize("script", ["exit 7", "kill -9 $$"])
def test_exit_code_and_signal_are_those_of_the_script(script):
    expected = subprocess.run(["/bin/sh", "-c", script], check=False).returncode
    assert ran("--node", "w1", "--", "sh", "-c", script).returncode == expected


def test_a_pipe_whose_reader_has_gone_ends_what_writes_into_it_as_anywhere_else():
    script = "trap '' TERM; yes | head -n 1; grep SigIgn /proc/self/status"
    *_, line = ran("--node", "w1", "--", "sh", "-c", script).stdout.splitlines()
    ignored = int(line.split()[1], 16)
    assert [number for number in (signal.SIGPIPE, signal.SIGXFSZ) if ignored >> (number - 1) & 1] == []


def test_a_signal_is_the_scripts_and_the_process_is_the_one_that_was_started():
    script = "import os, signal, sys\nsignal.signal(15, lambda *_: sys.exit(5))\nprint(os.getpid(), flush=True)\n"
    script += "while True: signal.pause()"
    started = subprocess.Popen(
        command("--node", "w1", "--", sys.executable, "-c", script), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with started:
        assert started.stdout is not None
        assert int(started.stdout.readline()) == started.pid
        started.send_signal(signal.SIGTERM)
        assert started.wait(DEADLINE_S) == 5


def test_the_name_may_stand_in_the_environment_as_in_a_container():
    done = ran("--", sys.executable, "-c", SAYS_ITS_PLACE, DPWA_NODE="w2", DPWA_ON_FAILURE="restart")
    assert (place(done.stdout)["DPWA_NODE"], place(done.stdout)["DPWA_RANK"]) == ("w2", "1")
    assert place(done.stdout)["DPWA_ON_FAILURE"] == "restart"


def test_the_only_node_of_this_host_needs_no_name(folder):
    port = free_ports(1)[0]
    (folder / "cluster.yaml").write_text(
        f"insecure: true\nnodes: [{{name: w1, host: 192.0.2.7, port: 21000}}, {{name: w2, port: {port}}}]\n"
    )
    assert place(ran("--", sys.executable, "-c", SAYS_ITS_PLACE).stdout)["DPWA_NODE"] == "w2"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--", "true"], "which node is this? 2 of its nodes belong to this host"),
        (["--node", "w3", "--", "true"], "no node of this name, expected one of w1, w2"),
        (["--node", "w1", "--", "no-such-program"], "cannot start no-such-program: there is no such program in PATH"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(folder, words, told):
    done = ran(*words)
    assert done.returncode == 2
    assert told in done.stderr
    assert not (folder / "runs").exists()


def test_a_node_that_runs_is_not_started_again_in_its_folder():
    says = "print('here', flush=True); input()"
    words = command("--node", "w1", "--run-dir", "run", "--", sys.executable, "-c", says)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        assert first.stdout.readline() == b"here\n"
        second = ran("--node", "w1", "--run-dir", "run", "--", "true")
        first.stdin.write(b"\n")
    assert second.returncode == 2
    assert f"runs w1 (process {first.pid})" in second.stderr
    assert ran("--node", "w1", "--run-dir", "run", "--", "true").returncode == 0


def test_a_node_that_has_finished_is_not_started_again_by_whatever_restarts_it(folder):
    words = ("--node", "w1", "--run-dir", "run", "--on-failure", "restart", "--", "sh", "-c", "echo again")
    assert ran(*words).stdout == "again\n"
    journal = folder / "run" / "nodes" / "w1" / "events.jsonl"
    journal.write_text('{"event": "start"}\n{"event": "close"}\n')
    assert ran(*words).stdout == "again\n", "it was closed, and has not finished"
    journal.write_text('{"event": "start"}\n{"event": "finish"}\n{"event": "close"}\n')
    done = ran(*words)
    assert (done.returncode, done.stdout) == (0, "")
    assert "node w1 has finished its training in run: it is not started again" in done.stderr
    assert ran(*words[:4], *words[6:]).stdout == "again\n", "a person may start it again"


def test_names_of_hosts_are_waited_for(folder):
    port = free_ports(1)[0]
    (folder / "cluster.yaml").write_text(
        f"insecure: true\nnodes: [{{name: w1, port: {port}}}, {{name: w2, host: no-such-host.invalid, port: 21000}}]\n"
    )
    begun_s = time.monotonic()
    done = ran("--node", "w1", "--wait", "2", "--", "true")
    assert time.monotonic() - begun_s >= 2
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert first == "dpwa: waiting for an address of no-such-host.invalid"
    assert 'the host "no-such-host.invalid" has no address known to this machine' in second

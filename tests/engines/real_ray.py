"""dpwa on a real Ray cluster of two nodes on this machine: `dpwa launch --engine ray`, and `dpwa.engines.ray.train`.

`make test-ray` runs this; pytest does not collect it by itself, because it needs Ray.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from background_launch import BackgroundLaunch, remains
from engine_runs import TRAINER, environment, said_in

from dpwa.launch.ports import free_ports
from support import TESTS, wait_until

# Ray reads them when it is imported: loopback alone, no word to anybody, nodes as urgent as this process, patience.
OF_RAY = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_gcs_server_request_timeout_seconds": "120",
}
os.environ.update(OF_RAY)

import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from dpwa.engines.ray import NodesFailed, train  # noqa: E402

pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]

TRAINS = str(TESTS / "ray_trainer.py")
DEADLINE_S = 300.0  # Ray's own start takes most of a minute on a busy machine
CPUS = 5
OF_EACH: dict[str, Any] = {"object_store_memory": 100 * 2**20, "node_ip_address": "127.0.0.1"}

STAYS = """
import os, signal, sys, time
def end(number, frame):
    print("told", number, flush=True)
    time.sleep(0.5)
    print("over", flush=True)
    sys.exit(0)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, end)
print("pid", os.getpid(), flush=True)
while True:
    signal.pause()
"""


def patiently(start: Callable[[], Any], tries: int = 5) -> Any:
    """On a busy machine Ray gives up on what it starts after seconds: try again."""
    try:
        return start()
    except Exception:  # it has no class for that
        if tries == 1:
            raise
    return patiently(start, tries - 1)


class Machines:
    """A cluster of Ray on loopback."""

    def __init__(self) -> None:
        head = {"num_cpus": CPUS, "include_dashboard": False, **OF_EACH}
        self.cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        self.second = self.add()

    def add(self) -> Any:
        here = Path.cwd()
        os.chdir("/")  # what stays is not to look like something of the present test
        try:
            return patiently(lambda: self.cluster.add_node(num_cpus=CPUS, num_gpus=2, **OF_EACH))
        finally:
            os.chdir(here)

    def lose_second(self) -> None:
        """All that runs there ends at once: nothing is saved, and nobody says how anything ended."""
        (raylet,) = self.second.all_processes["raylet"]
        there = psutil.Process(raylet.process.pid).children(recursive=True)
        for end in (psutil.Process.suspend, psutil.Process.kill):
            for process in there:
                with suppress(psutil.Error):
                    end(process)
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None

    def be_two(self) -> None:
        if self.second is None:
            self.second = self.add()


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    made = Machines()
    yield made
    ray.shutdown()
    made.cluster.shutdown()


class Launch(BackgroundLaunch):
    """`dpwa launch --engine ray` in the background, and what its nodes say."""

    def __init__(self, folder: Path, machines: Machines, *words: str, address: str | None = None) -> None:
        words = ("--engine", "ray", "--address", address or machines.cluster.address, *words)
        super().__init__(list(words), folder, environment(**OF_RAY), DEADLINE_S)

    def said(self, node: str, key: str) -> list[Any]:
        """What a node has said under a key, in order."""
        found = []
        for line in self.lines:
            with suppress(ValueError):
                words = json.loads(line.removeprefix(f"{node} | "))
                if line.startswith(node) and key in words:
                    found.append(words[key])
        return found


@pytest.fixture
def launches(machines, tmp_path):
    made = []

    def launch(*words: str, **more: Any) -> Launch:
        made.append(Launch(tmp_path, machines, *words, **more))
        return made[-1]

    machines.be_two()
    yield launch
    for each in made:
        each.close()
    wait_until(lambda: not remains(tmp_path), "nothing is left", DEADLINE_S)


# --- dpwa launch --engine ray ---------------------------------------------------------------------------------------


def test_four_nodes_need_no_file_and_end_with_one_model(launches, tmp_path):
    launch = launches("--nodes", "4", "--", "python", TRAINER, str(tmp_path), "100")
    launch.wait_lines("4 nodes start in Ray: w1, w2, w3, w4 on 127.0.0.1; run folder ")
    placed_s = time.monotonic() - launch.begin_s
    assert launch.end() == 0, launch.text
    said = said_in(tmp_path, 4)
    assert said[0]["keys"] == str(Path(said[0]["run_dir"]) / "keys")
    assert not Path(said[0]["keys"]).exists(), "the keys of the run end with it"
    assert "dpwa: 4 of 4 nodes ended well" in launch.text
    print(f"places after {placed_s:.1f} s")


WITHOUT_DPWA = """
import subprocess, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
class Actor:
    def run(self):
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
ray.get([actor.run.remote() for actor in [Actor.remote() for _ in range(4)]])
"""
STARTS = """
import time, torch, dpwa
model = torch.nn.Linear(2, 1)
node = dpwa.attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
print("is there", flush=True)
time.sleep(600)
"""


def test_four_nodes_start_at_most_three_seconds_later_than_four_actors_that_import_torch(launches, machines, tmp_path):
    (tmp_path / "starts.py").write_text(STARTS)
    bare_s, dpwa_s = [], []
    for _ in range(3):
        begin_s = time.monotonic()
        command = [sys.executable, "-c", WITHOUT_DPWA, machines.cluster.address]
        subprocess.run(command, env=environment(**OF_RAY), check=True, capture_output=True, timeout=DEADLINE_S)
        bare_s.append(time.monotonic() - begin_s)
        launch = launches("--nodes", "4", "--", "python", "starts.py")
        launch.wait_lines(r"w\d \| is there", 4)
        dpwa_s.append(time.monotonic() - launch.begin_s)
        launch.process.send_signal(signal.SIGTERM)
        launch.end()
    print(f"four actors: {min(bare_s):.1f} s; four nodes: {min(dpwa_s):.1f} s (each the best of three)")
    assert min(dpwa_s) - min(bare_s) <= 3.0


def test_a_node_that_is_killed_and_one_whose_machine_is_lost_train_on(launches, machines, tmp_path):
    (tmp_path / "cluster.yaml").write_text("checkpoint: {every_s: 0.2}\nrun: lost\n")
    launch = launches(
        *("--nodes", "3", "--on-failure", "restart", "--run-dir", "run", "cluster.yaml", "--", "python", TRAINS)
    )
    names = ("w1", "w2", "w3")
    launch.wait_for(lambda: all(len((launch.said(name, "members") or [[]])[-1]) == 2 for name in names))
    before = {name: launch.said(name, "address")[-1] for name in names}
    folders = [tmp_path / "run/nodes" / name / "checkpoints" for name in names]
    wait_until(lambda: all(any(folder.glob("checkpoint-*")) for folder in folders), "checkpoints", DEADLINE_S)

    lost = [name for name in names if is_on(machines.second, launch, name)]
    on_second, *_ = lost
    others = [name for name in names if name not in lost]
    killed, *_ = others
    os.kill(launch.said(killed, "pid")[-1], signal.SIGKILL)
    launch.wait_lines(rf"{killed} \| \[dpwa\] killed by SIGKILL; restart 1 of 5 in 1 s")
    launch.wait_for(lambda: len(launch.said(killed, "first")) == 2)
    assert launch.said(killed, "first")[-1] > 0, "from its checkpoint"
    assert launch.said(killed, "address")[-1] == before[killed], "in the same place"

    machines.lose_second()
    launch.wait_lines(rf"{on_second} \| \[dpwa\] Ray('s process for| has lost the machine)")
    launch.wait_for(lambda: len(launch.said(on_second, "first")) == 2)
    assert launch.said(on_second, "first")[-1] > 0, "from its checkpoint, on the disk that both share"
    assert launch.said(on_second, "address")[-1] != before[on_second], "in another place"
    launch.wait_for(lambda: all(on_second in launch.said(name, "members")[-1] for name in others))
    wait_until(
        lambda: all(
            ("joined", launch.said(on_second, "address")[-1]) in member_events(tmp_path / "run", name, on_second)
            for name in others
        ),
        "the others have heard of the new place",
        DEADLINE_S,
    )

    launch.process.send_signal(signal.SIGTERM)
    assert launch.end() == 143
    assert [launch.said(name, "end") for name in names] == [[signal.SIGTERM]] * 3
    assert all(launch.said(name, "blended")[-1] > 0 for name in names)


def is_on(machine: Any, launch: Launch, name: str) -> bool:
    """Whether a node's process descends from that machine's part of Ray."""
    (raylet,) = machine.all_processes["raylet"]
    return raylet.process.pid in [parent.pid for parent in psutil.Process(launch.said(name, "pid")[-1]).parents()]


def member_events(run_dir: Path, node: str, peer: str) -> list[tuple[str, str]]:
    """What a node's journal says of a member: state and address."""
    events = []
    for line in (run_dir / "nodes" / node / "events.jsonl").read_text().splitlines():
        with suppress(ValueError):
            event = json.loads(line)
            if event.get("event") == "member" and event.get("peer") == peer:
                events.append((event["state"], event["address"]))
    return events


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_each_node_once_and_nothing_is_left(launches, tmp_path, number):
    launch = launches("--nodes", "2", "--", "python", "-c", STAYS)
    launch.wait_lines(r"w\d \| pid", 2)
    launch.process.send_signal(number)
    assert launch.end() == 128 + number
    assert sorted(launch.matching(r"told|over")) == sorted(
        f"{name} | {what}" for name in ("w1", "w2") for what in (f"told {int(number)}", "over")
    )
    assert f"dpwa: ended by {number.name}" in launch.text
    wait_until(lambda: not remains(tmp_path), "nothing is left", DEADLINE_S)


def test_a_launcher_that_is_killed_leaves_nothing_running(launches, tmp_path):
    launch = launches("--nodes", "2", "--run-dir", "run", "--", "python", "-c", STAYS)
    launch.wait_lines(r"w\d \| pid", 2)
    launch.process.kill()
    wait_until(lambda: not remains(tmp_path), "nothing is left", DEADLINE_S)
    for name in ("w1", "w2"):
        events = [json.loads(line) for line in (tmp_path / "run/launch.jsonl").read_text().splitlines()]
        assert [event["exit_code"] for event in events if event["event"] == "ended" and event["node"] == name] == [0]


def test_a_cluster_that_is_too_small_says_what_is_missing(launches):
    launch = launches("--nodes", "3", "--gpus-per-node", "1", "--wait", "3", "--", "true")
    assert launch.end() == 2
    assert "3 nodes with 1 CPU and 1 GPU each need room, and Ray has it for 2 now" in launch.text
    assert "within 3 s" in launch.text
    assert "even empty it would have for 2 only" in launch.text


def test_each_node_sees_its_own_gpus_alone(launches):
    """Ray believes that a machine has GPUs, and says by CUDA's variable which of them are whose."""
    code = "import os, dpwa; print('sees', os.environ['CUDA_VISIBLE_DEVICES'], dpwa.local_rank())"
    launch = launches("--nodes", "2", "--gpus-per-node", "1", "--", "python", "-c", code)
    assert launch.end() == 0, launch.text
    assert sorted(line.partition(" | ")[2] for line in launch.matching(r"\| sees")) == ["sees 0 0", "sees 1 1"]


def test_where_no_cluster_is_that_is_said(launches):
    launch = launches("--nodes", "2", "--", "true", address=f"127.0.0.1:{free_ports(1)[0]}")
    assert launch.end() == 2
    assert re.search("no Ray cluster is reached at 127.0.0.1:.*start one with `ray start --head`", launch.text)


def test_a_command_that_a_machine_does_not_have_fails_with_its_nodes_name(launches):
    launch = launches("--nodes", "2", "--", "no-such-program")
    assert launch.end() == 1
    told = "[dpwa] cannot start no-such-program: there is no such program in PATH; correct the command"
    assert {f"{name} | {told}" for name in ("w1", "w2")} <= set(launch.lines)


def test_a_run_is_resumed_wherever_ray_has_room_now(launches, tmp_path):
    script = 'echo "$DPWA_NODE $DPWA_RUN_DIR" >> lives'
    first = launches("--nodes", "2", "--run-dir", "run", "--", "sh", "-c", script)
    assert first.end() == 0, first.text
    again = subprocess.run(
        [sys.executable, "-m", "dpwa", "launch", "--resume", "run"],
        cwd=tmp_path,
        env=environment(**OF_RAY),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    lives = (tmp_path / "lives").read_text().splitlines()
    assert sorted(lives) == sorted([f"w1 {tmp_path}/run", f"w2 {tmp_path}/run"] * 2)


# --- train --------------------------------------------------------------------------------------------------------


@pytest.fixture
def _driver(machines):
    machines.be_two()
    if not ray.is_initialized():
        ray.init(machines.cluster.address, log_to_driver=False)


@pytest.mark.usefixtures("_driver")
def test_a_function_is_called_in_each_node_and_what_it_returns_comes_back(tmp_path):
    def function() -> tuple[str, int, list[str], bool]:
        from dpwa.config.cluster import ClusterConfig  # noqa: PLC0415

        config = ClusterConfig.load(os.environ["DPWA_CONFIG"])
        key = Path(os.environ["DPWA_RUN_DIR"], "keys", os.environ["DPWA_NODE"] + ".key")
        names = [node.name for node in config.nodes]
        return os.environ["DPWA_NODE"], int(os.environ["DPWA_RANK"]), names, key.exists()

    results = train(function, nodes=3, run_dir=tmp_path / "run", config={"run": "mine"}, wait_s=60)
    names = ["w1", "w2", "w3"]
    assert results == {name: (name, rank, names, True) for rank, name in enumerate(names)}
    assert not list((tmp_path / "run").glob("keys/*.key"))


@pytest.mark.usefixtures("_driver")
def test_a_node_that_dies_is_called_again_and_one_that_raises_is_named(tmp_path):
    def function() -> str:
        marker = tmp_path / os.environ["DPWA_NODE"]
        if os.environ["DPWA_NODE"] == "w1" and not marker.exists():
            marker.touch()
            os._exit(3)
        if os.environ["DPWA_NODE"] == "w2":
            raise RuntimeError("no data")
        return "done"

    with pytest.raises(NodesFailed, match=r"1 of 2 nodes have failed: w2: .*no data") as caught:
        train(function, nodes=2, run_dir=tmp_path / "run", on_failure="restart", max_restarts=1, wait_s=60)
    assert caught.value.results == {"w1": "done"}

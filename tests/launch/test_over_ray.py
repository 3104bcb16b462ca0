"""One node of a launch on Ray, seen from the launcher: the broker is a socket of this test, and Ray is not needed."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner
from engine_runs import environment

from dpwa._version import __version__
from dpwa.cli import main
from dpwa.config.cluster import ClusterConfig
from dpwa.engines.placed import placed_config
from dpwa.launch.far_words import END, HELLO, OUTPUT, Errand, frame, main_of
from dpwa.launch.launch_record import LaunchRecord, keep_record, read_record
from dpwa.launch.on_ray import _run_dir

HERE = {"w1": ("127.0.0.1", 21000), "w2": ("127.0.0.1", 21001)}
DEADLINE_S = 60.0


class Broker:
    """Speaks with one near end."""

    def __init__(self, folder: Path, settings: dict[str, object], *, may_move: bool) -> None:
        self.config = placed_config(settings, HERE, keys="keys")
        errand = Errand(
            node="w2",
            argv=("true",),
            environment={},
            run_dir=str(folder),
            config_name="config.yaml",
            config=self.config.to_yaml(),
            host="127.0.0.1",
            port=21001,
            neighbours=1,
            lost_s=20.0,
            token="",
        )
        order = {
            "errand": {key: value for key, value in asdict(errand).items() if key not in ("secret", "allowed")},
            "told": "10.0.0.2",
            "keys": None,
            "run_dir": str(folder),
            "node_dir": str(folder),
            "files": [],
            "files_max_bytes": 1000,
            "delay_s": 0.0,
            "socket": str(folder / "broker"),
            "may_move": may_move,
        }
        (folder / "far.json").write_text(json.dumps(order))
        self.door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.door.settimeout(DEADLINE_S)
        self.door.bind(order["socket"])
        self.door.listen(1)
        self.end = subprocess.Popen(
            [sys.executable, "-c", main_of("over_ray"), str(folder / "far.json")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.near, _ = self.door.accept()
        self.near.settimeout(DEADLINE_S)
        self.lines = self.near.makefile("rb")
        assert json.loads(self.lines.readline()) == {"node": "w2"}

    def answer(self, **words: object) -> None:
        self.near.sendall(json.dumps(words).encode() + b"\n")

    def say(self, data: bytes) -> None:
        self.near.sendall(frame(OUTPUT, data))

    def over(self, words: str | None = None) -> None:
        if words is not None:
            self.near.sendall(frame(END, words.encode()))
        self.lines.close()
        self.near.close()

    def ended(self) -> tuple[int, str]:
        said, _ = self.end.communicate(timeout=DEADLINE_S)
        return self.end.returncode, said

    def close(self) -> None:
        self.end.kill()
        self.ended()
        self.over()
        self.door.close()


@pytest.fixture
def brokers(tmp_path):
    made = []

    def make(settings: dict[str, object] | None = None, *, may_move: bool = True) -> Broker:
        made.append(Broker(tmp_path, settings or {}, may_move=may_move))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.seconds
def test_what_the_far_end_says_is_shown_and_its_exit_code_is_the_nodes(brokers):
    broker = brokers()
    broker.answer(addresses=HERE)
    # Ray cuts what comes where it likes.
    said = HELLO + __version__.encode() + b"\n"
    broker.say(said[:5])
    broker.say(said[5:])
    errand = Errand.from_line(broker.lines.readline())
    assert (errand.host, errand.port, errand.config) == ("127.0.0.1", 21001, broker.config.to_yaml())
    shown = frame(OUTPUT, b"hello\n") + frame(END, json.dumps({"exit_code": 3}).encode())
    broker.say(shown[:7])
    broker.say(shown[7:])
    broker.over("")
    assert broker.ended() == (3, "hello\n")


@pytest.mark.seconds
def test_a_node_in_another_place_gets_a_file_with_the_addresses_of_now(brokers, tmp_path):
    broker = brokers()
    broker.answer(addresses={**HERE, "w2": ("10.0.0.9", 25000)})
    broker.say(HELLO + __version__.encode() + b"\n")
    errand = Errand.from_line(broker.lines.readline())
    assert (errand.host, errand.port) == ("10.0.0.9", 25000)
    config = ClusterConfig.from_text(errand.config)
    assert [node.address for node in config.nodes] == ["127.0.0.1:21000", "10.0.0.9:25000"]
    assert errand.config_name != "config.yaml", "the run folder may hold that of before"
    assert (tmp_path / errand.config_name).read_text() == errand.config
    broker.over("Ray has lost the machine 10.0.0.9, and w2 with it")
    assert broker.ended() == (255, "[dpwa] Ray has lost the machine 10.0.0.9, and w2 with it\n")


@pytest.mark.seconds
def test_a_node_that_nobody_would_find_in_its_new_place_does_not_start(brokers):
    broker = brokers({"method": "dpsgd"}, may_move=False)
    broker.answer(addresses={**HERE, "w2": ("10.0.0.9", 25000)})
    code, said = broker.ended()
    assert code == 255
    assert "its place is now 10.0.0.9, and the others look for it at 127.0.0.1 alone" in said


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"problem": "Ray has no place for w2 now"}, "[dpwa] Ray has no place for w2 now\n"),
        (
            None,
            "[dpwa] the launcher's connection to Ray has ended; the node ends as soon as that is noticed on its side\n",
        ),
    ],
)
def test_why_there_is_no_place_is_said(brokers, words, told):
    broker = brokers()
    if words is None:
        broker.over()
    else:
        broker.answer(**words)
    assert broker.ended() == (255, told)


@pytest.mark.seconds
def test_a_machine_with_another_dpwa_or_without_one_is_named(brokers):
    broker = brokers()
    broker.answer(addresses=HERE)
    broker.say(HELLO + b"0.0.1\n")
    assert broker.ended()[1].startswith("[dpwa] 10.0.0.2: has dpwa 0.0.1, and here is ")


@pytest.mark.seconds
def test_why_dpwa_does_not_start_is_said(brokers):
    broker = brokers()
    broker.answer(addresses=HERE)
    broker.over("Traceback:\nModuleNotFoundError: No module named 'dpwa'")
    assert broker.ended() == (
        255,
        "[dpwa] dpwa does not start on 10.0.0.2: ModuleNotFoundError: No module named 'dpwa'\n",
    )


# --- What is said before anything is started -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--engine", "ray", "--", "true"], "Missing option '--nodes'"),
        (["--nodes", "2", "x.yaml", "--", "true"], "--nodes belongs to --engine ray"),
        (["--engine", "ray", "--nodes", "2", "--hosts", "h", "--", "true"], "--hosts does not go with --engine ray"),
        (["--engine", "ray", "--nodes", "2", "--node", "w1", "--", "true"], "--node does not go with --engine ray"),
        (["--engine", "ray", "--nodes", "2"], "Missing argument '-- COMMAND...'"),
        (
            ["--engine", "ray", "--nodes", "2", "--gpus-per-node", "1.5", "--", "true"],
            "expected a whole number, got 1.5",
        ),
        (["--engine", "ray", "--nodes", "2", "no.yaml", "--", "true"], "no.yaml: the cluster file cannot be read"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, told):
    done = CliRunner().invoke(main, ["launch", *words])
    assert done.exit_code == 2
    assert told in done.stderr


def test_a_setting_that_is_wrong_is_said_before_ray_is_asked(tmp_path):
    (tmp_path / "cluster.yaml").write_text("metod: gosgd\n")
    done = CliRunner().invoke(main, ["launch", "--engine", "ray", "--nodes", "2", "cluster.yaml", "--", "true"])
    assert done.exit_code == 2
    assert "cluster.yaml:1:1: metod" in done.stderr


# --- The run folder ---------------------------------------------------------------------------------------------------


def test_a_run_goes_on_in_its_folder_wherever_its_nodes_are_now(tmp_path):
    folder = tmp_path / "run"
    first = placed_config({"run": "mine"}, HERE)
    assert _run_dir(first, folder) == (folder, "config.yaml")
    second = placed_config({"run": "mine"}, {**HERE, "w2": ("127.0.0.2", 22000)})
    path, name = _run_dir(second, folder)
    assert path == folder
    assert ClusterConfig.load(folder / name) == ClusterConfig.from_text(second.to_yaml())
    with pytest.raises(Exception, match="it holds a run with another config"):
        _run_dir(placed_config({"run": "other"}, HERE), folder)
    with pytest.raises(Exception, match="it holds a run with another config"):
        _run_dir(placed_config({"run": "mine"}, {**HERE, "w3": ("127.0.0.1", 23000)}), folder)


def test_what_ray_was_asked_for_is_kept_for_a_resume(tmp_path):
    record = LaunchRecord(("true",), "/", "", ("w1",), "restart", 5, ray={"nodes": 1, "gpus": 0.5})
    keep_record(tmp_path, record)
    assert read_record(tmp_path) == record


@pytest.mark.seconds
def test_where_ray_is_not_installed_that_is_said_with_the_cure(tmp_path):
    """In a Python of which Ray is no part: without site-packages of its own."""
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError(\"No module named 'ray'\", name='ray')\n")
    done = subprocess.run(
        [sys.executable, "-m", "dpwa", "launch", "--engine", "ray", "--nodes", "2", "--", "true"],
        env=environment(PYTHONPATH=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 2
    assert "the package ray is not installed; install it with: " in done.stderr
    assert "-m pip install 'dpwa[ray]'" in done.stderr

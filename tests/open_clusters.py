"""Clusters that nodes may join, for tests: as nodes of this process that train in threads, and as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports
from dpwa.node.node import Node
from support import TESTS, VectorModel, events_of, wait_until

PACE_S = 0.005


def open_config(names: list[str], ports: list[int], join: list[int], **settings: object) -> ClusterConfig:
    """A file with these nodes on this machine, through whose members at `join` others may come."""
    nodes = [{"name": name, "port": port} for name, port in zip(names, ports, strict=True)]
    return ClusterConfig.from_mapping(
        {"nodes": nodes, "join": [f"127.0.0.1:{port}" for port in join], "shared_memory": "off", **settings}
    )


class Training(threading.Thread):
    """A node that trains in a thread of its own until it is closed."""

    def __init__(self, config: ClusterConfig, name: str, value: float, run_dir: Path | None = None) -> None:
        super().__init__(name=f"trainer-{name}")
        self.model = VectorModel([value, value])
        self.node = Node(config, name, self.model, run_dir=run_dir)
        self.at_start: float | None = None
        self.longest_s = 0.0
        self.error: BaseException | None = None
        self.merges: bool | None = None
        """Whether `finish` merges; None: the node is closed without `finish`."""
        self.has_finished_well: bool | None = None
        self._is_over = threading.Event()

    def run(self) -> None:
        try:
            self._train()
        except BaseException as error:  # noqa: BLE001 - it is looked at when the test closes the node
            self.error = error

    def _train(self) -> None:
        self.node.start()
        self.at_start = float(self.model.vector[0])
        last_s = time.monotonic()
        while not self._is_over.wait(PACE_S):
            self.node.step(1.0)
            now_s = time.monotonic()
            self.longest_s, last_s = max(self.longest_s, now_s - last_s), now_s
        if self.merges is not None:
            self.has_finished_well = self.node.finish(30.0, merge=self.merges)
        self.node.close()

    def finish(self, *, merge: bool = False) -> None:
        """Have it end its training, and wait for the others."""
        self.merges = merge
        self._is_over.set()

    def value_at_start(self) -> float:
        """What its model was before its first step."""
        wait_until(lambda: self.at_start is not None or self.error is not None, "it has started", 20.0)
        return self.at_start

    def end(self) -> None:
        """End the training and close the node."""
        self._is_over.set()
        self.join(20)
        assert not self.is_alive()
        self.node.close()
        if self.error is not None:
            raise self.error

    @property
    def members(self) -> dict[str, str]:
        return dict(self.node.statistics().members)

    @property
    def step(self) -> int:
        return self.node.statistics().step


class Processes:
    """Nodes as processes, each with a file of its own; ended by the test or with it."""

    def __init__(self, folder: Path, count: int, **settings: object) -> None:
        self.folder = folder
        self.run_dir = folder / "run"
        self.settings = settings
        ports = free_ports(count + 20)
        self._spare = ports[count:]
        self.ports = {f"w{number}": port for number, port in enumerate(ports[:count], start=1)}
        self.running: dict[str, Process] = {}

    def file(self, name: str, nodes: dict[str, int], join: list[int]) -> Path:
        path = self.folder / f"{name}.yaml"
        values = {
            **self.settings,
            "nodes": [{"name": node, "port": port} for node, port in nodes.items()],
            "join": [f"127.0.0.1:{port}" for port in join],
        }
        path.write_text(yaml.safe_dump(values))
        return path

    def begin(self, value: float = 1.0) -> None:
        """Start the nodes of the first file; they say how others join."""
        path = self.file("cluster", self.ports, [next(iter(self.ports.values()))])
        for name in self.ports:
            self.running[name] = Process(path, name, self.run_dir, value)

    def add(self, name: str, through: str, value: float = 100.0) -> Process:
        """Start one that is in no file but its own."""
        port = self._spare.pop(0)
        path = self.file(name, {name: port}, [self.ports[through]])
        self.ports[name] = port
        made = self.running[name] = Process(path, name, self.run_dir, value)
        return made

    def events(self, name: str) -> list[dict]:
        return events_of(self.run_dir, name)

    def kill(self, name: str) -> None:
        self.running.pop(name).kill()

    def close(self) -> None:
        for process in self.running.values():
            process.kill()


class Process:
    """One training process, and what it has said so far."""

    def __init__(self, path: Path, name: str, run_dir: Path, value: float) -> None:
        self.name = name
        self.said: list[dict] = []
        environment = {**os.environ, "PYTHONPATH": str(TESTS)}
        argv = [sys.executable, str(TESTS / "member_trainer.py"), str(path), name, str(run_dir), str(value)]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stdout:
            self.said.append(json.loads(line))

    def find(self, key: str) -> object | None:
        """The latest that it has said of this."""
        return next((said[key] for said in reversed(self.said) if key in said), None)

    @property
    def members(self) -> dict[str, str]:
        return self.find("members") or {}

    @property
    def has_started(self) -> bool:
        return self.find("pid") is not None

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._wait()

    def end(self) -> dict:
        """Let it end as it should, and return its last words."""
        self.send(signal.SIGTERM)
        self._wait()
        assert self._process.returncode == 0
        return self.said[-1]

    def ended(self) -> int | None:
        """The exit code, when it has ended by itself."""
        return self._process.poll()

    def _wait(self) -> None:
        self._process.wait(20)
        self._reader.join(20)
        self._process.stdout.close()


def all_know(trainings: list[Training], deadline_s: float = 20.0) -> None:
    """Wait until each knows all others, and that they live."""
    names = {training.node.name for training in trainings}

    def is_known() -> bool:
        return all(training.members == dict.fromkeys(names - {training.node.name}, "alive") for training in trainings)

    wait_until(is_known, "all know all", deadline_s)


def until(condition: Callable[[], bool], what: str, deadline_s: float = 30.0) -> float:
    """Wait for something, and return how long it took."""
    start_s = time.monotonic()
    wait_until(condition, what, deadline_s)
    return time.monotonic() - start_s

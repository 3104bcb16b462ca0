"""What several tests share: a model without a framework, and clusters of nodes in one process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports
from dpwa.node.node import Node
from dpwa.observe.bounded_file import read_records
from dpwa.observe.journal import EVENTS_FILE, node_folder
from dpwa.snapshot.layout import Layout, TensorSpec
from dpwa.snapshot.staging import Values
from dpwa.transport.in_memory import InMemoryNetwork, InMemoryTransport

DEADLINE_S = 10.0

TESTS = Path(__file__).parent
ROOT = TESTS.parent


def mostly_slow(values: Iterable[object], *others: object) -> list[object]:
    """Parameters of a test, of which all but the `others` are run by `make test-slow` alone."""
    marked = pytest.mark.slow
    return [
        value if value in others else pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=marked)
        for value in values
    ]


class VectorModel:
    """One float64 vector as a model, so that results can be compared with closed forms."""

    def __init__(self, vector: Sequence[float] | np.ndarray, name: str = "vector") -> None:
        self.vector = np.array(vector, np.float64)
        self.layout = Layout([TensorSpec(name, self.vector.shape, "float64")])

    def copy_into(self, buffer: np.ndarray) -> None:
        buffer.view(np.float64)[:] = self.vector

    def blend(self, values: Sequence[Values], factor: float) -> None:
        (only,) = values
        if factor == 1.0 and not only.is_difference:
            self.vector[:] = only.array
            return
        self.vector += factor * (only.array if only.is_difference else only.array - self.vector)


class Cluster:
    """Nodes of one process over one transport, stepped by the test's own thread."""

    def __init__(self, transport: str) -> None:
        self.transport = transport
        self.network = InMemoryNetwork()
        self.nodes: list[Node] = []
        self.models: list[VectorModel] = []
        self.config: ClusterConfig | None = None

    def start(self, models: Sequence[VectorModel], *, run_dir=None, **settings: object) -> list[Node]:
        """One node per model; over ZeroMQ each step waits for its exchange, so that steps and exchanges go in pairs."""
        if self.transport == "zeromq":
            settings.setdefault("wait_ms", 2000)
        ports = free_ports(len(models))
        self.config = ClusterConfig.for_localhost(len(models), ports=ports, **settings)
        return [self.add(f"w{number}", model, run_dir=run_dir) for number, model in enumerate(models, start=1)]

    def add(self, name: str, model: VectorModel, *, config: ClusterConfig | None = None, run_dir=None) -> Node:
        """Start one node of the cluster."""
        used = config or self.config
        make = None
        if self.transport == "in_memory":
            make = lambda wiring: InMemoryTransport(self.network, name, wiring)  # noqa: E731
        node = Node(used, name, model, make_transport=make, run_dir=run_dir)
        node.start()
        self.nodes.append(node)
        self.models.append(model)
        return node

    def step_all(
        self, times: int = 1, update: Callable[[int, VectorModel], None] | None = None, loss: float = 1.0
    ) -> None:
        """Each node makes one step in turn, `times` times."""
        for _ in range(times):
            for index, node in enumerate(self.nodes):
                if update is not None:
                    update(index, self.models[index])
                node.step(loss)

    def vectors(self) -> np.ndarray:
        """All models, shape (nodes, size)."""
        return np.stack([model.vector for model in self.models])

    def close(self) -> None:
        for node in self.nodes:
            node.close()


def events_of(run_dir: Path, node: str, event: str | None = None, **fields: object) -> list[dict]:
    """What a node's journal holds by now: all of it, or one kind, with such fields; a line half written is left out."""
    records = read_records(node_folder(run_dir, node) / EVENTS_FILE)
    of_kind = [record for record in records if event in (None, record["event"])]
    return [record for record in of_kind if all(record.get(field) == value for field, value in fields.items())]


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Wait for something that another thread or process brings about; fail when it does not come in time."""
    end_s = time.monotonic() + deadline_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end_s, f"not within {deadline_s:g} s: {what}"
        pause.wait(0.005)


def step_until(node: Node, condition: Callable[[], bool], what: str, loss: float = 1.0) -> None:
    """Make training steps until something has happened."""

    def stepped() -> bool:
        node.step(loss)
        return condition()

    wait_until(stepped, what)

"""The demo: four nodes learn ten digits together, although each of them sees only five.

First each of the four trains alone on its shard; then they train again, as a cluster. The table and the picture at the
end compare the two.

Must not know: how exchanges work; it starts the digits example as a user would, and reads what the nodes wrote.
Runs in: the main thread of `dpwa demo`, with an event loop for the processes. The example's modules, which need torch,
are imported when the demo starts.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dpwa.config.cluster import ClusterConfig
from dpwa.errors import ConfigError
from dpwa.launch.local import node_commands
from dpwa.launch.ports import free_ports
from dpwa.launch.processes import NodeCommand, NodeEnd, OnFailure, Supervisor
from dpwa.launch.run_dir import make_run_dir
from dpwa.launch.supervision import supervise
from dpwa.observe.bounded_file import generations
from dpwa.observe.journal import METRICS_FILE, MODEL_FILE, OUTPUT_FILE, node_folder
from dpwa.observe.live import LiveView, MetricsTail
from dpwa.transport.run_keys import run_keys

__all__ = ["DemoResult", "NodeResult", "run_demo"]

NODE_COUNT = 4
METRICS_INTERVAL_MS = 250  # the training takes only seconds, and the curves need several points per second
UPDATE_INTERVAL_S = 0.25
OUTPUT_TAIL_LINES = 12
TRAINING_COMMAND = (sys.executable, "-m", "dpwa.examples.digits.train")

Tails = Mapping[str, MetricsTail]


@dataclass(frozen=True)
class NodeResult:
    """The result of one node.

    Attributes:
        name: the node.
        digits: in its shard.
        accuracy: of its final model in the cluster, on held-out images of all digits, 0..1.
        alone_accuracy: the same after training alone on the same shard.
    """

    name: str
    digits: tuple[int, ...]
    accuracy: float
    alone_accuracy: float


@dataclass(frozen=True)
class DemoResult:
    """What the demo showed.

    Attributes:
        nodes: one result each.
        averaged_accuracy: of the mean of the cluster's final models, 0..1.
        training_s: seconds from the first step of the cluster's first node to the end of the last step of its last
            node. It includes estimating the accuracy on the way, but neither starting the processes nor training
            alone.
    """

    nodes: tuple[NodeResult, ...]
    averaged_accuracy: float
    training_s: float

    @property
    def gain(self) -> float:
        """The averaged model's accuracy minus the mean accuracy of the nodes alone, -1..1."""
        return self.averaged_accuracy - sum(node.alone_accuracy for node in self.nodes) / len(self.nodes)

    def to_json(self) -> str:
        """The numbers, for scripts."""
        nodes = [asdict(node) for node in self.nodes]
        for node in nodes:
            del node["digits"]
        return json.dumps(
            {"nodes": nodes, "averaged_accuracy": self.averaged_accuracy, "training_s": self.training_s}, indent=2
        )


class _InterruptedError(Exception):
    """The user ended the demo."""

    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number
        super().__init__(signal.Signals(signal_number).name)


class _NodesFailedError(Exception):
    """Nodes of one phase failed; `failed` has their commands and ends."""

    def __init__(self, failed: Sequence[tuple[NodeCommand, NodeEnd]]) -> None:
        self.failed = tuple(failed)
        super().__init__(", ".join(f"{end.name}: {end.reason}" for _, end in failed))


def run_demo(json_path: Path | None, run_dir: Path | None) -> int:
    """Runs the demo from start to end.

    Args:
        json_path: file for the numbers; None: no file.
        run_dir: the run folder; None: a new one under `runs`.

    Returns:
        The exit code: 0, or 1 when a node failed, or 128 plus the number of the signal that ended the demo.

    Raises:
        ImportError: torch, scikit-learn or matplotlib are not installed.
        ConfigError: the run folder or the file for the numbers cannot be written.
    """
    if json_path is not None and not json_path.absolute().parent.is_dir():
        raise ConfigError(f"--json {json_path}: expected a file in an existing folder; make {json_path.parent} first")
    console = Console()
    console.print("Four nodes learn handwritten digits; each has images of five digits only.")
    # Before anything starts, so that a missing package is reported at once.
    from dpwa.observe import curves  # noqa: PLC0415 - matplotlib takes a second to import

    _check_installed("torch", "sklearn")

    config = ClusterConfig.for_localhost(
        NODE_COUNT, ports=free_ports(NODE_COUNT), run="demo", metrics_interval_ms=METRICS_INTERVAL_MS
    )
    folder = make_run_dir(config, run_dir)
    started_s = time.monotonic()
    cluster = _cluster_commands(config, folder)
    try:
        alone = asyncio.run(_run_phase(console, "each node alone", _alone_commands(config, cluster, folder)))
        with run_keys(folder, [node.name for node in config.nodes]):
            together = asyncio.run(_run_phase(console, "all together", cluster))
    except _InterruptedError as interruption:
        console.print("The demo was interrupted; all nodes have been stopped.")
        return 128 + interruption.signal_number
    except _NodesFailedError as failure:
        _report_failures(failure)
        return 1
    result = _measure(config, folder, together)
    picture = folder / "curves.png"
    curves.draw_curves(
        picture,
        together={name: tail.records for name, tail in together.items()},
        alone={name: tail.records for name, tail in alone.items()},
        averaged_accuracy=result.averaged_accuracy,
    )
    _print_result(console, result)
    elapsed_s = time.monotonic() - started_s
    console.print(f"This took {elapsed_s:.0f} s, {result.training_s:.1f} s of them for training the cluster.")
    console.print(f"Run folder: {folder}\nCurves:     {picture}", soft_wrap=True, highlight=False)
    if json_path is not None:
        json_path.write_text(result.to_json() + "\n", encoding="utf-8")
    return 0


def _check_installed(*packages: str) -> None:
    """Raises what importing a missing package would raise, without importing the others, which takes seconds."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def _cluster_commands(config: ClusterConfig, folder: Path) -> list[NodeCommand]:
    return node_commands(config, [node.name for node in config.nodes], TRAINING_COMMAND, folder)


def _alone_commands(config: ClusterConfig, cluster: Sequence[NodeCommand], folder: Path) -> list[NodeCommand]:
    """The same nodes with the same shards, each in a cluster of its own."""
    commands = []
    for index, (node, command) in enumerate(zip(config.nodes, cluster, strict=True)):
        run_dir = make_run_dir(config.model_copy(update={"nodes": (node,)}), _alone_dir(folder, node.name))
        own = {"DPWA_CONFIG": str(run_dir / "config.yaml"), "DPWA_RUN_DIR": str(run_dir)}
        commands.append(
            replace(
                command,
                argv=(*TRAINING_COMMAND, "--shard", f"{index + 1}/{len(config.nodes)}"),
                environment={**command.environment, **own},
                output_path=node_folder(run_dir, node.name) / OUTPUT_FILE,
            )
        )
    return commands


def _alone_dir(folder: Path, name: str) -> Path:
    """The run folder of a node that trains alone, within the demo's."""
    return folder / "alone" / name


async def _run_phase(console: Console, title: str, commands: Sequence[NodeCommand]) -> Tails:
    """Runs nodes until all have ended, and shows their progress.

    Raises:
        _InterruptedError: a signal came.
        _NodesFailedError: a node failed; the others were stopped.
    """
    tails = {
        command.name: MetricsTail(node_folder(Path(command.environment["DPWA_RUN_DIR"]), command.name) / METRICS_FILE)
        for command in commands
    }
    supervisor = Supervisor(commands, on_failure=OnFailure.STOP, on_line=_ignore_line)
    with LiveView(console, title, tails) as view:
        running = asyncio.create_task(supervise(supervisor))
        while not running.done():
            await asyncio.wait({running}, timeout=UPDATE_INTERVAL_S)
            view.update()
    ends, signal_number = running.result()
    if signal_number is not None:
        raise _InterruptedError(signal_number)
    failed = [(command, end) for command, end in zip(commands, ends, strict=True) if end.failed]
    if failed:
        raise _NodesFailedError(failed)
    return tails


def _ignore_line(name: str, line: str) -> None:
    """Does nothing: a node's lines are in its output.log, and the table says the same in less room."""


def _report_failures(failure: _NodesFailedError) -> None:
    for command, end in failure.failed:
        print(f"dpwa demo: node {end.name} failed: {end.reason}", file=sys.stderr)
        path = command.output_path
        if path is not None and (files := generations(path)):
            written = "".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
            lines = written.splitlines()[-OUTPUT_TAIL_LINES:]
            print(f"the end of {path}:", *lines, sep="\n  ", file=sys.stderr)


def _measure(config: ClusterConfig, folder: Path, together: Tails) -> DemoResult:
    """Measures the saved models, on all held-out images."""
    # Imported here because they need torch, which takes seconds.
    from dpwa.adapters.averaging import average_models  # noqa: PLC0415
    from dpwa.examples.digits.data import digits_of_node, load_split  # noqa: PLC0415
    from dpwa.examples.digits.model import digits_network  # noqa: PLC0415
    from dpwa.examples.evaluation import accuracy_of  # noqa: PLC0415

    names = [node.name for node in config.nodes]
    _, held_out = load_split()
    network = digits_network()

    def accuracy(run_dir: Path, of: Sequence[str]) -> float:
        network.load_state_dict(average_models([node_folder(run_dir, name) / MODEL_FILE for name in of]))
        share: float = accuracy_of(network, held_out)
        return share

    last = [tail.last for tail in together.values()]
    return DemoResult(
        nodes=tuple(
            NodeResult(
                name=name,
                digits=digits_of_node(index, len(names)),
                accuracy=accuracy(folder, [name]),
                alone_accuracy=accuracy(_alone_dir(folder, name), [name]),
            )
            for index, name in enumerate(names)
        ),
        averaged_accuracy=accuracy(folder, names),
        training_s=max(r["training_ended_s"] for r in last) - min(r["training_started_s"] for r in last),
    )


def _print_result(console: Console, result: DemoResult) -> None:
    table = Table(title="Accuracy on held-out images of all ten digits", title_justify="left")
    table.add_column("node")
    table.add_column("digits in its shard")
    table.add_column("alone", justify="right")
    table.add_column("together", justify="right")
    for node in result.nodes:
        digits = " ".join(str(digit) for digit in node.digits)
        table.add_row(node.name, digits, f"{node.alone_accuracy:.1%}", f"{node.accuracy:.1%}")
    table.add_section()
    mean_alone = result.averaged_accuracy - result.gain
    table.add_row(
        "averaged model", "0 1 2 3 4 5 6 7 8 9", f"{mean_alone:.1%} (mean)", f"{result.averaged_accuracy:.1%}"
    )
    console.print()
    console.print(table)
    console.print(f"Together the nodes gained {result.gain * 100:.1f} points over training alone.")

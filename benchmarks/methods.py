"""How well the averaging methods train: six nodes and the real Fashion-MNIST, once with each file of samples/methods.

    python benchmarks/methods.py --data-dir DIR --json methods.json
    python benchmarks/methods.py --data-dir DIR --quick --samples gosgd

Each training is a `dpwa launch` of the example, as a user would start it; what is told comes from its run folder. For
comparison one node trains alone, on the same sixth of the images as the first of the six.

    mean, lowest       test accuracy of the nodes at their end
    averaged           that of the mean of all six models
    received           bytes of models that all nodes together got from their peers, streamed or from shared memory
    blends             how often a model was changed by what came, all nodes together; a pair counts twice
    failures           exchanges in which something went wrong, such as a timeout

Must not know: how a method works. Runs in: the main thread.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

from measure import ROOT, Result, arguments, ratio

from dpwa.observe.bounded_file import read_records

SAMPLES = {path.stem: path for path in sorted((ROOT / "samples" / "methods").glob("*.yaml"))}
EXAMPLE = ROOT / "examples" / "fashion_mnist" / "train.py"
ALONE = "one node alone"
EPOCHS = 2

# What a node alone reaches is no merit of a method: the averaged model must be better than that by this factor.
_AIM = 1.05
_DEADLINE_S = 900.0


def main() -> None:
    """Train and report."""
    parser = arguments("Trains Fashion-MNIST with each averaging method.")
    parser.add_argument(
        "--samples", nargs="+", choices=SAMPLES, default=list(SAMPLES), metavar="NAME", help="only these"
    )
    parser.add_argument("--data-dir", type=Path, help="folder with the data (default: DPWA_DATA_DIR or data)")
    given = parser.parse_args()
    epochs = 1 if given.quick else EPOCHS
    data_dir: Path = given.data_dir or Path(os.environ.get("DPWA_DATA_DIR", "data"))
    options = ["--epochs", str(epochs), "--data-dir", str(data_dir.absolute())]
    result = Result("methods", settings={"example": "fashion_mnist", "epochs": epochs})
    for name in sorted(given.samples, key=lambda name: name != "pull"):
        with tempfile.TemporaryDirectory(prefix="dpwa-methods-") as folder:
            launch = ["-m", "dpwa", "launch", str(SAMPLES[name]), "--run-dir", folder, "--", sys.executable]
            said, whole_s = run([*launch, str(EXAMPLE), *options], folder)
            result.rows.append({"method": name, **outcome(Path(folder), said), "whole_s": whole_s})
    if not given.quick:
        said, whole_s = run([str(EXAMPLE), "--shard", "1/6", *options], None)
        result.rows.append({"method": ALONE, "mean_percent": accuracy_in(said), "whole_s": whole_s})
    _compare(result)
    result.finish(given.json)


def run(command: list[str], folder: str | None) -> tuple[str, float]:
    """Run Python with these arguments.

    Returns:
        What it printed, and how many seconds it took.

    Raises:
        SystemExit: it failed; with its last words.
    """
    start_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as `dpwa launch` has it, also for the node alone
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_DEADLINE_S,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"python {' '.join(command)} failed:\n{done.stdout[-3000:]}")
    return done.stdout, time.monotonic() - start_s


def outcome(folder: Path, said: str) -> dict[str, Any]:
    """What one training came to.

    Args:
        folder: of the run.
        said: what the launcher printed.

    Raises:
        ValueError: a node has left no metrics.
    """
    last = [_last_line(path) for path in sorted(folder.glob("nodes/*/metrics.jsonl"))]
    if not last:
        raise ValueError(f"{folder}: expected metrics of some nodes, found none")
    accuracies = [100 * metrics["test_accuracy"] for metrics in last]
    training = [metrics["training_ended_s"] - metrics["training_started_s"] for metrics in last]
    averaged = re.findall(r"averaged model of (\d+) of \1 nodes: ([\d.]+)%", said)
    return {
        "mean_percent": mean(accuracies),
        "lowest_percent": min(accuracies),
        "averaged_percent": float(averaged[-1][1]) if averaged else None,
        "received_mb": sum(metrics["bytes_in"] for metrics in last) / 1e6,
        "blends": sum(metrics["exchanges"] for metrics in last),
        "failures": sum(metrics["failures"] for metrics in last),
        "steps": min(metrics["step"] for metrics in last),
        "training_s": max(training),
    }


def accuracy_in(said: str) -> float:
    """The test accuracy that the example prints at its end, in per cent.

    Raises:
        ValueError: it printed none.
    """
    found = re.findall(r"test accuracy of \S+: ([\d.]+)%", said)
    if not found:
        raise ValueError(f"expected a test accuracy in the output, found none:\n{said[-1000:]}")
    return float(found[-1])


def _last_line(path: Path) -> dict[str, Any]:
    *_, found = read_records(path)
    return found


def _compare(result: Result) -> None:
    """The nodes beside those of pull, or of what came first, and averaged models beside a node alone."""
    first, *others = result.rows
    for row in others or [first]:
        above, below = ([each["mean_percent"]] for each in (row, first))
        result.add_ratio("accuracy", row["method"], ratio((row["method"], above), (first["method"], below), "%"))
    alone = next((row["mean_percent"] for row in result.rows if row["method"] == ALONE), None)
    for row in result.rows:
        averaged = row.get("averaged_percent")
        if alone is not None and averaged is not None:
            above, below = (f"averaged model, {row['method']}", [averaged]), (ALONE, [alone])
            result.add_ratio("averaged_over_alone", row["method"], ratio(above, below, "%", at_least=_AIM))


if __name__ == "__main__":
    main()

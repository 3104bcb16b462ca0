"""What one slow machine of four costs a user's script: time, and accuracy of the merged model, paired by seed.

    python benchmarks/unequal.py --quick
    python benchmarks/unequal.py --json unequal.json

Four processes run `unequal_script.py` under `dpwa launch`: digits, shared out with `node.sampler`. Each step takes
300 ms, by sleeping, so that two cores are enough; in the rows with a slow node those of the last one take four times as
long. `pull` exchanges in each step; `noloco` makes an outer step every 12 steps, with and without `by_speed`.

Each run is kept in --folder when it is done, and not made again: a study that was stopped goes on where it was. A run
in which other programs of the machine have made a node's steps late by more than half a second in all is made again, up
to twice: `late_s` says by how much they were.

Must not know: what the script does. Runs in: the main thread.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measure import ROOT, Result, arguments, ratio, spread

from dpwa.config.cluster import ClusterConfig
from dpwa.examples.digits.data import load_split
from dpwa.lab.report.statistics import estimate
from dpwa.lab.training.machine import commit
from dpwa.launch.ports import free_ports
from dpwa.observe.bounded_file import read_records

NODES = 4
SLOWED = 4  # times
STEP_MS = 300
EPOCHS = 4
EVERY = 12
BATCH = 16  # of the script
SCRIPT = Path(__file__).with_name("unequal_script.py")

_AIM = 1.10
_DEADLINE_S = 600.0
_LATE_S = 0.5
_TRIES = 3

Found = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A way to train.

    Attributes:
        name: for the table.
        method: of the cluster file.
        by_speed: whether slow nodes make fewer local steps.
        slowed: how many times slower the last node is.
        base: the row with equal nodes that it is compared with.
    """

    name: str
    method: str = "pull"
    by_speed: bool = False
    slowed: int = 1
    base: str = ""


ROWS = (
    Row("pull, equal"),
    Row("pull, one slow", slowed=SLOWED, base="pull, equal"),
    Row("noloco, equal", "noloco"),
    Row("noloco, one slow", "noloco", slowed=SLOWED, base="noloco, equal"),
    Row("noloco by speed, one slow", "noloco", by_speed=True, slowed=SLOWED, base="noloco, equal"),
)


def main() -> None:
    """Measure and report."""
    parser = arguments("Time and accuracy of four nodes, one of them four times slower.")
    parser.add_argument("--seeds", type=int, help="how many (default: 5)")
    parser.add_argument("--folder", type=Path, help="where runs are kept (default: build/unequal)")
    given = parser.parse_args()
    seeds = given.seeds or (1 if given.quick else 5)
    epochs, step_ms = (1, 40) if given.quick else (EPOCHS, STEP_MS)
    rows = ROWS[:2] if given.quick else ROWS
    folder: Path = given.folder or ROOT / "build" / ("unequal-quick" if given.quick else "unequal")
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Found]] = {row.name: [] for row in rows}
    for seed in range(seeds):
        for row in rows:
            found[row.name].append(kept(folder, row, seed, epochs=epochs, step_ms=step_ms))
    settings = {"nodes": NODES, "slowed": SLOWED, "step_ms": step_ms, "epochs": epochs, "every": EVERY, "seeds": seeds}
    result = Result("unequal", settings=settings)
    report(result, rows, found, least_s=epochs * len(load_split()[0]) / BATCH * step_ms / 1000)
    result.finish(given.json)


def kept(folder: Path, row: Row, seed: int, *, epochs: int, step_ms: int) -> Found:
    """A run, or what was kept of it."""
    path = folder / f"{row.name.replace(',', '').replace(' ', '-')}-{seed}.json"
    asked = {**asdict(row), "seed": seed, "epochs": epochs, "step_ms": step_ms, "every": EVERY}
    if path.exists():
        before: Found = json.loads(path.read_text(encoding="utf-8"))
        if before["asked"] == asked:
            return before
    tries = (trained(row, seed, epochs, step_ms) for _ in range(_TRIES))
    nodes = min(until_punctual(tries), key=late_s)
    found = {"asked": asked, "commit": commit(), "nodes": nodes}
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{row.name}, seed {seed}: {seconds(found):.1f} s, {accuracy(found):.2f} %", flush=True)
    return found


def until_punctual(tries: Iterable[list[Found]]) -> list[list[Found]]:
    """The runs up to the first that nothing else on the machine has held up."""
    made = []
    for nodes in tries:
        made.append(nodes)
        if late_s(nodes) <= _LATE_S:
            break
    return made


def late_s(nodes: Sequence[Found]) -> float:
    """By how much the steps of a node were longer than they should be."""
    return max(float(node["late_s"]) for node in nodes)


def trained(row: Row, seed: int, epochs: int, step_ms: int) -> list[Found]:
    """Train once; what each node has left.

    Raises:
        SystemExit: it failed; with its last words.
    """
    noloco = {"every": EVERY, "by_speed": row.by_speed} if row.method == "noloco" else {}
    config = ClusterConfig.for_localhost(
        NODES, ports=free_ports(NODES), method=row.method, seed=seed, **({"noloco": noloco} if noloco else {})
    )
    with tempfile.TemporaryDirectory(prefix="dpwa-unequal-") as made:
        path, run_dir = Path(made) / "cluster.yaml", Path(made) / "run"
        path.write_text(config.to_yaml(), encoding="utf-8")
        launch = [sys.executable, "-m", "dpwa", "launch", str(path), "--run-dir", str(run_dir), "--", sys.executable]
        numbers = [seed, epochs, step_ms, row.slowed]
        done = subprocess.run(
            [*launch, str(SCRIPT), *map(str, numbers)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_DEADLINE_S,
            check=False,
        )
        files = [run_dir / "nodes" / node.name / "unequal.json" for node in config.nodes]
        if done.returncode or not all(file.exists() for file in files):
            raise SystemExit(f"{row.name}, seed {seed} failed:\n{done.stdout[-3000:]}")
        return [
            {**json.loads(file.read_text(encoding="utf-8")), "waited_s": waited_s(file.with_name("events.jsonl"))}
            for file in files
        ]


def waited_s(journal: Path) -> float:
    """How long a node has waited for blocks."""
    return sum(float(line["waited_s"]) for line in read_records(journal) if line["event"] == "epoch")


def seconds(found: Found) -> float:
    """From the first node's first step until the last node's last."""
    nodes = found["nodes"]
    return float(max(node["ended_s"] for node in nodes) - min(node["began_s"] for node in nodes))


def accuracy(found: Found) -> float:
    """Of the merged model, in per cent."""
    return 100 * float(found["nodes"][0]["accuracy"])


def report(result: Result, rows: Sequence[Row], found: dict[str, list[Found]], *, least_s: float) -> None:
    """Fill in tables and ratios.

    Args:
        result: to fill.
        rows: that were trained.
        found: runs of each, by seed.
        least_s: time that one node of full speed would need for all samples, in full batches.
    """
    for row in rows:
        runs, base = found[row.name], found.get(row.base)
        ideal_s = least_s / (NODES - 1 + 1 / row.slowed)
        times = [seconds(run) for run in runs]
        accuracies = [accuracy(run) for run in runs]
        compared = (
            None if base is None else [one - accuracy(other) for one, other in zip(accuracies, base, strict=True)]
        )
        result.rows.append(
            {
                "training": row.name,
                "seconds": spread(times),
                "least_s": round(ideal_s, 2),
                "accuracy_percent": with_interval(accuracies),
                "minus_equal_nodes": "" if compared is None else with_interval(compared, sign="+"),
                "ended_apart_s": round(max(map(apart, runs)), 2),
                "waited_s": round(max(node["waited_s"] for run in runs for node in run["nodes"]), 2),
                "late_s": round(max(late_s(run["nodes"]) for run in runs), 2),
                "steps_of_w1_and_w4": f"{mean(runs, 0, 'steps'):.0f}, {mean(runs, -1, 'steps'):.0f}",
                **({} if row.method == "pull" else outer_steps(runs)),
                "seeds": len(runs),
            }
        )
        aim = _AIM if row.slowed > 1 else None
        made = ratio((row.name, times), ("what speeds allow", [ideal_s] * len(times)), "s", at_most=aim)
        result.add_ratio("time_over_least", row.name, made)
        if base is not None:
            shares = [time_s * (NODES - 1 + 1 / row.slowed) / NODES for time_s in times]
            equal = (row.base, [seconds(run) for run in base])
            above = (f"{row.name}, times {NODES - 1 + 1 / row.slowed} / {NODES}", shares)
            result.add_ratio("time_over_equal_nodes", row.name, ratio(above, equal, "s", at_most=_AIM))


def outer_steps(runs: Sequence[Found]) -> Found:
    """How many outer steps the nodes have made, and how often one that was ready found no partner."""
    fewest = [min(int(node["method"]["outer_steps"]) for node in run["nodes"]) for run in runs]
    most = [max(int(node["method"]["outer_steps"]) for node in run["nodes"]) for run in runs]
    vain = [sum(count_in_vain(node) for node in run["nodes"]) for run in runs]
    return {
        "outer_steps": f"{statistics.mean(fewest):.1f} to {statistics.mean(most):.1f}",
        "in_vain": f"{statistics.mean(vain):.0f}",
    }


def count_in_vain(node: Found) -> int:
    """Steps in which a node that was ready asked for a partner and found none."""
    return sum(count for outcome, count in node["exchanges"].items() if outcome in ("busy", "aborted", "rejected"))


def mean(runs: Sequence[Found], node: int, key: str) -> float:
    """Of a number of one node."""
    return statistics.mean(run["nodes"][node][key] for run in runs)


def apart(found: Found) -> float:
    """Time between the ends of the first node and the last."""
    ends = [node["ended_s"] for node in found["nodes"]]
    return float(max(ends) - min(ends))


def with_interval(values: Sequence[float], sign: str = "") -> str:
    """Mean and 95 % interval."""
    found = estimate(values)
    if found is None:
        return ""
    return f"{found.mean:{sign}.2f}" + ("" if found.half_width is None else f" ± {found.half_width:.2f}")


if __name__ == "__main__":
    main()

"""Goodput under failure: which share of the steps that healthy nodes would make alone they make while others fail.

    python benchmarks/goodput.py --quick
    python benchmarks/goodput.py --json goodput.json

32 small nodes train, a step every half second; `dpwa chaos` makes about 60 faults in 10 minutes: kills, ends, stops
and partitions. A node counts as healthy while it is neither stopped nor gone; one that was killed counts again when its
next process has started its node. Alone, it would make a step in every half second of that time.

Must not know: how faults are made. Runs in: the main thread. Linux only.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from measure import Result, arguments
from rich.console import Console

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.chaos import break_cluster
from dpwa.launch.ports import free_ports
from dpwa.observe.lives import Run
from dpwa.observe.run_folder import read_run

PACE_MS = 500
WORKER = Path(__file__).with_name("goodput_worker.py")


def main() -> None:
    """Measure and report."""
    parser = arguments("The share of their steps that healthy nodes keep while others fail.")
    parser.add_argument("--nodes", type=int, help="how many (default: 32)")
    parser.add_argument("--minutes", type=float, help="of faults (default: 10)")
    given = parser.parse_args()
    nodes = given.nodes or (6 if given.quick else 32)
    duration_s = 60 * (given.minutes or (0.25 if given.quick else 10.0))
    mtbf_s = 2.0 if given.quick else 10.0
    result = Result(
        "goodput", settings={"nodes": nodes, "duration_s": duration_s, "mtbf_s": mtbf_s, "pace_ms": PACE_MS}
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cluster.yaml"
        path.write_text(ClusterConfig.for_localhost(nodes, ports=free_ports(nodes)).to_yaml())
        code = break_cluster(
            path,
            [sys.executable, str(WORKER), str(PACE_MS)],
            mtbf_s=mtbf_s,
            duration_s=duration_s,
            seed=1,
            run_dir=Path(folder) / "run",
            console=Console(),
        )
        run = read_run(Path(folder) / "run")
    made, possible = steps_of_the_healthy(run, PACE_MS / 1000)
    row = {"faults": len(run.faults), "lives": len(run.all_lives()), "steps made": made, "steps possible": possible}
    result.rows.append({**row, "goodput %": round(100 * made / possible, 2), "all invariants held": code == 0})
    result.finish(given.json)


def steps_of_the_healthy(run: Run, pace_s: float) -> tuple[float, float]:
    """Steps that were made while faults happened, and those that healthy nodes would have made alone."""
    first_s = min(fault.began_s for fault in run.faults)
    last_s = max(min(fault.ended_s, fault.began_s + 10.0) for fault in run.faults)
    made = healthy_s = 0.0
    for name, lives in run.lives.items():
        for life in lives:
            within = [line for line in life.metrics if first_s <= line["t"] <= last_s]
            if not within:
                continue
            before = [line for line in life.metrics if line["t"] < first_s]
            began_s, ended_s = (before[-1]["t"] if before else life.began_s), within[-1]["t"]
            made += within[-1]["step"] - (before[-1]["step"] if before else 0)
            stopped_s = sum(
                max(0.0, min(fault.ended_s, ended_s) - max(fault.began_s, began_s))
                for fault in run.faults
                if fault.kind == "stop" and fault.node == name and fault.pid == life.pid
            )
            healthy_s += ended_s - began_s - stopped_s
    return made, healthy_s / pace_s


if __name__ == "__main__":
    main()

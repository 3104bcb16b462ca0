"""Whether anything grows in a long run: memory, descriptors and threads of four nodes that exchange all the time.

    python benchmarks/soak.py --quick                # three minutes, the least that tells anything
    python benchmarks/soak.py --json soak.json       # ten minutes
    python benchmarks/soak.py --minutes 480

Four nodes make a step every 10 ms and exchange models of 64 kB over encrypted sockets. Afterwards the journals are
checked as `dpwa verify` does; the exit code is 1 if anything grew. Linux only.

Must not know: how an invariant is checked. Runs in: the main thread.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import Result, arguments

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports
from dpwa.observe.invariants import check_run
from dpwa.observe.lives import Life
from dpwa.observe.run_folder import read_run

NODES = 4
PACE_MS = 10
WARM_UP_S = 30.0
WORKER = Path(__file__).with_name("goodput_worker.py")


def main() -> int:
    """Measure and report; the exit code."""
    parser = arguments("Whether memory, descriptors and threads stay flat.")
    parser.add_argument("--minutes", type=float, help="of training (default: 10)")
    given = parser.parse_args()
    minutes = given.minutes or (3.0 if given.quick else 10.0)
    result = Result("soak", settings={"nodes": NODES, "minutes": minutes, "pace_ms": PACE_MS})
    with tempfile.TemporaryDirectory() as folder:
        path, run_dir = Path(folder) / "cluster.yaml", Path(folder) / "run"
        path.write_text(ClusterConfig.for_localhost(NODES, ports=free_ports(NODES), shared_memory="off").to_yaml())
        command = [sys.executable, "-m", "dpwa", "launch", str(path), "--run-dir", str(run_dir)]
        with subprocess.Popen(
            [*command, "--", sys.executable, str(WORKER), str(PACE_MS)], stdout=subprocess.DEVNULL
        ) as launch:
            time.sleep(60.0 * minutes)
            has_run = launch.poll() is None
            launch.terminate()
        run = read_run(run_dir)
    for life in run.all_lives():
        result.rows.append({"node": life.node, **_use(life)})
    checks = [check for check in check_run(run) if check.findings or check.invariant.name in ("I2", "I3", "I7")]
    held = has_run and all(check.verdict == "held" for check in checks)
    for check in checks:
        for finding in check.findings:
            print(f"{check.invariant.name} was violated: {finding.node}: {finding.text}")
    result.settings["all held"] = held
    result.finish(given.json)
    return 0 if held else 1


def _use(life: Life) -> dict[str, Any]:
    """What a node took after its warm-up and at its end."""
    lines = [line for line in life.metrics if line["t"] >= life.metrics[0]["t"] + WARM_UP_S]
    first, last = lines[0], lines[-2]  # the very last one is of a node that has been closed
    minutes = (last["t"] - first["t"]) / 60.0
    grown_mb = (last["resident_bytes"] - first["resident_bytes"]) / 1e6
    return {
        "steps/s": round((last["step"] - first["step"]) / minutes / 60.0, 1),
        "blends": len(life.blends),
        "descriptors": f"{first['descriptors']} -> {last['descriptors']}",
        "threads": f"{first['threads']} -> {last['threads']}",
        "memory MB": f"{first['resident_bytes'] / 1e6:.1f} -> {last['resident_bytes'] / 1e6:.1f}",
        "MB/min": round(grown_mb / minutes, 3),
    }


if __name__ == "__main__":
    sys.exit(main())

"""One trial of `poor_links.py`: a host for each of its processes, with a cable of a given rate and delay.

    python benchmarks/poor_links_trial.py TRIAL_DIR BYTES_PER_S DELAY_S

A host is a network namespace, as in the tests, whose `poor_network` carries its packets. Into the trial's folder goes
link.json: what was carried, lost and held up, and after how many seconds how many bytes.

Must not know: strategies, results. Runs in: the main thread; packets are carried in another one. Linux only, as root.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml
from measure import ROOT

from dpwa.lab.study.trial import TrialFolder

sys.path.append(str(ROOT / "tests"))
from poor_network import Link, PoorNetwork, needs

__all__ = ["LINK_FILE", "main", "needs"]

LINK_FILE = "link.json"
_PACKETS_PER_S = 2000
_LEAST_MTU_BYTES, _MOST_MTU_BYTES = 1500, 60_000
_POLL_S = 0.25
_GRACE_S = 8.0
_PORT = 21000


def main(arguments: list[str]) -> int:
    """Run the trial to its end; the exit code."""
    folder = TrialFolder(Path(arguments[0]))
    bytes_per_s, delay_s = map(float, arguments[1:])
    names = folder.trial().process_names
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Packets grow with the rate, so that carrying them takes no more of the processor at high rates than at low ones.
    mtu_bytes = round(min(max(bytes_per_s / _PACKETS_PER_S, _LEAST_MTU_BYTES), _MOST_MTU_BYTES))
    network = PoorNetwork(len(names), mtu_bytes=mtu_bytes)
    network.link = Link.of_rate(bytes_per_s, delay_s)
    processes: list[subprocess.Popen[bytes]] = []
    points: list[tuple[float, int]] = []
    try:
        network.build()
        _move(folder.cluster_yaml, network.hosts)
        for name, place in zip(names, network.places, strict=True):
            processes.append(_started(folder, name, place))
        code = _watch(processes, network, points)
    finally:
        _end(processes)
        network.remove()
    said = {
        "mtu_bytes": mtu_bytes,
        "carried": network.carried,
        "lost": network.lost,
        "queued": network.queued,
        "points": _since_all_were_ready(points, folder, names),
    }
    (folder.path / LINK_FILE).write_text(json.dumps(said), encoding="utf-8")
    return code


def _move(cluster_yaml: Path, hosts: list[str]) -> None:
    """Give each node a host of its own. Without keys: others do not encrypt either."""
    cluster = yaml.safe_load(cluster_yaml.read_text(encoding="utf-8"))
    for node, host in zip(cluster["nodes"], hosts, strict=True):
        node.update(host=host, port=_PORT)
    cluster["insecure"] = True
    cluster_yaml.write_text(yaml.safe_dump(cluster, sort_keys=False, width=120), encoding="utf-8")


def _started(folder: TrialFolder, name: str, place: str) -> subprocess.Popen[bytes]:
    run = ["run", str(folder.cluster_yaml), "--node", name, "--run-dir", str(folder.path)]
    worker = [sys.executable, "-m", "dpwa.lab.worker", str(folder.path)]
    return subprocess.Popen(
        ["ip", "netns", "exec", place, sys.executable, "-m", "dpwa", *run, "--", *worker],  # noqa: S607
        env={**os.environ, "GLOO_SOCKET_IFNAME": place},
    )


def _watch(processes: list[subprocess.Popen[bytes]], network: PoorNetwork, points: list[tuple[float, int]]) -> int:
    """Wait for all, or for the first that fails; its exit code."""
    while True:
        codes = [process.poll() for process in processes]
        points.append((time.time(), network.carried_bytes))
        if any(codes):
            return next(code for code in codes if code)
        if None not in codes:
            return 0
        time.sleep(_POLL_S)


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    deadline_s = time.monotonic() + _GRACE_S
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
    for process in processes:
        process.kill()
        process.wait()


def _since_all_were_ready(
    points: list[tuple[float, int]], folder: TrialFolder, names: tuple[str, ...]
) -> list[tuple[float, int]]:
    """Seconds on the training clock, which starts when the last process is ready, and bytes since then."""
    ready = [folder.node(name) / "ready" for name in names]
    if not all(path.exists() for path in ready):
        return []
    began_s = max(path.stat().st_mtime for path in ready)
    before = max((carried for moment_s, carried in points if moment_s <= began_s), default=0)
    return [(moment_s - began_s, carried - before) for moment_s, carried in points if moment_s > began_s]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

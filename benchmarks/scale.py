"""What a node costs as the cluster grows: memory, descriptors, threads, processor time, and success of its exchanges.

    python benchmarks/scale.py --quick
    python benchmarks/scale.py --json scale.json

Real node processes on this machine, without a framework, each with a model of 40 KB and a step of 150 ms in which it
asks a peer, so that two cores suffice for all 64. After a time in which every node meets many peers, everything is
looked at once per second.

`growth` is, for each quantity, the slope of a straight line through the values per node at 8, 16, 32 and 64 nodes
(through all sizes of 8 and more that were measured), in shares of the value at 8 per added node: 0.01 is one percent
per added node. Linux only.

Must not know: what a node does inside (`scale_worker`). Runs in: the parent's main thread.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import linear_regression, mean
from typing import Any

import psutil
from measure import Ratio, Result, arguments, cores, spread
from workers import Workers

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports

COUNTS = (2, 4, 8, 16, 32, 64)
PACE_S = 0.15
MODEL_FLOATS = 10_000
GROWTH_FROM = 8
_GROWTH_AT_MOST = 0.01
_SUCCESS_AT_LEAST = 0.999
_START_DEADLINE_S = 300.0

# "not_modified": the peer answered that it has nothing newer. Everything else counts against.
SUCCESSES = ("blended", "not_modified")

UNITS = {"uss_mb": "MB", "pss_mb": "MB", "descriptors": "", "threads": "", "cpu": "s/s"}


@dataclass(frozen=True)
class Look:
    """Means over all nodes, of one second.

    Attributes:
        uss_mb: memory that belongs to a node alone.
        pss_mb: that, and its share of what it has in common with others.
        descriptors: open files and sockets.
        threads: of the process.
        cpu: seconds of processor time per second.
    """

    uss_mb: float
    pss_mb: float
    descriptors: float
    threads: float
    cpu: float


def main() -> None:
    """Measure and report."""
    parser = arguments("Memory, descriptors, threads, processor time and success per node, by size of the cluster.")
    parser.add_argument("--counts", type=int, nargs="+", metavar="N", help="sizes of the cluster")
    parser.add_argument("--looks", type=int, help="seconds of looking at each size (default: 20)")
    parser.add_argument("--settle", type=float, metavar="S", help="seconds before that (default: 5 steps per node)")
    given = parser.parse_args()
    counts = given.counts or ([2, 3] if given.quick else list(COUNTS))
    looks = given.looks or (2 if given.quick else 20)
    result = Result("scale", settings={"pace_s": PACE_S, "model_bytes": 4 * MODEL_FLOATS})
    measured: dict[int, list[Look]] = {}
    for count in counts:
        settle_s = given.settle if given.settle is not None else 1.0 if given.quick else max(10.0, 5 * count * PACE_S)
        measured[count], outcomes = _cluster(count, looks, settle_s)
        _report(result, count, measured[count], outcomes)
    report_growth(result, {count: found for count, found in measured.items() if count >= GROWTH_FROM})
    result.finish(given.json)


def _cluster(count: int, looks: int, settle_s: float) -> tuple[list[Look], list[dict[str, int]]]:
    """Run so many nodes; what was seen, and each node's exchanges by outcome meanwhile."""
    config = ClusterConfig.for_localhost(count, ports=free_ports(count), run="benchmark")
    order = [(config, index, core, PACE_S, MODEL_FLOATS) for index, core in enumerate(cores(count))]
    with Workers("scale_worker:run_node", order) as workers:
        workers.hear(_START_DEADLINE_S)  # all are up
        workers.tell("train")
        time.sleep(settle_s)
        processes = [psutil.Process(identity) for identity in workers.process_ids]
        workers.tell("exchanges")
        before = workers.hear()
        found = _look(processes, looks)
        workers.tell("exchanges")
        after = workers.hear()
        workers.tell("end")
        workers.hear()
    return found, [
        {outcome: number - then.get(outcome, 0) for outcome, number in now.items()}
        for then, now in zip(before, after, strict=True)
    ]


def _look(processes: Sequence[psutil.Process], looks: int) -> list[Look]:
    found = []
    cpu_s, at_s = _cpu_s(processes), time.monotonic()
    for _ in range(looks):
        time.sleep(max(0.0, at_s + 1.0 - time.monotonic()))
        now_cpu_s, now_s = _cpu_s(processes), time.monotonic()
        memory = [process.memory_full_info() for process in processes]
        found.append(
            Look(
                uss_mb=mean(info.uss for info in memory) / 1e6,
                pss_mb=mean(info.pss for info in memory) / 1e6,
                descriptors=mean(process.num_fds() for process in processes),
                threads=mean(process.num_threads() for process in processes),
                cpu=(now_cpu_s - cpu_s) / (now_s - at_s),
            )
        )
        cpu_s, at_s = now_cpu_s, now_s
    return found


def _cpu_s(processes: Sequence[psutil.Process]) -> float:
    """Processor time of a node so far, mean of all."""
    times = [process.cpu_times() for process in processes]
    return mean(found.user + found.system for found in times)


def _report(result: Result, count: int, looks: Sequence[Look], outcomes: Sequence[Mapping[str, int]]) -> None:
    row: dict[str, Any] = {"nodes": count}
    for quantity in fields(Look):
        row[quantity.name] = spread([getattr(look, quantity.name) for look in looks])
    tried = [sum(node.values()) for node in outcomes]
    succeeded = [sum(node.get(outcome, 0) for outcome in SUCCESSES) for node in outcomes]
    row["exchanges_per_node"] = spread(tried)
    total = Counter[str]()
    for node in outcomes:
        total.update(node)
    row["outcomes"] = {outcome: number for outcome, number in sorted(total.items()) if number}
    result.rows.append(row)
    per_node = spread([good / max(1, of) for good, of in zip(succeeded, tried, strict=True)])
    result.add_ratio(
        "success",
        f"{count} nodes",
        Ratio(
            sum(succeeded) / max(1, sum(tried)),
            per_node.p10,
            per_node.p90,
            count,
            {"what": "successful", "unit": "exchanges", "median": sum(succeeded)},
            {"what": "all", "unit": "exchanges", "median": sum(tried)},
            at_least=_SUCCESS_AT_LEAST,
        ),
    )


def report_growth(result: Result, measured: Mapping[int, Sequence[Look]]) -> None:
    """Growth of each quantity, once for each of the looks, so that it has a spread."""
    counts = sorted(measured)
    if len(counts) < 2:
        return
    for quantity in fields(Look):
        series = [[getattr(look, quantity.name) for look in measured[count]] for count in counts]
        slopes = [linear_regression(counts, values).slope for values in zip(*series, strict=False)]
        growths = spread([slope / mean(series[0]) for slope in slopes])
        first, last = spread(series[0]), spread(series[-1])
        result.add_ratio(
            "growth",
            quantity.name,
            Ratio(
                growths.median,
                growths.p10,
                growths.p90,
                growths.repetitions,
                {"what": f"slope, {counts[-1]} nodes:", "unit": UNITS[quantity.name], **asdict(last)},
                {"what": f"value, {counts[0]} nodes:", "unit": UNITS[quantity.name], **asdict(first)},
                at_most=_GROWTH_AT_MOST,
            ),
        )


if __name__ == "__main__":
    main()

"""What dpwa costs a training script: the time of its steps with and without dpwa, and where that time goes.

    python benchmarks/overhead.py --quick
    python benchmarks/overhead.py --json overhead.json

Two worker processes train the same network, each on a core of its own with one computing thread. They do so in turn
without dpwa and with it (an exchange asked for in every step), many times, so that a drift of the machine meets both;
the ratio compares neighbours. "Without" is the same two processes in the same state, both training. The images are
random: time does not depend on what they show.

    fashion   the Fashion-MNIST network, batch 128
    digits    the digits network, batch 32: a step of about a millisecond, the hard case
    resnet18  torchvision's ResNet-18 on images of 32x32, batch 32

The trainer's time in dpwa is split into copying the model for publishing, applying the exchange, and everything else
in `step` (bookkeeping, asking, reading the loss). Linux only.

Must not know: how a step is timed (`training_worker`). Runs in: the parent's main thread.
"""

from __future__ import annotations

from statistics import mean
from typing import Any

from measure import Result, arguments, cores, ratio, spread
from training_job import Block, Timed
from workers import Workers

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports

NODES = 2

# Network, batch, steps in a block (about two seconds of training), at most this ratio is wanted.
CASES: dict[str, tuple[int, int, float]] = {
    "fashion": (128, 16, 1.02),
    "digits": (32, 1000, 1.10),
    "resnet18": (32, 16, 1.02),
}
_QUICK_STEPS = 6
_DEADLINE_S = 300.0


def main() -> None:
    """Measure and report."""
    parser = arguments("Times training steps with and without dpwa.")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="NAME", help="only these")
    parser.add_argument("--pairs", type=int, help="blocks without and with dpwa (default: 20)")
    parser.add_argument("--steps", type=int, help="in each block (default: about two seconds of training)")
    given = parser.parse_args()
    pairs = given.pairs or (2 if given.quick else 20)
    result = Result("overhead", settings={"nodes": NODES, "pull_probability": 1.0})
    for case in given.cases:
        batch, steps, aim = CASES[case]
        steps = given.steps or (_QUICK_STEPS if given.quick else steps)
        with Workers(
            "training_worker:train", [(case, batch, core, number) for number, core in enumerate(cores(NODES))]
        ) as workers:
            without: list[float] = []
            with_dpwa: list[list[Timed]] = []
            for number in range(pairs):
                # Without, with, with, without …: what the one leaves behind for the next does not always favour one.
                for together in ("alone", "dpwa") if number % 2 == 0 else ("dpwa", "alone"):
                    if together == "alone":
                        without.append(mean(timed.step_s for timed in block(workers, Block("alone", steps=steps))))
                    else:
                        with_dpwa.append(block(workers, Block("dpwa", steps=steps, config=_cluster())))
        _report(result, case, without, with_dpwa, aim)
    result.finish(given.json)


def _cluster() -> ClusterConfig:
    """A fresh cluster for each block: no port is waited for, and no old connection is met."""
    return ClusterConfig.for_localhost(NODES, ports=free_ports(NODES), run="benchmark")


def block(workers: Workers, order: Block) -> list[Timed]:
    """Have all workers train until each has made its timed steps.

    Raises:
        WorkerFailed: one of them did not.
    """
    workers.tell(order)
    timed: list[Timed] = workers.hear(_DEADLINE_S)
    workers.tell("enough")
    workers.hear(_DEADLINE_S)
    return timed


def _report(result: Result, case: str, without: list[float], with_dpwa: list[list[Timed]], aim: float) -> None:
    steps_s = [mean(timed.step_s for timed in timeds) for timeds in with_dpwa]
    everything = [timed for timeds in with_dpwa for timed in timeds]
    rows: list[dict[str, Any]] = [
        {
            "case": case,
            "dpwa": name,
            "step_ms": spread(samples).scaled(1e3),
            "steps_per_s": spread([1 / seconds for seconds in samples]),
            "blocks": len(samples),
        }
        for name, samples in (("without", without), ("with", steps_s))
    ]
    row = rows[-1]
    for part in ("publish", "apply", "bookkeeping"):
        row[f"{part}_ms"] = spread([getattr(timed, f"{part}_s") for timed in everything]).scaled(1e3)
    row["exchanges_per_step"] = spread([timed.blended / timed.steps for timed in everything])
    result.rows += rows
    above, below = ([seconds * 1e3 for seconds in samples] for samples in (steps_s, without))
    result.add_ratio(
        "step_time", case, ratio((f"{case} with dpwa", above), (f"{case} without", below), "ms", at_most=aim)
    )


if __name__ == "__main__":
    main()

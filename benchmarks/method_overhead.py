"""What each averaging method costs a training script beside the method pull.

    python benchmarks/method_overhead.py --quick
    python benchmarks/method_overhead.py --json method_overhead.json

Two worker processes train the Fashion-MNIST network with batch 128, each on a core of its own with one computing
thread, and exchange as often as the method lets them. Every round has one block of each method, in turn and then in
reverse, so that a drift of the machine meets all; the ratios compare the blocks of one round.

    step_time     whole steps: the trainer's work, its waiting, and what dpwa's other threads take from its core
    trainer_time  a step of pull plus what the method's `step` takes of the trainer's thread beyond that of pull, in
                  processor time; it leaves out waiting and other threads

`sgp_plain` is sgp with `debias: false`: the difference to `sgp` is the price of the de-bias. Linux only.

Must not know: how a step is timed (`training_worker`). Runs in: the parent's main thread.
"""

from __future__ import annotations

from statistics import mean
from typing import Any

from measure import Result, arguments, cores, ratio, spread
from overhead import block
from training_job import Block, Timed
from workers import Workers

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports

NODES = 2
BATCH = 128
EVERY = 20  # steps between two outer steps

METHODS: dict[str, dict[str, Any]] = {
    "pull": {},
    "gosgd": {"method": "gosgd"},
    "sgp": {"method": "sgp"},
    "sgp_plain": {"method": "sgp", "sgp": {"debias": False}},
    "adpsgd": {"method": "adpsgd"},
    "elastic": {"method": "elastic"},
    "dpsgd": {"method": "dpsgd"},
    "sparta": {"method": "sparta"},
    "noloco": {"method": "noloco", "noloco": {"every": EVERY}},
    "outer": {"outer": {"every": EVERY}},
}

# At most this ratio is wanted; none is stated for the de-bias, which is one more pass over the model in each step.
_AIM = 1.01
_WITHOUT_AIM = ("sgp",)

_STEPS = 2 * EVERY
_QUICK_STEPS = 4


def main() -> None:
    """Measure and report."""
    parser = arguments("Times training steps with each averaging method beside those with pull.")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME", help="only these"
    )
    parser.add_argument("--rounds", type=int, help="blocks of each method (default: 12)")
    parser.add_argument("--steps", type=int, help=f"in each block (default: {_STEPS})")
    given = parser.parse_args()
    rounds = given.rounds or (1 if given.quick else 12)
    steps = given.steps or (_QUICK_STEPS if given.quick else _STEPS)
    names = ["pull", *(name for name in given.methods if name != "pull")]
    result = Result("method_overhead", settings={"nodes": NODES, "batch": BATCH, "steps": steps, "methods": METHODS})
    measured: dict[str, list[list[Timed]]] = {name: [] for name in names}
    order = [("fashion", BATCH, core, number) for number, core in enumerate(cores(NODES))]
    with Workers("training_worker:train", order) as workers:
        for number in range(rounds):
            for name in names if number % 2 == 0 else reversed(names):
                measured[name].append(block(workers, Block("dpwa", steps=steps, config=_cluster(METHODS[name]))))
    for name in names:
        _report(result, name, measured[name], measured["pull"])
    result.finish(given.json)


def _cluster(settings: dict[str, Any]) -> ClusterConfig:
    return ClusterConfig.for_localhost(NODES, ports=free_ports(NODES), run="benchmark", **settings)


def _report(result: Result, name: str, blocks: list[list[Timed]], of_pull: list[list[Timed]]) -> None:
    steps_ms, base_ms = (
        [mean(timed.step_s for timed in timeds) * 1e3 for timeds in every] for every in (blocks, of_pull)
    )
    cpu_ms, base_cpu_ms = (
        [mean(timed.cpu_s for timed in timeds) * 1e3 for timeds in every] for every in (blocks, of_pull)
    )
    everything = [timed for timeds in blocks for timed in timeds]
    row: dict[str, Any] = {"method": name, "step_ms": spread(steps_ms), "trainer_ms": spread(cpu_ms)}
    for part in ("publish", "apply", "bookkeeping"):
        row[f"{part}_ms"] = spread([getattr(timed, f"{part}_s") * 1e3 for timed in everything])
    row["blends_per_step"] = spread([timed.blended / timed.steps for timed in everything])
    row["blocks"] = len(blocks)
    result.rows.append(row)
    if name == "pull":
        return
    aim = None if name in _WITHOUT_AIM else _AIM
    result.add_ratio("step_time", name, ratio((name, steps_ms), ("pull", base_ms), "ms", at_most=aim))
    more_ms = [base + own - of_base for base, own, of_base in zip(base_ms, cpu_ms, base_cpu_ms, strict=True)]
    made = ratio((f"pull and what {name} adds", more_ms), ("pull", base_ms), "ms", at_most=aim)
    result.add_ratio("trainer_time", name, made)


if __name__ == "__main__":
    main()

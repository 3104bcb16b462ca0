"""What one slow node costs the others: total samples per second of dpwa, of DistributedDataParallel, and of free nodes.

    python benchmarks/straggler.py --quick
    python benchmarks/straggler.py --json straggler.json

Four workers run the same script: the digits network at batch 32 (about a millisecond) and a pause of 20 ms in every
step, so that the cores are not the limit. One of them pauses 80 ms instead. They train free (each for itself), with
dpwa (an exchange asked for in every step), and under gloo DistributedDataParallel, in turn, many times; a ratio
compares neighbours. Linux only.

Must not know: how a step is made (`training_worker`). Runs in: the parent's main thread.
"""

from __future__ import annotations

from measure import Result, arguments, cores, ratio, spread
from overhead import block
from training_job import Block, Timed, Together
from workers import Workers

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports

NODES = 4
BATCH = 32
PAUSE_S = 0.020
SLOWED = 4  # times
MODES: tuple[Together, ...] = ("alone", "dpwa", "ddp")
_NAMES = {"alone": "free-running", "dpwa": "dpwa", "ddp": "gloo DistributedDataParallel"}


def main() -> None:
    """Measure and report."""
    parser = arguments("Samples per second of four nodes, one of them slowed four times.")
    parser.add_argument("--rounds", type=int, help="of each way to train (default: 20)")
    parser.add_argument("--seconds", type=float, help="of each block (default: 4)")
    given = parser.parse_args()
    rounds = given.rounds or (1 if given.quick else 20)
    seconds = given.seconds or (0.8 if given.quick else 4.0)
    pauses = [PAUSE_S] * (NODES - 1) + [PAUSE_S * SLOWED]
    result = Result("straggler", settings={"nodes": NODES, "pauses_s": pauses, "seconds": seconds})
    places = cores(NODES)
    order = [("digits", BATCH, places[rank], rank, pauses[rank]) for rank in range(NODES)]
    measured: dict[Together, list[list[Timed]]] = {mode: [] for mode in MODES}
    with Workers("training_worker:train", order) as workers:
        for _ in range(rounds):
            for mode in MODES:
                measured[mode].append(block(workers, _block(mode, seconds)))
    _report(result, measured)
    result.finish(given.json)


def _block(mode: Together, seconds: float) -> Block:
    config = ClusterConfig.for_localhost(NODES, ports=free_ports(NODES), run="benchmark")
    if mode == "ddp":
        # All must make equally many steps; the slowest node's pace says how many fit in the time.
        return Block(mode, steps=max(3, round(seconds / (PAUSE_S * SLOWED))), config=config)
    return Block(mode, seconds=seconds, config=config)


def _report(result: Result, measured: dict[Together, list[list[Timed]]]) -> None:
    totals = {
        mode: [sum(BATCH / timed.step_s for timed in timeds) for timeds in blocks] for mode, blocks in measured.items()
    }
    for mode, blocks in measured.items():
        fast, slow = [[timeds[index].step_s for timeds in blocks] for index in (0, NODES - 1)]
        exchanges = [timed.blended / timed.steps for timeds in blocks for timed in timeds]
        result.rows.append(
            {
                "training": _NAMES[mode],
                "samples_per_s": spread(totals[mode]),
                "step_ms_of_w1": spread(fast).scaled(1e3),
                "step_ms_of_slowed": spread(slow).scaled(1e3),
                "exchanges_per_step": spread(exchanges) if mode == "dpwa" else None,
                "rounds": len(blocks),
            }
        )
    aims: dict[Together, float | None] = {"dpwa": 0.95, "ddp": None}
    for above, aim in aims.items():
        made = ratio((_NAMES[above], totals[above]), (_NAMES["alone"], totals["alone"]), "samples/s", at_least=aim)
        result.add_ratio(f"{above}_over_free", f"{NODES} nodes, one {SLOWED} times slower", made)


if __name__ == "__main__":
    main()

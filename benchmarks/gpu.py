"""What dpwa costs a training script on a GPU: the time of its steps with and without dpwa, and where that time goes.

    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --quick --device cpu      shows that it runs, at tiny sizes, without a GPU

Two worker processes train the same network, each on a GPU of its own if there are two, else both on the one. They do so
in turn without dpwa and with it (an exchange asked for in every step), many times; the ratio compares neighbours.

    gpt2      a transformer of the shape of the smallest GPT-2: 124 M parameters, 8 texts of 1024 tokens
    resnet50  torchvision's ResNet-50 on images of 224x224, batch 64

Without a GPU it says so and ends with 0: there is nothing to measure, and nothing is wrong.

Must not know: how a step is timed (`gpu_worker`). Runs in: the parent's main thread.
"""

from __future__ import annotations

from statistics import mean
from typing import Any

import torch
from gpu_job import GpuBlock, GpuJob, GpuTimed
from measure import Result, arguments, ratio, spread
from workers import Workers

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports

NODES = 2

# Steps of a block: about two seconds on a recent GPU.
_STEPS = {"gpt2": 30, "resnet50": 30}
_QUICK_STEPS = 6
_DEADLINE_S = 600.0

_PARTS = ("publish_host", "publish_gpu", "ready", "apply_host", "apply_gpu", "exchange")


def main() -> None:
    """Measure and report."""
    parser = arguments("Times training steps on a GPU with and without dpwa.")
    parser.add_argument("--cases", nargs="+", choices=_STEPS, default=list(_STEPS), metavar="NAME", help="only these")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny networks, to try it out")
    parser.add_argument("--pairs", type=int, help="blocks without and with dpwa (default: 20)")
    parser.add_argument("--steps", type=int, help="in each block (default: about two seconds of training)")
    parser.add_argument("--batch", type=int, default=0, help="samples per step (default: see above)")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("gpu: no CUDA GPU here, so nothing was measured; --device cpu shows that the benchmark runs")
        return
    pairs = given.pairs or (2 if given.quick else 20)
    tiny = given.quick or given.device == "cpu"
    result = Result("gpu", settings=_settings(given.device, tiny=tiny))
    for case in given.cases:
        jobs = [(GpuJob(case, tiny, given.device, given.batch, rank),) for rank in range(NODES)]
        steps = given.steps or (_QUICK_STEPS if given.quick else _STEPS[case])
        without: list[float] = []
        with_dpwa: list[list[GpuTimed]] = []
        with Workers("gpu_worker:train", jobs) as workers:
            for number in range(pairs):
                # Without, with, with, without …: what the one leaves behind for the next does not always favour one.
                for is_dpwa in (False, True) if number % 2 == 0 else (True, False):
                    if is_dpwa:
                        with_dpwa.append(_block(workers, GpuBlock(steps, config=_cluster())))
                    else:
                        without.append(mean(timed.step_s for timed in _block(workers, GpuBlock(steps))))
        _report(result, case, without, with_dpwa)
    result.finish(given.json)


def _settings(device: str, *, tiny: bool) -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if device == "cuda" else []
    return {"nodes": NODES, "pull_probability": 1.0, "device": device, "gpus": gpus, "tiny": tiny}


def _cluster() -> ClusterConfig:
    """A fresh cluster for each block: no port is waited for, and no old connection is met."""
    return ClusterConfig.for_localhost(NODES, ports=free_ports(NODES), run="benchmark")


def _block(workers: Workers, order: GpuBlock) -> list[GpuTimed]:
    workers.tell(order)
    workers.hear(_DEADLINE_S)  # all have made their timed steps, and go on
    workers.tell("enough")
    timed: list[GpuTimed] = workers.hear(_DEADLINE_S)
    return timed


def _report(result: Result, case: str, without: list[float], with_dpwa: list[list[GpuTimed]]) -> None:
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
    row["model_mb"] = everything[0].model_mb
    row["exchanges_per_step"] = spread([timed.blended / timed.steps for timed in everything])
    for part in _PARTS:
        samples = [seconds for timed in everything for seconds in getattr(timed, f"{part}_s")]
        # There is no time on a GPU without one, and in a short block no exchange may have been applied.
        row[f"{part}_ms"] = spread(samples).scaled(1e3) if samples else None
    result.rows += rows
    above, below = ([seconds * 1e3 for seconds in samples] for samples in (steps_s, without))
    result.add_ratio("step_time", case, ratio((f"{case} with dpwa", above), (f"{case} without", below), "ms"))


if __name__ == "__main__":
    main()

"""Time to 88 % of Fashion-MNIST by method and codec, where four hosts have links of 1 Gbit/s, 100 and 20 Mbit/s.

    python benchmarks/poor_links.py --data-dir DIR --json build/poor_links.json
    python benchmarks/poor_links.py --rates 20 --only row=ddp --only "row=pull, auto"
    python benchmarks/poor_links.py --quick

The rows are those of poor_links.yaml, a study of the lab. Beside dpwa's methods stand gloo's DistributedDataParallel,
local SGD and FedAvg. Each host is a network namespace, and a thread carries the packets (`poor_links_trial`). A step
takes 50 ms and the computing. Nothing is encrypted. What has been measured is kept in a run folder for each rate: the
same command goes on where it was stopped, and `dpwa lab report` shows more.

    to_target_s       seconds to 88 % on the training clock, of the mean of all models (FedAvg: of the server's)
    best_percent      the highest accuracy of a round
    step_ms           mean of the whole training, waiting for others included
    mb_per_node       what the links carried until 88 %, or else until the end, headers and repeats included
    kb_per_step       the same per step of a node, over the whole training
    asked, real       exchanges per step that the settings ask for, and those that came to something
    lost_packets      that a full queue had no room for

Must not know: how a strategy works. Runs in: the main thread. Linux only, as root.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measure import ROOT, Result, arguments, ratio
from poor_links_trial import LINK_FILE, needs
from report import OTHERS_OVER_LINKS, draw
from rich.console import Console

from dpwa.lab.report.results import TrialResult, read_results
from dpwa.lab.report.summary import time_to
from dpwa.lab.run.run_folder import RunFolder, read_json
from dpwa.lab.run.running import Runner
from dpwa.lab.study.study import Study
from dpwa.lab.study.trial import Trial, TrialFolder

STUDY = Path(__file__).with_suffix(".yaml")
TRIAL = Path(__file__).with_name("poor_links_trial.py")
RATES_MBIT = (1000.0, 100.0, 20.0)
_BYTES_OF_MBIT = 125_000
_DEFAULT = "pull, auto"
_QUICK = {"data": "digits", "n_epochs": 1, "batch_size": 16, "rounds_per_epoch": 1}
_QUICK_ROWS = ("local SGD, every 20 steps", "pull, int8")


def main() -> int:
    """Measure and report; the exit code."""
    parser = arguments("Time to an accuracy over slow links, by method and codec.")
    parser.add_argument("--rates", type=float, nargs="+", metavar="MBIT", help="of the links (default: 1000 100 20)")
    parser.add_argument("--delay-ms", type=float, default=5.0, help="of each way (default: 5)")
    parser.add_argument("--only", action="append", default=[], metavar="KEY=VALUE", help="as `dpwa lab run` has it")
    parser.add_argument(
        "--run-dir", type=Path, default=ROOT / "build" / "poor_links", help="(default: build/poor_links)"
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds 0 to N-1 (default: those of the study)")
    parser.add_argument("--data-dir", type=Path, help="folder with the data (default: DPWA_DATA_DIR or data)")
    given = parser.parse_args()
    if missing := needs():
        sys.exit(f"poor_links: {missing}")
    study = _study(is_quick=given.quick)
    rates: tuple[float, ...] = tuple(given.rates or ()) or ((100.0,) if given.quick else RATES_MBIT)
    data_dir: Path = given.data_dir or Path(os.environ.get("DPWA_DATA_DIR", "data"))
    trials = study.trials(given.only, given.seeds)
    settings = {"nodes": trials[0].settings.nodes, "delay_ms": given.delay_ms, "target_percent": study.target_accuracy}
    result, code = Result("poor_links", settings=settings), 0
    for rate in rates:
        run_dir = given.run_dir / f"{rate:g}-mbit{'-quick' * given.quick}"
        Console().print(f"{rate:g} Mbit/s, {given.delay_ms:g} ms each way", highlight=False)
        command = partial(_command, rate * _BYTES_OF_MBIT, given.delay_ms / 1000)
        runner = Runner(study, trials, run_dir, data_dir.absolute(), command=command)
        code = runner.run(Console()) or code
        if code > 1:  # ended by a signal, or there are no data
            return code
        result.rows += _rows(study, trials, runner.folder, rate)
    _compare(result)
    result.finish(given.json)
    if given.json is not None and any(row["status"] == "done" for row in result.rows):
        draw(result.as_json(), given.json.with_suffix(".png"))
        Console().print(f"Written: {given.json.with_suffix('.png')}", highlight=False)
    return code


def _study(*, is_quick: bool) -> Study:
    study = Study.load(STUDY, for_running=True)
    if not is_quick:
        return study
    rows = [
        replace(row, settings=row.settings.model_copy(update=_QUICK)) for row in study.rows if row.label in _QUICK_ROWS
    ]
    return replace(study, rows=tuple(rows))


def _command(bytes_per_s: float, delay_s: float, _trial: Trial, folder: TrialFolder) -> list[str]:
    return [sys.executable, str(TRIAL), str(folder.path), str(bytes_per_s), str(delay_s)]


def _rows(study: Study, trials: Sequence[Trial], folder: RunFolder, rate_mbit: float) -> Iterator[dict[str, Any]]:
    wanted = [(trial.row, trial.seed) for trial in trials]
    results = {(found.row, found.seed): found for found in read_results(folder.path)[0]}
    for trial, key in zip(trials, wanted, strict=True):
        head = {"mbit": rate_mbit, "row": trial.row, "seed": trial.seed}
        link = read_json(folder.of(trial).path / LINK_FILE)
        if link is None or not link["points"]:
            yield {**head, "status": results[key].reason}
        else:
            yield {**head, **row_of(results[key], link, (study.target_accuracy or 100.0) / 100)}


def row_of(found: TrialResult, link: Mapping[str, Any], target: float) -> dict[str, Any]:
    """What one trial came to; see the top of this file.

    Args:
        found: its result.
        link: what the links carried; see `poor_links_trial`.
        target: the accuracy, 0..1.
    """
    reached_s = time_to(found.rounds, target)
    steps, nodes = sum(worker.steps for worker in found.workers), len(found.workers)
    moments_s, carried = zip(*link["points"], strict=True)
    until_s = found.training_s if reached_s is None else reached_s
    return {
        "to_target_s": reached_s,
        "best_percent": 100 * max((r.accuracy for r in found.rounds if r.accuracy is not None), default=0.0),
        "step_ms": 1000 * found.training_s * nodes / steps,
        "mb_per_node": float(np.interp(until_s, moments_s, carried)) / nodes / 1e6,
        "kb_per_step": carried[-1] / steps / 1e3,
        "asked": found.asked_per_step,
        "real": found.exchanges_per_step,
        "lost_packets": link["lost"],
        "status": found.reason or found.status,
    }


def _compare(result: Result) -> None:
    """For each rate, the fastest strategy of others beside what dpwa does by default: one row, not the best of many."""
    for mbit in dict.fromkeys(row["mbit"] for row in result.rows):
        rows = [row for row in result.rows if row["mbit"] == mbit and row.get("to_target_s")]
        others = [row for row in rows if row["row"].partition(",")[0] in OTHERS_OVER_LINKS]
        own = next((row for row in rows if row["row"] == _DEFAULT), None)
        if others and own is not None:
            other = min(others, key=lambda row: row["to_target_s"])
            above, below = ((row["row"], [row["to_target_s"]]) for row in (other, own))
            result.add_ratio("time_of_others", f"{mbit:g} Mbit/s", ratio(above, below, "s"))


if __name__ == "__main__":
    sys.exit(main())

"""The raw results of a study as one small JSON file: what each trial came to, by row, seed and round.

Equal things are written once, curves are thinned and numbers have six digits, so that all studies together stay below a
few megabytes. What is left is enough to make every table and curve of the report again.

Must not know: pages, pictures. Runs in: the main thread.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpwa.lab.report.results import TrialResult, read_results
from dpwa.lab.report.worker_chart import MOST_WORKERS
from dpwa.lab.study.study import Study

BATCH_POINTS = 100
WORKER_POINTS = 25

_LONG = ("trial", "machine", "commit", "initial_weights", "rounds", "batches", "worker_batches", "class_counts")


def collect(run_dir: Path) -> dict[str, Any]:
    """The results of a run.

    Args:
        run_dir: its folder, with a study.yaml.

    Returns:
        What `results_of` reads.

    Raises:
        SystemExit: there are no results, or those of several commits, which need not compare.
    """
    study = Study.load(run_dir / "study.yaml")
    results, problems = read_results(run_dir)
    labels = {row.label for row in study.rows}
    results = [result for result in results if result.row in labels]
    commits = sorted({result.commit or "unknown" for result in results})
    if problems or not results:
        sys.exit("\n".join(problems) or f"{run_dir}: nothing has been measured yet")
    if len(commits) > 1:
        sys.exit(f"{run_dir}: results of {len(commits)} commits ({', '.join(commits)}); run the older rows again")
    machines = list({json.dumps(result.machine, sort_keys=True): result.machine for result in results}.values())
    settings = {result.row: result.trial.settings for result in results}
    first_seed = min(result.seed for result in results)
    return {
        "study": study.name,
        "commit": commits[0],
        "machines": machines,
        "settings": settings,
        "trials": [_small(result, machines, with_workers=result.seed == first_seed) for result in results],
    }


def added(kept: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """What there was, with the trials of one more run: other rows, other seeds, or the same ones again.

    Args:
        kept: content of the file.
        found: what `collect` has found.

    Raises:
        SystemExit: these are two studies, two commits, or one row with two settings.
    """
    for key in ("study", "commit"):
        if kept[key] != found[key]:
            sys.exit(f"the results that there are have the {key} {kept[key]}, and those to be added {found[key]}")
    other = [row for row, settings in found["settings"].items() if kept["settings"].get(row, settings) != settings]
    if other:
        sys.exit(f"the results that there are have other settings in {', '.join(other)}")
    machines = [*kept["machines"], *(each for each in found["machines"] if each not in kept["machines"])]
    trials = {(trial["row"], trial["seed"]): trial for trial in kept["trials"]}
    for trial in found["trials"]:
        trials[trial["row"], trial["seed"]] = {**trial, "machine": machines.index(found["machines"][trial["machine"]])}
    settings = {**kept["settings"], **found["settings"]}
    return {**kept, "machines": machines, "settings": settings, "trials": list(trials.values())}


def results_of(found: Mapping[str, Any]) -> list[TrialResult]:
    """The results in the content of a file."""
    return [_whole(found, trial) for trial in found["trials"]]


def write(path: Path, found: Mapping[str, Any]) -> None:
    """Writes a file, with one line for each trial, so that a new trial is a new line."""
    head = {key: value for key, value in found.items() if key != "trials"}
    lines = ",\n".join(json.dumps(trial) for trial in found["trials"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{json.dumps(head)[:-1]}, "trials": [\n{lines}\n]}}\n', encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """The content of a file."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _small(result: TrialResult, machines: Sequence[Mapping[str, Any]], *, with_workers: bool) -> dict[str, Any]:
    plain = result.model_dump(mode="json")
    kept = {key: value for key, value in plain.items() if key not in _LONG}
    workers = list(result.worker_batches)[:MOST_WORKERS] if with_workers else []
    return _rounded(
        {
            "row": result.row,
            "seed": result.seed,
            "machine": machines.index(result.machine),
            **kept,
            "initial_weights": " ".join(weights[:16] for weights in result.initial_weights.split()),
            "rounds": {key: [one[key] for one in plain["rounds"]] for key in _keys(plain["rounds"])},
            "batches": _thinned(plain["batches"], BATCH_POINTS),
            "worker_batches": {name: _thinned(plain["worker_batches"][name], WORKER_POINTS) for name in workers},
            "class_counts": None if _is_iid(result) else plain["class_counts"],
        }
    )


def _whole(found: Mapping[str, Any], trial: Mapping[str, Any]) -> TrialResult:
    rounds = trial["rounds"]
    columns = zip(*rounds.values(), strict=True)
    name = {
        "study": found["study"],
        "row": trial["row"],
        "seed": trial["seed"],
        "settings": found["settings"][trial["row"]],
    }
    return TrialResult.model_validate(
        {
            **trial,
            "trial": name,
            "commit": found["commit"],
            "machine": found["machines"][trial["machine"]],
            "rounds": [dict(zip(rounds, values, strict=True)) for values in columns],
            "class_counts": trial["class_counts"] or [],
        }
    )


def _is_iid(result: TrialResult) -> bool:
    partition = result.trial.settings.get("partition", {})
    return isinstance(partition, Mapping) and partition.get("kind", "iid") == "iid"


def _keys(rounds: Iterable[Mapping[str, Any]]) -> list[str]:
    """What was measured in some round."""
    return list(dict.fromkeys(key for one in rounds for key, value in one.items() if value is not None))


def _thinned(batches: Mapping[str, list[Any]], most: int) -> dict[str, list[Any]]:
    """Fewer points: each is the mean over its neighbours, weighted by their samples."""
    ends, values = batches["samples"], {key: batches[key] for key in ("loss", "accuracy")}
    count = len(ends)
    if count <= most or any(value is None for line in values.values() for value in line):
        return dict(batches)
    sizes = [end - before for end, before in zip(ends, [0.0, *ends], strict=False)]
    pieces = [range(point * count // most, (point + 1) * count // most) for point in range(most)]

    def mean(line: Sequence[float], piece: range) -> float:
        return sum(line[at] * sizes[at] for at in piece) / sum(sizes[at] for at in piece)

    found = {key: [mean(line, piece) for piece in pieces] for key, line in values.items()}
    return {"samples": [ends[piece[-1]] for piece in pieces], **found}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        # Times since 1970 and counts of samples need more than six digits.
        return round(value) if abs(value) >= 1e6 else float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(inside) for key, inside in value.items()}
    if isinstance(value, list):
        return [_rounded(inside) for inside in value]
    return value

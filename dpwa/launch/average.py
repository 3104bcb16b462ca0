"""`dpwa average`: the models that the nodes of a run have saved, as one.

Must not know: click. Runs in: the main thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from dpwa.custom_code import importable, load_function
from dpwa.observe.saved import SavedModel, Weighting, saved_models

__all__ = ["average_run"]


def average_run(run_dir: Path, output: Path, weighting: Weighting, evaluate: str | None) -> Iterator[str]:
    """Average, write, and say so line by line: a line per node, and one for the average.

    Args:
        run_dir: the folder of the run.
        output: where the averaged model goes, a safetensors file.
        weighting: how much each model counts.
        evaluate: `module:function`, called with a state dict; what it returns is shown for each model. None: nothing.

    Raises:
        ConfigError: there are no models, they cannot be averaged, or the function cannot be found.
    """
    from dpwa.adapters.averaging import average_models, load_model, save_model_file  # noqa: PLC0415 - imports torch

    models, without = saved_models(run_dir)
    weights = [model.weight(weighting) for model in models]
    with importable([Path.cwd()]):  # the function may import its own modules only when it is called
        judge = None if evaluate is None else load_function(evaluate, "--evaluate")
        mean = average_models([model.path for model in models], weights)
        save_model_file(mean, output)
        width = max(len(model.node) for model in models)
        for model, weight in zip(models, weights, strict=True):
            verdict = "" if judge is None else f"  {_in_words(judge(load_model(model.path)))}"
            yield f"{model.node:<{width}}  {_age(model)}  weight {weight / sum(weights):6.1%}{verdict}"
        yield from (f"{node} {problem} and is not in the average" for node, problem in without.items())
        verdict = "" if judge is None else f": {_in_words(judge(mean))}"
        yield f"the average of {len(models)} models{verdict}"
        yield f"wrote {output}"


def _age(model: SavedModel) -> str:
    return "clock unknown" if model.clock is None else f"clock {model.clock:.0f}"


def _in_words(result: object) -> str:
    if isinstance(result, Mapping):
        return ", ".join(f"{key} {_in_words(value)}" for key, value in result.items())
    return f"{result:.4g}" if isinstance(result, float) else str(result)

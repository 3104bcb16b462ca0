"""TensorFlow's MirroredStrategy as a row of the lab: `python -m dpwa.lab.strategies.tensorflow.mirrored TRIAL_DIR`.

Network, initial weights, data, order of the data and recipe are those of strategy `single`. They go through files to a
Python that has TensorFlow (`environments`), which trains (`mirrored_script`). After each round, the weights come back
and are saved as every process of the lab saves its own. bytes_sent is 0: gradients stay in one process.

The training clock runs in TensorFlow's process. It starts when the training step has been traced, optimised and tried,
which torch does not need, and it stands still while weights are handed over.

Must not know: TensorFlow. Runs in: the training thread.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpwa.errors import ConfigError, DpwaError, InternalError
from dpwa.lab.strategies.environments import ENVIRONMENTS
from dpwa.lab.strategies.tensorflow.export import layers_of, order_of_batches, shift_and_scale
from dpwa.lab.strategies.tensorflow.layout import Layer, Shape, from_keras, to_keras
from dpwa.lab.study.trial import Trial, TrialFolder, step_at, write_json
from dpwa.lab.training.assignment import data_of, model_of, order_seed, recipe_of, samples_of_node
from dpwa.lab.training.loop import Recipe
from dpwa.lab.training.machine import machine_cores
from dpwa.lab.training.snapshots import write_snapshot, write_steps

__all__ = ["TensorFlowFailed", "run_trial"]

Array = NDArray[Any]

_SCRIPT = Path(__file__).with_name("mirrored_script.py")
_NAME = "w1"
_END_TIMEOUT_S = 60.0  # from the last weights to the end of the process


class TensorFlowFailed(DpwaError):
    """TensorFlow's process ended before the training did."""


def run_trial(folder: TrialFolder) -> None:
    """Trains a trial of strategy tf_mirrored, and writes the same files as every trial.

    Args:
        folder: holds trial.json.

    Raises:
        ConfigError: there is no TensorFlow, or the trial has settings that this strategy cannot apply.
        TensorFlowFailed: its process failed; its output says why.
    """
    python = ENVIRONMENTS["tensorflow"].python()
    if python is None:
        raise ConfigError(f"tf_mirrored: {ENVIRONMENTS['tensorflow'].why_not()}")
    exchange = folder.path / "tensorflow"
    shutil.rmtree(exchange, ignore_errors=True)
    exchange.mkdir()
    try:
        book = _export(exchange, folder)
        _run_script(python, exchange, book)
    finally:
        shutil.rmtree(exchange)  # a copy of all images


@dataclass
class _Book:
    """Saves what comes back from TensorFlow.

    Attributes:
        folder: of the trial.
        layers: of the network.
        shape: of an image.
        names: of the tensors of the network.
        round_ends: the step at the end of each round.
        cores: of the process.
        rounds_done: how many rounds have ended.
    """

    folder: TrialFolder
    layers: list[Layer]
    shape: Shape
    names: list[str]
    round_ends: list[int]
    cores: int
    rounds_done: int = 0

    def begin(self, weights: list[Array]) -> None:
        """Saves the initial weights."""
        self._write_model(0, 0, weights, samples=0, training_s=0.0)

    def stopped(self, path: Path) -> None:
        """Saves the weights and the steps from a file of the script, and removes it."""
        with np.load(path, allow_pickle=False) as stored:
            steps = {name: stored[name] for name in ("loss", "right", "count", "end_s")}
            weights = from_keras(self.layers, self.shape, [stored[str(number)] for number in range(len(self.names))])
        path.unlink()
        write_steps(self.folder.steps(_NAME), steps)
        step, samples, training_s = len(steps["loss"]), int(steps["count"].sum()), float(steps["end_s"][-1])
        # A training with fewer steps than rounds ends several rounds at once.
        while self.rounds_done < len(self.round_ends) and self.round_ends[self.rounds_done] <= step:
            self.rounds_done += 1
            self._write_model(self.rounds_done, step, weights, samples=samples, training_s=training_s)

    def _write_model(self, round_: int, step: int, weights: list[Array], *, samples: int, training_s: float) -> None:
        write_snapshot(
            self.folder.snapshot(_NAME, round_),
            {name: torch.from_numpy(array) for name, array in zip(self.names, weights, strict=True)},
            {
                "round": round_,
                "step": step,
                "samples": samples,
                "training_s": training_s,
                "bytes_sent": 0,
                "processes": 1,
                "threads": self.cores,
            },
        )


def _export(exchange: Path, folder: TrialFolder) -> _Book:
    """Writes the files that `mirrored_script` reads, and saves the initial weights."""
    trial = folder.trial()
    _refuse_handicaps(trial)
    data = data_of(trial, folder)
    model = model_of(trial, data)
    samples: Any = samples_of_node(trial, data, 0)
    recipe = recipe_of(trial, len(samples), 0)
    order = order_of_batches(len(samples), recipe, seed=order_seed(trial, 0))
    state = model.state_dict()
    round_ends = [step_at(number, trial.rounds, len(order)) for number in range(1, trial.rounds + 1)]
    channels, height, width = data.shape
    book = _Book(folder, list(layers_of(model)), (channels, height, width), list(state), round_ends, _cores())
    weights = [tensor.numpy() for tensor in state.values()]
    book.begin(weights)
    keras_weights = enumerate(to_keras(book.layers, book.shape, weights))
    arrays: dict[str, Any] = {str(number): array for number, array in keras_weights}
    np.savez(exchange / "weights.npz", **arrays)
    images = np.ascontiguousarray(samples.images.numpy().transpose(0, 2, 3, 1))
    np.savez(exchange / "data.npz", images=images, labels=samples.labels.numpy(), order=order)
    shift, scale = shift_and_scale(data.prepare, samples.images)
    write_json(exchange / "recipe.json", _recipe_json(recipe, book, shift=shift, scale=scale, total_steps=len(order)))
    return book


def _recipe_json(
    recipe: Recipe, book: _Book, *, shift: list[float], scale: list[float], total_steps: int
) -> dict[str, Any]:
    channels, height, width = book.shape
    return {
        "layers": book.layers,
        "image_shape": [height, width, channels],
        "shift": shift,
        "scale": scale,
        "learning_rate": recipe.learning_rate,
        "momentum": recipe.momentum,
        "weight_decay": recipe.weight_decay,
        "schedule": recipe.schedule,
        "total_steps": total_steps,
        "stops": sorted(set(book.round_ends)),
        "cores": book.cores,
    }


def _refuse_handicaps(trial: Trial) -> None:
    settings = trial.settings
    given = [key for key, value in (("slow", settings.slow), ("kill", settings.kill)) if value is not None]
    if given:
        raise ConfigError(
            f"tf_mirrored: expected no node that is slow or killed, got {' and '.join(given)}: it has no nodes; remove "
            f"{'them' if len(given) > 1 else 'it'} from this row"
        )


def _cores() -> int:
    """The cores that the runner gave this process, otherwise all that it may use."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return machine_cores()


def _run_script(python: Path, exchange: Path, book: _Book) -> None:
    """Has TensorFlow train, and saves its weights after each round.

    Raises:
        TensorFlowFailed: it ended before the training did.
    """
    # Its notes about instructions and plugins fill a screen; errors are still shown.
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2", "KERAS_BACKEND": "tensorflow", "PYTHONUNBUFFERED": "1"}
    command = [str(python), str(_SCRIPT), str(exchange)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment
    )
    try:
        _converse(process.stdout, process.stdin, exchange, book)
        code = process.wait(_END_TIMEOUT_S)
    finally:
        process.kill()
        process.communicate()
    if code != 0 or book.rounds_done < len(book.round_ends):
        raise TensorFlowFailed(
            f"tf_mirrored: TensorFlow's process ended with exit code {code} after {book.rounds_done} of "
            f"{len(book.round_ends)} rounds; its own message is above"
        )


def _converse(said: IO[str] | None, answers: IO[str] | None, exchange: Path, book: _Book) -> None:
    if said is None or answers is None:
        raise InternalError("tf_mirrored: TensorFlow's process was started without pipes")
    for line in said:
        if line == "dpwa: ready\n":
            (book.folder.node(_NAME) / "ready").touch()
        elif line == "dpwa: stopped\n":
            book.stopped(exchange / "stop.npz")
            print("go on", file=answers, flush=True)
        else:
            print(line, end="", flush=True)


def main(arguments: list[str]) -> None:
    """Trains the trial in the folder that the only argument names."""
    try:
        run_trial(TrialFolder(Path(arguments[0])))
    except DpwaError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])

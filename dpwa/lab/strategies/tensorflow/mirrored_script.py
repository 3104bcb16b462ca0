"""Trains a network with TensorFlow's MirroredStrategy: one process, one copy of the weights per device.

Started by `dpwa.lab.strategies.tensorflow.mirrored`, by path, with a Python that needs neither torch nor dpwa.
Argument: a folder that holds

    recipe.json    layers, image_shape (height, width, channels), shift and scale (per channel: the model's input is
                   scale * pixel + shift), learning_rate, momentum, weight_decay, schedule, total_steps, stops (steps
                   after which the weights are handed over), cores
    data.npz       images (count, height, width, channels) as stored, labels (count,), order (total_steps, batch_size):
                   the indices of each batch
    weights.npz    initial weights in Keras's order of axes: "0", "1" ...

It prints "dpwa: ready" when training begins, and "dpwa: stopped" at each stop, when `stop.npz` holds the weights ("0",
"1" ...), and loss, right, count and end_s of all steps so far. It continues when it reads a line.

The training clock, which end_s shows, stands still during a stop. It starts when the step has been traced and
optimised, which torch does not need: for that, two steps are made and undone before.

Runs in: the only thread that TensorFlow has not started.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

Recipe = dict[str, Any]


class TorchSGD(tf.keras.optimizers.SGD):  # type: ignore[misc]
    """Stochastic gradient descent as torch defines it.

    Torch: v = momentum * v + g, w -= rate * v. Keras: v = momentum * v - rate * g, w += v, which is the same only while
    the rate is constant. Weight decay is part of the gradient, g + decay * w.
    """

    def __init__(self, recipe: Recipe, learning_rate: Any) -> None:
        super().__init__(learning_rate, momentum=float(recipe["momentum"]))
        self.decay = recipe["weight_decay"]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable; called on each device for its copy."""
        if self.decay:
            gradient = gradient + self.decay * variable
        if self.momentum:
            velocity = self.momentums[self._get_variable_index(variable)]
            self.assign(velocity, self.momentum * velocity + gradient)
            gradient = velocity
        self.assign_sub(variable, learning_rate * gradient)


def main(folder: Path) -> None:
    """Trains what the files in the folder describe."""
    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    with np.load(folder / "weights.npz", allow_pickle=False) as stored:
        weights = [stored[str(number)] for number in range(len(stored.files))]
    with np.load(folder / "data.npz", allow_pickle=False) as stored:
        images, labels, order = stored["images"], stored["labels"], stored["order"]
    strategy = tf.distribute.MirroredStrategy(_devices(recipe["cores"]))
    with strategy.scope():
        model = _network(recipe)
        model.set_weights(weights)
        optimizer = TorchSGD(recipe, _rate(recipe))
        optimizer.build(model.trainable_variables)
    step = _step(strategy, model, optimizer, order.shape[1])
    with tf.device("CPU"):  # as they are stored: each batch is prepared when it is used
        batches = _batches_of(recipe, tf.constant(images), tf.constant(labels, tf.int32))
    _warm_up(step, strategy.experimental_distribute_dataset(batches(order[:2])), model, optimizer)
    _train(step, strategy.experimental_distribute_dataset(batches(order)), model, recipe, order.shape[1], folder)


def _devices(cores: int) -> list[str]:
    """All GPUs; without any, a logical device for each core."""
    gpus = tf.config.list_logical_devices("GPU") if tf.config.list_physical_devices("GPU") else []
    if gpus:
        return [gpu.name for gpu in gpus]
    (cpu, *_) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * cores)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(cores)
    return [device.name for device in tf.config.list_logical_devices("CPU")]


def _network(recipe: Recipe) -> Any:
    kinds: dict[str, Callable[..., Any]] = {
        "conv": lambda filters, kernel, padding, bias: tf.keras.layers.Conv2D(
            filters, kernel, padding=padding, use_bias=bias
        ),
        "relu": tf.keras.layers.ReLU,
        "max_pool": lambda size: tf.keras.layers.MaxPooling2D(tuple(size)),
        "flatten": tf.keras.layers.Flatten,
        "dense": lambda units, bias: tf.keras.layers.Dense(units, use_bias=bias),
    }
    layers = [kinds[layer["kind"]](**{key: layer[key] for key in layer if key != "kind"}) for layer in recipe["layers"]]
    return tf.keras.Sequential([tf.keras.Input(recipe["image_shape"]), *layers])


def _rate(recipe: Recipe) -> Any:
    if recipe["schedule"] == "cosine":
        return tf.keras.optimizers.schedules.CosineDecay(recipe["learning_rate"], recipe["total_steps"])
    return recipe["learning_rate"]


def _step(strategy: Any, model: Any, optimizer: Any, batch_size: int) -> Callable[[Any], tuple[Any, Any]]:
    """One update from one batch, of which each replica computes a part.

    Each replica's loss is its share of the mean over the whole batch, and gradients are summed over the replicas. That
    is the gradient of the mean, even if the parts are unequal.
    """

    def of_replica(images: Any, labels: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            scores = model(images, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=scores)
            loss = tf.reduce_sum(losses) / batch_size
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        right = tf.equal(tf.argmax(scores, axis=1, output_type=labels.dtype), labels)
        return loss, tf.reduce_sum(tf.cast(right, tf.int32))

    @tf.function  # type: ignore[untyped-decorator]
    def step(batch: Any) -> tuple[Any, Any]:
        loss, right = strategy.run(of_replica, args=batch)
        return strategy.reduce("SUM", loss, axis=None), strategy.reduce("SUM", right, axis=None)

    return step  # type: ignore[no-any-return]


def _batches_of(recipe: Recipe, images: Any, labels: Any) -> Callable[[Any], Any]:
    shift, scale = tf.constant(recipe["shift"], tf.float32), tf.constant(recipe["scale"], tf.float32)

    def prepared(indices: Any) -> tuple[Any, Any]:
        return tf.cast(tf.gather(images, indices), tf.float32) * scale + shift, tf.gather(labels, indices)

    return lambda order: tf.data.Dataset.from_tensor_slices(order).map(prepared).prefetch(1)


def _warm_up(step: Callable[[Any], Any], batches: Any, model: Any, optimizer: Any) -> None:
    variables = [*model.variables, *optimizer.variables]
    before = [variable.numpy() for variable in variables]
    for batch in batches:
        step(batch)
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)


def _train(
    step: Callable[[Any], tuple[Any, Any]], batches: Any, model: Any, recipe: Recipe, batch_size: int, folder: Path
) -> None:
    stops = set(recipe["stops"])
    rows: list[tuple[float, int, int, float]] = []
    coming = iter(batches)  # prepares the first batch, which takes a moment
    _say("ready")
    began_s = time.monotonic()
    for number, batch in enumerate(coming, start=1):
        loss, right = step(batch)
        rows.append((float(loss), int(right), batch_size, time.monotonic() - began_s))
        if number in stops:
            stopped_s = time.monotonic()
            _hand_over(folder, model.get_weights(), rows)
            began_s += time.monotonic() - stopped_s


def _hand_over(folder: Path, weights: list[Any], rows: list[tuple[float, int, int, float]]) -> None:
    loss, right, count, end_s = (np.array(column) for column in zip(*rows, strict=True))
    arrays = {str(number): array for number, array in enumerate(weights)}
    arrays |= {"loss": loss.astype(np.float32), "right": right.astype(np.int32)}
    arrays |= {"count": count.astype(np.int32), "end_s": end_s}
    np.savez(folder / "stop.npz", **arrays)
    _say("stopped")
    if not sys.stdin.readline():
        sys.exit("the process that reads the weights is gone")


def _say(word: str) -> None:
    print(f"dpwa: {word}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

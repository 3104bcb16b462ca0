"""The networks of the lab, by name, and a user's own, with initial weights from a seed.

mcmahan_cnn, light_cnn and mlp are plain sequences of Conv2d, ReLU, MaxPool2d, Flatten and Linear, so that they can be
rebuilt layer by layer in another framework.

Runs in: the training thread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from dpwa.custom_code import blamed, is_own, load_function
from dpwa.errors import ConfigError
from dpwa.examples.fashion_mnist.model import fashion_network
from dpwa.lab.training.networks import CharTransformer, ImageLayers, batch_norm, gn_lenet, group_norm, resnet

__all__ = ["build", "check_scores", "initial_weights_hash"]

Shape = tuple[int, ...]
"""Of a sample: channels, height and width of an image, or the length of a sequence."""


def build(name: str, shape: Shape, classes: int, *, seed: int) -> nn.Module:
    """A network with initial weights that depend on the seed alone, in every process.

    The global random state stays as it was.

    Args:
        name: one of the lab's networks, or a user's own "module:function", which is called with shape and classes and
            returns an `nn.Module`.
        shape: of a sample.
        classes: number of outputs.
        seed: for the initial weights.

    Raises:
        ConfigError: there is no such network, it does not fit the samples, or the user's function cannot be used.
    """
    if name not in _NETWORKS and ":" not in name:
        raise ConfigError(f'building a model: expected one of {", ".join(_NETWORKS)}, got "{name}"')
    make = load_function(name, "model") if is_own(name) else _fitting(name, shape)
    with torch.random.fork_rng(devices=[]):
        # Only the CPU's generator: `torch.manual_seed` would also seed the GPUs', which are not restored here.
        torch.default_generator.manual_seed(seed)
        with blamed(make, lambda error: f'model "{name}": the function raised {error}'):
            found = make(shape, classes)
    if not isinstance(found, nn.Module):
        raise ConfigError(
            f'model "{name}": expected a function (shape, classes) that returns an nn.Module, got '
            f"{type(found).__name__} from it; return the module itself"
        )
    return found


@torch.no_grad()
def check_scores(name: str, model: nn.Module, samples: Tensor, labels: Tensor, classes: int, *, seed: int) -> None:
    """Tries a model on a few samples, so that one that does not fit the data is told from a bug.

    Args:
        name: of the model.
        model: gives scores of shape (count, classes), or (count, classes, length) for sequences.
        samples: its input.
        labels: int64, shape (count,), or (count, length) for sequences.
        classes: number of classes.
        seed: for the initial weights of layers that get them only now.

    Raises:
        ConfigError: it fails, or gives something else.
    """
    model.eval()
    expected = (len(labels), classes, *labels.shape[1:])
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            scores = model(samples)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        shape = tuple(samples.shape)
        raise ConfigError(f"model {name}: fails for the data, of shape {shape} and {samples.dtype}: {error}") from error
    model.train()
    got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    if got != expected:
        raise ConfigError(f"model {name}: expected scores of shape {expected} for {len(labels)} samples, got {got}")


def initial_weights_hash(model: nn.Module) -> str:
    """SHA-256 over the bytes of all tensors of a model, in their order, in hexadecimal.

    Two models with the same hash are the same, whichever process made them.
    """
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _fitting(name: str, shape: Shape) -> Callable[[Shape, int], nn.Module]:
    """The network of this name, if it takes such samples."""
    if name == "char_transformer":
        if len(shape) != 1:
            raise ConfigError(f"building {name}: expected sequences, of shape (length,), got samples of shape {shape}")
    elif name != "mlp" and (len(shape) != 3 or min(shape[1:]) < 4):
        got = f"{shape[1]}x{shape[2]}" if len(shape) == 3 else f"samples of shape {shape}"
        raise ConfigError(f"building {name}: expected images of at least 4x4 pixels, got {got}")
    return _NETWORKS[name]


def _mcmahan_cnn(shape: Shape, classes: int) -> ImageLayers:
    """That of the example: 1,663,370 parameters for 28x28 grey pixels."""
    return ImageLayers(*fashion_network(shape, classes))


def _light_cnn(shape: Shape, classes: int) -> ImageLayers:
    """Two small convolutions, cheap enough for many trials on a laptop: 206,922 parameters for 28x28 grey pixels."""
    channels, height, width = shape
    return ImageLayers(
        nn.Conv2d(channels, 16, kernel_size=3, padding=1),
        nn.MaxPool2d(2),  # before the ReLU, which gives the same and has a quarter of the work
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def _mlp(shape: Shape, classes: int) -> nn.Sequential:
    """784-256-64-10 for 28x28 grey pixels."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(prod(shape), 256),
        nn.ReLU(),
        nn.Linear(256, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


_NETWORKS: dict[str, Callable[[Shape, int], nn.Module]] = {
    "mcmahan_cnn": _mcmahan_cnn,
    "light_cnn": _light_cnn,
    "mlp": _mlp,
    "gn_lenet": gn_lenet,
    "resnet8_bn": partial(resnet, blocks=1, norm=batch_norm),
    "resnet8_gn": partial(resnet, blocks=1, norm=group_norm),
    "resnet20_bn": partial(resnet, blocks=3, norm=batch_norm),
    "resnet20_gn": partial(resnet, blocks=3, norm=group_norm),
    "char_transformer": lambda shape, classes: CharTransformer(shape[0], classes),
}

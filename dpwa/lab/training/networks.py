"""The networks of the lab's zoo that are more than a plain sequence of layers that another framework has, too.

Runs in: the training thread.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CharTransformer", "ImageLayers", "batch_norm", "gn_lenet", "group_norm", "resnet"]

Norm = Callable[[int], nn.Module]
"""Makes a normalisation for this many channels."""

_GROUPS = 2
"""Of a GroupNorm, as in Hsieh et al., "The non-IID data quagmire of decentralized machine learning", 1910.00189."""


class ImageLayers(nn.Sequential):
    """Layers for images, between which the channels of a pixel lie side by side in memory ("channels last") on a CPU.

    They compute the same. It is for networks with max pooling, which PyTorch vectorises over the channels only: left as
    it comes, pooling takes more time than the convolutions. Residual networks, which pool only at their end, gain
    nothing by it.
    """

    def forward(self, images: Tensor) -> Tensor:
        """What the last layer gives.

        Args:
            images: shape (count, channels, height, width), in any order in memory.
        """
        if images.device.type == "cpu":
            images = images.to(memory_format=torch.channels_last)  # `contiguous` would leave grey images as they are
        for layer in self:
            images = layer(images)
        return images


def batch_norm(channels: int) -> nn.Module:
    """Normalises each channel over the batch; its running means are averaged with the model."""
    return nn.BatchNorm2d(channels)


def group_norm(channels: int) -> nn.Module:
    """Normalises each sample alone: nothing of it depends on who else is in the batch."""
    return nn.GroupNorm(_GROUPS, channels)


def gn_lenet(shape: tuple[int, ...], classes: int) -> ImageLayers:
    """GN-LeNet of Hsieh et al., which works with unlike data: 89,834 parameters for 32x32 pixels of three colours.

    Args:
        shape: of an image: channels, height, width.
        classes: number of outputs.
    """
    channels, height, width = shape
    layers: list[nn.Module] = []
    for inside, outside in ((channels, 32), (32, 32), (32, 64)):
        convolution = nn.Conv2d(inside, outside, kernel_size=5, padding=2)
        layers += [convolution, group_norm(outside), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
    return ImageLayers(*layers, nn.Flatten(), nn.Linear(64 * ceil(height / 8) * ceil(width / 8), classes))


class _Block(nn.Module):
    """Two convolutions beside a shortcut without parameters: option A of He et al."""

    def __init__(self, inside: int, outside: int, norm: Norm) -> None:
        super().__init__()
        self._stride = outside // inside
        self._padding = outside - inside
        self.conv1 = nn.Conv2d(inside, outside, kernel_size=3, stride=self._stride, padding=1, bias=False)
        self.norm1 = norm(outside)
        self.conv2 = nn.Conv2d(outside, outside, kernel_size=3, padding=1, bias=False)
        self.norm2 = norm(outside)

    def forward(self, images: Tensor) -> Tensor:
        found = functional.relu(self.norm1(self.conv1(images)))
        found = self.norm2(self.conv2(found))
        short = images[:, :, :: self._stride, :: self._stride]
        short = functional.pad(short, (0, 0, 0, 0, 0, self._padding))  # new channels begin with nothing
        return functional.relu(found + short)


def resnet(shape: tuple[int, ...], classes: int, *, blocks: int, norm: Norm) -> nn.Sequential:
    """A residual network for small images: a 3x3 stem, no pooling before the end.

    He et al., "Deep residual learning for image recognition", arXiv 1512.03385, section 4.2: 6n + 2 layers, of 16, 32
    and 64 channels. With 10 classes of three colours: 75,290 parameters for n = 1, 269,722 for n = 3.

    Args:
        shape: of an image: channels, height, width.
        classes: number of outputs.
        blocks: n.
        norm: the normalisation.
    """
    stem = nn.Conv2d(shape[0], 16, kernel_size=3, padding=1, bias=False)
    layers: list[nn.Module] = [stem, norm(16), nn.ReLU()]
    inside = 16
    for outside in (16, 32, 64):
        for _ in range(blocks):
            layers.append(_Block(inside, outside, norm))
            inside = outside
    made = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, classes))
    for module in made.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return made


class CharTransformer(nn.Module):
    """Predicts which character follows each one of a sequence: two layers of four heads, 107,804 parameters for `text`.

    Args:
        length: of the sequences.
        characters: how many different ones there are.
    """

    def __init__(self, length: int, characters: int) -> None:
        super().__init__()
        width = 64
        self.characters = nn.Embedding(characters, width)
        self.places = nn.Parameter(torch.randn(length, width) * 0.02)
        self.layers = nn.Sequential(*(_Attention(width) for _ in range(2)))
        self.norm = nn.LayerNorm(width)
        self.scores = nn.Linear(width, characters)

    def forward(self, sequences: Tensor) -> Tensor:
        """Scores, shape (count, characters, length), of int64 characters of shape (count, length)."""
        found = self.layers(self.characters(sequences) + self.places[: sequences.shape[1]])
        scores: Tensor = self.scores(self.norm(found))
        return scores.transpose(1, 2)


class _Attention(nn.Module):
    """One layer: each character looks at itself and those before it."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self._heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.look = nn.Linear(width, 3 * width)
        self.join = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.think = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, found: Tensor) -> Tensor:
        count, length, width = found.shape
        looks = self.look(self.norm1(found)).view(count, length, 3, self._heads, width // self._heads)
        queries, keys, values = looks.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        found = found + self.join(seen.transpose(1, 2).reshape(count, length, width))
        thought: Tensor = found + self.think(self.norm2(found))
        return thought

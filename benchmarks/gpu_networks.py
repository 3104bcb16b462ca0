"""The networks of `gpu.py`: a transformer of GPT-2's smallest shape, a ResNet-50, and tiny ones to try it all out.

Must not know: how anything is measured. Runs in: a worker's main thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpwa import mend_torchvision

_CLASSES = 1000


class Transformer(nn.Module):
    """A decoder-only language model, pre-norm, with tied input and output embeddings.

    The default shape is that of the smallest GPT-2 (124 M parameters; Radford et al. 2019, table 2).
    """

    def __init__(
        self, vocabulary: int = 50257, context: int = 1024, width: int = 768, depth: int = 12, heads: int = 12
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(context, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.ModuleList(
            nn.TransformerEncoder(layer, depth, enable_nested_tensor=False).layers  # copies, each with own tensors
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for embedding in (self.tokens, self.places):
            nn.init.normal_(embedding.weight, std=0.02)
        self.head.weight = self.tokens.weight
        mask = nn.Transformer.generate_square_subsequent_mask(context)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of the next token at each place: (batch, length) to (batch, length, vocabulary)."""
        length = ids.shape[1]
        hidden = self.tokens(ids) + self.places.weight[:length]
        for layer in self.layers:
            hidden = layer(hidden, src_mask=self.mask[:length, :length], is_causal=True)
        logits: Tensor = self.head(self.norm(hidden))
        return logits


def _resnet50() -> nn.Module:
    mend_torchvision()
    from torchvision.models import resnet50  # noqa: PLC0415 - after it has been mended

    network: nn.Module = resnet50(num_classes=_CLASSES)
    return network.to(memory_format=torch.channels_last)


def _tiny_resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, _CLASSES),
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A network and its data.

    Attributes:
        make: makes the network.
        batch: samples per step, unless told otherwise.
        make_data: inputs and targets of a batch, on a device.
        loss: of the network's output and the targets.
    """

    make: Callable[[], nn.Module]
    batch: int
    make_data: Callable[[int, torch.device], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]


def _text(vocabulary: int, length: int) -> Callable[[int, torch.device], tuple[Tensor, Tensor]]:
    def make(batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
        ids = torch.randint(0, vocabulary, (batch, length + 1), device=device)
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    return make


def _images(side: int) -> Callable[[int, torch.device], tuple[Tensor, Tensor]]:
    def make(batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
        images = torch.randn(batch, 3, side, side, device=device).to(memory_format=torch.channels_last)
        return images, torch.randint(0, _CLASSES, (batch,), device=device)

    return make


def _loss_of_text(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


CASES: dict[str, Case] = {
    "gpt2": Case(Transformer, 8, _text(50257, 1024), _loss_of_text),
    "resnet50": Case(_resnet50, 64, _images(224), nn.functional.cross_entropy),
}

TINY: dict[str, Case] = {
    "gpt2": Case(lambda: Transformer(101, 16, 32, 2, 4), 2, _text(101, 16), _loss_of_text),
    "resnet50": Case(_tiny_resnet, 2, _images(16), nn.functional.cross_entropy),
}

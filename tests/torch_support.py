"""What the tests of the PyTorch adapter share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from dpwa.adapters.pytorch import DpwaPyTorchAdapter
from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports
from support import wait_until

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def local_cluster(count: int = 2, **settings: object) -> ClusterConfig:
    """Nodes on free ports, whose steps wait for their exchange."""
    return ClusterConfig.for_localhost(count, ports=free_ports(count), **{"wait_ms": 2000, **settings})


def linear(value: float) -> nn.Linear:
    """A layer with all its values equal."""
    layer = nn.Linear(3, 2)
    for parameter in layer.parameters():
        nn.init.constant_(parameter, value)
    return layer


def until_all_have_blended(adapters: Sequence[DpwaPyTorchAdapter], step: Callable[[], object]) -> None:
    """Repeat a step of all nodes, past those in which they join."""

    def blended() -> bool:
        step()
        return all(adapter.statistics().blended > 0 for adapter in adapters)

    wait_until(blended, "each node's first blend")

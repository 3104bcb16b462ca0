"""Which device a node trains on.

Must not know: models, data. Runs in: the training thread.
"""

from __future__ import annotations

import os

import torch

from dpwa import ClusterConfig, local_rank

__all__ = ["device_of", "device_of_this_node", "rank_of_this_node"]


def device_of_this_node() -> torch.device:
    """The device of this process among those of its machine, whatever has started it; known before there is a model."""
    if os.environ.get("DPWA_NODE") and not os.environ.get("DPWA_LOCAL_RANK"):
        return device_of(rank_of_this_node())  # of `dpwa run`: which others are on this machine, nobody has said
    return device_of(local_rank())


def device_of(rank: int) -> torch.device:
    """One of the GPUs in turn, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", rank % torch.cuda.device_count())
    return torch.device("cpu")


def rank_of_this_node() -> int:
    """The position in the cluster file, from 0, of the node that `dpwa launch` made of this process; 0 when alone.

    Raises:
        ConfigError: the cluster file cannot be used, or does not know this node.
    """
    path, name = os.environ.get("DPWA_CONFIG"), os.environ.get("DPWA_NODE")
    if not path or not name:
        return 0
    config = ClusterConfig.load(path)
    return config.nodes.index(config.node(name))

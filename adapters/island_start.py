"""The start of an island: all of its processes are of one mind, and go on from one checkpoint.

Must not know: nodes. Runs in: the trainer's thread, in all processes of the island alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from dpwa import ClusterConfig, ConfigError, __version__

from .checkpoint_files import Found
from .identity import Identity
from .islands import Island
from .tensors import TorchModel

__all__ = ["agreed", "give_checkpoint", "given_checkpoint"]

# What each process can say of itself.
_MOST_SAID_BYTES = 2048


def agreed(island: Island, identity: Identity, take: Callable[[], TorchModel]) -> tuple[TorchModel, Path | None]:
    """Take the model in each process, and see that all have taken the same, for the same node of the same cluster.

    Args:
        island: of this process.
        identity: which node this process takes itself for.
        take: takes the model; may raise ConfigError.

    Returns:
        The model, and the run folder of the first process.

    Raises:
        ConfigError: in all processes alike, and in words that name those that differ.
        IslandError: a process is gone.
    """
    problem: ConfigError | None = None
    said = {"problem": "", "node": identity.name, "version": __version__, "run_dir": str(identity.run_dir or "")}
    try:
        model = take()
        have_parts = identity.members is not None and identity.members.have_parts
        config = _without_ports(identity.config) if have_parts else identity.config
        said["settings"] = hashlib.sha256(config.to_yaml().encode()).hexdigest()
        said["model"] = model.form
    except ConfigError as error:
        problem = error
        said["problem"] = str(error)[: _MOST_SAID_BYTES // 4]
    heard = [json.loads(text) for text in island.texts(json.dumps(said), _MOST_SAID_BYTES)]
    island.refuse_alike(problem, [theirs["problem"] for theirs in heard])
    for rank, theirs in enumerate(heard):
        for what, remedy in _MUST_BE_THE_SAME.items():
            if theirs[what] != heard[0][what]:
                other, first = island.ranks[rank], island.ranks[0]
                raise ConfigError(
                    f"the processes {list(island.ranks)} are one node together, and rank {other} differs from rank "
                    f"{first} in its {what}{_values(what, theirs, heard[0])}; {remedy}"
                )
    return model, Path(heard[0]["run_dir"]) if heard[0]["run_dir"] else None


def _without_ports(config: ClusterConfig) -> ClusterConfig:
    """Processes that hold parts of a model each have a cluster of their own, in which only these differ."""
    nodes = tuple(node.model_copy(update={"port": 1, "bind": None}) for node in config.nodes)
    return config.model_copy(update={"nodes": nodes, "join": (), "keys": None})


_MUST_BE_THE_SAME = {
    "version": "install the same dpwa for all of them",
    "node": "pass the same name on all of them, or none",
    "settings": "give all of them the same cluster file",
    "model": "build the same model, with the same frozen parameters, on all of them",
}


def _values(what: str, theirs: Mapping[str, str], first: Mapping[str, str]) -> str:
    return f" ({theirs[what]} and {first[what]})" if what in ("version", "node") else ""


def give_checkpoint(island: Island, found: Found | None) -> None:
    """Give the others a checkpoint, which they need not be able to read."""
    if found is None:
        island.share_bytes(b"")
        return
    forms = [[name, str(tensor.dtype), list(tensor.shape)] for name, tensor in found.tensors.items()]
    island.share_bytes(json.dumps([str(found.path), found.plain, forms]).encode())
    island.share_tensors(list(found.tensors.values()))


def given_checkpoint(island: Island) -> Found | None:
    """What the first process gives, with tensors in memory of their own."""
    written = island.share_bytes(None)
    if not written:
        return None
    path, plain, forms = json.loads(written)
    tensors = {
        name: torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch."))) for name, dtype, shape in forms
    }
    island.share_tensors(list(tensors.values()))
    return Found(Path(path), plain, tensors)

"""Which node of which cluster trains a model, and together with which other processes.

Must not know: nodes at work. Runs in: the trainer's thread.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from dpwa import ConfigError

from .identity import ConfigLike, Identity, identity_of, island_size
from .islands import members_of
from .process_groups import is_sharded, refuse_ranks, tell_rank_alone

__all__ = ["identity_of_model"]


def identity_of_model(model: object, name: str | None, config: ConfigLike) -> Identity:
    """The node that is to train a model.

    Args:
        model: what the script has given.
        name: of the node; None: as the environment says.
        config: the cluster; None: as the environment says.

    Raises:
        ConfigError: model, cluster and environment do not go together.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    members = members_of(model, island_size(config))
    sharded = name is None and members is None and is_sharded(model)
    identity = identity_of(name, config, members=members, is_sharded=sharded)
    if name is None and not identity.is_by_rank:
        if identity.config.is_alone:
            tell_rank_alone(sharded=sharded)
        elif members is None:
            refuse_ranks(identity.name)
    if identity.config.is_alone and identity.run_dir is None:
        return replace(identity, members=None)  # nothing changes the model, and nothing is written
    return identity

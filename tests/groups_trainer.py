"""One of two processes of torch.distributed; tries what a node may be, and prints what became of it as JSON.

python groups_trainer.py RANK FOLDER PORT,PORT,PORT,PORT
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Shard
from torch.nn.parallel import DistributedDataParallel

from dpwa.adapters.pytorch import DpwaPyTorchAdapter
from dpwa.config.cluster import ClusterConfig
from dpwa.errors import ConfigError


def taken(model: nn.Module, config: ClusterConfig, then=lambda: None) -> str:
    """How a model is taken: names of what is exchanged, or the refusal."""
    try:
        with DpwaPyTorchAdapter(model, "w1", config) as adapter:
            then()
            adapter.step(1.0)
            return " ".join(spec.name for spec in adapter._tensors.layout.tensors)
    except ConfigError as error:
        return str(error)


def of_shards(rank: int, config: ClusterConfig, own: ClusterConfig) -> dict[str, str]:
    """Models that fully_shard has taken; what belongs to this rank alone is called its own."""

    def sharded(model: nn.Module, **values: object) -> str:
        said = taken(model, config.model_copy(update=values)).replace(f"[{rank}:{rank + 1}]", "[own]")
        return said.removeprefix("rank 1, of the same island as this one: ")

    found = {"sharded": sharded(fully_shard(nn.Linear(2, 2)))}
    found["sharded along the other dimension"] = sharded(
        fully_shard(nn.Linear(2, 2, bias=False), shard_placement_fn=lambda _: Shard(1))
    ).replace(f"[:, {rank}:{rank + 1}]", "[own]")
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("copies", "shards"))
    found["sharded over one process"] = taken(fully_shard(nn.Linear(2, 2), mesh=mesh["shards"]), own)
    found["shards with copies"] = sharded(fully_shard(nn.Linear(2, 2), mesh=mesh))
    parts = nn.Sequential(fully_shard(nn.Linear(2, 2)), nn.Linear(2, 2))
    found["a part that is sharded"] = sharded(parts)
    held = nn.Sequential(fully_shard(nn.Linear(2, 2)), nn.Linear(2, 2).requires_grad_(False))
    found["frozen parameters beside shards, kept"] = sharded(held)
    found["frozen parameters beside shards, blended"] = sharded(held, frozen_parameters="blend")
    found["nothing for the second"] = sharded(fully_shard(nn.Linear(2, 1)))
    found["other shards than the file says"] = sharded(
        fully_shard(nn.Linear(2, 2)), island=config.island.model_copy(update={"size": 4})
    )
    found["checkpoints of shards"] = sharded(
        fully_shard(nn.Linear(2, 2)), checkpoint=config.checkpoint.model_copy(update={"every_s": 1.0})
    )
    too_near = config.nodes[1].model_copy(update={"port": config.nodes[0].port + 1})
    found["ports side by side"] = sharded(fully_shard(nn.Linear(2, 2)), nodes=(config.nodes[0], too_near))
    return found


def main(rank: int, folder: Path, ports: list[int]) -> None:
    store = distributed.FileStore(str(folder / "store"), 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    alone = [distributed.new_group([one]) for one in range(2)][rank]
    os.environ["DPWA_RUN_DIR"] = str(folder / f"run{rank}")
    config = ClusterConfig.for_localhost(2, ports=ports[2 * rank : 2 * rank + 2])
    common = ClusterConfig.for_localhost(2, ports=ports[:2])
    results = {}
    results["a model of its own"] = taken(nn.Linear(2, 2), config)
    replicated = DistributedDataParallel(nn.Linear(2, 2))
    results["replicas"] = taken(replicated, common)
    results["inside of replicas"] = taken(replicated.module, common)
    parts = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), replicated, DistributedDataParallel(nn.Linear(2, 2)))
    results["all trained parts replicated"] = taken(parts, common)
    pairs, fours = (ClusterConfig.for_localhost(2, ports=ports[:2], island={"size": size}) for size in (2, 4))
    results["replicas by the file"] = taken(nn.Linear(2, 2), pairs)
    results["a part that is replicated"] = taken(nn.Sequential(nn.Linear(2, 2), replicated), common)
    results["replicas with other settings"] = taken(replicated, common.model_copy(update={"seed": rank}))
    results["replicas of other models"] = taken(nn.Linear(2, 2 + rank), pairs)
    results["other replicas than the file says"] = taken(replicated, fours)
    results["beside replicas"] = taken(nn.Linear(2, 2), config)
    results["a group of one"] = taken(DistributedDataParallel(nn.Linear(2, 2), process_group=alone), config)
    results["compiled in a group of one"] = taken(
        DistributedDataParallel(torch.compile(nn.Linear(2, 2), backend="eager"), process_group=alone), config
    )
    plain, wrappers = nn.Linear(2, 2), []
    results["replicated later"] = taken(plain, config, lambda: wrappers.append(DistributedDataParallel(plain)))
    results |= of_shards(rank, ClusterConfig.for_localhost(2, ports=[ports[0], ports[0] + 2]), config)
    frozen = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2))
    results["sharded later"] = taken(frozen, config, lambda: fully_shard(frozen))
    flat = FullyShardedDataParallel(nn.Linear(2, 2), device_id=torch.device("cpu"))
    results["flat shards"] = taken(nn.Sequential(flat), config)
    print(json.dumps(results), flush=True)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), [int(port) for port in sys.argv[3].split(",")])

"""One process of an island whose model is sharded by FSDP2: trains, and says how it went, as JSON.

shard_trainer.py FOLDER STEPS ISLAND'S_SIZE [KEY=VALUE ...]

    optimizer=adam   instead of SGD with momentum
    short=w2/1       this process of this node makes one step less than the others
    dies=w2/1        this process of this node ends in the middle of its first life
    merge=yes        finish(merge=True)

Started by torchrun. It says what of each tensor it holds at the end, before and after the merge, so that the means can
be computed from the outside.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from dpwa import attach

folder, steps, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
options = dict(word.split("=", 1) for word in sys.argv[4:])

distributed.init_process_group("gloo")
world = distributed.get_world_size()
mesh = init_device_mesh("cpu", (world // size, size), mesh_dim_names=("nodes", "shards"))["shards"]
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3))
fully_shard(model[0], mesh=mesh)
fully_shard(model, mesh=mesh)
if options.get("optimizer") == "adam":
    optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
else:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def held() -> dict[str, list[float]]:
    """What this process has of each exchanged tensor."""
    return {spec: tensor.flatten().tolist() for spec, tensor in zip(names, node._tensors.tensors, strict=True)}


node = attach(model, optimizer, loss=lambda: loss)
has_died = folder / "has_died"
names = [spec.name for spec in node._tensors.layout.tensors]
torch.manual_seed(1000 + distributed.get_rank())
for step in range(steps):
    optimizer.zero_grad()
    inputs = torch.randn(8, 4)
    loss = (model(inputs) - inputs.sum(dim=1, keepdim=True) - node.rank).square().mean()
    loss.backward()
    if step == steps - 1 and options.get("short") == f"{node.name}/{node.island_rank}":
        break
    optimizer.step()
    time.sleep(float(options.get("pause", "0.005")))
    if options.get("dies") == f"{node.name}/{node.island_rank}" and step == steps // 2 and not has_died.exists():
        has_died.touch()
        os._exit(3)
if "short" not in options:  # its processes would wait for each other here, and not in dpwa
    model.eval()
    with torch.no_grad():
        model(torch.zeros(1, 4))  # FSDP leaves whole tensors in the places of the parts
blended = node.statistics().blended
node._tensors.check_all()
before = held()
answer = node.finish(merge=options.get("merge") == "yes")
after = held()
did = node.statistics()
said = {
    "name": node.name,
    "places": [node.rank, node.world_size, node.island_rank, node.island_size],
    "run_dir": str(node.run_dir),
    "before": before,
    "after": after,
    "answer": answer,
    "blended": blended,
    "merged_models": did.merged_models,
    "failures": did.failures,
    "loss": did.loss,
}
node.close()
(folder / f"{node.name}-{node.island_rank}.json").write_text(json.dumps(said))
distributed.destroy_process_group()

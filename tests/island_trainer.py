"""One process of an island: trains under DistributedDataParallel, and says how it went, as JSON.

island_trainer.py FOLDER STEPS ISLAND'S_SIZE [KEY=VALUE ...]

    ddp=no       gradients are averaged by hand, and the config says what an island is
    dies=w2/1    this process of this node ends in the middle of its first life
    merge=yes    finish(merge=True)

Started by torchrun. Behind each step it notes digests of its model, so that the processes can be compared: of
parameters and momentum, which are always the same in an island; and of BatchNorm's statistics, in which each process
has counted a batch of its own since they last were.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from dpwa import attach

folder, steps, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
options = dict(word.split("=", 1) for word in sys.argv[4:])

distributed.init_process_group("gloo")
rank, world = distributed.get_rank(), distributed.get_world_size()
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
group = None if size == world else distributed.new_subgroups(size)[0]
has_replicas = options.get("ddp") != "no"
trained: nn.Module = DistributedDataParallel(model, process_group=group) if has_replicas else model
optimizer = torch.optim.SGD(trained.parameters(), lr=0.05, momentum=0.9)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 50)
digests: list[tuple[int, str, str]] = []


def digest(tensors: Iterable[torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)).hexdigest()[:16]


def trained_digest() -> str:
    return digest([*model.parameters(), *(state["momentum_buffer"] for state in optimizer.state.values())])


node = attach(trained, optimizer, checkpoint={"scheduler": scheduler}, loss=lambda: loss)
torch.manual_seed(1000 + rank)
first, first_digest = node.resumed_step, trained_digest() if optimizer.state else ""
for step in range(first, steps):
    optimizer.zero_grad()
    inputs = torch.randn(8, 4)
    loss = (trained(inputs) - inputs.sum(dim=1, keepdim=True) - node.rank).square().mean()
    loss.backward()
    for parameter in () if has_replicas else model.parameters():
        distributed.all_reduce(parameter.grad, group=group)
        parameter.grad /= size
    optimizer.step()
    scheduler.step()
    digests.append((node.statistics().blended, trained_digest(), digest(model.buffers())))
    time.sleep(float(options.get("pause", "0.005")))
    if options.get("dies") == f"{node.name}/{node.island_rank}" and first == 0 and step == steps // 2:
        os._exit(3)
is_merged = node.finish(merge=options.get("merge") == "yes")
said = {
    "rank": rank,
    "name": node.name,
    "places": [node.rank, node.world_size, node.island_rank, node.island_size],
    "run_dir": str(node.run_dir),
    "first": first,
    "first_digest": first_digest,
    "digests": digests,
    "end": [digest(model.parameters()), digest(model.buffers())],
    "is_merged": is_merged,
    "blended": node.statistics().blended,
    "clock": node.clock,
    "merged_models": node.statistics().merged_models,
}
node.close()
(folder / f"{node.name}-{node.island_rank}.json").write_text(json.dumps(said))
distributed.destroy_process_group()

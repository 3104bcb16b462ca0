"""One process of an island: trains under DistributedDataParallel, and says how it went, as JSON.

island_trainer.py FOLDER STEPS [ISLAND'S SIZE] [KEY=VALUE ...]

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
life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")

distributed.init_process_group("gloo")
rank, world = distributed.get_rank(), distributed.get_world_size()
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
trained: nn.Module = model
if options.get("ddp", "yes") == "yes":
    group = None if size == world else distributed.new_subgroups(size)[0]
    trained = DistributedDataParallel(model, process_group=group)
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
    optimizer.step()
    scheduler.step()
    digests.append((node.statistics().blended, trained_digest(), digest(model.buffers())))
    time.sleep(float(options.get("pause", "0.005")))
    if options.get("dies") == str(rank) and life == "0" and step == steps // 2:
        os._exit(3)
is_merged = node.finish(merge=options.get("merge") == "yes")
said = {
    "rank": rank,
    "life": life,
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
(folder / f"rank{rank}{options.get('suffix', '')}.json").write_text(json.dumps(said))
distributed.destroy_process_group()

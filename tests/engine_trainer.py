"""A script as torchrun, mpiexec or srun start it: it names no node and no cluster. Says how it went, as JSON.

trainer.py FOLDER STEPS [NODE THAT DIES IN ITS FIRST LIFE]
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
from torch import nn

from dpwa import DpwaPyTorchAdapter, local_rank

folder, steps = Path(sys.argv[1]), int(sys.argv[2])
dies = sys.argv[3] if len(sys.argv) > 3 else ""
life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
begun_s = time.monotonic()
torch.manual_seed(0)
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
with DpwaPyTorchAdapter(model, optimizer=optimizer) as node:
    found_s = time.monotonic() - begun_s
    first = node.resumed_step
    for step in range(first, steps):
        loss = (model(torch.randn(8, 4)) - node.rank).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        node.step(loss)
        time.sleep(0.01)
        if node.name == dies and life == "0" and step == steps // 2:
            os._exit(3)
    node.finish(merge=True)
    said = {
        "name": node.name,
        "life": life,
        "local_rank": local_rank(),
        "world_size": node.world_size,
        "hosts": [member.host for member in node.config.nodes],
        "keys": node.config.keys,
        "run_dir": str(node.run_dir),
        "first": first,
        "found_s": found_s,
        "blended": node.statistics().blended,
        "model": model.weight.detach().flatten().tolist(),
    }
(folder / f"{said['name']}.json").write_text(json.dumps(said))

"""A node that trains until it is told to end, for the tests of Ray: says where it is, who is there, and how it went.

Args on the command line: none. What it says are lines of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import time

import torch
from torch import nn

from dpwa import attach

stopping: list[int] = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda got, _frame: stopping.append(got))


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


torch.manual_seed(0)
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
node = attach(model, optimizer, loss=lambda: loss)
own = node.config.node(node.name)
say(pid=os.getpid(), first=node.resumed_step, address=own.address, rank=node.rank, size=node.world_size)
told: dict[str, str] = {}
step, blended_s = node.resumed_step, time.monotonic()
while not stopping:
    loss = model(torch.randn(8, 4)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()  # of the node, too
    step += 1
    time.sleep(0.02)
    did = node.statistics()
    members = {name: state for name, state in did.members.items() if state == "alive"}
    if members != told and (told := members):
        say(members=sorted(members), step=step)
did = node.statistics()
node.close()
say(end=stopping[0], step=step, blended=did.blended)

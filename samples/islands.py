"""Islands: processes that share a model under DistributedDataParallel or FSDP2 are one node. See docs/launching.md.

torchrun --standalone --nproc-per-node 4 samples/islands.py --island 2
    two islands of two processes, on one machine

torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint HOST:29400 samples/islands.py
    each host is an island of four processes; type it on both

dpwa launch cluster.yaml -- torchrun --standalone --nproc-per-node 2 samples/islands.py
    each node of the file is an island of two, and is started again without the others
"""

import argparse
import os

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from dpwa import DpwaPyTorchAdapter

parser = argparse.ArgumentParser()
parser.add_argument("--island", type=int, default=int(os.environ["LOCAL_WORLD_SIZE"]), help="processes of each island")
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--shard", action="store_true", help="FSDP2: each process of an island holds a part of the model")
arguments = parser.parse_args()

has_gpu = torch.cuda.is_available()
device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if has_gpu else torch.device("cpu")
if has_gpu:
    torch.cuda.set_device(device)
distributed.init_process_group("nccl" if has_gpu else "gloo")

torch.manual_seed(0)  # the same model and data everywhere
inputs = torch.randn(8192, 16)
data = TensorDataset(inputs, (inputs @ torch.randn(16, 4)).argmax(dim=1))
model = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 4)).to(device)
size = arguments.island
islands = distributed.get_world_size() // size
mesh = init_device_mesh(device.type, (islands, size), mesh_dim_names=("nodes", "processes"))["processes"]
if arguments.shard:
    fully_shard(model, mesh=mesh)
else:
    model = DistributedDataParallel(model, process_group=mesh.get_group())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
loss_fn = nn.CrossEntropyLoss()

with DpwaPyTorchAdapter(model, optimizer=optimizer) as node:
    sampler = DistributedSampler(
        data,
        num_replicas=node.world_size * node.island_size,
        rank=node.rank * node.island_size + node.island_rank,
    )
    loader = DataLoader(data, batch_size=32, sampler=sampler)
    for epoch in range(arguments.epochs):
        sampler.set_epoch(epoch)
        for batch, targets in loader:
            loss = loss_fn(model(batch.to(device)), targets.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            node.step(loss)  # on all processes alike
        if node.island_rank == 0:
            print(f"{node.name}: epoch {epoch}, loss {loss.item():.3f}, {node.statistics().blended} blends", flush=True)
    node.finish(merge=True)
    model.eval()
    with torch.no_grad():
        guesses = model(inputs.to(device)).argmax(dim=1)
    if node.island_rank == 0:
        accuracy = (guesses.cpu() == data.tensors[1]).float().mean()
        print(f"{node.name}: the mean of {node.statistics().merged_models} models, {accuracy:.1%} right", flush=True)
distributed.destroy_process_group()

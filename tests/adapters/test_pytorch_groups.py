"""What one node of dpwa may be, with real processes of torch.distributed and torchrun."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn
from torch_support import local_cluster

from dpwa import ClusterConfig, ConfigError, DpwaPyTorchAdapter
from dpwa.launch.ports import free_ports
from support import TESTS

TRAINER = TESTS / "groups_trainer.py"

SHARDED = "dpwa does not exchange the flat shards of FullyShardedDataParallel; expected a model that fully_shard"


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, str]:
    """What became of each kind of model, on rank 0; the same on rank 1."""
    folder = tmp_path_factory.mktemp("groups")
    ports = ",".join(map(str, free_ports(4)))
    started = [
        subprocess.Popen(
            [sys.executable, str(TRAINER), str(rank), str(folder), ports],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert [process.returncode for process in started] == [0, 0], outputs
    results = [json.loads(out.strip().splitlines()[-1]) for out, _ in outputs]
    assert results[0] == results[1]
    return results[0]


@pytest.mark.heavy
@pytest.mark.parametrize("model", ["a model of its own", "beside replicas"])
def test_a_model_that_no_other_process_has_a_part_in_is_exchanged_although_processes_are_grouped(found, model):
    assert found[model] == "weight bias"


@pytest.mark.heavy
@pytest.mark.parametrize("model", ["replicas", "inside of replicas", "replicas by the file"])
def test_replicas_are_one_node_together(found, model):
    assert found[model] == "weight bias"


@pytest.mark.heavy
def test_replicas_of_all_parts_that_are_trained_are_one_node_together(found):
    assert found["all trained parts replicated"] == "1.module.weight 1.module.bias 2.module.weight 2.module.bias"


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("sharded", "weight[own] bias[own]"),
        ("sharded along the other dimension", "weight[own]"),
        ("frozen parameters beside shards, kept", "0.weight[own] 0.bias[own]"),
        ("sharded over one process", "weight bias"),
    ],
)
def test_each_process_takes_its_own_part_of_a_sharded_model(found, model, names):
    assert found[model] == names


@pytest.mark.heavy
@pytest.mark.parametrize("model", ["a group of one", "compiled in a group of one"])
def test_data_parallel_over_one_process_is_the_model_inside(found, model):
    assert found[model] == "weight bias"


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "a part that is replicated",
            r"tensor 0.weight: has no copies, and other tensors .* on the ranks \[0, 1\]; put",
        ),
        (
            "replicated later",
            "tensor weight: is held by a DistributedDataParallel over 2 processes, which dpwa did not see",
        ),
        (
            "replicas with other settings",
            r"the processes \[0, 1\] are one .*, and rank 1 differs from rank 0 in its settings",
        ),
        ("replicas of other models", r"the processes \[0, 1\] are one .*, and rank 1 differs from rank 0 in its model"),
        (
            "other replicas than the file says",
            r"island: \{size: 4\}: the model's DistributedDataParallel spans 2 processes",
        ),
        ("sharded later", "tensor 0.weight: is sharded over processes, which dpwa did not see when it took the model"),
        (
            "shards with copies",
            r"tensor weight: has the placements \('R', 'S\(0\)'\) on a mesh of",
        ),
        ("a part that is sharded", "tensor 1.weight: each process of the island holds it whole, and others in parts"),
        (
            "frozen parameters beside shards, blended",
            "tensor 1.weight: each process of the island holds it whole, and others in parts",
        ),
        ("nothing for the second", "this process holds no element of the model that is exchanged: fully_shard divides"),
        ("other shards than the file says", r"island: \{size: 4\}: the model's fully_shard spans 2 processes; give it"),
        (
            "checkpoints of shards",
            "`checkpoint:` keeps whole models, and this one is sharded over the processes of its",
        ),
        (
            "ports side by side",
            r"node w2: its model is sharded over 2 processes, which need the ports (\d+) to \d+, and \1 is w1's;",
        ),
        ("flat shards", r"tensor 0\._fsdp_wrapped_module\._flat_param: is sharded by FSDP; " + SHARDED),
    ],
)
def test_a_model_that_other_processes_have_a_part_in_is_refused_with_the_tensor_and_the_reason(found, model, message):
    assert re.fullmatch(message + ".*", found[model]), found[model]
    assert "\n" not in found[model]


# --- Processes of torchrun --------------------------------------------------------------------------------------------


@pytest.fixture
def second_of_two(monkeypatch):
    """This process as torchrun would start it."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    return monkeypatch


def test_one_of_several_processes_that_take_themselves_for_one_node_is_refused_with_rank_node_and_advice(
    second_of_two, tmp_path
):
    (tmp_path / "two.yaml").write_text(local_cluster().to_yaml())
    second_of_two.setenv("DPWA_CONFIG", "two.yaml")
    second_of_two.setenv("DPWA_NODE", "w2")
    with pytest.raises(ConfigError) as refused:
        DpwaPyTorchAdapter(nn.Linear(2, 1))
    said = str(refused.value)
    assert said.startswith("rank 1 of 2 of node w2: expected one process for a node, or several that share a model")
    assert "`island: {size: 2}`" in said
    assert "put a node for each process into the cluster file, or pass name=... on each" in said
    assert "\n" not in said
    # One that says which node it is, is that node.
    with DpwaPyTorchAdapter(nn.Linear(2, 1), "w2") as adapter:
        assert (adapter.name, adapter.world_size) == ("w2", 2)


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_a_group_of_processes_without_a_cluster_runs_alone_and_one_of_them_says_so(second_of_two, caplog, rank, lines):
    second_of_two.setenv("RANK", rank)
    second_of_two.setattr("dpwa.adapters.model_identity.is_sharded", lambda _: True)
    with DpwaPyTorchAdapter(nn.Linear(2, 1)) as adapter:
        adapter.step(1.0)
        assert adapter.world_size == 1
    assert [record.getMessage()[:44] for record in caplog.records] == [
        "the 2 processes of this group run alone, wit"
    ] * lines


TRAINING = """
import sys
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from dpwa import attach

mode = sys.argv[1]
distributed.init_process_group("gloo")
rank = distributed.get_rank()
torch.manual_seed(0)
model = nn.Linear(4, 1)
trained = DistributedDataParallel(model) if mode == "replicas" else model
optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
if mode == "names":
    node = attach(model, optimizer, name=f"w{rank + 1}", config="two.yaml")
else:
    node = attach(trained, optimizer)


def step():
    optimizer.zero_grad()
    trained(torch.randn(8, 4)).pow(2).mean().backward()
    optimizer.step()


for _ in range(20):
    step()
while mode == "names" and not node.statistics().blended:
    step()
if mode == "names":
    node.finish()
print(f"rank {rank} has ended", flush=True)
distributed.destroy_process_group()
"""


def torchrun(folder: Path, mode: str, *before: str) -> tuple[int, str]:
    """What two processes that torchrun starts come to, within `dpwa launch` or without."""
    (folder / "two.yaml").write_text(ClusterConfig.for_localhost(2, ports=free_ports(2)).to_yaml())
    (folder / "train.py").write_text(TRAINING)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    done = subprocess.run(
        [*before, *command, mode],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.timeout(300)
def test_processes_of_torchrun_within_a_node_that_share_no_model_are_refused_in_words_and_at_once(tmp_path):
    code, said = torchrun(tmp_path, "no replicas", sys.executable, "-m", "dpwa", "launch", "two.yaml", "--")
    assert code == 1
    assert re.search(r"rank 0 of 2 of node w[12]: expected one process for a node, or several that share", said), said
    assert "Address already in use" not in said
    assert "has ended" not in said


@pytest.mark.heavy
@pytest.mark.timeout(300)
@pytest.mark.slow
def test_each_process_of_torchrun_may_be_a_node_by_name(tmp_path):
    code, said = torchrun(tmp_path, "names")
    assert code == 0, said
    assert said.count("has ended") == 2


@pytest.mark.heavy
@pytest.mark.timeout(300)
@pytest.mark.slow
def test_torchrun_without_a_cluster_is_plain_distributed_training_and_says_so_once(tmp_path):
    code, said = torchrun(tmp_path, "replicas")
    assert code == 0, said
    assert said.count("has ended") == 2
    assert said.count("the 2 processes of this group run alone, without dpwa") == 1

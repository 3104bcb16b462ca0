"""What one node of dpwa may be, with two real processes of torch.distributed."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from dpwa.launch.ports import free_ports
from support import TESTS

pytestmark = pytest.mark.heavy

TRAINER = TESTS / "groups_trainer.py"

REPLICATED = r"is held by a DistributedDataParallel over 2 processes, .* one node of dpwa is one process"
SHARDED = r"one node of dpwa is one process that holds the whole model"


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


@pytest.mark.parametrize("model", ["a model of its own", "beside replicas"])
def test_a_model_that_no_other_process_has_a_part_in_is_exchanged_although_processes_are_grouped(found, model):
    assert found[model] == "weight bias"


@pytest.mark.parametrize("model", ["a group of one", "compiled in a group of one"])
def test_data_parallel_over_one_process_is_the_model_inside(found, model):
    assert found[model] == "weight bias"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("replicas", "tensor module.weight: " + REPLICATED),
        ("inside of replicas", "tensor weight: " + REPLICATED),
        ("a part that is replicated", "tensor 1.module.weight: " + REPLICATED),
        ("replicated later", "tensor weight: " + REPLICATED),
        ("sharded", "tensor weight: is a DTensor, sharded over processes; " + SHARDED),
        ("sharded later", "tensor 0.weight: is a DTensor, sharded over processes; " + SHARDED),
        ("flat shards", r"tensor 0\._fsdp_wrapped_module\._flat_param: is sharded by FSDP; " + SHARDED),
    ],
)
def test_a_model_that_other_processes_have_a_part_in_is_refused_with_the_tensor_and_the_reason(found, model, message):
    assert re.fullmatch(message + ".*", found[model]), found[model]
    assert "\n" not in found[model]

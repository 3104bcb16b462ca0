"""What a closed node leaves in memory: nothing that is as large as the model."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.heavy

SCRIPT = """
import ctypes, json, sys
import psutil, torch
from torch import nn
from dpwa.adapters.attaching import attach
from dpwa.adapters.pytorch import DpwaPyTorchAdapter
from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports

way, settings = sys.argv[1], json.loads(sys.argv[2])
me = psutil.Process()

def used():
    ctypes.CDLL(None).malloc_trim(0)
    return me.memory_info().rss, sum("dpwa-" in mapped.path for mapped in me.memory_maps())

def use(models, optimizers, steps):
    config = ClusterConfig.for_localhost(2, ports=free_ports(2), wait_ms=2000, **settings)
    nodes = []
    for name, model, optimizer in zip(("w1", "w2"), models, optimizers):
        if way == "attach":
            nodes.append(attach(model, optimizer, name=name, config=config))
        else:
            nodes.append(DpwaPyTorchAdapter(model, name, config))
    for _ in range(200):
        for node, optimizer in zip(nodes, optimizers):
            optimizer.step() if way == "attach" else node.step(1.0)
        steps -= all(node.statistics().blended for node in nodes)
        if steps == 0:
            break
    inside = used()
    for node in nodes:
        node.close()
    return nodes, inside

def pair(size):
    models = [nn.Linear(size, 4096, bias=False) for _ in range(2)]
    return models, [torch.optim.SGD(model.parameters(), lr=0.0) for model in models]

use(*pair(1), 1)
models, optimizers = pair(4096)
for model, optimizer in zip(models, optimizers):
    model.weight.grad = torch.zeros_like(model.weight)
before = used()
nodes, inside = use(models, optimizers, 3)
after = used()
print(json.dumps([before, inside, after, [node.statistics().blended for node in nodes]]))
"""


@pytest.mark.parametrize(
    ("way", "settings"),
    [
        ("adapter", {}),
        pytest.param("attach", {}, marks=pytest.mark.slow),
        pytest.param("adapter", {"shared_memory": "off"}, marks=pytest.mark.slow),
        pytest.param("adapter", {"outer": {"every": 2}}, marks=pytest.mark.slow),
        pytest.param("adapter", {"method": "noloco", "noloco": {"every": 3}}, marks=pytest.mark.slow),
        *(
            pytest.param("adapter", {"method": method}, marks=pytest.mark.slow)
            for method in ("gosgd", "adpsgd", "dpsgd")
        ),
    ],
    ids=str,
)
def test_after_close_memory_is_what_it_was_although_the_adapter_and_the_optimizer_are_kept(way, settings, tmp_path):
    """Two nodes with 64 MB each."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, way, json.dumps(settings)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"PATH": "/usr/bin:/bin", "DPWA_RUN_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    (before, maps_before), (inside, maps_inside), (after, maps_after), blended = json.loads(done.stdout)
    assert min(blended) > 0
    assert inside > before + (256 << 20)  # the nodes did hold snapshots
    assert after < 1.05 * before
    assert (maps_before, maps_inside > 0, maps_after) == (0, settings.get("shared_memory") != "off", 0)

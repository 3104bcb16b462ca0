"""docs/frameworks.md: every block that needs torch alone, run as it stands on the page.

Those that need Lightning, Transformers or Accelerate are run by other_frameworks.py: `make test-frameworks`.
"""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch

from dpwa import ClusterConfig
from dpwa.launch.ports import free_ports
from dpwa.node import farewell
from pages import launched, python_blocks

PAGE = "frameworks.md"
(SHARED,) = python_blocks(PAGE, "What all blocks share")

STEPS_BY_SECTION = {
    "A loop of your own": {32},
    "Gradient accumulation": {4},
    "Mixed precision": set(range(10, 17)),  # a scaler may skip its first steps
    "torch.compile": {16},
    "Tied weights": {0},
    "EMA and SWA": {16},
    "A GAN": {16},
}
"""By the section's heading: the steps that rank 0 of two nodes counts."""


@pytest.fixture(autouse=True)
def _random_state():
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


SLOW = "torch.compile"  # its first use imports a compiler


@pytest.mark.parametrize(
    "section", [pytest.param(one, marks=pytest.mark.seconds if one == SLOW else ()) for one in STEPS_BY_SECTION]
)
def test_a_block_of_the_page_counts_the_steps_that_the_page_says(section, monkeypatch, tmp_path):
    (tmp_path / "cluster.yaml").write_text(
        ClusterConfig.for_localhost(2, ports=free_ports(2), connect_timeout_ms=20).to_yaml(), encoding="utf-8"
    )
    for name, value in {"CONFIG": "cluster.yaml", "NODE": "w1", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(f"DPWA_{name}", value)
    monkeypatch.setattr(farewell, "SILENT_S", 0.2)  # the other node never comes
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # the others take half a minute
    (block,) = python_blocks(PAGE, section)
    names: dict[str, object] = {}
    exec(compile(SHARED + block, PAGE, "exec"), names)  # noqa: S102 - what the page says, as a reader would run it
    node = names["node"]
    try:
        assert (node.name, node.rank, node.world_size) == ("w1", 0, 2)
        assert node.statistics().step in STEPS_BY_SECTION[section]
    finally:
        node.close()


@pytest.mark.slow
def test_two_nodes_train_together_by_each_block_of_the_page(tmp_path):
    blocks = {name: SHARED + "".join(python_blocks(PAGE, name)) for name in STEPS_BY_SECTION}
    source = f"""
for section, block in {blocks!r}.items():
    begin_together(section)
    names = {{}}
    exec(block, names)
    with names["node"] as node:
        print("did", json.dumps([section, node.statistics().step, node.statistics().blended]))
"""
    eager = "import functools, json, torch\ntorch.compile = functools.partial(torch.compile, backend='eager')"
    _, output = launched(tmp_path, f"{eager}\nimport dpwa.adapters.pytorch", source)
    did = [json.loads(line.split(" did ")[1]) for line in output.splitlines() if " did " in line]
    assert len(did) == 2 * len(STEPS_BY_SECTION), output
    for section, steps, blended in did:
        assert steps in STEPS_BY_SECTION[section], output
        assert blended > 0 or steps == 0, output

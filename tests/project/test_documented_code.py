"""The Python and the YAML of README, CONTRIBUTING and docs/ work as they stand."""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from documentation import PAGES, Block, blocks, of_language
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset

from dpwa import ClusterConfig, DpwaPyTorchAdapter
from dpwa.interpolation import registry
from dpwa.lab.study.study import Study
from support import ROOT, TESTS

LANGUAGES = {"", "python", "yaml", "sh", "text"}

# Pages whose Python a test of their own runs, such as {"page.md": "project/test_page.py"}: here it is compiled only.
RUN_ELSEWHERE: Mapping[str, str] = {
    "api.md": "project/test_api_page.py",
    "lab.md": "lab/test_lab_page.py",
    "frameworks.md": "project/test_frameworks_page.py",
    "resume.md": "project/test_resume_example.py",
    "launching.md": "engines/test_real_islands.py",
}

PYTHON_PAGES = sorted({block.page for block in of_language("python")})
YAML_BLOCKS = of_language("yaml")


def what_readers_have() -> dict[str, Any]:
    """The names that blocks of Python use and do not make: those of a reader's own script."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    node = DpwaPyTorchAdapter(model)
    return {
        "torch": torch,
        "nn": nn,
        "DataLoader": DataLoader,
        "DistributedSampler": DistributedSampler,
        "Subset": Subset,
        "Path": Path,
        "DpwaPyTorchAdapter": DpwaPyTorchAdapter,
        "MyModel": lambda: nn.Linear(3, 2),
        "data": TensorDataset(torch.zeros(64, 3), torch.zeros(64, dtype=torch.int64)),
        "loss_fn": nn.CrossEntropyLoss(),
        "model": model,
        "optimizer": optimizer,
        "node": node,
        "path": Path("checkpoint.pth"),
        "os": os,
        "time": time,
        "epochs": 1,
        "download": lambda: None,
        "saved": {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "dpwa": node.state_dict()},
    }


@pytest.fixture
def custom_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the examples' rule and methods and with the files that pages name; nothing of it is left behind."""
    for example in ("custom_rule/better_only.py", "custom_method/best_peer.py", "custom_method/cautious_push.py"):
        shutil.copy(ROOT / "examples" / example, tmp_path)
    for name, matrix in (("weights", np.full((4, 4), 0.25)), ("first", np.eye(4)), ("second", np.full((4, 4), 0.25))):
        np.savetxt(tmp_path / f"{name}.csv", matrix, delimiter=",")
    (tmp_path / "data").mkdir()
    (tmp_path / "cluster.yaml").write_text(ClusterConfig.for_localhost(4).to_yaml(), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_known", dict(registry._known))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name in ("better_only", "best_peer", "cautious_push"):
            del sys.modules[name]


def test_every_fenced_block_has_a_language_that_the_tests_know() -> None:
    unknown = [f"{block.place}: {block.language}" for block in blocks() if block.language not in LANGUAGES]
    assert unknown == [], "use one of LANGUAGES, or add a test for another one"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_fence_is_closed_and_named(page: Path) -> None:
    fences = re.findall(r"^ *```.*$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert [fence for fence in fences[::2] if not re.fullmatch(r"```\w+", fence)] == []
    assert set(fences[1::2]) <= {"```"}


@pytest.mark.parametrize("page", PYTHON_PAGES)
def test_the_python_of_a_page_runs_from_top_to_bottom(page: str, custom_modules: Path) -> None:
    assert custom_modules.is_dir()
    random_state = torch.get_rng_state()
    names = what_readers_have()
    opened = [names["node"]]
    try:
        for block in of_language("python"):
            if block.page == page:
                run(block, names)
                opened.append(names["node"])
    finally:
        for node in opened:
            node.close()
        torch.set_rng_state(random_state)


def run(block: Block, names: dict[str, Any]) -> None:
    """Compile a block, with the page's own line numbers, and run it."""
    tree = ast.parse(block.text)
    ast.increment_lineno(tree, block.line - 1)
    code = compile(tree, block.page, "exec")
    if block.page in RUN_ELSEWHERE:
        return
    try:
        exec(code, names)  # noqa: S102 - the project's own pages
    except NameError as error:
        raise AssertionError(
            f"{block.place}: {error}; make it in the block, or add it to what_readers_have in this file, or "
            f"run the page in a test of its own and name that in RUN_ELSEWHERE"
        ) from error


def test_a_page_that_is_run_elsewhere_has_a_test() -> None:
    assert set(RUN_ELSEWHERE) <= set(PYTHON_PAGES)
    assert all((TESTS / path).exists() for path in RUN_ELSEWHERE.values())


def nodes_of(fragment: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The nodes for a part of a cluster file: those that its edges name, otherwise four."""
    topology = fragment.get("topology")
    edges = topology.get("edges", []) if isinstance(topology, Mapping) else []
    names = dict.fromkeys(name for edge in edges for name in edge) or [f"w{number}" for number in range(1, 5)]
    return [{"name": name, "port": 21000 + place} for place, name in enumerate(names)]


@pytest.mark.parametrize("block", YAML_BLOCKS, ids=lambda block: block.place)
def test_the_yaml_of_a_page_is_a_study_or_a_cluster_file_or_a_part_of_one(block: Block, custom_modules: Path) -> None:
    content = yaml.safe_load(block.text)
    if isinstance(content, dict) and "study" in content:
        assert Study.from_text(block.text).trials()
        return
    text = block.text
    if isinstance(content, dict) and "nodes" not in content:
        text += "\n" + yaml.safe_dump({"nodes": nodes_of(content)})
    path = custom_modules / "page.yaml"
    path.write_text(text + "\n", encoding="utf-8")
    config = ClusterConfig.load(path)
    assert config.nodes
    config.interpolator()
    for node in config.nodes:
        config.method_for(node.name)

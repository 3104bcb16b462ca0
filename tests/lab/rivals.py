"""The rows of hivemind and Decent-DP, trained for real: `make test-rivals`, which needs both installed.

What can be said of these rows without them is in test_lab_rivals.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from dpwa.cli import main

STUDY = {
    "study": "rivals",
    "data": "digits",
    "model": "mlp",
    "nodes": 4,
    "n_epochs": 30,
    "batch_size": 16,
    "seeds": 1,
    "strategies": [
        {"name": "apart", "strategy": "pull", "cluster": {"pull_probability": 0}},
        {"strategy": "hivemind", "every_steps": 40},
        {"strategy": "decent_dp"},
        {"name": "hivemind, one killed", "strategy": "hivemind", "every_steps": 40, "kill": {"node": 4, "at": 0.5}},
        {"name": "Decent-DP, one killed", "strategy": "decent_dp", "kill": {"node": 4, "at": 0.5}},
    ],
    "partition": {"kind": "classes", "classes_per_node": 5, "equal": True},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("rivals")
    (folder / "rivals.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    done = CliRunner().invoke(main, ["lab", "run", str(folder / "rivals.yaml"), "--run-dir", str(folder / "run")])
    print(done.output)
    found = {}
    for path in Path(folder / "run" / "trials").glob("*/result.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        found[result["trial"]["row"]] = result
    return found


@pytest.mark.timeout(600)
def test_the_rows_were_trained(results):
    assert set(results) == {row.get("name", row["strategy"]) for row in STUDY["strategies"]}


def _spread(result: dict[str, Any]) -> float:
    """How far the nodes' models are from their mean at the end."""
    return result["rounds"][-1]["consensus"]


@pytest.mark.parametrize("row", ["hivemind", "decent_dp"])
def test_the_nodes_have_really_averaged(results, row):
    assert _spread(results[row]) < 0.5 * _spread(results["apart"])
    assert results[row]["bytes_sent"] > 0


def test_every_average_of_hivemind_is_counted(results):
    found = results["hivemind"]
    assert found["asked_per_step"] == pytest.approx(1 / 40, rel=0.2)
    assert found["exchanges_per_step"] > 0.5 * found["asked_per_step"]


def test_decent_dp_averages_in_each_step(results):
    assert results["decent_dp"]["exchanges_per_step"] == results["decent_dp"]["asked_per_step"] == 1


def test_hivemind_survives_a_killed_process_and_decent_dp_does_not(results):
    assert results["hivemind, one killed"]["status"] == "done"
    assert results["Decent-DP, one killed"]["status"] != "done"

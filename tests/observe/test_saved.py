"""Which saved models of a run count."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from dpwa.cli import main
from dpwa.errors import ConfigError
from dpwa.observe.saved import saved_models

SAVED_S = 1_700_000_000.0
START = {"event": "start", "incarnation": "aa"}
CLOSE = {"event": "close", "clock": 5.0}


def _node(run_dir: Path, name: str, value: float, *events: dict[str, object]) -> None:
    """A node that has saved its model at `SAVED_S`."""
    folder = run_dir / "nodes" / name
    folder.mkdir(parents=True)
    save_file({"weight": np.full(2, value, np.float32)}, folder / "model.safetensors")
    os.utime(folder / "model.safetensors", (SAVED_S, SAVED_S))
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def test_a_model_of_a_former_life_is_not_in_the_average_if_the_last_one_saved_none(tmp_path):
    first = [{**START, "t": SAVED_S - 100}, {**CLOSE, "t": SAVED_S}]
    again = {"t": SAVED_S + 50, "event": "start", "incarnation": "bb"}
    more = [{"t": SAVED_S + 51, "event": "exchange", "reason": "x" * 1000}] * 100  # its start is far from the end
    _node(tmp_path, "w1", 1.0, *first)
    _node(tmp_path, "w2", 3.0, *first, again, *more)
    done = CliRunner().invoke(main, ["average", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "w2 has saved no model in its last life and is not in the average" in done.output
    assert load_file(tmp_path / "average.safetensors")["weight"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "events",
    [
        [{**START, "t": SAVED_S - 100}],  # killed after it had saved, before it closed
        [{**START, "t": SAVED_S + 50}, {**CLOSE, "t": SAVED_S + 60}],  # of a copied folder: its end is on record
        [],
        [START],
    ],
)
def test_a_model_counts_unless_its_node_began_anew_and_did_not_end(tmp_path, events):
    _node(tmp_path, "w1", 1.0, *events)
    models, without = saved_models(tmp_path)
    assert ([model.node for model in models], without) == (["w1"], {})


def test_a_run_in_which_all_models_are_of_former_lives_has_none(tmp_path):
    _node(tmp_path, "w1", 1.0, {**START, "t": SAVED_S + 1})
    with pytest.raises(ConfigError, match="no node has saved a model yet"):
        saved_models(tmp_path)

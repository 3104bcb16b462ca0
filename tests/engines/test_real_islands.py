"""Islands with real processes: under one torchrun, and each as a node of `dpwa launch`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from engine_runs import run

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports
from pages import python_blocks
from support import ROOT, TESTS

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
FORKED = [sys.executable, str(TESTS / "forked_ranks.py")]
"""As torchrun, and imports torch once."""
TRAINER = str(TESTS / "island_trainer.py")
SAMPLE = ROOT / "samples" / "islands.py"


def said_in(folder: Path, islands: int, size: int = 2) -> list[list[dict[str, Any]]]:
    """What the processes of each island have said; all were in it at each moment, and blended."""
    found = [
        [json.loads((folder / f"w{node + 1}-{rank}.json").read_text()) for rank in range(size)]
        for node in range(islands)
    ]
    for node, island in enumerate(found):
        assert [one["places"] for one in island] == [[node, islands, rank, size] for rank in range(size)]
        assert island[0]["blended"] > 0
        for other in island[1:]:
            assert_equal(island[0], other)
    return found


def assert_equal(first: dict[str, Any], other: dict[str, Any]) -> None:
    """Two processes of one island had the same model behind each step, to the bit."""
    for key in ("name", "run_dir", "first", "first_digest", "end", "is_merged", "blended", "clock", "merged_models"):
        assert first[key] == other[key], key
    assert len(first["digests"]) == len(other["digests"])
    former, blends, own_statistics, unchanged = 0, 0, 0, 0
    for mine, theirs in zip(first["digests"], other["digests"], strict=True):
        assert mine[:2] == theirs[:2]
        if mine[0] > former:
            unchanged += mine[2] != theirs[2]
            former, blends = mine[0], blends + 1
        own_statistics += mine[2] != theirs[2]
    assert blends > 1
    assert unchanged <= 1, "the first answer may leave the model as it is; else what a blend has made of the buffers"
    assert own_statistics > 0, "else nothing is shown by buffers that are equal"


@pytest.mark.heavy
@pytest.mark.timeout(300)
def test_two_islands_under_one_torchrun_need_no_file_and_are_equal_within_to_the_bit(tmp_path):
    four = [*TORCHRUN, "--standalone", "--nproc-per-node=4", TRAINER, str(tmp_path), "60", "2", "merge=yes"]
    run(tmp_path, *four, timeout_s=280.0)
    found = said_in(tmp_path, 2)
    assert all(one["is_merged"] and one["merged_models"] == 2 for island in found for one in island)
    assert len({tuple(one["end"]) for island in found for one in island}) == 1, "one model at the end"
    folder = Path(found[0][0]["run_dir"])
    assert sorted(path.parent.name for path in folder.rglob("model.safetensors")) == ["w1", "w2"]
    assert not (folder / "keys").exists()


@pytest.mark.heavy
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_settings_make_islands_of_models_without_a_wrapper_and_momentum_travels_within(tmp_path):
    (tmp_path / "settings.yaml").write_text("island: {size: 2}\noptimizer_state: blend\nmethod: gosgd\n")
    four = [*FORKED, "4", TRAINER, str(tmp_path), "60", "2", "ddp=no"]
    run(tmp_path, *four, timeout_s=280.0, DPWA_CONFIG="settings.yaml")
    said_in(tmp_path, 2)


@pytest.mark.heavy
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("victim", ["w2/0", "w2/1"], ids=["the first", "another"])
def test_an_island_of_which_a_process_dies_comes_back_from_its_checkpoint_while_the_others_train_on(tmp_path, victim):
    config = ClusterConfig.for_localhost(2, ports=free_ports(2), checkpoint={"every_s": 0.2})
    (tmp_path / "cluster.yaml").write_text(config.to_yaml())
    said = run(
        tmp_path,
        *[sys.executable, "-m", "dpwa", "launch", "cluster.yaml", "--on-failure", "restart", "--run-dir", "run", "--"],
        *[*FORKED, "2", TRAINER, str(tmp_path), "400", "2"],
        *["merge=yes", "pause=0.03", f"dies={victim}"],
        timeout_s=380.0,
    )
    assert "w2 | [dpwa] exit code 1; restart 1 of 5" in said, "the fault has happened"
    stays, comes_back = said_in(tmp_path, 2)
    assert [one["first"] for one in stays] == [0, 0]
    assert comes_back[0]["first"] > 0
    assert comes_back[0]["first_digest"], "of parameters and momentum, the same in both"
    assert all(one["merged_models"] == 2 for one in (*stays, *comes_back))


@pytest.mark.heavy
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_torchrun_starts_all_islands_again_and_they_go_on_from_their_checkpoints(tmp_path):
    (tmp_path / "settings.yaml").write_text("checkpoint: {every_s: 0.1}\n")
    again = ["--standalone", "--nproc-per-node=4", "--max-restarts=1"]
    run(
        tmp_path,
        *[*TORCHRUN, *again, TRAINER, str(tmp_path), "120", "2", "dies=w2/1"],
        timeout_s=280.0,
        DPWA_CONFIG="settings.yaml",
        TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",  # else gloo meets the addresses of the processes that have ended
    )
    assert all(one["first"] > 0 for island in said_in(tmp_path, 2) for one in island)
    assert len(list((tmp_path / "runs").iterdir())) == 1


ALONE = """
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import dpwa
from dpwa.adapters import islands

islands._MEET_S, islands._LONG_S = 4.0, 1.0
distributed.init_process_group("gloo")
model = DistributedDataParallel(nn.Linear(4, 1))
if distributed.get_rank() == 0:
    try:
        dpwa.DpwaPyTorchAdapter(model, "w1", dpwa.ClusterConfig.for_localhost(2))
    except dpwa.ConfigError as error:
        print("refused:", error, flush=True)
distributed.barrier()
"""


@pytest.mark.heavy
@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_process_that_makes_no_adapter_is_named_and_not_waited_for_without_end(tmp_path):
    (tmp_path / "train.py").write_text(ALONE)
    said = run(tmp_path, *FORKED, "2", "train.py", timeout_s=180.0)
    assert "rank 0 waits for the ranks [1], with which it is one node, to make the adapter: all of them must" in said
    assert (
        "refused: the processes [0, 1] are one node together, and do not reach each other over gloo within 4 s" in said
    )


def test_the_page_shows_what_the_sample_does():
    (block,) = python_blocks("launching.md", "Islands")
    sample = SAMPLE.read_text(encoding="utf-8")
    compile(block, "launching.md", "exec")
    lines = [line.partition("  # or")[0].strip() for line in block.splitlines()]
    shown = [line for line in lines if not line.startswith(("size =", "node ="))]
    assert [line for line in shown if line not in sample] == []


@pytest.mark.heavy
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_sample_trains_and_ends_with_one_model(tmp_path):
    said = run(tmp_path, *FORKED, "4", str(SAMPLE), "--island", "2", timeout_s=280.0)
    ends = [line.partition(": ")[2] for line in said.splitlines() if "the mean of 2 models" in line]
    assert len(ends) == 2
    assert ends[0] == ends[1]
    assert float(ends[0].rpartition(", ")[2].partition("%")[0]) > 85

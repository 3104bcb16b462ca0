"""DDP under torchrun: a killed process costs the time since the last checkpoint, and nothing of the result."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import nn

from dpwa.cli import main
from dpwa.errors import InternalError
from dpwa.examples.samples import Samples, unchanged
from dpwa.lab.strategies import torch_distributed
from dpwa.lab.strategies.torch_distributed import DdpRestarts
from dpwa.lab.study.settings import Settings
from dpwa.lab.study.trial import TrialFolder
from dpwa.lab.training.handicaps import Handicap
from dpwa.lab.training.loop import Recipe, Task, train
from dpwa.lab.training.recording import Recorder
from dpwa.lab.training.snapshots import read_snapshot, read_steps, write_steps
from dpwa.lab.training.strategy import Strategy


class Stopped(Exception):
    """The process is killed."""


class Checkpointed(Strategy):
    """Keeps a checkpoint in memory at the begin of each epoch, and stops at a step."""

    def __init__(self, saved: dict[str, object], stop_at: int | None) -> None:
        self._saved, self._stop_at, self._step = saved, stop_at, 0

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        super().begin(model, optimizer)
        if self._saved:
            model.load_state_dict(self._saved["model"])
            optimizer.load_state_dict(self._saved["optimizer"])
            self.steps_done = self._step = self._saved["step"]

    def before_epoch(self, _epoch: int) -> None:
        if self._step > self.steps_done:
            self._saved.update(
                copy.deepcopy(
                    {
                        "model": self.model.state_dict(),
                        "optimizer": self.optimizer.state_dict(),
                        "step": self._step,
                    }
                )
            )

    def after_step(self, _loss: torch.Tensor) -> None:
        self._step += 1
        if self._step == self._stop_at:
            raise Stopped


def trained(folder: TrialFolder, saved: dict[str, object], stop_at: int | None) -> tuple[nn.Module, Recorder]:
    generator = torch.Generator().manual_seed(0)
    samples = Samples(torch.rand(40, 4, generator=generator), torch.arange(40) % 3)
    torch.manual_seed(1)
    model = nn.Linear(4, 3)
    recorder = Recorder(folder, ("w1",), "w1", model, rounds=6)
    recipe = Recipe(3, 8, learning_rate=0.1, momentum=0.9, schedule="cosine")
    task = Task(model, shard=samples, prepare=unchanged)
    try:
        train(task, recipe, seed=5, strategy=Checkpointed(saved, stop_at), watch=recorder)
    except Stopped:
        recorder.write_last_word()
        raise
    return model, recorder


def test_a_training_that_goes_on_from_a_checkpoint_is_to_the_bit_the_one_that_was_never_stopped(tmp_path):
    whole, _ = trained(TrialFolder(tmp_path / "whole"), {}, None)
    broken, saved = TrialFolder(tmp_path / "broken"), {}
    with pytest.raises(Stopped):
        trained(broken, saved, stop_at=14)
    assert saved["step"] == 10, "two of three epochs of five steps"
    first = broken.snapshot("w1", 0).read_bytes()
    resumed, recorder = trained(broken, saved, None)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    assert broken.snapshot("w1", 0).read_bytes() == first, "the initial weights stay those of the first life"
    assert read_snapshot(broken.snapshot("w1", 6)).header["samples"] == 3 * 40
    steps = read_steps(broken.steps("w1"))
    expected = read_steps(TrialFolder(tmp_path / "whole").steps("w1"))
    assert steps["loss"].tolist() == expected["loss"].tolist()
    assert steps["count"].sum() == 3 * 40
    assert (steps["end_s"][1:] >= steps["end_s"][:-1]).all(), "the clock goes on, with what was lost"
    assert recorder.training_s >= steps["end_s"][-1]


def test_what_lives_of_any_process_have_made_again_is_sent_again_and_adds_up(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_distributed, "allreduce_bytes", lambda _payload_bytes, _size: 100)
    folder = TrialFolder(tmp_path)
    model = nn.Linear(4, 3)

    def life(steps: int) -> dict[str, float]:
        """One process that is there; the other one was killed after so many steps."""
        recorded = [folder.steps(name) for name in ("w1", "w2")]
        meeting = tmp_path / f"meet{len(list(tmp_path.iterdir()))}"
        made = DdpRestarts(0, 1, meeting, checkpoint=tmp_path / "checkpoint.pt", recorded=recorded)
        made.begin(model, torch.optim.SGD(model.parameters(), lr=0.1))
        did = made.did()
        for step in range(made.steps_done, made.steps_done + steps):
            if step % 5 == 0 and step:
                made.before_epoch(step // 5 + 1)
            made.after_step(torch.tensor(0.0))
        made.close()
        columns = {name: [1.0] * (made.steps_done + steps) for name in ("loss", "right", "count", "end_s")}
        write_steps(folder.steps("w2"), columns)
        return did

    assert life(3)["redone_steps"] == 0
    assert life(12)["redone_steps"] == 3, "nothing had been saved"
    assert life(4)["redone_steps"] == 3 + 2, "the checkpoint was made at the tenth of twelve"
    did = life(1)
    assert did["redone_steps"] == 3 + 2 + 4
    assert did["bytes_sent"] == (10 + 3 + 2 + 4) * 100


def test_steps_that_nobody_has_written_down_are_an_error_and_no_guess(tmp_path):
    model = nn.Linear(1, 1)
    recorder = Recorder(TrialFolder(tmp_path), ("w1",), "w1", model, rounds=1)
    with pytest.raises(InternalError, match="expected 3 steps of an earlier life"):
        recorder.resume(10, 3)


def test_a_process_is_killed_in_its_first_life_only():
    settings = Settings.model_validate({"strategy": "ddp_restarts", "nodes": 2, "kill": {"node": 1, "at": 0.5}})
    assert Handicap(settings, 1, crowding=1.0).is_due(0.9)
    assert not Handicap(settings, 1, crowding=1.0, life=1).is_due(0.9)


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("at", "from_step", "nodes"), [(0.6, 88, 2), (0.1, 0, 3)])
def test_under_torchrun_a_killed_process_changes_nothing_but_the_time(tmp_path, at, from_step, nodes):
    rows = [
        {"strategy": "ddp"},
        {"name": "restarted", "strategy": "ddp_restarts", "kill": {"node": 2, "at": at}},
    ]
    study = {"study": "again", "data": "digits", "model": "mlp", "nodes": nodes, "n_epochs": 4, "batch_size": 32}
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump({**study, "seeds": 1, "strategies": rows}), encoding="utf-8")
    done = CliRunner().invoke(main, ["lab", "run", str(path), "--run-dir", str(tmp_path / "run")])
    found = [json.loads(each.read_text()) for each in Path(tmp_path / "run" / "trials").glob("*/result.json")]
    by_row = {result["trial"]["row"]: result for result in found}
    statuses = {row: result["status"] for row, result in by_row.items()}
    assert statuses == {"ddp": "done", "restarted": "done"}, done.output
    assert by_row["restarted"]["reason"] == "w2 was killed; all began again from the last checkpoint"
    log = next(tmp_path.glob("run/trials/restarted*/output.log")).read_text()
    assert "failed (exitcode" in log, "the fault happened"
    last = {row: result["rounds"][-1] for row, result in by_row.items()}
    # 4 epochs of 44 steps: the killed process made some, and all go on from the end of the epoch before.
    redone = math.ceil(at * 4 * 44) - from_step
    assert last["restarted"]["samples"] == last["ddp"]["samples"] + redone * 32
    assert last["restarted"]["bytes_sent"] == pytest.approx(last["ddp"]["bytes_sent"] * (1 + redone / (4 * 44)))
    assert last["restarted"]["loss"] == pytest.approx(last["ddp"]["loss"], rel=1e-4)
    assert last["restarted"]["time_s"] > last["ddp"]["time_s"] + 1, "a process needs seconds to import torch"

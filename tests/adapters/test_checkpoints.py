"""A node that saves by itself, and one that goes on from it: to the bit, and through whatever happens to the disk."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dpwa.adapters import checkpoint_files, checkpoint_writer
from dpwa.adapters.attaching import attach
from dpwa.adapters.pytorch import DpwaPyTorchAdapter
from dpwa.config.cluster import ClusterConfig
from dpwa.errors import ConfigError, NodeClosed
from dpwa.node.node import Node
from dpwa.observe.bounded_file import read_records
from support import wait_until

CONFIG = ClusterConfig.for_localhost(1, checkpoint={"every_s": 0.1})
SELDOM = ClusterConfig.for_localhost(1, checkpoint={"every_s": 60})  # so that there is one alone, at the end


@pytest.fixture(autouse=True)
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    monkeypatch.setenv("DPWA_RUN_DIR", str(tmp_path / "run"))
    yield tmp_path / "run"
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def folder_of(run_dir: Path) -> Path:
    return run_dir / "nodes" / "w1" / "checkpoints"


def events(run_dir: Path, name: str) -> list[dict[str, object]]:
    return [line for line in read_records(run_dir / "nodes/w1/events.jsonl") if line["event"] == name]


class Script:
    """A training of a user: dropout, BatchNorm, Adam, a schedule, a sampler, and all three kinds of random numbers."""

    def __init__(self, *, attached: bool, schedule_first: bool) -> None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [7, 14], gamma=0.5)
        self.sampler = Sampler()
        parts = {"scheduler": self.scheduler, "sampler": self.sampler}
        self.attached, self.schedule_first = attached, schedule_first
        make = attach if attached else DpwaPyTorchAdapter
        self.node = make(self.model, optimizer=self.optimizer, config=CONFIG, checkpoint=parts)

    def train(self, steps: int, *, checkpoint_at: int | None = None) -> list[float]:
        """The losses; the checkpoint of one step is made due, and no other."""
        losses = []
        for step in range(self.node.resumed_step, steps):
            self.node._checkpoints._due_s = 0.0 if step == checkpoint_at else float("inf")
            shift = random.random() + np.random.rand() + self.sampler.next()
            loss = (self.model(torch.randn(16, 4)) - shift).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            if self.schedule_first:
                self.scheduler.step()
            if not self.attached:
                self.node.step(loss)
            if not self.schedule_first:
                self.scheduler.step()
            losses.append(loss.item())
        return losses


class Sampler:
    def __init__(self) -> None:
        self.place = 0

    def next(self) -> float:
        self.place += 1
        return 0.1 * (self.place % 7)

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


@pytest.mark.parametrize("schedule_first", [True, False])
@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("checkpoint_at", [0, 6, 13])
def test_a_training_that_goes_on_is_to_the_bit_the_one_that_was_never_stopped(
    run_dir, monkeypatch, attached, schedule_first, checkpoint_at
):
    kind = {"attached": attached, "schedule_first": schedule_first}
    script = Script(**kind)
    through = script.train(20)
    script.node.close()
    monkeypatch.setenv("DPWA_RUN_DIR", str(run_dir.with_name("second")))
    killed = Script(**kind)
    killed.train(17, checkpoint_at=checkpoint_at)
    killed.node._checkpoints._writer.wait(5.0)
    killed.node.close()
    resumed = Script(**kind)
    assert resumed.node.resumed_step == checkpoint_at + 1
    assert resumed.train(20) == through[checkpoint_at + 1 :]
    for one, other in zip(resumed.model.state_dict().values(), script.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert resumed.node.clock == 20.0
    resumed.node.close()


class Rivals:
    """Two networks with an optimizer and a schedule each, as those of a GAN."""

    def __init__(self, *, schedule_late: bool) -> None:
        torch.manual_seed(1)
        self.layers = nn.ModuleList([nn.Linear(3, 1), nn.Linear(3, 1)])
        self.optimizers = [torch.optim.Adam(layer.parameters(), lr=0.1) for layer in self.layers]
        self.schedulers = [torch.optim.lr_scheduler.StepLR(one, 2, gamma=0.5) for one in self.optimizers]
        self.schedule_late = schedule_late
        parts = {"first": self.optimizers[0], **{f"s{index}": one for index, one in enumerate(self.schedulers)}}
        self.node = attach(self.layers, self.optimizers[1], config=CONFIG, checkpoint=parts)

    def train(self, steps: int, *, checkpoint_at: int | None = None) -> list[list[float]]:
        """Both rates and weights behind each round."""
        seen = []
        for step in range(self.node.resumed_step, steps):
            self.node._checkpoints._due_s = 0.0 if step == checkpoint_at else float("inf")
            for layer, optimizer, scheduler in zip(self.layers, self.optimizers, self.schedulers, strict=True):
                optimizer.zero_grad()
                layer(torch.full((1, 3), 1.0 + step)).square().sum().backward()
                optimizer.step()
                if not self.schedule_late:
                    scheduler.step()
            for scheduler in self.schedulers if self.schedule_late else ():
                scheduler.step()
            rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
            seen.append([*rates, *(value for layer in self.layers for value in layer.weight.flatten().tolist())])
        return seen


@pytest.mark.parametrize("schedule_late", [True, False])
@pytest.mark.parametrize("checkpoint_at", [2, 3])
def test_a_second_optimizer_and_its_schedule_go_on_from_one_moment(run_dir, monkeypatch, schedule_late, checkpoint_at):
    script = Rivals(schedule_late=schedule_late)
    through = script.train(9)
    script.node.close()
    monkeypatch.setenv("DPWA_RUN_DIR", str(run_dir.with_name("second")))
    killed = Rivals(schedule_late=schedule_late)
    killed.train(6, checkpoint_at=checkpoint_at)
    killed.node.close()
    resumed = Rivals(schedule_late=schedule_late)
    assert resumed.node.resumed_step == checkpoint_at + 1
    assert resumed.train(9) == through[checkpoint_at + 1 :]
    resumed.node.close()


def test_finish_takes_a_checkpoint_after_which_nothing_is_left_to_train(run_dir):
    script = Script(attached=True, schedule_first=False)
    script.train(5)
    script.node.finish()
    script.node.close()
    again = Script(attached=True, schedule_first=False)
    assert again.train(5) == []
    again.node.close()
    assert [event["of_step"] for event in events(run_dir, "checkpoint")] == [5]
    assert [event["of_step"] for event in events(run_dir, "resume")] == [5]


def test_without_the_key_or_a_run_folder_nothing_is_kept(run_dir, monkeypatch):
    model = nn.Linear(2, 1)
    with DpwaPyTorchAdapter(model, config=ClusterConfig.for_localhost(1)) as node:
        node.step(1.0)
        node.finish()
    assert not folder_of(run_dir).exists()
    monkeypatch.delenv("DPWA_RUN_DIR")
    with DpwaPyTorchAdapter(model) as node:
        assert node.resumed_step == 0


# --- Refusals ---------------------------------------------------------------------------------------------------------


def small(**arguments: object) -> DpwaPyTorchAdapter:
    model = arguments.pop("model", None) or nn.Linear(3, 2)
    optimizer = arguments.pop("optimizer", torch.optim.SGD)(model.parameters(), lr=0.1)
    return DpwaPyTorchAdapter(model, **{"config": CONFIG, "optimizer": optimizer, **arguments})


def finished(node: DpwaPyTorchAdapter, value: float = 1.0) -> None:
    with node:
        nn.init.constant_(node._tensors.module.weight, value)
        node.step(1.0)
        node.finish()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": nn.Linear(3, 4)}, r"weight is a tensor of float32 \[2, 3\] there, and a tensor of float32 \[4, 3\]"),
        ({"model": nn.Linear(3, 2, bias=False)}, r"bias is a tensor of float32 \[2\] there, and missing in this"),
        ({"model": nn.Linear(3, 2).double()}, "weight is a tensor of float32 .* and a tensor of float64"),
        ({"optimizer": torch.optim.Adam}, "its optimizer is SGD, this script's Adam"),
        ({"checkpoint": {"sampler": Sampler()}}, r"it keeps nothing beside the model, this .* sampler"),
        ({"config": CONFIG.model_copy(update={"method": "gosgd"})}, "made with method pull, the cluster file says gos"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused_and_nothing_is_changed(run_dir, arguments, message):
    finished(small())
    before = {path.name: path.read_bytes() for path in folder_of(run_dir).glob("*.safetensors")}
    if "model" in arguments:
        nn.init.constant_(arguments["model"].weight, 5.0)
    with pytest.raises(ConfigError, match=message):
        small(**arguments)
    if "model" in arguments:
        assert arguments["model"].weight.unique().item() == 5.0
    assert {path.name: path.read_bytes() for path in folder_of(run_dir).glob("*.safetensors")} == before
    small().close()  # no lock and no hook is left


def test_the_optimizer_is_needed_and_may_be_a_part():
    model = nn.Linear(3, 2)
    with pytest.raises(ConfigError, match="`checkpoint:` needs the optimizer"):
        DpwaPyTorchAdapter(model, config=CONFIG)
    parts = {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    with DpwaPyTorchAdapter(model, config=CONFIG, checkpoint=parts) as node:
        node.step(1.0)
        node.finish()
    with DpwaPyTorchAdapter(model, config=CONFIG, checkpoint=parts) as node:
        assert node.resumed_step == 1


def test_what_cannot_be_kept_is_refused_at_the_start_and_later_costs_only_the_checkpoint(run_dir, caplog):
    with pytest.raises(ConfigError, match="mine: expected an object with state_dict and load_state_dict"):
        small(checkpoint={"mine": 5})
    sampler = Sampler()
    node = small(config=SELDOM, checkpoint={"sampler": sampler})
    sampler.place = threading.Lock()
    with node:
        node.step(1.0)
        node.finish()
    (failed,) = events(run_dir, "checkpoint_failed")
    assert "parts.sampler.place" in failed["reason"]
    assert len([record for record in caplog.records if "cannot be written" in record.message]) == 1


def test_an_array_that_cannot_be_kept_costs_the_checkpoint_and_not_the_step(run_dir):
    sampler = Sampler()
    node = small(config=SELDOM, checkpoint={"sampler": sampler})
    sampler.place = np.array(["first", "second"])
    with node:
        take(node)
        assert node.statistics().step == 1
    assert "parts.sampler.place" in events(run_dir, "checkpoint_failed")[0]["reason"]


OTHER = """
import torch
from dpwa import ClusterConfig, ConfigError, DpwaPyTorchAdapter
model = torch.nn.Linear(3, 2)
config = ClusterConfig.for_localhost(1, checkpoint={"every_s": 1})
try:
    DpwaPyTorchAdapter(model, config=config, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
except ConfigError as error:
    print(error)
"""


@pytest.mark.seconds
@pytest.mark.slow
def test_two_processes_cannot_be_one_node():
    with small():
        refused = subprocess.run([sys.executable, "-c", OTHER], capture_output=True, text=True, check=True)
    assert "node w1: another process is this node, in the same run folder" in refused.stdout
    accepted = subprocess.run([sys.executable, "-c", OTHER], capture_output=True, text=True, check=True)
    assert accepted.stdout == ""


# --- Bad disks --------------------------------------------------------------------------------------------------------


def test_a_damaged_newest_checkpoint_gives_the_one_before_and_one_line(run_dir, caplog):
    finished(small(), 1.0)
    finished(small(), 2.0)
    first, second = sorted(folder_of(run_dir).glob("*.safetensors"))
    second.write_bytes(second.read_bytes()[:-10])
    model = nn.Linear(3, 2)
    with small(model=model) as node:
        assert node.resumed_step == 1
        assert model.weight.unique().item() == 1.0
    damaged = [record.message for record in caplog.records if "damaged" in record.message]
    assert len(damaged) == 1
    assert str(second) in damaged[0]
    first.write_bytes(b"")
    with small() as node:
        assert node.resumed_step == 0
    assert "no checkpoint can be read; it begins anew" in caplog.text


def take(node: DpwaPyTorchAdapter) -> None:
    """A training step with a checkpoint."""
    node._checkpoints._due_s = 0.0
    node.step(1.0)
    node._checkpoints._hand_over()


FULL = """
import json, resource, signal, sys, torch
from pathlib import Path
from dpwa import ClusterConfig, DpwaPyTorchAdapter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
model = torch.nn.Linear(300, 300)
config = ClusterConfig.for_localhost(1, checkpoint={"every_s": 0.1})
node = DpwaPyTorchAdapter(model, config=config, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
for limit in [resource.RLIM_INFINITY, 100_000, 100_000, resource.RLIM_INFINITY]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    node._checkpoints._due_s = 0.0
    node.step(1.0)
    node._checkpoints._hand_over()
    assert node._checkpoints._writer.wait(10)
node.close()
"""


@pytest.mark.seconds
def test_a_full_disk_costs_checkpoints_and_nothing_else(run_dir):
    ended = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, check=True)
    assert [event["of_step"] for event in events(run_dir, "checkpoint_failed")] == [2, 3], "the fault happened"
    assert [event["of_step"] for event in events(run_dir, "checkpoint")] == [1, 4]
    lines = ended.stderr.splitlines()
    assert len(lines) == 2, lines
    assert "the checkpoint of step 2 cannot be written" in lines[0]
    assert "File too large" in lines[0]
    assert "checkpoints are written again (step 4)" in lines[1]
    assert sorted(os.listdir(folder_of(run_dir))) == [
        "checkpoint-1.safetensors",
        "checkpoint-2.safetensors",
        "lock",
    ]


def test_a_folder_that_cannot_be_written_costs_checkpoints_and_nothing_else(run_dir, caplog):
    folder_of(run_dir).parent.mkdir(parents=True)
    folder_of(run_dir).write_text("in the way")
    with small() as node:
        for _ in range(3):
            take(node)
            assert node._checkpoints._writer.wait(5.0)
        assert node.statistics().step == 3
    assert len(events(run_dir, "checkpoint_failed")) == 3
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


@contextmanager
def slow_disk(monkeypatch: pytest.MonkeyPatch):
    """Writing begins, and goes on when the event is set; gives that event and the list of who writes at one time."""
    may_go_on, writing = threading.Event(), []

    def write(*arguments: object, **options: object) -> object:
        writing.append(1)
        assert len(writing) == 1, "never two at once"
        may_go_on.wait(20)
        try:
            return checkpoint_files.write_checkpoint(*arguments, **options)
        finally:
            writing.pop()

    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", write)
    yield may_go_on, writing
    may_go_on.set()


def test_a_disk_that_is_too_slow_skips_checkpoints_and_never_holds_up_a_step(run_dir, monkeypatch):
    with slow_disk(monkeypatch) as (may_go_on, writing), small() as node:
        take(node)
        wait_until(lambda: writing, "a checkpoint is being written")
        for _ in range(5):
            take(node)
        assert node.statistics().step == 6
        may_go_on.set()
        assert node._checkpoints._writer.wait(10)
        take(node)
    (first, second) = events(run_dir, "checkpoint")
    assert (first["of_step"], first["skipped"]) == (1, 5)
    assert second["of_step"] == 7
    assert "skipped" not in second


def test_what_is_written_is_the_model_of_one_moment_whatever_the_training_does_meanwhile(monkeypatch):
    model = nn.Linear(3, 2)
    with slow_disk(monkeypatch) as (may_go_on, writing), small(model=model) as node:
        nn.init.constant_(model.weight, 7.0)
        take(node)
        wait_until(lambda: writing, "a checkpoint is being written")
        nn.init.constant_(model.weight, 8.0)
        node.step(1.0)
        may_go_on.set()
    other = nn.Linear(3, 2)
    with small(model=other) as node:
        assert node.resumed_step == 1
        assert other.weight.unique().item() == 7.0


def test_a_fork_in_the_middle_of_a_checkpoint_leaves_it_to_the_parent(run_dir, monkeypatch):
    with slow_disk(monkeypatch) as (may_go_on, writing), small() as node:
        take(node)
        wait_until(lambda: writing, "a checkpoint is being written")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                node.step(1.0)
            except NodeClosed:
                node.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        may_go_on.set()
        assert node._checkpoints._writer.wait(10)
        take(node)
    assert [event["of_step"] for event in events(run_dir, "checkpoint")] == [1, 2]
    with small() as node:
        assert node.resumed_step == 2


def test_the_journal_tells_bytes_and_seconds_of_each(run_dir):
    finished(small(config=SELDOM))
    (event,) = events(run_dir, "checkpoint")
    (path,) = folder_of(run_dir).glob("*.safetensors")
    assert event["bytes"] == path.stat().st_size
    assert 0 < event["seconds"] < 10
    assert json.dumps(event)


def test_a_checkpoint_says_where_the_members_are_before_the_node_starts(monkeypatch):
    known = [{"name": "w7", "host": "127.0.0.1", "port": 4007}]
    monkeypatch.setattr(Node, "known_members", lambda _node: known)
    script = Script(attached=False, schedule_first=True)
    script.train(3, checkpoint_at=1)
    assert script.node._checkpoints._writer.wait(10.0)
    script.node.close()
    told: list[object] = []
    monkeypatch.setattr(Node, "start", lambda _node: told.append("start"))
    monkeypatch.setattr(Node, "remember_members", lambda _node, members: told.append(list(members)))
    restored = Script(attached=False, schedule_first=True)
    assert told == [known, "start"]
    with suppress(NodeClosed):  # it was never started
        restored.node.close()


def test_checkpoints_are_written_while_the_optimizer_makes_no_steps_of_its_own(run_dir):
    """As when a GradScaler skips them, or another optimizer trains for a while."""
    script = Script(attached=False, schedule_first=True)
    for _ in range(3):
        script.node._checkpoints._due_s = 0.0
        script.node.step(1.0)
        script.node._checkpoints._due_s = float("inf")
        script.node.step(1.0)
        assert script.node._checkpoints._writer.wait(10.0)
    script.node.close()
    assert [event["of_step"] for event in events(run_dir, "checkpoint")] == [1, 3, 5]

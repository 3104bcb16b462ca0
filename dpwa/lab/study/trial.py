"""A trial of a study: one row with one seed; and its folder.

    trial.json                           what it is: see `Trial.to_json`; and the commit of the checkout when it began
    cluster.yaml                        for strategies that `dpwa launch` starts
    output.log                          what its processes printed
    nodes/NAME/ready                    this process has loaded everything; training begins when all have
    nodes/NAME/steps.npz                per step: loss, right (of count samples), count, end_s on the training clock
    nodes/NAME/snapshots/0003.safetensors   the model after the third of `rounds` equal parts of this process's steps,
                                        or with the sampler of what all have trained; 0000 is the initial one
    nodes/NAME/snapshots/before-merge.safetensors   what the last one was, if the nodes have merged at the end
    nodes/NAME/last_word.json           of a process that ended before its training did: a snapshot's header
    nodes/NAME/...                      what dpwa itself writes: metrics.jsonl, events.jsonl
    result.json                         written last, by `evaluation`: the trial has finished

A snapshot's header (safetensors' metadata, all values are text) holds: round, step, samples (that this process has
trained on so far), training_s (on its own training clock), bytes_sent (of models or gradients, by this process so far),
for those that average models asked and exchanges (see `Strategy.did`), for those that are started anew redone_steps (of
earlier lives, that were made again), processes, threads (of this process).

Runs in: any thread.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpwa.lab.study.kinds import Start, StrategyKind, kind_of, process_names
from dpwa.lab.study.settings import Settings

__all__ = ["Trial", "TrialFolder", "step_at", "write_json"]


@dataclass(frozen=True)
class Trial:
    """One row of a study with one seed.

    Attributes:
        study: name of the study.
        row: label of the row.
        seed: for initial weights, partition, order of data and choice of peers.
        settings: everything else.
    """

    study: str
    row: str
    seed: int
    settings: Settings

    @property
    def title(self) -> str:
        """The trial for people, unique in the study."""
        return f"{self.row} (seed {self.seed})"

    @property
    def kind(self) -> StrategyKind:
        """The strategy."""
        return kind_of(self.settings.strategy)

    @property
    def start(self) -> Start:
        """What starts its processes."""
        return Start.IN_MEMORY if self.settings.engine == "in_memory" else self.kind.start

    @property
    def process_names(self) -> tuple[str, ...]:
        """Names of its processes, in the order of their ranks."""
        return process_names(self.kind, self.settings.nodes)

    @property
    def training_names(self) -> tuple[str, ...]:
        """The same without a server, which does not train."""
        return self.process_names[: self.settings.nodes]

    @property
    def rounds(self) -> int:
        """Number of equal parts of the training; after each, every process saves its model."""
        return self.settings.n_epochs * self.settings.rounds_per_epoch

    def to_json(self) -> dict[str, Any]:
        """Plain values for trial.json and result.json."""
        return {"study": self.study, "row": self.row, "seed": self.seed, "settings": self.settings.to_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Trial:
        """The trial that `to_json` has described."""
        return cls(values["study"], values["row"], values["seed"], Settings.model_validate(values["settings"]))


@dataclass(frozen=True)
class TrialFolder:
    """A trial's folder.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def trial_json(self) -> Path:
        """What the trial is."""
        return self.path / "trial.json"

    @property
    def cluster_yaml(self) -> Path:
        """The cluster file of strategies that `dpwa launch` starts."""
        return self.path / "cluster.yaml"

    @property
    def output_log(self) -> Path:
        """What its processes printed."""
        return self.path / "output.log"

    @property
    def result_json(self) -> Path:
        """The result."""
        return self.path / "result.json"

    def data_cache(self, name: str) -> Path:
        """The images of a data set, shared with the trials beside this one."""
        return self.path.parent / ".data" / f"{name.replace(':', '.')}.safetensors"

    def node(self, name: str) -> Path:
        """Folder of a process."""
        return self.path / "nodes" / name

    def steps(self, name: str) -> Path:
        """What happened in each step of a process."""
        return self.node(name) / "steps.npz"

    def last_word(self, name: str) -> Path:
        """How far a process came that ended before its training did."""
        return self.node(name) / "last_word.json"

    def snapshots(self, name: str) -> Path:
        """Folder of a process's snapshots."""
        return self.node(name) / "snapshots"

    def snapshot(self, name: str, round_: int) -> Path:
        """The model of a process after a round; 0 is the initial one."""
        return self.snapshots(name) / f"{round_:04d}.safetensors"

    def before_merge(self, name: str) -> Path:
        """What the last of them was before the nodes merged their models at the end."""
        return self.snapshots(name) / "before-merge.safetensors"

    def trial(self) -> Trial:
        """The trial of this folder."""
        return Trial.from_json(json.loads(self.trial_json.read_text(encoding="utf-8")))


def step_at(part: int, whole: int, steps: int) -> int:
    """The first step after which this part of a training is complete.

    Both the ends of rounds and the meetings of processes follow it, so a round that ends with a meeting includes it.

    Args:
        part: such as a number of rounds, 0 to `whole`.
        whole: the same for the whole training.
        steps: of the whole training.
    """
    return -(-part * steps // whole)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON file that is either there as a whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)

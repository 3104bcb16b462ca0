"""What one training of a study is made with: every key that a study file may set for its rows.

Names are those of the file; those of the MPI strategies (`n_epochs`, `batch_size`, `avg_freq`, `lambda`, `eval_acc`)
are the ones of the work that they come from.

Must not know: files, torch, how a strategy works. Runs in: any thread; settings never change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, JsonValue, model_validator

from dpwa.options import Options

__all__ = ["CommonSettings", "KillOptions", "LabelOptions", "PartitionOptions", "Settings", "SlowOptions"]


class PartitionOptions(Options):
    """Which samples each node holds; a word alone is the kind."""

    kind: Literal["iid", "classes", "dirichlet", "quantity"] = Field("iid", description="How samples are dealt out.")
    classes_per_node: int = Field(2, ge=1, le=1000, description="Of kind classes: how many classes a node holds.")
    alpha: float = Field(
        0.5, gt=0, le=1e6, description="Of kinds dirichlet and quantity: small is uneven, large is even."
    )

    @model_validator(mode="before")
    @classmethod
    def _of_word(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value


class SlowOptions(Options):
    """A node that is slower than the others."""

    node: int = Field(ge=1, description="Number of the node, from 1.")
    factor: float = Field(gt=1, le=1000, description="How many times as long its steps take.")


class KillOptions(Options):
    """A node that is killed."""

    node: int = Field(ge=1, description="Number of the node, from 1.")
    at: float = Field(gt=0, lt=1, description="After which share of its own steps.")


class LabelOptions(Options):
    """A node some of whose labels are wrong."""

    node: int = Field(ge=1, description="Number of the node, from 1.")
    share: float = Field(gt=0, le=1, description="Share of its labels that are replaced by another class.")


class CommonSettings(Options):
    """What a study file may set for all of its rows, or for one."""

    model_config = ConfigDict(populate_by_name=True)  # `lambda` is no name for Python

    data: Literal["digits", "mnist", "fashion_mnist", "cifar10"] = Field("fashion_mnist", description="The data set.")
    model: Literal["mcmahan_cnn", "light_cnn", "mlp"] = Field("light_cnn", description="The network.")
    partition: PartitionOptions = Field(PartitionOptions(), description="Which samples each node holds.")
    nodes: int = Field(4, ge=1, le=64, description="Processes that train.")
    n_epochs: int = Field(5, ge=1, le=10_000, description="Passes over the data, all nodes together.")
    batch_size: int = Field(128, ge=1, le=100_000, description="Samples of one update of a model.")
    learning_rate: float = Field(0.05, gt=0, le=100, description="Of stochastic gradient descent.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Of stochastic gradient descent.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="Of stochastic gradient descent.")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="The learning rate over the training: as it is, or along half a cosine to 0."
    )
    rounds_per_epoch: int = Field(1, ge=1, le=100, description="How often in an epoch the models are put down.")
    eval_acc: bool = Field(
        True,  # noqa: FBT003 - the default of a field
        description="Whether each round is evaluated, after the training; otherwise only the last.",
    )
    cores: int | None = Field(
        None, ge=1, le=1024, description="Cores that all processes together are held to; null is all of the machine."
    )
    cluster: dict[str, JsonValue] = Field(
        {}, description="Of dpwa's methods: any keys of a cluster file but run, nodes, method and seed."
    )
    avg_freq: int = Field(1, ge=1, le=10_000, description="Of param_avg and w_param_avg: epochs between averages.")
    lambda_: float = Field(
        1.0, ge=0, le=1000, alias="lambda", description="Of w_param_avg: how fast weights fall with distance."
    )
    every_steps: int = Field(10, ge=1, le=1_000_000, description="Of allreduce_every_h: steps between averages.")
    client_fraction: float = Field(1.0, gt=0, le=1, description="Of fedavg and fedprox: clients in each round.")
    local_epochs: int = Field(1, ge=1, le=1000, description="Of fedavg and fedprox: epochs of a client in a round.")
    mu: float = Field(1.0, ge=0, le=1000, description="Of fedprox: strength of the pull towards the round's model.")
    slow: SlowOptions | None = Field(None, description="A node that is slower than the others; null is none.")
    kill: KillOptions | None = Field(None, description="A node that is killed; null is none.")
    wrong_labels: LabelOptions | None = Field(None, description="A node with wrong labels; null is none.")


class Settings(CommonSettings):
    """Everything that one training is made with."""

    strategy: str = Field(description="How the processes train together; `dpwa lab list --strategies` names all.")

    def to_json(self) -> dict[str, Any]:
        """Plain values, which `model_validate` takes again."""
        found: Mapping[str, Any] = self.model_dump(mode="json", by_alias=True)
        return dict(found)

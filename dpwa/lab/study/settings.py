"""The settings of a trial: every key that a study file may set for its rows, by its name there.

`n_epochs`, `batch_size`, `avg_freq`, `lambda` and `eval_acc` are named as in the work that the MPI strategies are from.

Runs in: any thread; settings never change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, JsonValue, model_validator

from dpwa.config.sections import DataRate
from dpwa.lab.study.optimizer import OptimizerOptions, other_defaults, rates_given
from dpwa.lab.study.own_code import known_or_own
from dpwa.options import Options, Problem

__all__ = [
    "DATA_SETS",
    "IMAGE_MODELS",
    "MOST_IN_MEMORY",
    "MOST_PROCESSES",
    "TEXT_DATA_SETS",
    "TEXT_MODELS",
    "CommonSettings",
    "KillOptions",
    "LabelOptions",
    "PartitionOptions",
    "Settings",
    "SlowOptions",
    "VirtualOptions",
]

MOST_PROCESSES = 64
MOST_IN_MEMORY = 1000
"""Nodes of a trial, by its engine."""

TEXT_DATA_SETS = ("text", "text_files")
DATA_SETS = ("digits", "mnist", "fashion_mnist", "cifar10", *TEXT_DATA_SETS)
"""All others are of images."""

TEXT_MODELS = ("char_transformer",)
IMAGE_MODELS = (
    "mcmahan_cnn",
    "light_cnn",
    "mlp",
    "gn_lenet",
    "resnet8_bn",
    "resnet8_gn",
    "resnet20_bn",
    "resnet20_gn",
)

_Part = Annotated[float, Field(gt=0, lt=1)]


class PartitionOptions(Options):
    """Which samples each node holds; a single word is the kind."""

    kind: Literal["iid", "classes", "dirichlet", "quantity"] = Field(
        "iid", description="How samples are divided among the nodes."
    )
    classes_per_node: int = Field(2, ge=1, le=1000, description="For kind classes: how many classes a node holds.")
    alpha: float = Field(
        0.5, gt=0, le=1e6, description="For kinds dirichlet and quantity: the smaller, the less equal."
    )
    equal: bool = Field(
        False,  # noqa: FBT003 - the default of a field
        description="For kind classes: whether samples are left out until all nodes hold equally many.",
    )

    @model_validator(mode="before")
    @classmethod
    def _of_word(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value


class SlowOptions(Options):
    """A node that is slower than the others."""

    node: int = Field(ge=1, description="Number of the node, from 1.")
    factor: float = Field(gt=1, le=1000, description="How many times longer its steps take.")
    keeps_work: bool = Field(
        False,  # noqa: FBT003 - the default of a field
        description="Whether it has as many steps to make as the others; else nodes share the work by their speed.",
    )


class KillOptions(Options):
    """A node that is killed."""

    node: int = Field(ge=1, description="Number of the node, from 1.")
    at: float = Field(gt=0, lt=1, description="After which share of its steps.")


class LabelOptions(Options):
    """A node some of whose labels are wrong."""

    node: int = Field(ge=1, description="Number of the node, from 1.")
    share: float = Field(gt=0, le=1, description="Share of its labels that are replaced by another class.")


class VirtualOptions(Options):
    """What takes how long with `engine: in_memory`."""

    step_ms: float = Field(10.0, gt=0, le=1e6, description="Milliseconds that a training step of a node takes.")
    jitter: float = Field(
        0.1, ge=0, le=2, description="Spread of these times: the standard deviation of their logarithm; 0: none."
    )
    latency_ms: float = Field(1.0, ge=0, le=1e6, description="Milliseconds of a message on its way to a peer.")
    bandwidth: DataRate = Field(None, description='Rate at which a model arrives, such as "10 MB/s"; null: at once.')

    @property
    def step_s(self) -> float:
        """Seconds of a training step."""
        return self.step_ms / 1000

    @property
    def latency_s(self) -> float:
        """Seconds of a message on its way."""
        return self.latency_ms / 1000


class CommonSettings(Options):
    """The settings that a study file may give for all rows or for one."""

    model_config = ConfigDict(populate_by_name=True)  # `lambda` is a keyword in Python

    data: Annotated[str, known_or_own(DATA_SETS)] = Field("fashion_mnist", description="The data set.")
    model: Annotated[str, known_or_own((*IMAGE_MODELS, *TEXT_MODELS))] = Field("light_cnn", description="The network.")
    partition: PartitionOptions = Field(PartitionOptions(), description="Which samples each node holds.")
    nodes: int = Field(
        4, ge=1, le=MOST_IN_MEMORY, description=f"Number of nodes that train; {MOST_PROCESSES} at most as processes."
    )
    n_epochs: int = Field(5, ge=1, le=10_000, description="Passes over the data by all nodes together.")
    batch_size: int = Field(128, ge=1, le=100_000, description="Samples per update of a model.")
    optimizer: OptimizerOptions = Field(OptimizerOptions(), description="How gradients change the weights.")
    learning_rate: float = Field(0.05, gt=0, le=100, description="Of the optimizer; 0.001 if it is not sgd.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Of the optimizer sgd.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="Of the optimizer.")
    schedule: Annotated[str, known_or_own(("constant", "cosine", "linear", "steps"))] = Field(
        "constant", description="The learning rate over the training; cosine and linear fall to 0."
    )
    decay_at: tuple[_Part, ...] = Field(
        (0.5, 0.75), strict=False, min_length=1, description="For schedule steps: after which shares it falls."
    )
    decay_factor: float = Field(0.1, gt=0, lt=1, description="For schedule steps: what it is multiplied by each time.")
    warmup_steps: int = Field(
        0, ge=0, le=1_000_000, description="Steps of each process in which the learning rate rises from 0."
    )
    clip_norm: float | None = Field(
        None, gt=0, le=1e6, description="Longer gradients, of all parameters together, are shortened to it; null: none."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="In which the network multiplies; weights, optimizer and messages are float32 anyway."
    )
    rounds_per_epoch: int = Field(1, ge=1, le=100, description="How often per epoch the models are saved.")
    eval_acc: bool = Field(
        True,  # noqa: FBT003 - the default of a field
        description="Whether every round is evaluated, after the training, or only the last.",
    )
    eval_train: bool = Field(
        False,  # noqa: FBT003 - the default of a field
        description="Whether rounds are also evaluated on training samples, as many as there are test samples.",
    )
    loss: Literal["cross_entropy", "mse"] = Field(
        "cross_entropy", description="What training makes smaller; mse: the squared distance from a one-hot label."
    )
    data_order: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Which order of the samples; another number changes nothing but this order.",
    )
    cores: int | None = Field(
        None, ge=1, le=1024, description="Cores that all processes together may use; null: all of the machine."
    )
    engine: Literal["processes", "in_memory"] = Field(
        "processes",
        description="Whether nodes are processes of their own, or live in one, with exact repetition and virtual time.",
    )
    virtual: VirtualOptions = Field(VirtualOptions(), description="With engine in_memory: what takes how long.")
    cluster: dict[str, JsonValue] = Field(
        {}, description="For dpwa's methods: any keys of a cluster file except run, nodes, method and seed."
    )
    avg_freq: int = Field(
        1, ge=0, le=10_000, description="For param_avg and w_param_avg: epochs between averages; 0: once, at the end."
    )
    lambda_: float = Field(
        1.0, ge=0, le=1000, alias="lambda", description="For w_param_avg: how fast weights fall with distance."
    )
    every_steps: int = Field(
        10, ge=1, le=1_000_000, description="For allreduce_every_h and hivemind: steps between averages."
    )
    sampler: bool = Field(
        False,  # noqa: FBT003 - the default of a field
        description="For dpwa's methods: whether nodes share out the samples while they train, as node.sampler does.",
    )
    client_fraction: float = Field(
        1.0, gt=0, le=1, description="For fedavg and fedprox: share of the clients in each round."
    )
    local_epochs: int = Field(1, ge=1, le=1000, description="For fedavg and fedprox: epochs of a client per round.")
    mu: float = Field(
        1.0, ge=0, le=1000, description="For fedprox: how strongly clients are held near the round's model."
    )
    slow: SlowOptions | None = Field(None, description="A node that is slower than the others; null: none.")
    kill: KillOptions | None = Field(None, description="A node that is killed; null: none.")
    wrong_labels: LabelOptions | None = Field(None, description="A node with wrong labels; null: none.")

    def between(self) -> Iterator[Problem]:
        """What is said twice."""
        yield from rates_given(self.optimizer, set(self.model_fields_set), self.momentum)


class Settings(CommonSettings):
    """All settings of a trial."""

    strategy: str = Field(description="How the processes train together; see `dpwa lab list --strategies`.")

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, values: Any) -> Any:
        return other_defaults(values)

    def to_json(self) -> dict[str, Any]:
        """Plain values, which `model_validate` accepts."""
        found: Mapping[str, Any] = self.model_dump(mode="json", by_alias=True)
        return dict(found)

"""The keys of a cluster file: what each may hold, and its default.

The sections of methods and rules are those that the methods and rules declare themselves.

Must not know: files, what the values mean together. Runs in: any thread; options never change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue, create_model

from dpwa.config.faults import FaultOptions
from dpwa.config.sections import (
    Address,
    CheckpointOptions,
    DataRate,
    FlowControlOptions,
    IslandOptions,
    Name,
    NodeConfig,
    OuterOptions,
)
from dpwa.config.topology import TopologyOptions
from dpwa.errors import ConfigError
from dpwa.interpolation.registry import RULES
from dpwa.methods.registry import METHODS, find_method
from dpwa.options import OTHER_NAMES, OTHER_VALUES, Options, Problem, refuse
from dpwa.schedule import ShareOverTime

__all__ = ["FACTOR_KEYS", "MAX_NODES", "ClusterKeys"]

MAX_NODES = 4096

FACTOR_KEYS = (
    "interpolation",
    "custom_rule",
    *RULES,
    "factor_min",
    "factor_max",
    "divergence_threshold",
    "loss_smoothing",
)
"""The keys that decide a factor, which only methods with `uses_interpolation` heed."""


def _checked_method(word: str) -> str:
    if ":" not in word:  # a custom method is looked for later, when single values are right
        try:
            find_method(word)
        except ConfigError as error:
            refuse(Problem((), text) for text in error.problems)
    return word


class _PlainKeys(Options):
    """The keys that are there whichever methods and rules there are."""

    run: Name = Field(
        "dpwa", description="Name of the training run; nodes of different runs do not talk to each other."
    )
    nodes: tuple[NodeConfig, ...] = Field(
        strict=False, min_length=1, max_length=MAX_NODES, description="The nodes of the cluster; the only required key."
    )
    join: tuple[Address, ...] = Field(
        (),
        strict=False,
        max_length=32,
        description="host:port of members through which nodes that are not in the file may join; none: no node may.",
    )
    topology: TopologyOptions = Field(
        TopologyOptions(), description="Who exchanges with whom, and with which weights; a word is the name of a graph."
    )
    method: Annotated[str, AfterValidator(_checked_method)] = Field(
        "pull",
        min_length=1,
        description=f'The averaging method: {", ".join(METHODS)}, or a custom "module:Class".',
    )
    custom_method: dict[str, JsonValue] = Field(
        {},
        description="Options of a custom method: arguments of its constructor.",
        json_schema_extra={OTHER_NAMES: ["own_method"]},
    )
    outer: OuterOptions = Field(
        OuterOptions(),
        description="Options of outer momentum on top of the method, as in DiLoCo; off by default.",
    )
    pull_probability: ShareOverTime = Field(
        1.0,
        description="Probability that a step begins an exchange: a pull, a push or a pair; or a schedule of it.",
        json_schema_extra={OTHER_NAMES: ["probability"]},
    )
    timeout_ms: int | None = Field(
        None,
        ge=1,
        le=600_000,
        description="Most milliseconds that an exchange may take; null: 2500, and on slow links what they need.",
    )
    connect_timeout_ms: int = Field(
        500, ge=1, le=600_000, description="Milliseconds for making a connection to a peer, within timeout_ms."
    )
    wait_ms: int = Field(
        0, ge=0, le=600_000, description="Milliseconds that a step may wait for its exchange; 0 never waits."
    )
    interpolation: str = Field(
        "constant",
        min_length=1,
        description=f'Rule for the factor: {", ".join(RULES)}, or a custom "module:Class".',
    )
    custom_rule: dict[str, JsonValue] = Field(
        {},
        description="Options of a custom rule: arguments of its constructor.",
        json_schema_extra={OTHER_NAMES: ["own_rule"]},
    )
    plugins: tuple[str, ...] = Field(
        (), strict=False, description="Python modules to import first, because they register custom rules."
    )
    factor_min: float = Field(0.0, ge=0, le=1, description="Lower bound of the factor for a healthy peer.")
    factor_max: float = Field(1.0, ge=0, le=1, description="Upper bound of the factor.")
    divergence_threshold: float = Field(
        0.0,
        ge=0,
        description="Loss of this node below which the factor shrinks by loss / divergence_threshold; 0 is off.",
    )
    loss_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the past in the moving average of the loss; 0 is off."
    )
    blend: Literal["delta", "absolute"] = Field(
        "delta", description="delta keeps the steps made during an exchange; absolute blends as the 2017 dpwa did."
    )
    guard: Literal["off", "finite", "clip", "median"] = Field(
        "clip",
        description="What of a peer's model and words is believed: with clip the less, the further it is from what is "
        "usual; median also combines each three peers' models; finite only refuses NaN and infinity, off nothing.",
    )
    buffers: Literal["blend", "keep"] = Field(
        "blend", description="Whether floating-point buffers, such as BatchNorm statistics, are blended."
    )
    frozen_parameters: Literal["keep", "blend"] = Field(
        "keep", description="Whether parameters that need no gradient are blended."
    )
    optimizer_state: Literal["keep", "blend"] = Field(
        "keep",
        description="Whether the optimizer's momentum (SGD) or moments (Adam, AdamW) travel and are blended, too.",
    )
    merge_at_end: bool = Field(
        False,  # noqa: FBT003 - the default of a field
        description="Whether finish() ends with one model on all nodes, the mean of their last ones.",
    )
    codec: Literal["auto", "raw", "fp16", "bf16", "int8"] = Field(
        "auto",
        description="How parameters travel: auto sends them as they are on fast links, smaller on slow ones.",
        json_schema_extra={
            OTHER_VALUES: {"float16": "fp16", "half": "fp16", "bfloat16": "bf16", "float32": "raw", "none": "raw"}
        },
    )
    keys: str | None = Field(
        None,
        min_length=1,
        description="Folder with the keys that `dpwa keys init` makes: links are encrypted, and nobody else gets in.",
    )
    shared_memory: Literal["auto", "off"] = Field(
        "auto", description="Whether nodes of one host and user read each other's snapshots from shared memory."
    )
    pull_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the parameters that an exchange pulls, a different part each time.",
        json_schema_extra={OTHER_NAMES: ["fraction"]},
    )
    bandwidth_limit: DataRate = Field(
        None,
        description='Most that a node receives, such as "20 MB/s"; null is no limit. Shared memory is not counted.',
    )
    max_connections: int = Field(
        6, ge=1, le=4096, description="Connections to peers kept open; the least recently used one is closed."
    )
    memory: Literal["normal", "low"] = Field(
        "normal", description="Memory beside the model: normal keeps three snapshots, low two."
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of the choice of peers and of the pulls.")
    flow_control: FlowControlOptions = Field(FlowControlOptions(), description="How often a failing peer is asked.")
    faults: FaultOptions = Field(FaultOptions(), description="Faults to inject, for experiments; none by default.")
    checkpoint: CheckpointOptions = Field(
        CheckpointOptions(), description="What each node saves, to go on from after a kill; off by default."
    )
    island: IslandOptions = Field(
        IslandOptions(), description="How many processes are one node together, as under DistributedDataParallel."
    )
    metrics_interval_ms: int = Field(
        1000, ge=10, le=3_600_000, description="Milliseconds between two lines of a node's metrics file."
    )
    journal_max_mb: int = Field(
        256,
        ge=8,
        le=1_000_000,
        description="Most megabytes that a node's events, metrics and kept output take together; the oldest go first.",
    )
    journal_checksums: bool = Field(
        False,  # noqa: FBT003 - the default of a field
        description="Whether the journal holds a checksum of each snapshot that is published or blended.",
    )
    insecure: bool = Field(
        False,  # noqa: FBT003 - the default of a field
        description="Must be true when nodes talk over a network without keys: anybody gets in, and can listen.",
    )


def _sections() -> dict[str, Any]:
    """For each section that a method or a rule declares: its name, class and default."""
    methods = {name: method.options for name, method in METHODS.items() if method.options is not None}
    rules = {name: rule.options for name, rule in RULES.items()}
    return {
        name: (options, Field(options(), description=f"Options for {key}: {name}."))
        for key, declared in (("method", methods), ("interpolation", rules))
        for name, options in declared.items()
    }


if TYPE_CHECKING:
    ClusterKeys = _PlainKeys
else:
    ClusterKeys = create_model("ClusterKeys", __base__=_PlainKeys, **_sections())

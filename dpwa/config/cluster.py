"""The cluster's configuration: what may be written, what it means, and the frozen object that the rest works with.

Names and units here are those of the file (`timeout_ms`); the properties ending in `_s` are the one place where
milliseconds become seconds. `cluster_file` reads a file, `config_sections` has its smaller mappings, `config_checks`
checks what goes beyond single values, and `config_problems` has the words for mistakes.

Must not know: sockets, threads, models, the command line. Runs in: any thread; a ClusterConfig never changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, Field, JsonValue, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from dpwa.config import hosts, yaml_file
from dpwa.config.checks import host_problems, import_plugins, matrix_problems, problems_between, rule_problems
from dpwa.config.data_rate import bytes_per_s
from dpwa.config.faults import FaultOptions
from dpwa.config.lines import lines_of
from dpwa.config.methods import (
    DPSGDOptions,
    ElasticOptions,
    NoLoCoOptions,
    OuterOptions,
    SGPOptions,
    SpartaOptions,
)
from dpwa.config.problems import WHOLE_CLUSTER, Problem, problems_of
from dpwa.config.sections import (
    ConsensusOptions,
    ConstantOptions,
    DataRate,
    FlowControlOptions,
    Name,
    NodeConfig,
    NoOptions,
    Options,
    StalenessOptions,
)
from dpwa.config.topology import TopologyOptions, with_folder
from dpwa.config.yaml_file import YAML_NUMBER, ClusterFile
from dpwa.errors import ConfigError
from dpwa.interpolation.interpolator import Interpolator, resolve

if TYPE_CHECKING:
    from dpwa.methods.base import Method
    from dpwa.topology.schedule import Topology

__all__ = [
    "FIRST_PORT",
    "MAX_NODES",
    "ClusterConfig",
    "cluster_problems",
    "json_schema",
]

MAX_NODES = 4096

FIRST_PORT = 21000
"""Where the ports of a local cluster begin. The kernel takes the near end of outgoing connections from 32768 upwards
(Linux) or 49152 (elsewhere). A node's port below that range can never be taken by some program's outgoing connection
between two starts of the node."""


class ClusterConfig(Options):
    """All settings of a cluster. The same file goes to every node.

    Make one with `load`, `from_text`, `for_localhost` or `alone`, which raise ConfigError; the plain constructor
    raises pydantic's ValidationError.
    """

    run: Name = Field(
        "dpwa", description="Name of the training run; nodes of different runs do not talk to each other."
    )
    nodes: tuple[NodeConfig, ...] = Field(
        strict=False, min_length=1, max_length=MAX_NODES, description="The nodes of the cluster; the only required key."
    )
    topology: TopologyOptions = Field(
        TopologyOptions(), description="Who exchanges with whom, and with which weights; a word is the name of a graph."
    )
    method: str = Field(
        "pull",
        min_length=1,
        description="The averaging method: pull, gosgd, sgp, adpsgd, dpsgd, noloco, elastic, sparta, or a custom "
        '"module:Class".',
    )
    sgp: SGPOptions = Field(SGPOptions(), description="Options of the method sgp.")
    dpsgd: DPSGDOptions = Field(DPSGDOptions(), description="Options of the method dpsgd.")
    noloco: NoLoCoOptions = Field(NoLoCoOptions(), description="Options of the method noloco.")
    elastic: ElasticOptions = Field(ElasticOptions(), description="Options of the method elastic.")
    sparta: SpartaOptions = Field(SpartaOptions(), description="Options of the method sparta.")
    custom_method: dict[str, JsonValue] = Field(
        {}, description="Options of a custom method: arguments of its constructor."
    )
    outer: OuterOptions = Field(
        OuterOptions(),
        description="Options of outer momentum on top of the method, in the way of DiLoCo; off by default.",
    )
    pull_probability: float = Field(
        1.0, ge=0, le=1, description="Probability that a step begins an exchange: a pull, a push or a pair."
    )
    timeout_ms: int = Field(2500, ge=1, le=600_000, description="Milliseconds for one exchange, from request to end.")
    connect_timeout_ms: int = Field(
        500, ge=1, le=600_000, description="Milliseconds for making a connection to a peer, within timeout_ms."
    )
    wait_ms: int = Field(
        0, ge=0, le=600_000, description="Milliseconds that a step may wait for its exchange; 0 never waits."
    )
    interpolation: str = Field(
        "constant",
        min_length=1,
        description='Rule for the factor: constant, clock, loss, staleness, consensus, or a custom "module:Class".',
    )
    constant: ConstantOptions = Field(ConstantOptions(), description="Options of the rule constant.")
    clock: NoOptions = Field(NoOptions(), description="Options of the rule clock; it has none.")
    loss: NoOptions = Field(NoOptions(), description="Options of the rule loss; it has none.")
    staleness: StalenessOptions = Field(StalenessOptions(), description="Options of the rule staleness.")
    consensus: ConsensusOptions = Field(ConsensusOptions(), description="Options of the rule consensus.")
    custom_rule: dict[str, JsonValue] = Field({}, description="Options of a custom rule: arguments of its constructor.")
    plugins: tuple[str, ...] = Field(
        (), strict=False, description="Python modules to import first, because they register custom rules."
    )
    factor_min: float = Field(0.0, ge=0, le=1, description="Lower bound of the factor for a healthy peer.")
    factor_max: float = Field(1.0, ge=0, le=1, description="Upper bound of the factor.")
    divergence_threshold: float = Field(
        0.0, ge=0, description="Own loss below which the factor shrinks by loss / divergence_threshold; 0 is off."
    )
    loss_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the past in the moving average of the loss; 0 is off."
    )
    blend: Literal["delta", "absolute"] = Field(
        "delta", description="delta keeps the steps made during an exchange; absolute is the way of the 2017 dpwa."
    )
    buffers: Literal["blend", "keep"] = Field(
        "blend", description="Whether buffers of floating point, such as BatchNorm statistics, are blended."
    )
    frozen_parameters: Literal["keep", "blend"] = Field(
        "keep", description="Whether parameters that need no gradient are blended."
    )
    codec: Literal["auto", "raw", "fp16", "bf16", "int8"] = Field(
        "auto", description="How parameters travel: auto sends them as they are on fast links, smaller on slow ones."
    )
    shared_memory: Literal["auto", "off"] = Field(
        "auto", description="Whether nodes of one host and user read each other's snapshots from shared memory."
    )
    pull_fraction: float = Field(
        1.0, gt=0, le=1, description="Share of the parameters that an exchange pulls, another part each time."
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
    metrics_interval_ms: int = Field(
        1000, ge=10, le=3_600_000, description="Milliseconds between two lines of a node's metrics file."
    )
    journal_max_mb: int = Field(
        256,
        ge=8,
        le=1_000_000,
        description="Most megabytes that a node's events, metrics and kept output take together; the oldest go first.",
    )
    insecure: bool = Field(
        False,  # noqa: FBT003 - the default of a field
        description="Must be true when nodes talk over a network, because nothing is encrypted or authenticated yet.",
    )

    @model_validator(mode="after")
    def _go_together(self) -> ClusterConfig:
        problems = lines_of(list(problems_between(self.model_dump(), _defaults())), None)
        if problems:
            raise PydanticCustomError(WHOLE_CLUSTER, "{problems}", {"problems": "; ".join(problems)})
        return self

    @classmethod
    def load(cls, path: str | Path) -> ClusterConfig:
        """Read a cluster file and check it, also against the world: host names, and the modules of custom rules.

        Own modules are looked for on Python's path, then beside the file, then in the current folder.

        Raises:
            ConfigError: with every problem, each on a line with file, line, column and place.
        """
        path = Path(path)
        file = yaml_file.read(path)
        values = with_folder(file.values, path.parent)
        config, problems = _validated(values)
        problems += matrix_problems(values)
        if config is not None and not problems:
            problems += config.method_problems()
        problems += host_problems(file.values)
        problems += rule_problems(file.values, folders=(path.parent, Path.cwd()))
        return _settled(config, problems, file)

    @classmethod
    def from_text(cls, text: str, name: str = "config") -> ClusterConfig:
        """Check the text of a cluster file by itself: no host is looked up and no module is imported.

        Args:
            text: YAML.
            name: what messages call the text.

        Raises:
            ConfigError: with every problem, each on a line.
        """
        file = yaml_file.parse(text, name)
        config, problems = _validated(file.values)
        return _settled(config, problems, file)

    @classmethod
    def for_localhost(cls, count: int, ports: Sequence[int] | None = None, **settings: object) -> ClusterConfig:
        """A cluster of `count` nodes w1, w2 … on this machine.

        Args:
            count: number of nodes.
            ports: one TCP port per node; from FIRST_PORT upwards by default.
            settings: any other key of a cluster file, with plain values.

        Raises:
            ConfigError: with every problem, each on a line.
        """
        ports = range(FIRST_PORT, FIRST_PORT + count) if ports is None else ports
        if len(ports) != count:
            raise ConfigError(f"a cluster of {count} nodes on localhost: expected {count} ports, got {len(ports)}")
        nodes = [{"name": f"w{number}", "port": port} for number, port in enumerate(ports, start=1)]
        config, problems = _validated({**settings, "nodes": nodes})
        return _settled(config, problems, None)

    @classmethod
    def alone(cls, name: str = "alone") -> ClusterConfig:
        """A cluster of one node, which talks to nobody.

        Raises:
            ConfigError: `name` cannot be the name of a node.
        """
        config, problems = _validated({"nodes": [{"name": name, "port": FIRST_PORT}]})
        return _settled(config, problems, None)

    def node(self, name: str) -> NodeConfig:
        """The node called `name`.

        Raises:
            ConfigError: there is none; the message suggests the nearest name.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        names = [node.name for node in self.nodes]
        near = get_close_matches(name, names, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"expected one of {_some(names)}"
        raise ConfigError(f'looking for node "{name}": the cluster has no node of this name, {hint}')

    def peers_of(self, name: str) -> tuple[NodeConfig, ...]:
        """All nodes but the one called `name`, in the order of the file.

        Raises:
            ConfigError: there is no node of this name.
        """
        own = self.node(name)
        return tuple(node for node in self.nodes if node is not own)

    def interpolator(self) -> Interpolator:
        """The configured rule with its guards.

        Raises:
            ConfigError: the rule is unknown, cannot be imported or refuses its options.
        """
        import_plugins(self.plugins)
        sections: dict[str, BaseModel] = {
            "constant": self.constant,
            "clock": self.clock,
            "loss": self.loss,
            "staleness": self.staleness,
            "consensus": self.consensus,
        }
        section = sections.get(self.interpolation)
        return Interpolator(
            resolve(self.interpolation, self.custom_rule if section is None else section.model_dump()),
            divergence_threshold=self.divergence_threshold,
            factor_min=self.factor_min,
            factor_max=self.factor_max,
        )

    def method_for(self, name: str) -> Method:
        """The configured method, as the node called `name` runs it.

        Raises:
            ConfigError: the method is unknown, cannot be imported or refuses its options.
        """
        from dpwa.methods.registry import METHODS, make_method  # noqa: PLC0415 - imports numpy; see below
        from dpwa.topology.neighbourhood import Neighbourhood  # noqa: PLC0415

        import_plugins(self.plugins)
        word, options, fraction = self.method, dict[str, object](self.custom_method), self.pull_fraction
        if word == "sparta":
            word, fraction = self.sparta.base, min(fraction, self.sparta.fraction)
        if word in METHODS:
            options = {}
            section = {"sgp": self.sgp, "noloco": self.noloco, "elastic": self.elastic}.get(word)
            if section is not None:
                options = section.model_dump()
            elif word == "dpsgd":
                options = {"every": self.dpsgd.every, "deadline_s": self.dpsgd.deadline_ms / 1000}
        names = [node.name for node in self.nodes]
        return make_method(
            word,
            options,
            links=Neighbourhood(self.topology_of_nodes, names, names.index(name)),
            count=len(names),
            probability=self.pull_probability,
            fraction=fraction,
        )

    def method_problems(self) -> list[Problem]:
        """What is wrong between method and topology."""
        if self.method != "dpsgd" or self.topology_of_nodes.conservation != "column":
            return []
        text = (
            "method dpsgd blends by the rows of a matrix, and these sum up to other than 1; use weights that make rows "
            "sum up to 1 (metropolis, uniform, random_row, random_doubly), or a push method"
        )
        return [Problem(("topology",), text)]

    @property
    def least_fraction(self) -> float:
        """The smallest share of the parameters that the method asks for."""
        return min(self.pull_fraction, self.sparta.fraction) if self.method == "sparta" else self.pull_fraction

    @cached_property
    def topology_of_nodes(self) -> Topology:
        """The topology of the nodes, numbered in the order of the file: who hears whom in each round. Made once.

        Raises:
            ConfigError: a file of a matrix cannot be used. `load` has looked at it before.
        """
        from dpwa.config.topology_checks import topology_for  # noqa: PLC0415 - imports numpy; launching needs none of it

        return topology_for(self.topology, [node.name for node in self.nodes], self.seed)

    @property
    def run_id(self) -> str:
        """Name of the run and a hash of nodes and topology: equal on all nodes that have the same cluster in mind."""
        same: list[object] = [*sorted((node.name, hosts.address_key(node.host), node.port) for node in self.nodes)]
        if self.topology != TopologyOptions():  # in which the order of the nodes counts
            same += [self.topology_of_nodes.fingerprint, *(node.name for node in self.nodes)]
        return f"{self.run}-{hashlib.sha256(repr(same).encode()).hexdigest()[:12]}"

    @property
    def timeout_s(self) -> float:
        """Seconds for one exchange, from request to end."""
        return self.timeout_ms / 1000

    @property
    def connect_timeout_s(self) -> float:
        """Seconds for making a connection to a peer."""
        return self.connect_timeout_ms / 1000

    @property
    def wait_s(self) -> float:
        """Seconds that a step may wait for its exchange."""
        return self.wait_ms / 1000

    @property
    def metrics_interval_s(self) -> float:
        """Seconds between two lines of the metrics file."""
        return self.metrics_interval_ms / 1000

    @property
    def journal_max_bytes(self) -> int:
        """Most bytes that the growing files of a node take together."""
        return self.journal_max_mb * 1_000_000

    @property
    def bandwidth_limit_bytes_per_s(self) -> float | None:
        """Most bytes per second that a node receives over the network, or None for no limit."""
        return None if self.bandwidth_limit is None else bytes_per_s(self.bandwidth_limit)

    @property
    def snapshot_slots(self) -> int:
        """Snapshots of the own model that may exist at the same time: the newest, the reference of the exchange in

        flight (often the same), and with normal memory one that a peer is still reading.
        """
        return 2 if self.memory == "low" else 3

    def to_yaml(self) -> str:
        """All settings as a cluster file; reading it again gives an equal config."""
        values = self.model_dump(mode="json")
        return yaml.dump(values, Dumper=_Dumper, sort_keys=False, width=120)


def cluster_problems(values: Mapping[str, Any], folder: Path | None) -> list[Problem]:
    """What is wrong with values of a cluster file, for others that hold such values; no host is looked up.

    Args:
        values: keys and plain values of a cluster file.
        folder: what the paths of matrices are relative to; None looks into no other file.
    """
    if folder is not None:
        values = with_folder(values, folder)
    config, problems = _validated(values)
    if config is not None and folder is None and any(isinstance(one, str) for one in config.topology.given_matrices):
        return problems
    problems += matrix_problems(values)
    if config is not None and not problems:
        problems += config.method_problems()
    return problems


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a cluster file, for editors that complete and check while typing."""
    schema = ClusterConfig.model_json_schema()
    topology = schema["properties"]["topology"]
    words = schema["$defs"]["TopologyOptions"]["properties"]["graph"]["enum"]
    schema["properties"]["topology"] = {
        "anyOf": [{"$ref": topology.pop("$ref")}, {"enum": words}],
        **topology,
        "default": "complete",
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "dpwa cluster file"}


_LISTED_NAMES = 10


class _Dumper(yaml.SafeDumper):
    """Quotes what our reader takes for a number, such as a node called 1e3, which PyYAML takes for text."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", YAML_NUMBER, None)


def _defaults() -> dict[str, Any]:
    """The default of every key that has one, as plain values."""
    fields = ClusterConfig.model_fields.items()
    return {
        key: field.default.model_dump() if isinstance(field.default, BaseModel) else field.default
        for key, field in fields
        if not field.is_required()
    }


def _validated(values: Mapping[str, Any]) -> tuple[ClusterConfig | None, list[Problem]]:
    """The config that the values make, or None and what is wrong with them."""
    try:
        return ClusterConfig.model_validate(values), []
    except ValidationError as error:
        problems = list(problems_of(error, ClusterConfig.model_json_schema()))
    # pydantic checks how values go together only when each is right by itself; a person wants to know all at once.
    return None, problems + list(problems_between(values, _defaults()))


def _settled(config: ClusterConfig | None, problems: Sequence[Problem], file: ClusterFile | None) -> ClusterConfig:
    """The config if nothing is wrong, otherwise a ConfigError with all problems in the order of the file."""
    lines = lines_of(problems, file)
    if config is None or lines:
        raise ConfigError(lines)
    return config


def _some(names: Sequence[str]) -> str:
    more = len(names) - _LISTED_NAMES
    return ", ".join(names[:_LISTED_NAMES]) + (f" and {more} more" if more > 0 else "")

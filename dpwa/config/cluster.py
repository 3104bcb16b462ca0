"""The cluster's configuration: from a file to the frozen object that the rest of dpwa works with.

A file is walked once: `yaml_file` reads values and their positions, pydantic checks them one by one by the `keys`,
`checks` what goes beyond single values, and `lines` puts every mistake where it stands. Names and units here are those
of the file (`timeout_ms`); the properties ending in `_s` are the one place where milliseconds become seconds.

Must not know: sockets, threads, models, the command line. Runs in: any thread; a ClusterConfig never changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from dpwa.config import hosts, yaml_file
from dpwa.config.checks import custom_options, import_plugins, problems_between, problems_of_the_world
from dpwa.config.data_rate import bytes_per_s
from dpwa.config.keys import MAX_NODES, ClusterKeys
from dpwa.config.lines import lines_of
from dpwa.config.network_checks import why_not_one_way
from dpwa.config.problems import made_despite, problems_of
from dpwa.config.sections import NodeConfig
from dpwa.config.topology import TopologyOptions, with_folder
from dpwa.config.yaml_file import YAML_NUMBER, ClusterFile
from dpwa.errors import ConfigError
from dpwa.interpolation.interpolator import Interpolator
from dpwa.interpolation.registry import RULES, resolve
from dpwa.methods.registry import METHODS, find_method, make_method
from dpwa.options import Options, Place, Problem
from dpwa.topology.neighbourhood import Neighbourhood

if TYPE_CHECKING:
    from dpwa.methods.base import Method
    from dpwa.topology.schedule import Topology

__all__ = ["FIRST_PORT", "MAX_NODES", "ClusterConfig", "cluster_problems", "json_schema"]

_LAST_PORT = 65535

_TIMEOUT_S = 2.5
_LONGEST_S = 60.0

FIRST_PORT = 21000
"""Where the ports of a local cluster begin. The kernel takes the near end of outgoing connections from 32768 upwards
(Linux) or 49152 (elsewhere). A node's port below that range can never be taken by some program's outgoing connection
between two starts of the node."""


class ClusterConfig(ClusterKeys):
    """All settings of a cluster. The same file goes to every node.

    Make one with `load`, `from_text`, `for_localhost` or `alone`, which raise ConfigError; the plain constructor
    raises pydantic's ValidationError.
    """

    def between(self) -> Iterator[Problem]:
        """See `Options.between`."""
        return problems_between(self)

    @classmethod
    def load(cls, path: str | Path, found: Mapping[str, Any] | None = None) -> ClusterConfig:
        """Read a cluster file and check it, also against the world: host names, custom modules, files of matrices.

        Custom modules are looked for on Python's path, then beside the file, then in the current folder.

        Args:
            path: of the file.
            found: keys and values that are not in the file, and were found when the nodes were started.

        Raises:
            ConfigError: with every problem, each on a line with file, line, column and place.
        """
        path = Path(path)
        file = yaml_file.read(path)
        checked = _checked(with_folder({**file.values, **(found or {})}, path.parent))
        world = problems_of_the_world(checked.config, (path.parent, Path.cwd()), checked.wrong)
        return _settled(checked, file, world)

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
        return _settled(_checked(file.values), file)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> ClusterConfig:
        """The config of a mapping with the keys and values of a cluster file; no host is looked up.

        Raises:
            ConfigError: with every problem, each on a line.
        """
        return _settled(_checked(values), None)

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
        return _settled(_checked({**settings, "nodes": nodes}), None)

    @classmethod
    def alone(cls, name: str = "alone") -> ClusterConfig:
        """A cluster of one node, which talks to nobody.

        Raises:
            ConfigError: `name` cannot be the name of a node.
        """
        return _settled(_checked({"nodes": [{"name": name, "port": FIRST_PORT}]}), None)

    def with_ports_from(self, first_port: int) -> ClusterConfig:
        """The same cluster on other ports: that of the first node, and the next ones for the others.

        A port that a node's `bind` names moves by as much as the node's own.

        Raises:
            ConfigError: there are not that many ports, or two nodes would listen on one.
        """
        count = len(self.nodes)
        highest = _LAST_PORT + 1 - count
        if not 1 <= first_port <= highest:
            raise ConfigError(f"ports of {count} nodes: expected the first to be from 1 to {highest}, got {first_port}")
        moved = [node.at_port(first_port + rank) for rank, node in enumerate(self.nodes)]
        _check_ports(self.nodes, moved)
        now_at = {node.address_key: after.address for node, after in zip(self.nodes, moved, strict=True) if node.serve}
        join = tuple(now_at.get(seed, text) for seed, text in zip(self.seeds, self.join, strict=True))
        return self.model_copy(update={"nodes": tuple(moved), "join": join})

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
        found = self.node(name)
        return tuple(node for node in self.nodes if node is not found)

    def asked_by(self, name: str) -> tuple[NodeConfig, ...]:
        """Those of `peers_of` that can be asked: all but the ones with `serve: false`.

        Raises:
            ConfigError: there is no node of this name.
        """
        return tuple(peer for peer in self.peers_of(name) if peer.serve)

    @property
    def is_open(self) -> bool:
        """Whether nodes that are not in the file may join."""
        return bool(self.join)

    @property
    def is_alone(self) -> bool:
        """Whether there is one node and never will be another."""
        return len(self.nodes) == 1 and not self.join

    @property
    def seeds(self) -> tuple[tuple[str, int], ...]:
        """Host and port of each address of `join`, the same for all ways of writing one host."""
        parts = map(hosts.split_address, self.join)
        return tuple((hosts.address_key(part[0]), part[1]) for part in parts if part is not None)

    @property
    def is_newcomer(self) -> bool:
        """Whether the nodes of this file join a cluster that others have begun: none of them is one to join through."""
        return self.is_open and not any(node.serve and node.address_key in self.seeds for node in self.nodes)

    def interpolator(self) -> Interpolator:
        """The configured rule with its guards.

        Raises:
            ConfigError: the rule is unknown, cannot be imported or refuses its options.
        """
        import_plugins(self.plugins)
        options = self.rule_options
        return Interpolator(
            resolve(self.interpolation, self.custom_rule if options is None else options.arguments()),
            divergence_threshold=self.divergence_threshold,
            factor_min=self.factor_min,
            factor_max=self.factor_max,
        )

    def method_for(self, name: str) -> Method:
        """The configured method, as the node called `name` runs it.

        Raises:
            ConfigError: the method cannot be imported or refuses its options.
        """
        import_plugins(self.plugins)
        names = [node.name for node in self.nodes]
        method = self.method_class or find_method(self.method)
        if self.is_open and not method.follows_members:
            raise ConfigError(
                f"method {self.method} does not declare `follows_members`: with `join` nodes come and go, and it may "
                "need the ones of the file; see docs/methods.md"
            )
        one_way = next((node.name for node in self.nodes if not node.serve), None)
        text = None if one_way is None else why_not_one_way(method, self.method, one_way)
        if text is not None:
            raise ConfigError(text)
        return make_method(
            method,
            self._arguments_of(method),
            links=Neighbourhood(
                self.topology_of_nodes,
                names,
                names.index(name),
                unasked=[node.name for node in self.nodes if not node.serve],
            ),
            # Nobody knows how many there will be; all begin with one mass, and none ever has more than all together.
            count=MAX_NODES if self.is_open else len(names),
            probability=self.pull_probability,
            fraction=self.pull_fraction,
        )

    def _arguments_of(self, method: type[Method]) -> Mapping[str, Any]:
        """Keyword arguments for the constructor of the configured method."""
        if self.method in METHODS:
            return {} if self.method_options is None else self.method_options.arguments()
        options, problems = custom_options(self, method)
        if problems:
            raise ConfigError(lines_of(problems, None))
        return self.custom_method if options is None else options.arguments()

    @property
    def method_class(self) -> type[Method] | None:
        """The class of a built-in method; None for a custom one, whose module this does not import."""
        declared = METHODS.get(self.method)
        return None if declared is None else declared.variant(self.method_options)

    @property
    def method_options(self) -> Options | None:
        """The section of a built-in method; None for one without options, and for a custom one."""
        declared = METHODS.get(self.method)
        return None if declared is None or declared.options is None else getattr(self, self.method)

    @property
    def rule_options(self) -> Options | None:
        """The section of a built-in rule; None for a custom one."""
        return getattr(self, self.interpolation) if self.interpolation in RULES else None

    @cached_property
    def topology_of_nodes(self) -> Topology:
        """The topology of the nodes, numbered in the order of the file: who hears whom in each round. Made once.

        Raises:
            ConfigError: a file of a matrix cannot be used. `load` has looked at it before.
        """
        from dpwa.config.topology_checks import topology_for  # noqa: PLC0415 - numpy, which launching does not need

        return topology_for(self)

    @property
    def run_id(self) -> str:
        """Name of the run and a hash of nodes and topology: equal on all nodes that have the same cluster in mind."""
        if self.is_open:
            return f"{self.run}-open"  # files of nodes that join name other nodes
        same: list[object] = [*sorted((node.name, hosts.address_key(node.host), node.port) for node in self.nodes)]
        if self.topology != TopologyOptions():  # in which the order of the nodes counts
            same += [self.topology_of_nodes.fingerprint, *(node.name for node in self.nodes)]
        same += [(node.name, "serve: false") for node in self.nodes if not node.serve]
        return f"{self.run}-{hashlib.sha256(repr(same).encode()).hexdigest()[:12]}"

    @property
    def timeout_s(self) -> float:
        """Seconds that an exchange is planned to take at most, and that a peer's answer is waited for."""
        return _TIMEOUT_S if self.timeout_ms is None else self.timeout_ms / 1000

    @property
    def longest_s(self) -> float:
        """Seconds that an exchange may take on a link that was measured to need them."""
        return _LONGEST_S if self.timeout_ms is None else self.timeout_ms / 1000

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
        """Most bytes per second that a node receives over the network; None: no limit."""
        return None if self.bandwidth_limit is None else bytes_per_s(self.bandwidth_limit)

    @property
    def snapshot_slots(self) -> int:
        """How many snapshots of this node's model may exist at the same time.

        The newest, the reference of the exchange in flight (often the same), and with normal memory one that a peer is
        still reading.
        """
        return 2 if self.memory == "low" else 3

    def to_yaml(self) -> str:
        """All settings as a cluster file; reading it again gives an equal config."""
        values = self.model_dump(mode="json")
        return yaml.dump(values, Dumper=_Dumper, sort_keys=False, width=120)


def cluster_problems(values: Mapping[str, Any], folder: Path | None) -> list[Problem]:
    """What is wrong with values of a cluster file, for others that hold such values.

    Args:
        values: keys and plain values of a cluster file.
        folder: what the paths of matrices are relative to, and where custom modules may lie, besides the current
            folder; None: no host is looked up, no file or module looked into.
    """
    if folder is None:
        return _checked(values).problems
    found = _checked(with_folder(values, folder))
    return found.problems + problems_of_the_world(found.config, (folder, Path.cwd()), found.wrong)


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


def _check_ports(before: Sequence[NodeConfig], after: Sequence[NodeConfig]) -> None:
    """Refuse ports on which two nodes of a machine would meet that have listened on two."""
    seen: dict[tuple[str, int], NodeConfig] = {}
    for old, new in zip(before, after, strict=True):
        if not new.serve:
            continue
        other = seen.setdefault((new.home, new.listens_at[1]), old)
        if other.listens_at[1] != old.listens_at[1]:
            raise ConfigError(
                f"other ports: {other.name} and {old.name} would both listen on port {new.listens_at[1]}; give their "
                "`bind` the same distance from `port`, or change the ports in the file"
            )


_LISTED_NAMES = 10


class _Dumper(yaml.SafeDumper):
    """Quotes what our reader takes for a number, such as a node called 1e3, which PyYAML takes for text."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", YAML_NUMBER, None)


@dataclass(frozen=True)
class _Checked:
    """What the values of a file make.

    Attributes:
        config: the config; with stand-ins where values are wrong.
        problems: what is wrong with the values, and between those that are right.
        wrong: keys with wrong values.
    """

    config: ClusterConfig
    problems: list[Problem] = field(default_factory=list)
    wrong: frozenset[str] = frozenset()


def _checked(values: Mapping[str, Any]) -> _Checked:
    """Check values one by one, and then, typed, together: a person wants to know of all mistakes at once."""
    try:
        return _Checked(ClusterConfig.model_validate(values))
    except ValidationError as error:
        problems = list(problems_of(error, ClusterConfig.model_json_schema()))
        made = made_despite(error)
        places = [item["loc"] for item in error.errors(include_url=False)]
    if isinstance(made, ClusterConfig):
        return _Checked(made, problems)
    wrong = frozenset(str(place[0]) for place in places)
    usable = {key: value for key, value in values.items() if key not in wrong}
    if "nodes" in wrong:
        usable["nodes"] = _usable_nodes(values.get("nodes"), {place[1:] for place in places if place[0] == "nodes"})
    config = _typed(usable)
    return _Checked(config, problems + list(problems_between(config, wrong)), wrong)


def _typed(values: Mapping[str, Any]) -> ClusterConfig:
    """The config of values that are right one by one, whether they go together or not."""
    try:
        return ClusterConfig.model_validate(values)
    except ValidationError as error:
        made = made_despite(error)
        if not isinstance(made, ClusterConfig):
            raise
        return made


def _usable_nodes(nodes: object, wrong: Collection[Place]) -> list[NodeConfig]:
    """What is right of the nodes, each at its place; what is not right is filled with what conflicts with no other."""
    found = []
    for index, node in enumerate(nodes[:MAX_NODES] if isinstance(nodes, list) and nodes else [None]):
        given = node if isinstance(node, Mapping) else {}
        right = {key: value for key, value in given.items() if (index, key) not in wrong}
        found.append(NodeConfig.model_construct(**{"name": f"nodes[{index}]", "port": -index, **right}))
    return found


def _settled(found: _Checked, file: ClusterFile | None, world: Sequence[Problem] = ()) -> ClusterConfig:
    """The config if nothing is wrong, otherwise a ConfigError with all problems in the order of the file."""
    lines = lines_of([*found.problems, *world], file)
    if lines:
        raise ConfigError(lines)
    return found.config


def _some(names: Sequence[str]) -> str:
    more = len(names) - _LISTED_NAMES
    return ", ".join(names[:_LISTED_NAMES]) + (f" and {more} more" if more > 0 else "")

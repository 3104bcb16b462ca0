"""Mappings of a cluster file that belong to no method, rule, topology or fault: a node, outer momentum, flow control.

Here are also the single values that several mappings share: names, hosts and data rates.

Must not know: the file as a whole, how options work. Runs in: any thread; a section never changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from dpwa.config import hosts
from dpwa.config.data_rate import DATA_RATE_PATTERN, bytes_per_s, expected_rate, hint_for_rate
from dpwa.config.problems import OWN_TEXT
from dpwa.errors import ConfigError
from dpwa.options import OTHER_NAMES, Options, Problem, out_of_order

__all__ = [
    "NAME_PATTERN",
    "Address",
    "CheckpointOptions",
    "DataRate",
    "FlowControlOptions",
    "Host",
    "IslandOptions",
    "Name",
    "NodeConfig",
    "OuterOptions",
]


def _checked_host(text: str) -> str:
    expected = hosts.problem_with(text)
    if expected is not None:
        raise PydanticCustomError(OWN_TEXT, "{expected}", {"expected": expected, "hint": hosts.hint_for(text)})
    return text


NAME_PATTERN = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}"
"""Of a node; also the name of a folder, hence no leading dot."""


def _checked_name(text: str) -> str:
    if not re.fullmatch(NAME_PATTERN, text):
        raise PydanticCustomError(
            OWN_TEXT, "expected 1 to 64 letters, digits, '.', '_' or '-', and neither '.' nor '-' at the beginning"
        )
    return text


def _checked_rate(value: object) -> object:
    if value is None or (isinstance(value, str) and bytes_per_s(value) is not None):
        return value
    raise PydanticCustomError(OWN_TEXT, "{expected}", {"expected": expected_rate(), "hint": hint_for_rate(value)})


def _checked_address(text: str) -> str:
    parts = hosts.split_address(text)
    if parts is None:
        expected = "expected host:port of a member, such as 192.168.1.10:21000 or [2001:db8::7]:21000"
        raise PydanticCustomError(OWN_TEXT, "{expected}", {"expected": expected})
    _checked_host(parts[0])
    return text


def _checked_bind(text: str) -> str:
    host, _ = _parts_of_bind(text)
    if not hosts.is_any(host) and hosts.problem_with(host) is not None:
        expected = 'expected an address of this machine, such as 0.0.0.0, "::", 10.0.0.5, 0.0.0.0:21000 or "[::]:21000"'
        raise PydanticCustomError(OWN_TEXT, "{expected}", {"expected": expected})
    return text


def _parts_of_bind(text: str) -> tuple[str, int | None]:
    return hosts.split_address(text) or (text, None)


Name = Annotated[str, AfterValidator(_checked_name), Field(json_schema_extra={"pattern": f"^{NAME_PATTERN}$"})]
Host = Annotated[str, AfterValidator(_checked_host)]
Address = Annotated[str, AfterValidator(_checked_address)]
Bind = Annotated[str, AfterValidator(_checked_bind)]
DataRate = Annotated[
    str | None, BeforeValidator(_checked_rate), Field(json_schema_extra={"pattern": f"^{DATA_RATE_PATTERN}$"})
]


_LAST_PORT = 65535

# Of a node that listens nowhere, and whose port nobody looks at.
_NO_PORT = 1


def _node_schema(schema: dict[str, Any]) -> None:
    """The JSON Schema of a node: without `serve: false` it needs its port."""
    schema["examples"] = [{"name": "w1", "port": 21000}]
    schema["required"] = ["name"]
    schema["if"] = {"properties": {"serve": {"const": False}}, "required": ["serve"]}
    schema["else"] = {"required": ["port"]}


class NodeConfig(Options):
    """One node: its name, where its peers reach it, and where it listens."""

    model_config = ConfigDict(json_schema_extra=_node_schema)

    name: Name = Field(description="Name of the node, unique in the cluster; also the name of its folder in a run.")
    host: Host = Field(
        "localhost",
        description="Host name or IP address at which the other nodes reach this one.",
        json_schema_extra={OTHER_NAMES: ["advertise", "address", "ip"]},
    )
    port: int = Field(ge=1, le=65535, description="TCP port at which the other nodes reach this one.")
    bind: Bind | None = Field(
        None,
        description="Address, or address:port, that the node listens on where that is another than host and port, as "
        "behind a forwarded port; 0.0.0.0 and :: are all addresses of the machine.",
        json_schema_extra={OTHER_NAMES: ["listen", "listen_on"]},
    )
    serve: bool = Field(
        True,  # noqa: FBT003 - the default of a field
        description="Whether the other nodes can reach this one. One that they cannot reach pulls, and gives nothing.",
    )

    @model_validator(mode="before")
    @classmethod
    def _needs_no_port(cls, values: object) -> object:
        """A node that listens nowhere needs no port."""
        if isinstance(values, Mapping) and values.get("serve") is False:
            return {"port": _NO_PORT, **values}
        return values

    @property
    def address(self) -> str:
        """host:port, with an IPv6 address in brackets."""
        return hosts.address_text(self.host, self.port)

    @property
    def listens_at(self) -> tuple[str, int]:
        """Host and port that the node listens on."""
        if self.bind is None:
            return self.host, self.port
        host, port = _parts_of_bind(self.bind)
        return host, self.port if port is None else port

    def at_port(self, port: int) -> NodeConfig:
        """The same node at another port; one that `bind` names moves by as much.

        Raises:
            ConfigError: the port of `bind` would be none.
        """
        host, inner_port = (None, None) if self.bind is None else _parts_of_bind(self.bind)
        if host is None or inner_port is None:
            return self.model_copy(update={"port": port})
        moved = inner_port + port - self.port
        if not 1 <= moved <= _LAST_PORT:
            raise ConfigError(
                f"node {self.name}: with port {port} instead of {self.port}, bind: {self.bind} would move to port "
                f"{moved}; expected 1 to {_LAST_PORT}"
            )
        return self.model_copy(update={"port": port, "bind": hosts.address_text(host, moved)})

    @property
    def home(self) -> str:
        """The host that says which machine the node belongs to."""
        host, _ = self.listens_at
        return self.host if hosts.is_any(host) or hosts.is_loopback(host) else host

    @property
    def is_private(self) -> bool:
        """Whether nobody reaches it from another machine."""
        return not self.serve or (hosts.is_loopback(self.host) and hosts.is_loopback(self.listens_at[0]))

    @property
    def address_key(self) -> tuple[str, int]:
        """Host and port, the same for all ways of writing one host."""
        return hosts.address_key(self.host), self.port


class OuterOptions(Options):
    """Outer momentum on top of the method, as in DiLoCo."""

    every: int | None = Field(
        None, ge=1, le=1_000_000, description="H: steps between two outer steps; null: no outer momentum."
    )
    learning_rate: float = Field(0.7, gt=0, le=2, description="How much of the way the anchor goes.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Share of the last outer step in the next.")
    nesterov: bool = Field(
        True,  # noqa: FBT003 - the default of a field
        description="Whether the outer step looks ahead by one momentum.",
    )
    by_speed: bool = Field(
        False,  # noqa: FBT003 - the default of a field
        description="Whether a slow node makes fewer steps between two outer steps, so that all make them together.",
    )


class CheckpointOptions(Options):
    """What each node saves by itself, to go on from after a kill."""

    every_s: float | None = Field(
        None, ge=0.1, le=604_800, description="Seconds between two checkpoints; null: none are made."
    )
    keep: int = Field(2, ge=1, le=1000, description="How many checkpoints stay; older ones are removed.")


class IslandOptions(Options):
    """How many processes are one node together."""

    size: int | None = Field(
        None,
        ge=2,
        le=4096,
        description="Processes of torch.distributed that are one node; null: as many as share its "
        "DistributedDataParallel.",
    )


class FlowControlOptions(Options):
    """How the answers of a peer decide how often it is asked."""

    score_min: int = Field(10, ge=1, description="Lowest score; above 0, so that no peer is ever forgotten.")
    score_max: int = Field(1000, ge=1, description="Highest score.")
    score_start: int = Field(500, ge=1, description="Score of a peer that has not been asked yet.")
    success: int = Field(10, ge=0, description="What one complete answer adds to the score.")
    failure: int = Field(
        100,
        ge=0,
        description="What a failure takes from the score: once, until the peer answers again.",
    )
    probe_s: float = Field(
        1.0, gt=0, le=3600, description="Seconds after a failure before the peer is asked again; doubles each time."
    )
    probe_max_s: float = Field(30.0, gt=0, le=3600, description="Upper limit in seconds of that doubling.")

    def between(self) -> Iterator[Problem]:
        """See `Options.between`."""
        yield from out_of_order(self, "score_min", "score_start", "score_max")
        yield from out_of_order(self, "probe_s", "probe_max_s")

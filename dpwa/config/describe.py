"""What `dpwa check` prints: what a cluster file would run, in words, and what about it deserves a second look.

Must not know: the command line, the terminal. Runs in: any thread; pure functions from a config to text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from dpwa.config import hosts
from dpwa.config.cluster import FIRST_PORT, ClusterConfig
from dpwa.config.faults import faults_in_words
from dpwa.config.keys import FACTOR_KEYS
from dpwa.config.sections import NodeConfig
from dpwa.config.topology import TopologyOptions
from dpwa.interpolation.registry import RULES
from dpwa.methods.base import ExchangeKind, Method
from dpwa.methods.registry import METHODS
from dpwa.schedule import highest, in_words

__all__ = ["describe"]

_MAX_ROWS = 32
_FIRST_EPHEMERAL_PORT = 32768


def describe(config: ClusterConfig, local_names: Collection[str]) -> str:
    """The cluster in words: a table of its nodes, the settings that matter, and warnings. Plain text without colours.

    Args:
        config: a valid config.
        local_names: names of the nodes that belong to this host.
    """
    local = [node for node in config.nodes if node.name in local_names]
    count = len(config.nodes)
    title = f"run {config.run}: {count} {'node' if count == 1 else 'nodes'}, {len(local)} on this host"
    parts = [title, _table(config, local_names), _sentences(config)]
    if config.is_open:
        parts.append(_membership(config))
    if config.topology != TopologyOptions():
        parts.append(_topology(config))
    warnings = [f"warning: {warning}" for warning in _warnings(config, local_names)]
    if config.faults.kinds:
        warnings.append(f"warning: faults are injected: {faults_in_words(config.faults)}")
    if warnings:
        parts.append("\n".join(warnings))
    return "\n\n".join(parts)


def _table(config: ClusterConfig, local_names: Collection[str]) -> str:
    rows = [("node", "address", "on this host")]
    shown = config.nodes[:_MAX_ROWS]
    rows += [(node.name, _address(node), "yes" if node.name in local_names else "no") for node in shown]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    if len(config.nodes) > _MAX_ROWS:
        lines.append(f"and {len(config.nodes) - _MAX_ROWS} more")
    return "\n".join(f"  {line}" for line in lines)


def _address(node: NodeConfig) -> str:
    if not node.serve:
        return "cannot be asked"
    host, port = node.listens_at
    return node.address if node.bind is None else f"{node.address}, listens on {hosts.address_text(host, port)}"


def _time_of_an_exchange(config: ClusterConfig) -> str:
    if config.timeout_ms is not None:
        return f"An exchange may take {config.timeout_ms} ms"
    return f"An exchange may take {config.timeout_s:g} s, and up to {config.longest_s:g} s on a link that needs them"


def _sentences(config: ClusterConfig) -> str:
    lines = [
        f"{_method(config)}.",
        f"{_time_of_an_exchange(config)}, of which {config.connect_timeout_ms} ms for the connection.",
        *([f"The factor: {_factor(config)}."] if _uses_interpolation(config) else []),
        f"The blend: {_blend(config)}.",
        f"Parameters travel {_links(config)}.",
        f"Memory beside the model: {config.snapshot_slots} snapshots and the differences of "
        f"{'three pulls' if config.guard == 'median' else 'one exchange'}; "
        f"at most {config.max_connections} open connections to peers.",
        *_islands(config),
        *_checkpoints(config),
    ]
    return "\n".join(lines)


def _islands(config: ClusterConfig) -> list[str]:
    size = config.island.size
    return [] if size is None else [f"Each {size} processes, in the order of their ranks, are one node."]


def _checkpoints(config: ClusterConfig) -> list[str]:
    every_s, keep = config.checkpoint.every_s, config.checkpoint.keep
    if every_s is None:
        return []
    kept = "only the last one stays" if keep == 1 else f"the last {keep} stay"
    return [f"Each node saves a checkpoint every {every_s:g} s; {kept}."]


def _uses_interpolation(config: ClusterConfig) -> bool:
    """Whether the configured rule is known to decide the factor; a custom method is not asked."""
    return config.method_class is not None and config.method_class.uses_interpolation


def _method(config: ClusterConfig) -> str:
    """What a step does, and what that conserves."""
    wait = f"waits up to {config.wait_ms} ms for the answer" if config.wait_ms > 0 else "never waits for the answer"
    often = f"with probability {in_words(config.pull_probability)}"
    method = config.method_class or Method
    text = method.description.format(options=config.method_options, often=often, wait=wait)
    text = f"Method {config.method}{': ' if config.method_class else ', '}{text}"
    if config.outer.every is not None:
        slower = " (slower nodes fewer)" if config.outer.by_speed else ""
        text += f". Every {config.outer.every} steps{slower} an outer step with momentum {config.outer.momentum:g}"
    return text


def _membership(config: ClusterConfig) -> str:
    """How nodes join and go."""
    through = ", ".join(config.join)
    if config.is_newcomer:
        text = f"The nodes of this file join the cluster {config.run} through {through}, and copy a model of it first."
    else:
        text = f"Nodes that are not in this file may join through {through}, or any other member."
    if config.keys is not None:
        text += f"\nWhoever joins needs a key in {config.keys}/allowed.yaml on every machine, or an invitation."
    return (
        f"{text}\nA member that has joined and does not answer any more is forgotten; those of this file never are. "
        "`dpwa leave RUN_DIR NODE` has a node go."
    )


def _topology(config: ClusterConfig) -> str:
    from dpwa.config.describe_topology import describe_topology  # noqa: PLC0415 - imports numpy, which few files need

    names = [node.name for node in config.nodes]
    return "\n".join(describe_topology(config.topology, config.topology_of_nodes, names))


def _factor(config: ClusterConfig) -> str:
    rule = RULES.get(config.interpolation)
    if rule is None:
        text = f"custom rule {config.interpolation}"
    else:
        text = rule.description.format(options=config.rule_options)
    if config.loss_smoothing > 0:
        text += f"; losses smoothed with weight {config.loss_smoothing:g}"
    if config.divergence_threshold > 0:
        text += f"; shrinks while this node's loss is below {config.divergence_threshold:g}"
    if (config.factor_min, config.factor_max) != (0, 1):
        text += f"; kept from {config.factor_min:g} to {config.factor_max:g}"
    return text


def _blend(config: ClusterConfig) -> str:
    if config.blend == "delta":
        text = "delta, so steps made during an exchange are kept"
    else:
        text = "absolute, as in 2017: part of each step made during an exchange is lost"
    buffers = "blended too" if config.buffers == "blend" else "kept"
    frozen = "blended too" if config.frozen_parameters == "blend" else "kept"
    text += f"; floating-point buffers are {buffers}; frozen parameters are {frozen}"
    if config.optimizer_state == "blend":
        text += (
            "; the optimizer's state is blended too, so that twice (SGD with momentum) or three times (Adam, AdamW) "
            "the bytes of the parameters travel"
        )
    return f"{text}; at the end all nodes take the mean of their models" if config.merge_at_end else text


def _links(config: ClusterConfig) -> str:
    words = {
        "auto": "as they are on fast links and smaller on slow ones",
        "raw": "as they are",
        "fp16": "as fp16",
        "bf16": "as bf16",
        "int8": "as int8 with a scale per block",
    }
    text = words[config.codec]
    if config.keys is not None:
        text += f"; encrypted, among those whose keys are in {config.keys}"
    if config.shared_memory == "auto":
        text += "; between nodes of one host and user by shared memory"
    if config.pull_fraction < 1:
        share = min(config.pull_fraction, getattr(config.method_options, "fraction", 1.0))
        text += f"; an exchange pulls {share:g} of them, another part each time"
    if config.bandwidth_limit is not None:
        text += f"; a node receives at most {config.bandwidth_limit} over the network"
    return text


def _warnings(config: ClusterConfig, local_names: Collection[str]) -> Iterator[str]:
    networked = [node.name for node in config.nodes if not node.is_private]
    most = highest(getattr(config.rule_options, "value", 1.0))
    if config.is_alone:
        yield "there is one node only; it will train alone"
    elif highest(config.pull_probability) == 0 and (config.method_class or Method).uses_probability:
        yield "pull_probability is 0; no node will ever ask another one"
    elif _uses_interpolation(config) and (config.factor_max == 0 or most == config.factor_min == 0):
        yield "the factor is always 0; nothing will be blended"
    yield from _open_warnings(config)
    yield from _without_effect(config)
    yield from _method_warnings(config)
    if config.bandwidth_limit is not None:
        yield from _limit_warnings(config, is_networked=bool(networked))
    if not local_names:
        yield "no node of this file belongs to this host; `dpwa launch` would need --node NAME"
    if networked and config.keys is None:
        yield (
            "nodes talk over a network without encryption or authentication; use it only where you trust everyone "
            "who can reach their ports, or write `keys: keys` and run `dpwa keys init`"
        )
    yield from _reach_warnings(config, is_networked=bool(networked))
    if config.connect_timeout_s > config.timeout_s:
        yield "connect_timeout_ms is above timeout_ms, which ends an exchange first"
    if any(node.port >= _FIRST_EPHEMERAL_PORT for node in config.nodes):
        yield (
            f"ports from {_FIRST_EPHEMERAL_PORT} up may be taken by outgoing connections of any program; "
            f"ports from {FIRST_PORT} up are safer"
        )


def _reach_warnings(config: ClusterConfig, *, is_networked: bool) -> Iterator[str]:
    """What about the ways to the nodes deserves a second look."""
    silent = [node.name for node in config.nodes if not node.serve]
    if is_networked and any(node.serve and hosts.is_loopback(node.host) for node in config.nodes):
        yield "some nodes have a loopback address, which nodes on other hosts cannot reach"
    if silent:
        yield (
            f"{', '.join(silent)} cannot be asked (serve: false): what is learnt there reaches no other node"
            + (", and at the end it keeps its own model" if config.merge_at_end else "")
        )


def _open_warnings(config: ClusterConfig) -> Iterator[str]:
    """What about a cluster that nodes may join deserves a second look."""
    if config.is_open and config.keys is None:
        yield (
            "whoever reaches a port and knows the name of the run may join, and change the model; write `keys: keys` "
            "and run `dpwa keys init` where others can reach it"
        )


def _limit_warnings(config: ClusterConfig, *, is_networked: bool) -> Iterator[str]:
    """What about a limit of the bandwidth deserves a second look."""
    if config.shared_memory == "auto" and not is_networked:
        yield "bandwidth_limit concerns the network; all nodes are on one host, where shared memory does not count"
    method = config.method_class or Method
    if config.optimizer_state == "blend" and method.exchanges_slices:
        yield "bandwidth_limit makes exchanges bring parts of the model, which come without the optimizer's state"
    if getattr(method, "kind", None) is ExchangeKind.GATHER:
        yield (
            f"bandwidth_limit lets method {config.method} make only every second, fourth, … round where all do not "
            "fit; nodes of unequal pace may then miss each other's rounds, which moves the mean of the models"
        )


def _without_effect(config: ClusterConfig) -> Iterator[str]:
    """The keys that were changed, and that the configured method and rule do not look at."""
    method = config.method_class
    fields = type(config).model_fields
    for key in (key for key in fields if getattr(config, key) != fields[key].get_default()):
        yield from _without_its_switch(config, key)
        if method is not None and not method.uses_interpolation and key in FACTOR_KEYS:
            yield f"{key} has no effect: it is about the factor of a pull, which method {config.method} does not use"
        elif method is not None and not method.uses_probability and key == "pull_probability":
            yield f"{key} has no effect: method {config.method} itself says when it exchanges"
        elif key in METHODS and key != config.method:
            yield f"{key} has no effect: it is for method {key}, and the method is {config.method}"
        elif key in RULES and key != config.interpolation:
            yield f"{key} has no effect: it is for interpolation {key}, and the interpolation is {config.interpolation}"
        elif key == "custom_method" and config.method in METHODS:
            yield f"{key} has no effect: method {config.method} is not a custom one"
        elif key == "custom_rule" and config.interpolation in RULES:
            yield f"{key} has no effect: interpolation {config.interpolation} is not a custom one"


def _without_its_switch(config: ClusterConfig, key: str) -> Iterator[str]:
    """Whether a key is about what another one, which has a default, does not ask for."""
    if key == "outer" and config.outer.every is None:
        yield "outer has no effect without `every`, the steps between two outer steps"
    elif key == "checkpoint" and config.checkpoint.every_s is None:
        yield "checkpoint has no effect without `every_s`, the seconds between two checkpoints"
    elif key == "pull_fraction":
        fraction = getattr(config.method_options, "fraction", None)
        if fraction is not None and config.pull_fraction >= fraction:
            yield f"pull_fraction has no effect: an exchange of method {config.method} brings {fraction:g} anyway"


def _method_warnings(config: ClusterConfig) -> Iterator[str]:
    """What about the method deserves a second look."""
    method = config.method_class
    if method is None:
        return
    probability = highest(config.pull_probability)
    if probability > method.best_probability:
        remedy = "set it to" if probability == config.pull_probability else "let its schedule stay at"
        yield (
            f"method {config.method} loses part of the training at pull_probability {probability:g}; {remedy} "
            f"{method.best_probability:g} or less (docs/methods.md says why)"
        )

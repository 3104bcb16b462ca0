"""`dpwa launch --hosts`: the nodes of a cluster on several machines, each started over ssh, all watched from here.

Each node is a process `over_ssh` to the supervisor, which shows, restarts and ends them as if they ran here. The
cluster file travels over ssh with each start, and so does the node's own key; neither is ever an argument of a command.

Must not know: what the nodes compute, click. Runs in: the main thread.
"""

from __future__ import annotations

import asyncio
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpwa.config import hosts as host_names
from dpwa.config import yaml_file
from dpwa.errors import ConfigError, DpwaError
from dpwa.launch.far_commands import LOST_S, Way, far_commands, remove_orders
from dpwa.launch.far_words import main_of
from dpwa.launch.guard import GRACE_S, SAVING_TIMEOUT_S
from dpwa.launch.hosts_file import Host, read_hosts
from dpwa.launch.launch_record import LaunchRecord, keep_record
from dpwa.launch.processes import OnFailure
from dpwa.launch.report import report
from dpwa.launch.run_dir import make_run_dir
from dpwa.launch.supervision import run_shown
from dpwa.launch.terminal import tell
from dpwa.transport.key_folder import KeyFolder
from dpwa.transport.run_keys import run_keys

if TYPE_CHECKING:
    from dpwa.config.cluster import ClusterConfig

__all__ = ["LOST_S", "launch_on_hosts"]

_SSH_ASKS = 3
_CONNECT_TIMEOUT_S = 10
_AT_ONCE, _PAUSE_S = 8, 1.0
"""So many logins to one host at once, and then a pause: an ssh server refuses at random above ten."""

_KEYS = "keys"


def launch_on_hosts(
    cluster_file: Path,
    argv: Sequence[str],
    hosts_file: Path,
    *,
    names: Sequence[str] = (),
    on_failure: OnFailure = OnFailure.CONTINUE,
    max_restarts: int = 5,
    run_dir: Path | None = None,
    first_port: int | None = None,
) -> int:
    """Starts the command once per node, on the node's host, shows what all print, and waits for the last one.

    Args:
        cluster_file: the YAML file. Without `nodes` it has settings alone, and the hosts have nodes w1, w2 ... by
            their slots.
        argv: the command and its arguments.
        hosts_file: see `hosts_file`.
        names: nodes to start; empty for all.
        on_failure: what to do when a node fails, or its host cannot be reached.
        max_restarts: how often in a row a node is started again.
        run_dir: the run folder, here and there; None makes a new one under `runs`. Relative: there, within the host's
            folder.
        first_port: the nodes get this port and the next ones, instead of those of the file.

    Returns:
        The exit code, as of `launch`.

    Raises:
        ConfigError: something can be seen to be wrong before anything is started.
        DpwaError: there are not enough processes or files for a launch.
    """
    from dpwa.config.cluster import FIRST_PORT, ClusterConfig  # noqa: PLC0415 - pydantic is slow to import

    if shutil.which("ssh") is None:
        raise ConfigError("ssh: there is no such program here; install OpenSSH's client to start nodes on other hosts")
    hosts = read_hosts(hosts_file)
    hosts = [replace(host, address=host.address or _address_of(host)) for host in hosts]
    values = yaml_file.read(cluster_file).values
    found: dict[str, Any] = {} if values.get("nodes") else {"nodes": _nodes_of(hosts, FIRST_PORT)}
    makes_keys = not (values.get("keys") or values.get("insecure") or values.get("join"))
    config = ClusterConfig.load(cluster_file, {**found, "keys": _KEYS} if makes_keys else found)
    chosen = list(dict.fromkeys(config.node(name).name for name in names or [node.name for node in config.nodes]))
    if makes_keys and len(chosen) < len(config.nodes):
        makes_keys = False  # the others could not know them
        config = ClusterConfig.load(cluster_file, found)
    if first_port is not None:
        config = config.with_ports_from(first_port)
    places = _places(config, chosen, hosts, hosts_file)
    keys = None if config.keys is None or makes_keys else Path(config.keys)
    if keys is not None:
        for name in chosen:
            KeyFolder(keys, name, [peer.name for peer in config.peers_of(name)])
    if config.keys is not None:
        config = config.model_copy(update={"keys": _KEYS})  # beside the copy of the file, in each run folder
    run_dir = make_run_dir(config, run_dir)
    record = LaunchRecord(
        tuple(argv),
        str(Path.cwd()),
        str(cluster_file.absolute()),
        tuple(chosen),
        on_failure.value,
        max_restarts,
        first_port,
        str(hosts_file.absolute()),
    )
    keep_record(run_dir, record)
    _tell_places(places, run_dir, hosts, hosts_file)
    try:
        with _keys_of_run(run_dir, chosen if makes_keys else ()):
            keys = run_dir / _KEYS if makes_keys else keys
            commands = far_commands(config, _ways(places), argv, run_dir, on_failure, keys, lost_s=LOST_S)
            limit_s = GRACE_S + SAVING_TIMEOUT_S + LOST_S  # the far end keeps the time, as far as it can be reached
            run = run_shown(commands, on_failure, max_restarts, _nothing, _nothing_said, limit_s)
            ends, signal_number = asyncio.run(run)
    except OSError as error:
        raise DpwaError(f"launching {', '.join(chosen)}: the operating system refused: {error}") from error
    finally:
        remove_orders(run_dir, chosen)
    return report(ends, signal_number, run_dir, has_peers=not config.is_alone)


def _nothing(_name: str) -> None:
    """The locks of nodes are held where the nodes are."""


def _nothing_said(_event: str, **_fields: object) -> None:
    """The processes that count are noted by the far ends."""


def _keys_of_run(run_dir: Path, names: Sequence[str]) -> AbstractContextManager[None]:
    return run_keys(run_dir, names) if names else nullcontext()


def _address_of(host: Host) -> str:
    """What ssh takes a host's name for: its configuration may have another one, which others know."""
    done = subprocess.run(
        ["ssh", "-G", *_port_words(host), host.destination],  # noqa: S607 - the user's own
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    for line in done.stdout.splitlines():
        word, _, name = line.partition(" ")
        if word == "hostname" and host_names.problem_with(name) is None:
            return name
    return host.name


def _nodes_of(hosts: Sequence[Host], first_port: int) -> list[dict[str, Any]]:
    """Nodes w1, w2 ... in the order of the hosts, by their slots, each with a port of its own."""
    places = [host.address for host in hosts for _ in range(host.slots or 1)]
    return [
        {"name": f"w{number + 1}", "host": address, "port": first_port + number}
        for number, address in enumerate(places)
    ]


def _places(config: ClusterConfig, chosen: Sequence[str], hosts: Sequence[Host], hosts_file: Path) -> dict[str, Host]:
    """The host of each node.

    Raises:
        ConfigError: a node has none, or more nodes than slots have one.
    """
    left = [host.slots if host.slots is not None else len(config.nodes) for host in hosts]
    places: dict[str, Host] = {}
    problems = []
    for node in config.nodes:
        key = host_names.address_key(node.host)
        mine = [
            place for place, host in enumerate(hosts) if key in map(host_names.address_key, (host.address, host.name))
        ]
        place = next((place for place in mine if left[place] > 0), None)
        if place is not None:
            left[place] -= 1
            places[node.name] = hosts[place]
        elif node.name in chosen:
            lines = ", ".join(str(hosts[place].line) for place in mine)
            problems.append(
                f"{hosts_file}:{lines}: has no slot left for node {node.name} at {node.host}; raise slots="
                if mine
                else f"{hosts_file}: names no host {node.host}, where node {node.name} is; add it, with address="
                f"{node.host} if ssh has another name for it"
            )
    if problems:
        raise ConfigError(problems)
    return {name: places[name] for name in chosen}


def _tell_places(places: Mapping[str, Host], run_dir: Path, hosts: Sequence[Host], hosts_file: Path) -> None:
    by_host: dict[Host, list[str]] = {}
    for name, host in places.items():
        by_host.setdefault(host, []).append(name)
    told = "; ".join(f"{', '.join(names)} on {host}" for host, names in by_host.items())
    tell(f"dpwa: {len(places)} nodes start on {len(by_host)} hosts: {told}; run folder {run_dir}")
    for host in hosts:
        if host not in by_host:
            tell(f"dpwa: {hosts_file}:{host.line}: nothing is started on {host}, where no node of these is")


def _ways(places: Mapping[str, Host]) -> dict[str, Way]:
    seen: dict[Host, int] = {}
    ways = {}
    for name, host in places.items():
        before = seen.get(host, 0)
        seen[host] = before + 1
        order = {
            "ssh": [
                "ssh",
                *_options(),
                *_port_words(host),
                host.destination,
                _there(host, f"-c {shlex.quote(main_of('far_end'))}"),
            ],
            "try": shlex.join(
                ["ssh", "-o", "BatchMode=yes", *_port_words(host), host.destination, _there(host, "-m dpwa --version")]
            ),
        }
        ways[name] = Way(host, str(host), "over_ssh", order, delay_s=before // _AT_ONCE * _PAUSE_S)
    return ways


def _options() -> list[str]:
    settings = {
        "BatchMode": "yes",
        "ConnectTimeout": str(_CONNECT_TIMEOUT_S),
        "ServerAliveInterval": str(max(1, round(LOST_S * 0.75 / _SSH_ASKS))),
        "ServerAliveCountMax": str(_SSH_ASKS),
        "ClearAllForwardings": "yes",
    }
    return ["-T", "-x", "-a", *(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))]


def _port_words(host: Host) -> list[str]:
    return [] if host.port is None else ["-p", str(host.port)]


def _there(host: Host, words: str) -> str:
    """The line for the host's shell: its Python, in its folder."""
    return f"cd {_quoted(host.folder or str(Path.cwd()))} && exec {_quoted(host.python)} {words}"


def _quoted(path: str) -> str:
    """A path for a shell, in which a leading ~/ keeps its meaning."""
    if path == "~":
        return '"$HOME"'
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)

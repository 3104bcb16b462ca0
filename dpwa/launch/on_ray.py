"""`dpwa launch --engine ray`: the nodes of a cluster in places that Ray gives them, all watched from here.

Ray decides where each node is, and whether there is room; the broker asks it. From then on it is as with ssh: each node
is a process `over_ray` to the supervisor, which shows, restarts and ends them as if they ran here, and a far end beside
each node. A node whose machine is lost is started again in another place, if it is to be.

Must not know: what the nodes compute, click, Ray itself. Runs in: the main thread.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpwa._version import __version__
from dpwa.config import yaml_file
from dpwa.engines.placed import Addresses, given_settings, may_move, placed_config
from dpwa.engines.room import Need, card_problems
from dpwa.errors import ConfigError, DpwaError
from dpwa.launch.far_commands import LOST_S, Way, far_commands, remove_orders
from dpwa.launch.far_words import main_of
from dpwa.launch.guard import GRACE_S, SAVING_TIMEOUT_S
from dpwa.launch.launch_record import LaunchRecord, keep_record
from dpwa.launch.over_ray import config_name_of
from dpwa.launch.processes import OnFailure
from dpwa.launch.report import report
from dpwa.launch.run_dir import CONFIG_NAME, make_run_dir
from dpwa.launch.supervision import run_shown
from dpwa.launch.terminal import tell
from dpwa.transport.key_folder import KeyFolder
from dpwa.transport.run_keys import run_keys

if TYPE_CHECKING:
    from dpwa.config.cluster import ClusterConfig

__all__ = ["RayOptions", "launch_on_ray"]

_KEYS = "keys"
_END_S = 10.0
_LAST_BYTES = 2000


@dataclass(frozen=True)
class RayOptions:
    """What Ray is asked for.

    Attributes:
        nodes: how many.
        address: host:port of the cluster's head, or "auto": the cluster that this machine belongs to.
        cpus: that Ray counts for each node, which also limits its threads.
        gpus: that each node sees.
        wait_s: how long Ray may take to have room for all.
    """

    nodes: int
    address: str = "auto"
    cpus: float = 1.0
    gpus: float = 0.0
    wait_s: float = 30.0


def launch_on_ray(
    cluster_file: Path | None,
    argv: Sequence[str],
    options: RayOptions,
    *,
    on_failure: OnFailure = OnFailure.CONTINUE,
    max_restarts: int = 5,
    run_dir: Path | None = None,
) -> int:
    """Starts the command once per node, where Ray has a place, shows what all print, and waits for the last one.

    Args:
        cluster_file: the YAML file, without `nodes`; None: all settings are the defaults.
        argv: the command and its arguments.
        options: what Ray is asked for.
        on_failure: what to do when a node fails, or its machine is lost.
        max_restarts: how often in a row a node is started again.
        run_dir: the run folder, here and there; None makes a new one under `runs`. It may hold a former run of the same
            settings and the same number of nodes.

    Returns:
        The exit code, as of `launch`.

    Raises:
        ConfigError: something can be seen to be wrong before anything is started.
        DpwaError: Ray has no room, or there are not enough processes or files for a launch.
    """
    Need(options.nodes, options.cpus, options.gpus)
    names = [f"w{number + 1}" for number in range(options.nodes)]
    with _Broker(names, options) as broker:  # Ray takes seconds to load: meanwhile the settings are looked at
        key_folder, makes_keys = _keys_wanted(cluster_file, names)
        cards = broker.cards()
        addresses = {name: (str(card["host"]), int(card["port"])) for name, card in cards.items()}
        config = placed_config(cluster_file, addresses, keys=_KEYS if key_folder or makes_keys else None)
        if config.keys is not None:
            config = config.model_copy(update={"keys": _KEYS})  # beside the copy of the file, in each run folder
        run_dir, config_name = _run_dir(config, run_dir)
        _keep_record(run_dir, cluster_file, argv, names, options, on_failure, max_restarts)
        _tell_places(addresses, run_dir)
        ways = {
            name: Way(
                card["machine"],
                str(card["host"]),
                "over_ray",
                {"socket": broker.socket, "may_move": may_move(config)},
            )
            for name, card in cards.items()
        }
        try:
            with run_keys(run_dir, names) if makes_keys else nullcontext():
                keys = run_dir / _KEYS if makes_keys else key_folder
                commands = far_commands(config, ways, argv, run_dir, on_failure, keys, config_name=config_name)
                limit_s = GRACE_S + SAVING_TIMEOUT_S + LOST_S  # the far end keeps the time, as far as it can be reached
                run = run_shown(commands, on_failure, max_restarts, _nothing, _nothing_said, limit_s)
                ends, signal_number = asyncio.run(run)
        except OSError as error:
            raise DpwaError(f"launching {', '.join(names)}: the operating system refused: {error}") from error
        finally:
            remove_orders(run_dir, names)
        return report(ends, signal_number, run_dir, has_peers=not config.is_alone)


def _keys_wanted(cluster_file: Path | None, names: Sequence[str]) -> tuple[Path | None, bool]:
    """The folder of keys that the settings name, and whether the run is to have its own.

    Raises:
        ConfigError: there is something wrong with the settings, which is to be said before anybody waits for Ray.
    """
    values = given_settings(cluster_file)
    sketch = {name: ("127.0.0.1", 21000 + rank) for rank, name in enumerate(names)}
    key_folder = placed_config(cluster_file, sketch).keys
    if key_folder is None:
        return None, not (values.get("keys") or values.get("insecure"))
    for name in names:
        KeyFolder(Path(key_folder), name, [other for other in names if other != name])
    return Path(key_folder), False


def _nothing(_name: str) -> None:
    """The locks of nodes are held where the nodes are."""


def _nothing_said(_event: str, **_fields: object) -> None:
    """The processes that count are noted by the far ends."""


def _run_dir(config: ClusterConfig, run_dir: Path | None) -> tuple[Path, str]:
    """The run folder, and what its cluster file is called: that of a former launch has other addresses.

    Raises:
        ConfigError: it holds a run of other settings, or of other nodes.
    """
    first = None if run_dir is None else run_dir / CONFIG_NAME
    if run_dir is None or first is None or not first.exists():
        return make_run_dir(config, run_dir), CONFIG_NAME
    text = config.to_yaml()
    if _without_addresses(yaml_file.read(first).values) != _without_addresses(
        yaml_file.parse(text, CONFIG_NAME).values
    ):
        raise ConfigError(f"run folder {run_dir}: it holds a run with another config; name an empty or a new folder")
    name = config_name_of(text)
    try:
        (run_dir / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"run folder {run_dir}: cannot be written: {error}; name another with --run-dir") from error
    return run_dir.absolute(), name


def _without_addresses(values: Mapping[str, Any]) -> dict[str, Any]:
    nodes = [{**node, "host": "", "port": 0} for node in values["nodes"]]
    return {**values, "nodes": nodes, "join": bool(values.get("join"))}


def _keep_record(
    run_dir: Path,
    cluster_file: Path | None,
    argv: Sequence[str],
    names: Sequence[str],
    options: RayOptions,
    on_failure: OnFailure,
    max_restarts: int,
) -> None:
    record = LaunchRecord(
        tuple(argv),
        str(Path.cwd()),
        "" if cluster_file is None else str(cluster_file.absolute()),
        tuple(names),
        on_failure.value,
        max_restarts,
    )
    keep_record(run_dir, replace(record, ray=vars(options)))


def _tell_places(addresses: Addresses, run_dir: Path) -> None:
    by_host: dict[str, list[str]] = {}
    for name, (host, _) in addresses.items():
        by_host.setdefault(host, []).append(name)
    told = "; ".join(f"{', '.join(names)} on {host}" for host, names in by_host.items())
    tell(f"dpwa: {len(addresses)} nodes start in Ray: {told}; run folder {run_dir}")


class _Broker:
    """The process that talks to Ray; see `ray_broker`.

    Args:
        names: of the nodes.
        options: what Ray is asked for.
    """

    def __init__(self, names: Sequence[str], options: RayOptions) -> None:
        self._wanted = {**vars(options), "names": list(names), "folder": os.getcwd()}

    def __enter__(self) -> _Broker:
        self._own_folder = tempfile.mkdtemp(prefix="dpwa-ray-")
        self.socket = os.path.join(self._own_folder, "broker")
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-c", main_of("ray_broker")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        return self

    def cards(self) -> dict[str, dict[str, Any]]:
        """Where Ray has a place for each node; waits for that.

        Raises:
            ConfigError: there is no such cluster, or its machines cannot run the nodes.
            DpwaError: it has no room.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise DpwaError("the process that talks to Ray has no pipes")
        with suppress(BrokenPipeError):
            stdin.write(json.dumps({**self._wanted, "socket": self.socket}).encode() + b"\n")
            stdin.flush()
        for line in stdout:
            said = json.loads(line)
            if "cards" in said:
                problems = card_problems(said["cards"], __version__)
                if problems:
                    raise ConfigError(problems)
                return dict(said["cards"])
            if "problems" in said:
                raise ConfigError(said["problems"])
            tell(f"dpwa: {said['say']}")
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - _LAST_BYTES))
        last = self._errors.read().decode(errors="replace").strip()
        raise DpwaError(f"the process that talks to Ray has ended (exit code {self._process.wait()}): {last}")

    def __exit__(self, *_: object) -> None:
        """Have it give all places back; where a node is still saving its model, it waits for that by itself."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        self._errors.close()
        shutil.rmtree(self._own_folder, ignore_errors=True)

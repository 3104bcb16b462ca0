"""What the launcher starts for nodes on other machines: for each a process here, which carries to its far end.

Must not know: how the far ends are reached. Runs in: the launcher's main thread.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpwa.engines.environment import LOCAL_RANK
from dpwa.launch.commands import local_ranks
from dpwa.launch.far_end import LAUNCHER_FILE
from dpwa.launch.far_words import Errand, main_of
from dpwa.launch.output import prefix_chars
from dpwa.launch.processes import NodeCommand, OnFailure
from dpwa.launch.run_dir import copy_name
from dpwa.launch.terminal import size_variables
from dpwa.observe.bounded_file import older_generation
from dpwa.observe.journal import EVENTS_FILE, METRICS_FILE, OUTPUT_FILE, node_folder, output_max_bytes

if TYPE_CHECKING:
    from dpwa.config.cluster import ClusterConfig

__all__ = ["LOST_S", "Way", "far_commands", "remove_orders"]

LOST_S = 60.0
"""Without a word for so long, either end of a node takes the other one for lost."""

_ORDER_FILE = "far.json"


@dataclass(frozen=True)
class Way:
    """How one node is reached.

    Attributes:
        machine: the same for nodes that share one.
        told: what people call that.
        carrier: the module of this package whose `main` is the near end.
        order: what that needs to know.
        delay_s: how long it waits before it begins.
    """

    machine: object
    told: str
    carrier: str
    order: Mapping[str, Any] = field(default_factory=dict)
    delay_s: float = 0.0


def far_commands(
    config: ClusterConfig,
    ways: Mapping[str, Way],
    argv: Sequence[str],
    run_dir: Path,
    on_failure: OnFailure,
    keys: Path | None,
    *,
    lost_s: float = LOST_S,
    config_name: str | None = None,
) -> list[NodeCommand]:
    """What to start here for each of these nodes.

    Args:
        config: the cluster.
        ways: by the name of the node.
        argv: the command, the same for all.
        run_dir: the launcher's run folder.
        on_failure: what becomes of a node that fails.
        keys: the folder from which each node is given its own; None: there are none.
        lost_s: without a word for so long, either side takes the other one for lost.
        config_name: of the cluster file in the run folder; None: what `make_run_dir` called it.
    """
    names = list(ways)
    if config_name is None:
        config_name = copy_name(config, run_dir, config.to_yaml())
    token = secrets.token_hex(16)
    (run_dir / LAUNCHER_FILE).write_text(token, encoding="ascii")
    common = {
        "DPWA_ON_FAILURE": on_failure.value,
        "DPWA_WORLD_SIZE": str(len(config.nodes)),
        **size_variables(prefix_chars(names), dict(os.environ)),
    }
    environment = {name: value for name, value in os.environ.items() if name != "DPWA_LAUNCH_ID"}
    is_whole = len(names) == len(config.nodes) and not config.is_newcomer
    first_life = {"DPWA_IS_AGAIN": "", **({"DPWA_LAUNCH_ID": secrets.token_hex(8)} if is_whole else {})}
    ranks = {node.name: rank for rank, node in enumerate(config.nodes)}
    machines = [way.machine for way in ways.values()]
    places = local_ranks({name: str(way.machine) for name, way in ways.items()})
    commands = []
    for name, way in ways.items():
        node = config.node(name)
        host, port = node.listens_at
        errand = Errand(
            node=name,
            argv=tuple(argv),
            environment={**common, "DPWA_NODE": name, "DPWA_RANK": str(ranks[name]), LOCAL_RANK: str(places[name])},
            run_dir=_far(run_dir),
            config_name=config_name,
            config=config.to_yaml(),
            host=host,
            port=port,
            serves=node.serve,
            neighbours=machines.count(way.machine),
            lost_s=lost_s,
            token=token,
        )
        folder = node_folder(run_dir, name)
        folder.mkdir(parents=True, exist_ok=True)
        order = {**_order(errand, way, run_dir, keys), "files_max_bytes": config.journal_max_bytes}
        (folder / _ORDER_FILE).write_text(json.dumps(order), encoding="utf-8")
        commands.append(
            NodeCommand(
                name=name,
                argv=(sys.executable, "-c", main_of(way.carrier), str(folder / _ORDER_FILE)),
                environment={**environment, "DPWA_IS_AGAIN": "1"},
                output_path=folder / OUTPUT_FILE,
                output_max_bytes=output_max_bytes(config.journal_max_bytes),
                first_life=first_life,
            )
        )
    return commands


def remove_orders(run_dir: Path, names: Sequence[str]) -> None:
    """What `far_commands` has left in the run folder, when all have ended."""
    for name in names:
        (node_folder(run_dir, name) / _ORDER_FILE).unlink(missing_ok=True)
    (run_dir / LAUNCHER_FILE).unlink(missing_ok=True)


def _far(run_dir: Path) -> str:
    """The run folder as the hosts have it: within their folder, if it is within the present one."""
    with suppress(ValueError):
        return str(run_dir.relative_to(Path.cwd()))
    return str(run_dir)


def _order(errand: Errand, way: Way, run_dir: Path, keys: Path | None) -> dict[str, Any]:
    """What the near end is told."""
    files = [Path(name) for name in (EVENTS_FILE, METRICS_FILE)]
    return {
        **way.order,
        "errand": {key: value for key, value in asdict(errand).items() if key not in ("secret", "allowed")},
        "told": way.told,
        "keys": None if keys is None else str(keys),
        "run_dir": str(run_dir),
        "node_dir": str(node_folder(run_dir, errand.node)),
        "files": [name for file in files for name in (older_generation(file).name, file.name)],
        "delay_s": way.delay_s,
    }

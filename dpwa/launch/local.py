"""`dpwa launch`: the nodes of a cluster file that belong to this host, from the file to the exit code.

This is also the door for others that start nodes, such as the demo: it gives `Supervisor` and its types, the
environment of a node, and the run folder.

Must not know: what the nodes compute, click. Runs in: the main thread, because signal handlers live there.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dpwa.errors import ConfigError, DpwaError
from dpwa.launch.advice import advice
from dpwa.launch.guard import GRACE_S
from dpwa.launch.launch_record import LaunchRecord, NodeLocks, keep_record
from dpwa.launch.output import LinePrinter, prefix_chars
from dpwa.launch.ports import port_problem
from dpwa.launch.processes import NodeCommand, NodeEnd, OnFailure, Supervisor
from dpwa.launch.summary import summary
from dpwa.launch.terminal import size_variables
from dpwa.launch.this_host import local_node_names
from dpwa.observe.endings import Ending, ending_of, remarks
from dpwa.observe.journal import OUTPUT_FILE, node_folder, output_max_bytes
from dpwa.observe.run_record import LAUNCH_FILE, RunRecord
from dpwa.transport.leftovers import remove_unowned
from dpwa.transport.run_keys import run_keys, run_keys_folder

if TYPE_CHECKING:
    from dpwa.config.cluster import ClusterConfig

__all__ = [
    "CONFIG_NAME",
    "NodeCommand",
    "NodeEnd",
    "OnFailure",
    "Supervisor",
    "command_problems",
    "copy_name",
    "end_signals",
    "launch",
    "local_node_names",
    "make_run_dir",
    "node_commands",
    "port_problems",
    "report",
    "run_shown",
    "supervise",
    "tell",
    "thread_limits",
    "with_python_that_has_dpwa",
]

_RUNS_DIR = Path("runs")
CONFIG_NAME = "config.yaml"

_PYTHONS = ("python", "python3")
_HAS_NONE = 3
# Without the current folder: a script's own folder stands in its place.
_HAS_DPWA = (
    "import sys; from importlib.util import find_spec; del sys.path[0]; "
    f"sys.exit({_HAS_NONE} * (find_spec('dpwa') is None))"
)

_END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PASSED_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)

_LAST_LINES_TIMEOUT_S = 0.5
"""After a signal, how long the last lines may take to be shown; they are in the files anyway."""


def launch(
    cluster_file: Path,
    argv: Sequence[str],
    *,
    names: Sequence[str] = (),
    on_failure: OnFailure = OnFailure.CONTINUE,
    max_restarts: int = 5,
    run_dir: Path | None = None,
    first_port: int | None = None,
) -> int:
    """Starts the command once per node of this host, shows what the nodes print, and waits for the last one.

    Args:
        cluster_file: the YAML file.
        argv: the command and its arguments.
        names: nodes to start; empty for all that belong to this host.
        on_failure: what to do when a node fails.
        max_restarts: how often in a row a node is started again.
        run_dir: the run folder; None makes a new one under `runs`.
        first_port: the nodes get this port and the next ones, instead of those of the file.

    Returns:
        The exit code: 0 if every node ended well, 1 if not, 128 + N after signal N.

    Raises:
        ConfigError: something can be seen to be wrong before anything is started.
        DpwaError: there are not enough processes or files for a launch.
    """
    from dpwa.config.cluster import ClusterConfig  # noqa: PLC0415 - pydantic is slow to import, and the demo has it already

    config = ClusterConfig.load(cluster_file)
    if first_port is not None:
        config = config.with_ports_from(first_port)
    chosen = _chosen_names(config, names, cluster_file)
    if run_dir is not None and run_dir.exists():
        _refuse_taken(run_dir, chosen)
    problems = [*command_problems(argv), *port_problems(config, chosen, cluster_file)]
    if problems:
        raise ConfigError(problems)
    argv = with_python_that_has_dpwa(argv)
    run_dir = make_run_dir(config, run_dir)
    is_whole = len(chosen) == len(config.nodes) and not config.is_newcomer
    keep_record(
        run_dir,
        LaunchRecord(
            tuple(argv),
            str(Path.cwd()),
            str(cluster_file.absolute()),
            tuple(chosen),
            on_failure.value,
            max_restarts,
            first_port,
        ),
    )
    tell(f"dpwa: {len(chosen)} of {len(config.nodes)} nodes start here: {', '.join(chosen)}; run folder {run_dir}")
    # On other ports the nodes read the run folder's file; custom rules and methods still lie beside the given one.
    copy = run_dir / copy_name(config, run_dir, config.to_yaml())
    config_path, modules = (cluster_file, None) if first_port is None else (copy, cluster_file.parent)
    commands = node_commands(
        config, chosen, argv, run_dir, on_failure=on_failure, config_path=config_path, modules=modules
    )
    if is_whole:  # nobody has trained on without the others: those with checkpoints go on together
        launch_id = {"DPWA_LAUNCH_ID": secrets.token_hex(8)}
        commands = [replace(command, first_life=launch_id) for command in commands]
    locks, record = NodeLocks(run_dir), RunRecord(run_dir, LAUNCH_FILE)
    try:
        locks.take(chosen)
        with _keys_of_run(config, chosen, run_dir, locks):
            run = run_shown(commands, on_failure, max_restarts, locks.release, record.write)
            ends, signal_number = asyncio.run(run)
    except OSError as error:
        raise DpwaError(f"launching {', '.join(chosen)}: the operating system refused: {error}") from error
    finally:
        locks.release_all()
        remove_unowned()  # the shared memory of nodes that were killed; all of them have ended
    return report(ends, signal_number, run_dir, has_peers=not config.is_alone)


def _refuse_taken(run_dir: Path, names: Sequence[str]) -> None:
    """Before the ports are looked at, which are taken, too: that would not tell what is the matter."""
    locks = NodeLocks(run_dir)
    try:
        locks.take(names)
    finally:
        locks.release_all()


def node_commands(
    config: ClusterConfig,
    names: Sequence[str],
    argv: Sequence[str],
    run_dir: Path,
    *,
    on_failure: OnFailure = OnFailure.CONTINUE,
    config_path: Path | None = None,
    modules: Path | None = None,
) -> list[NodeCommand]:
    """What to start for each of these nodes.

    Args:
        config: the cluster.
        names: the nodes that run on this host.
        argv: the command, the same for all.
        run_dir: the run folder.
        on_failure: what becomes of a node that fails.
        config_path: the file that the user named, which custom rules may lie beside; None for the run folder's copy.
        modules: a folder in which Python is to look for modules, too.
    """
    common = dict(os.environ)
    common.pop("DPWA_LAUNCH_ID", None)  # of a launch that this one is started by
    common.update(thread_limits(common, len(names)))
    common.update(size_variables(prefix_chars(names), common))
    common.setdefault("PYTHONUNBUFFERED", "1")  # else a node's lines come in blocks, and the last ones never
    common["DPWA_CONFIG"] = str((config_path or run_dir / CONFIG_NAME).absolute())
    if modules is not None:
        common["PYTHONPATH"] = os.pathsep.join(filter(None, [common.get("PYTHONPATH"), str(modules.absolute())]))
    common["DPWA_RUN_DIR"] = str(run_dir.absolute())
    common["DPWA_ON_FAILURE"] = on_failure.value  # nodes wait longer for one that will be back
    common["DPWA_WORLD_SIZE"] = str(len(config.nodes))
    ranks = {node.name: rank for rank, node in enumerate(config.nodes)}
    return [
        NodeCommand(
            name=config.node(name).name,
            argv=tuple(argv),
            environment={**common, "DPWA_NODE": name, "DPWA_RANK": str(ranks[name])},
            output_path=_output_path(run_dir, name).absolute(),
            output_max_bytes=output_max_bytes(config.journal_max_bytes),
        )
        for name in names
    ]


def make_run_dir(config: ClusterConfig, run_dir: Path | None = None) -> Path:
    """Makes the run folder and writes the resolved config into it.

    Args:
        config: the cluster.
        run_dir: this very folder, which may exist: parts of one cluster can share it, and a node that is started again
            goes on in it. None makes a new folder `runs/RUN-YYYYmmdd-HHMMSS`.

    Returns:
        The folder, as an absolute path.

    Raises:
        ConfigError: it cannot be written, or it holds the run of another config.
    """
    text = config.to_yaml()
    try:
        folder = _new_run_dir(config.run) if run_dir is None else run_dir
        folder.mkdir(parents=True, exist_ok=True)
        copy = folder / copy_name(config, folder, text)
        if copy.exists() and copy.read_text(encoding="utf-8") != text:
            raise ConfigError(f"run folder {folder}: it holds a run with another config; name an empty or a new folder")
        # Through a second name: a launch of another part of the cluster may read it at this moment.
        draft = folder / f".{copy.name}.{os.getpid()}"
        draft.write_text(text, encoding="utf-8")
        draft.replace(copy)
    except (OSError, UnicodeDecodeError) as error:
        place = run_dir or _RUNS_DIR
        raise ConfigError(f"run folder {place}: cannot be written: {error}; name another with --run-dir") from error
    return folder.absolute()


def copy_name(config: ClusterConfig, folder: Path, text: str) -> str:
    """What the copy of the config is called: nodes that join a run in its folder have a file of their own."""
    first = folder / CONFIG_NAME
    if not config.is_newcomer or not first.exists() or first.read_text(encoding="utf-8") == text:
        return CONFIG_NAME
    return f"config-{config.nodes[0].name}.yaml"


async def supervise(supervisor: Supervisor) -> tuple[tuple[NodeEnd, ...], int | None]:
    """Runs the supervisor with the launcher's signals: SIGINT, SIGTERM and SIGHUP end it, SIGUSR1 and 2 are passed on.

    Returns:
        The ends of the nodes, and the first signal that asked for the end, if one did.
    """
    loop = asyncio.get_running_loop()
    received: list[int] = []

    def end(number: int) -> None:
        received.append(number)
        # A terminal that is gone asks for an end, which nodes make of SIGTERM: SIGHUP would end them on the spot.
        supervisor.stop(signal.SIGTERM if number == signal.SIGHUP else number)

    with end_signals(end):
        for number in _PASSED_SIGNALS:
            loop.add_signal_handler(number, supervisor.send_signal, number)
        try:
            ends = await supervisor.run()
        finally:
            for number in _PASSED_SIGNALS:
                loop.remove_signal_handler(number)
    return ends, received[0] if received else None


@contextmanager
def end_signals(on_end: Callable[[int], None]) -> Iterator[None]:
    """Has the running event loop call `on_end` with the number of each SIGINT, SIGTERM and SIGHUP."""
    loop = asyncio.get_running_loop()
    # A SIGHUP that is ignored already was meant to be: `nohup dpwa launch ...`.
    numbers = [s for s in _END_SIGNALS if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]
    for number in numbers:
        loop.add_signal_handler(number, on_end, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def run_shown(
    commands: Sequence[NodeCommand],
    on_failure: OnFailure,
    max_restarts: int,
    on_end: Callable[[str], None],
    record: Callable[..., None],
    grace_s: float = GRACE_S,
) -> tuple[tuple[NodeEnd, ...], int | None]:
    """Runs these commands with their lines on standard output; see `Supervisor` and `supervise`."""
    loop = asyncio.get_running_loop()
    gone: list[int] = []

    def reader_gone() -> None:
        gone.append(signal.SIGPIPE)
        supervisor.stop()

    def tell_loop() -> None:  # from the printer's thread; the loop may have ended by then
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(reader_gone)

    sys.stdout.flush()
    printer = LinePrinter(
        sys.stdout.fileno(),
        [command.name for command in commands],
        has_colours=sys.stdout.isatty() and not os.environ.get("NO_COLOR"),
        on_reader_gone=tell_loop,
    )
    supervisor = Supervisor(
        commands,
        on_failure=on_failure,
        max_restarts=max_restarts,
        on_line=printer.put,
        has_room=printer.has_room,
        on_end=on_end,
        grace_s=grace_s,
        record=record,
    )
    ends, signal_number = await supervise(supervisor)
    signal_number = signal_number or next(iter(gone), None)
    printer.close(timeout_s=_LAST_LINES_TIMEOUT_S if signal_number else None)
    return ends, signal_number


def _chosen_names(config: ClusterConfig, names: Sequence[str], cluster_file: Path) -> list[str]:
    if names:
        return list(dict.fromkeys(config.node(name).name for name in names))
    local = local_node_names(config)
    if not local:
        hosts = ", ".join(dict.fromkeys(node.host for node in config.nodes))
        raise ConfigError(
            f"{cluster_file}: no node of this file belongs to this host (its hosts: {hosts}); "
            f"run this on one of them, or name nodes to start here with --node NAME"
        )
    return local


def command_problems(argv: Sequence[str]) -> list[str]:
    """Why this command cannot be started here."""
    if shutil.which(argv[0]) is not None:
        return []
    if os.sep in argv[0]:
        return [f"cannot start {argv[0]}: there is no such program, or it is not executable; correct the command"]
    hint = f"; the Python that runs dpwa is {sys.executable}" if argv[0].startswith("python") else ""
    return [f"cannot start {argv[0]}: there is no such program in PATH; correct the command{hint}"]


def with_python_that_has_dpwa(argv: Sequence[str]) -> Sequence[str]:
    """The command; with this Python for one that has no dpwa, as when an environment was not activated."""
    found = shutil.which(argv[0])
    if argv[0] not in _PYTHONS or found in (None, sys.executable):
        return argv
    # Asked, and not compared by links: a virtual environment's python is a link to one that knows other packages.
    asked = subprocess.run([found, "-c", _HAS_DPWA], check=False, capture_output=True, stdin=subprocess.DEVNULL)
    if asked.returncode != _HAS_NONE:
        return argv
    tell(f"dpwa: {found} has no dpwa, so {sys.executable} runs the command; activate its environment, or name a Python")
    return [sys.executable, *argv[1:]]


def port_problems(config: ClusterConfig, names: Sequence[str], cluster_file: Path) -> list[str]:
    """Why these nodes cannot listen here."""
    nodes = [config.node(name) for name in names]
    found = [(node.name, port_problem(*node.listens_at)) for node in nodes if node.serve]
    return [f"{cluster_file}: node {name}: {problem}" for name, problem in found if problem is not None]


def _keys_of_run(
    config: ClusterConfig, names: Sequence[str], run_dir: Path, locks: NodeLocks
) -> AbstractContextManager[None]:
    """The keys of the run, while its nodes run: if all that belong to it are started here, or join in its folder."""
    if config.is_newcomer:
        has_keys = run_keys_folder(run_dir) is not None
    else:  # nodes that other launches start, or other machines, would have no way to know keys that are made here
        is_private = not config.is_open or all(node.is_private for node in config.nodes)
        has_keys = is_private and len(names) == len(config.nodes)
    if config.keys is not None or config.insecure or not has_keys:
        return nullcontext()
    return run_keys(run_dir, names, locks.others_run)


def thread_limits(environment: Mapping[str, str], count: int) -> dict[str, str]:
    """Each node's share of the processors: left alone, every node would start a thread for each of them."""
    if "OMP_NUM_THREADS" in environment or "MKL_NUM_THREADS" in environment:
        return {}
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, usable // max(1, count)))}


def _new_run_dir(run: str) -> Path:
    stem = f"{run}-{datetime.now():%Y%m%d-%H%M%S}"
    _RUNS_DIR.mkdir(exist_ok=True)
    number = 1
    while True:
        folder = _RUNS_DIR / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:  # two launches in one second
            number += 1
        else:
            return folder


def _output_path(run_dir: Path, name: str) -> Path:
    return node_folder(run_dir, name) / OUTPUT_FILE


def _summary(
    endings: Mapping[str, Ending], run_dir: Path, *, has_peers: bool, cut_short: Sequence[str]
) -> Iterator[str]:
    from dpwa.observe.saved import distances_from_mean, saved_models  # noqa: PLC0415 - numpy

    distances: dict[str, float] = {}
    with suppress(ConfigError, OSError):  # no models: nothing to compare
        distances = distances_from_mean(saved_models(run_dir)[0])
    closings = {name: ending.closing for name, ending in endings.items()}
    return summary(closings, distances, has_peers=has_peers, cut_short=cut_short)


def report(ends: Sequence[NodeEnd], signal_number: int | None, run_dir: Path, *, has_peers: bool) -> int:
    """Says how the nodes have ended and what they did; the launcher's exit code."""
    failed = [end for end in ends if end.failed]
    for end in failed:
        after = f" (restarts: {end.restarts})" if end.restarts else ""
        tell(f"dpwa: node {end.name} failed: {end.reason}{after}; its output is in {_output_path(run_dir, end.name)}")
    for told in dict.fromkeys(filter(None, (advice(_output_path(run_dir, end.name)) for end in failed))):
        tell(f"dpwa: {told}")
    all_endings = {end.name: ending_of(node_folder(run_dir, end.name)) for end in ends}
    if any(ending.used_dpwa for ending in all_endings.values()):
        cut_short = [end.name for end in ends if end.failed or end.was_stopped]
        for line in _summary(all_endings, run_dir, has_peers=has_peers, cut_short=cut_short):
            tell(f"dpwa: {line}")
    silent = [end for end in ends if end.exit_code == 0 and not end.was_stopped]
    endings = {end.name: all_endings[end.name] for end in silent}
    for name, remark in remarks(endings).items():
        tell(f"dpwa: node {name} ended with exit code 0, but {remark}")
    if signal_number is not None:
        tell(f"dpwa: ended by {signal.Signals(signal_number).name}; run folder {run_dir}")
        return 128 + signal_number
    well = len(ends) - len(failed) - sum(ending.is_cut_off for ending in endings.values())
    tell(f"dpwa: {well} of {len(ends)} nodes ended well; run folder {run_dir}")
    return 1 if well < len(ends) else 0


def tell(line: str) -> None:
    """Print a line of the launcher's own."""
    # The nodes' lines go to stdout and the launcher's to stderr, so that both can be used by a script.
    with suppress(BrokenPipeError):
        print(line, file=sys.stderr, flush=True)

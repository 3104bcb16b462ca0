"""The `dpwa` command: arguments in, exit codes and messages for people out.

Each command imports what it needs when it runs, so that `dpwa --help` answers at once: this module must not import
torch, numpy, zmq, pydantic or rich. Exit codes: 0 done, 1 the run failed, 2 wrong usage or config, 128 + N ended by
signal N.

Runs in: the main thread.
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpwa._version import __version__
from dpwa.cli_chaos import chaos, verify
from dpwa.cli_keys import keys
from dpwa.cli_nodes import init, run_node
from dpwa.cli_ray import ray_options, ray_options_of
from dpwa.errors import ConfigError, DpwaError

if TYPE_CHECKING:
    from dpwa.observe.saved import Weighting

__all__ = ["main"]

_EXAMPLE_PACKAGES = {"matplotlib", "sklearn", "torch", "torchvision"}


@contextmanager
def _needing(packages: Container[str], command: str, extra: str) -> Iterator[None]:
    """Say what to install when one of these packages is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in packages:
            raise
        # This Python's pip: it knows the extras of the dpwa that is installed, wherever that came from.
        raise ConfigError(
            f"{command}: the package {error.name} is not installed; "
            f"install it with: {sys.executable} -m pip install 'dpwa[{extra}]'"
        ) from error


_cluster_file = click.argument("cluster_file", metavar="CLUSTER.yaml", type=click.Path(path_type=Path))


class _Commands(click.Group):
    """Turns dpwa's errors into lines and exit codes. Any other exception is click's, or a bug."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(128 + signal.SIGINT)
        except ConfigError as error:
            self._explain(ctx, error.problems)
            ctx.exit(2)
        except DpwaError as error:
            self._explain(ctx, (f"dpwa: {error}",))
            ctx.exit(1)

    @staticmethod
    def _explain(ctx: click.Context, lines: tuple[str, ...]) -> None:
        if ctx.params["debug"]:
            traceback.print_exc()
        for line in lines:
            click.echo(line, err=True)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="dpwa %(version)s")
@click.option("--debug", is_flag=True, help="Show the stack trace of an error.")
def main(*, debug: bool) -> None:
    """Train one PyTorch model on many machines: no server, no lock-step, no fixed membership."""


@main.command()
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write the result here."
)
@click.option("--run-dir", type=click.Path(file_okay=False, path_type=Path), help="Folder for this run.")
def demo(json_path: Path | None, run_dir: Path | None) -> None:
    """Watch four nodes learn together what none could alone (a minute)."""
    with _needing(_EXAMPLE_PACKAGES, "dpwa demo", "examples"):
        from dpwa.launch.demo import run_demo  # noqa: PLC0415 - imports rich and more

        exit_code = run_demo(json_path, run_dir)
    sys.exit(exit_code)


_WITHOUT_FILE = ("--resume", "--engine")


class _Launch(click.Command):
    """Keeps apart what stands before and behind `--`: with --resume or --engine, the cluster file may be left out."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" not in args or not any(word.partition("=")[0] in _WITHOUT_FILE for word in args):
            return super().parse_args(ctx, args)
        place = args.index("--")
        rest = super().parse_args(ctx, args[:place])
        ctx.params["command"] = (*ctx.params["command"], *args[place + 1 :])
        return rest


@main.command(cls=_Launch)
@click.argument("cluster_file", metavar="CLUSTER.yaml", required=False, type=click.Path(path_type=Path))
@click.option(
    "--resume",
    "resumed_dir",
    metavar="RUN_DIR",
    type=click.Path(path_type=Path),
    help="Go on with this run: its nodes, its command, in its folder. CLUSTER.yaml and COMMAND may be left out.",
)
@click.option(
    "--hosts",
    "hosts_file",
    metavar="HOSTS.txt",
    type=click.Path(path_type=Path),
    help="Start the nodes over ssh, on the hosts of this file: one on a line, [user@]host[:port] slots=N dir=FOLDER.",
)
@click.option("--node", "names", metavar="NAME", multiple=True, help="Start this node here; may be repeated.")
@ray_options
@click.option(
    "--on-failure",
    type=click.Choice(["continue", "stop", "restart"]),
    help="When a node fails: let the others go on, end them all, or restart it.  [default: continue]",
)
@click.option(
    "--max-restarts",
    metavar="N",
    type=click.IntRange(min=0),
    help="With restart: how many times in a row.  [default: 5]",
)
@click.option("--run-dir", type=click.Path(path_type=Path), help="Folder for this run.  [default: a new one in runs/]")
@click.option(
    "--port-base",
    "first_port",
    metavar="PORT",
    type=click.IntRange(1, 65535),
    help="Give the nodes this port and the next ones instead of the file's: to run one file twice at a time. "
    "A port within `bind` moves by as much.",
)
@click.argument("command", metavar="-- COMMAND...", nargs=-1, type=click.UNPROCESSED)
def launch(
    *,
    cluster_file: Path | None,
    resumed_dir: Path | None,
    hosts_file: Path | None,
    names: tuple[str, ...],
    on_failure: str | None,
    max_restarts: int | None,
    run_dir: Path | None,
    first_port: int | None,
    command: tuple[str, ...],
    **engine: Any,
) -> None:
    """Start COMMAND once for each node of the file that belongs to this host, or with --hosts on all hosts.

    With --engine ray, --nodes says how many, and Ray where they run; CLUSTER.yaml has settings, if there is one.

    Write -- before the command, so that its options are not taken for dpwa's.
    Each process finds its place in DPWA_CONFIG, DPWA_NODE, DPWA_RANK, DPWA_WORLD_SIZE and DPWA_RUN_DIR.
    """
    from dpwa.launch import local, resuming  # noqa: PLC0415 - see the module docstring
    from dpwa.launch.processes import OnFailure  # noqa: PLC0415

    policy = None if on_failure is None else OnFailure(on_failure)
    on_ray = ray_options_of(engine, hosts_file=hosts_file, names=names, first_port=first_port, resumed_dir=resumed_dir)
    if resumed_dir is not None:
        if run_dir is not None or hosts_file is not None:
            raise click.UsageError(
                "--resume names the run folder, and the run its hosts: leave --run-dir and --hosts out"
            )
        exit_code = resuming.resume(
            resumed_dir,
            cluster_file=cluster_file,
            argv=command,
            names=names,
            on_failure=policy,
            max_restarts=max_restarts,
            first_port=first_port,
        )
        sys.exit(exit_code)
    if cluster_file is None and on_ray is None:
        raise click.UsageError("Missing argument 'CLUSTER.yaml'.")
    if not command:
        raise click.UsageError("Missing argument '-- COMMAND...'.")
    options: dict[str, Any] = {
        "on_failure": policy or OnFailure.CONTINUE,
        "max_restarts": 5 if max_restarts is None else max_restarts,
        "run_dir": run_dir,
    }
    if on_ray is not None:
        from dpwa.launch.on_ray import RayOptions, launch_on_ray  # noqa: PLC0415 - see the module docstring

        sys.exit(launch_on_ray(cluster_file, command, RayOptions(**on_ray), **options))
    options |= {"names": names, "first_port": first_port}
    if cluster_file is None:
        return
    if hosts_file is None:
        sys.exit(local.launch(cluster_file, command, **options))
    from dpwa.launch.on_hosts import launch_on_hosts  # noqa: PLC0415 - see the module docstring

    sys.exit(launch_on_hosts(cluster_file, command, hosts_file, **options))


@main.command()
@_cluster_file
def check(cluster_file: Path) -> None:
    """Check a cluster file and say what it does."""
    from dpwa.config.cluster import ClusterConfig  # noqa: PLC0415
    from dpwa.config.describe import describe  # noqa: PLC0415 - see the module docstring
    from dpwa.launch.this_host import local_node_names  # noqa: PLC0415

    config = ClusterConfig.load(cluster_file)
    click.echo(describe(config, local_node_names(config)))


@main.command()
@click.argument("run_dir", metavar="RUN_DIR", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The averaged model.  [default: average.safetensors in RUN_DIR]",
)
@click.option(
    "--weights",
    "weighting",
    type=click.Choice(["equal", "clock", "mass", "loss"]),
    default="equal",
    show_default=True,
    help="How much each node's model counts: the same, by its age, its mass (gosgd, sgp) or one over its loss.",
)
@click.option("--evaluate", metavar="MODULE:FUNCTION", help="Call this with each state dict and show the result.")
def average(*, run_dir: Path, output: Path | None, weighting: Weighting, evaluate: str | None) -> None:
    """Average the models that the nodes of a run have saved."""
    with _needing({"torch"}, "dpwa average", "torch"):
        from dpwa.launch.average import average_run  # noqa: PLC0415 - see the module docstring

        for line in average_run(run_dir, output or run_dir / "average.safetensors", weighting, evaluate):
            click.echo(line)


@main.command()
@click.argument("run_dir", metavar="RUN_DIR", type=click.Path(path_type=Path))
@click.argument("node", metavar="NODE")
def leave(*, run_dir: Path, node: str) -> None:
    """Have NODE end its training, save its model and tell the others that it goes: in a cluster with `join`."""
    from dpwa.launch.leaving import ask_to_leave  # noqa: PLC0415 - see the module docstring

    click.echo(ask_to_leave(run_dir, node))


main.add_command(verify)
main.add_command(chaos)
main.add_command(keys)
main.add_command(init)
main.add_command(run_node)


@main.group()
def topology() -> None:
    """Look at who exchanges with whom."""


@topology.command()
@_cluster_file
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("topology.png"),
    show_default=True,
    help="The picture.",
)
def draw(cluster_file: Path, output: Path) -> None:
    """Draw the graph of a cluster file and its matrix."""
    from dpwa.config.cluster import ClusterConfig  # noqa: PLC0415 - see the module docstring

    config = ClusterConfig.load(cluster_file)
    with _needing({"matplotlib"}, "dpwa topology draw", "plot"):
        from dpwa.topology.drawing import draw_topology  # noqa: PLC0415 - imports matplotlib
    try:
        draw_topology(output, config.topology_of_nodes, [node.name for node in config.nodes], config.topology.graph)
    except OSError as error:
        raise ConfigError(f"{output}: the picture cannot be written: {error.strerror or error}") from error
    click.echo(f"wrote {output}")


@main.group()
def lab() -> None:
    """Compare training strategies on real data."""


_study = click.argument("study", metavar="STUDY.yaml", type=click.Path(path_type=Path))


@lab.command("list")
@click.option("--strategies", "is_of_strategies", is_flag=True, help="List the strategies that a study can compare.")
@click.argument("studies", metavar="[STUDY.yaml]...", nargs=-1, type=click.Path(path_type=Path))
def list_(*, is_of_strategies: bool, studies: tuple[Path, ...]) -> None:
    """List studies and how much each trains. Without arguments: the bundled studies."""
    from dpwa.lab import commands  # noqa: PLC0415 - see the module docstring

    if is_of_strategies:
        commands.list_strategies()
    else:
        sys.exit(commands.list_studies(studies))


@lab.command()
@_study
@click.option("--seeds", metavar="N", type=click.IntRange(1, 100), help="Run seeds 0 to N-1 instead of the study's.")
@click.option(
    "--only", metavar="KEY=VALUE", multiple=True, help="Run only these trials, such as method=gosgd; repeatable."
)
@click.option("--run-dir", type=click.Path(path_type=Path), help="Run folder.  [default: runs/STUDY]")
@click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Folder of the data sets.  [default: DPWA_DATA_DIR or ./data]"
)
@click.option(
    "--tensorflow",
    metavar="PYTHON",
    type=click.Path(path_type=Path),
    help="A Python that has TensorFlow.  [default: DPWA_TENSORFLOW_PYTHON or this Python]",
)
def run(
    *,
    study: Path,
    seeds: int | None,
    only: tuple[str, ...],
    run_dir: Path | None,
    data_dir: Path | None,
    tensorflow: Path | None,
) -> None:
    """Run a study. Finished trials are kept, so an interrupted run continues where it stopped."""
    from dpwa.lab import commands  # noqa: PLC0415 - see the module docstring

    with _needing({"torch", "sklearn", "torchvision"}, "dpwa lab run", "examples,lab"):
        exit_code = commands.run_study(
            study,
            seeds=seeds,
            only=only,
            run_dir=run_dir,
            data_dir=data_dir,
            tensorflow=tensorflow,
        )
    sys.exit(exit_code)


@lab.command("try")
@click.argument("strategies", metavar="STRATEGY...", nargs=-1, required=True)
@click.option("--data", default="digits", show_default=True, help="The data set, or module:function.")
@click.option("--nodes", type=click.IntRange(1, 64), default=4, show_default=True, help="Processes that train.")
@click.option("--seeds", metavar="N", type=click.IntRange(1, 100), default=1, show_default=True, help="Seeds 0 to N-1.")
@click.option(
    "--set", "assignments", metavar="KEY=VALUE", multiple=True, help="Any other key of a study file; repeatable."
)
@click.option("--run-dir", type=click.Path(path_type=Path), help="Run folder.  [default: runs/try-STRATEGIES-DATA]")
@click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Folder of the data sets.  [default: DPWA_DATA_DIR or ./data]"
)
def try_(
    *,
    strategies: tuple[str, ...],
    data: str,
    nodes: int,
    seeds: int,
    assignments: tuple[str, ...],
    run_dir: Path | None,
    data_dir: Path | None,
) -> None:
    """Compare strategies without a study file: one line, one table."""
    with _needing({"scipy"}, "dpwa lab try", "lab"):
        from dpwa.lab import commands  # noqa: PLC0415 - see the module docstring

        exit_code = commands.try_strategies(
            strategies,
            data=data,
            nodes=nodes,
            seeds=seeds,
            assignments=assignments,
            run_dir=run_dir,
            data_dir=data_dir,
        )
    sys.exit(exit_code)


@lab.command()
@click.argument("run_dir", metavar="RUN_DIR", type=click.Path(path_type=Path))
@click.option("--mixed", is_flag=True, help="Also report on rows that were made by different commits of dpwa.")
def report(run_dir: Path, *, mixed: bool) -> None:
    """Report on a run, complete or not. Prints a table, and writes charts and a web page into the run folder."""
    with _needing({"jinja2", "matplotlib", "scipy"}, "dpwa lab report", "lab"):
        from dpwa.lab.report.make import make_report  # noqa: PLC0415 - see the module docstring

        exit_code = make_report(run_dir, mixed=mixed)
    sys.exit(exit_code)


@main.command()
def schema() -> None:
    """Print the JSON Schema of cluster files, for editors."""
    import json  # noqa: PLC0415 - see the module docstring

    from dpwa.config.cluster import json_schema  # noqa: PLC0415

    click.echo(json.dumps(json_schema(), indent=2))

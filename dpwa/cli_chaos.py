"""`dpwa verify` and `dpwa chaos`: whether what must hold did hold, and what breaks a run to see that.

Like `cli.py`, of which it is a part, it imports what a command needs when that runs.

Runs in: the main thread.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

__all__ = ["chaos", "verify"]


@click.command()
@click.argument("run_dir", metavar="RUN_DIR", type=click.Path(path_type=Path))
def verify(run_dir: Path) -> None:
    """Check the journals of a run against what must hold in every run.

    Exit code 0: all that could be checked held. 1: something did not. 2: there is nothing to check.
    """
    from rich.console import Console  # noqa: PLC0415 - see the module docstring

    from dpwa.observe.verdict import verify as verified  # noqa: PLC0415

    sys.exit(verified(run_dir, Console()))


class _Duration(click.ParamType):  # type: ignore[type-arg]
    """A time such as 5s, 2m or 1h, in seconds."""

    name = "duration"
    _SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}  # noqa: RUF012 - never changes

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """See click; also what is a number already, as a default is."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", str(value))
        if found is None or float(found[1]) <= 0:
            self.fail(f'expected a time above 0 with its unit, such as 5s, 2m or 1h, got "{value}"', param, ctx)
        return float(found[1]) * self._SECONDS[found[2]]


_duration = _Duration()


@click.command()
@click.argument("target", metavar="RUN_DIR|CLUSTER.yaml", type=click.Path(path_type=Path))
@click.option(
    "--mtbf", metavar="TIME", type=_duration, default="5s", show_default=True, help="Mean time between faults."
)
@click.option(
    "--duration", metavar="TIME", type=_duration, default="2m", show_default=True, help="How long, such as 90s."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the choice of faults, times and nodes.")
@click.option("--run-dir", type=click.Path(path_type=Path), help="Folder for a cluster that is launched.")
@click.argument("command", metavar="[-- COMMAND...]", nargs=-1, type=click.UNPROCESSED)
def chaos(
    *, target: Path, mtbf: float, duration: float, seed: int, run_dir: Path | None, command: tuple[str, ...]
) -> None:
    """Kill, stop, restart and cut off nodes at random, and check that what must hold does.

    With the folder of a run: its nodes on this machine, and no other process, are broken, and then left alone. With a
    cluster file and a command: the cluster is launched first, restarts its nodes, and is ended afterwards.

    Exit code 0: all that could be checked held. 1: something did not, or no fault was made.
    """
    from rich.console import Console  # noqa: PLC0415 - see the module docstring

    from dpwa.launch.chaos import break_cluster, break_run  # noqa: PLC0415

    console = Console()
    if target.is_dir():
        if command or run_dir is not None:
            raise click.UsageError(f"{target} is the folder of a run that is going on: it takes no command")
        sys.exit(break_run(target, mtbf_s=mtbf, duration_s=duration, seed=seed, console=console))
    if not command:
        raise click.UsageError(f"{target}: expected the folder of a run, or a cluster file and -- COMMAND")
    sys.exit(
        break_cluster(target, command, mtbf_s=mtbf, duration_s=duration, seed=seed, run_dir=run_dir, console=console)
    )

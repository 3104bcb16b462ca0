"""`dpwa verify` and `dpwa chaos`: whether what must hold did hold, and what breaks a run to see that.

Like `cli.py`, of which it is a part, it imports what a command needs when that runs.

Runs in: the main thread.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

__all__ = ["verify"]


@click.command()
@click.argument("run_dir", metavar="RUN_DIR", type=click.Path(path_type=Path))
def verify(run_dir: Path) -> None:
    """Check the journals of a run against what must hold in every run.

    Exit code 0: all that could be checked held. 1: something did not. 2: there is nothing to check.
    """
    from rich.console import Console  # noqa: PLC0415 - see the module docstring

    from dpwa.observe.verdict import verify as verified  # noqa: PLC0415

    sys.exit(verified(run_dir, Console()))

"""The options that the examples share.

Must not know: models, data. Runs in: the main thread.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from dpwa.examples.shards import parse_shard

__all__ = ["argument_parser", "data_dir_of_environment"]


def argument_parser(description: str, *, epochs: int) -> argparse.ArgumentParser:
    """The command line that all examples share.

    Args:
        description: what the example does.
        epochs: the default number of passes over the node's part of the data.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=data_dir_of_environment(),
        help="folder with the data (default: the variable DPWA_DATA_DIR, else ./data)",
    )
    parser.add_argument("--epochs", type=_positive, default=epochs, help="passes over the data (default: %(default)s)")
    parser.add_argument(
        "--shard",
        type=_shard,
        metavar="K/N",
        help="train on part K of N only (default: on all of the data, shared among the nodes of the cluster)",
    )
    return parser


def data_dir_of_environment() -> Path | None:
    """The folder that the variable DPWA_DATA_DIR names; None if it names none."""
    named = os.environ.get("DPWA_DATA_DIR")
    return Path(named) if named else None


def _shard(text: str) -> tuple[int, int]:
    try:
        return parse_shard(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'expected a whole number of at least 1, got "{text}"')
    return int(text)

"""The run folder of a launch: a new one, or one that its user names, with the resolved config in it.

Must not know: processes. Runs in: the main thread.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dpwa.errors import ConfigError

if TYPE_CHECKING:
    from dpwa.config.cluster import ClusterConfig


__all__ = ["CONFIG_NAME", "copy_name", "make_run_dir"]

CONFIG_NAME = "config.yaml"
_RUNS_DIR = Path("runs")


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

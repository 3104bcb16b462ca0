"""Reads a whole run folder, also one of a run that goes on, was killed, or of which parts are missing.

Must not know: what must hold. Runs in: any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from dpwa.errors import ConfigError
from dpwa.observe.bounded_file import read_records
from dpwa.observe.journal import EVENTS_FILE, METRICS_FILE, node_folder
from dpwa.observe.lives import Record, Run, faults_of, lives_of
from dpwa.observe.run_record import CHAOS_FILE, LAUNCH_FILE

__all__ = ["node_names", "read_run"]

_CONFIG_FILE = "config.yaml"

# Of a line of metrics; a script may have logged a lot more into it, and a long run has many.
_OF_METRICS = (
    *("t", "step", "steps_per_s", "longest_step_s", "longest_held_s", "elapsed_s"),
    *("descriptors", "threads", "resident_bytes"),
)


def node_names(run_dir: Path) -> list[str]:
    """The nodes that have a folder, sorted.

    Raises:
        ConfigError: this is not the folder of a run.
    """
    folders = node_folder(run_dir, "any").parent
    names = sorted(path.name for path in folders.glob("*") if path.is_dir())
    if not names:
        raise ConfigError(f"{run_dir}: expected the folder of a run, with a folder nodes/NAME for each node")
    return names


def read_run(run_dir: Path) -> Run:
    """All that the folder tells.

    Raises:
        ConfigError: this is not the folder of a run, or a file in it cannot be read.
    """
    try:
        return _read(run_dir)
    except OSError as error:
        place = error.filename or run_dir
        raise ConfigError(
            f"{place}: cannot be read ({error.strerror or error}); run this as a user who may read it"
        ) from error


def _read(run_dir: Path) -> Run:
    names = node_names(run_dir)
    return Run(
        lives={
            name: lives_of(
                name,
                _events(node_folder(run_dir, name) / EVENTS_FILE),
                _metrics(node_folder(run_dir, name) / METRICS_FILE),
            )
            for name in names
        },
        faults=faults_of(read_records(run_dir / CHAOS_FILE)),
        launches=list(read_records(run_dir / LAUNCH_FILE)),
        settings=_settings(run_dir / _CONFIG_FILE),
    )


def _events(path: Path) -> Iterator[Record]:
    """Without those that no invariant needs, which are most of a journal in which little comes to anything."""
    for event in read_records(path):
        if event.get("event") != "exchange" or event.get("outcome") == "blended":
            yield event


def _metrics(path: Path) -> Iterator[Record]:
    for line in read_records(path):
        yield {key: line[key] for key in _OF_METRICS if key in line}


def _settings(path: Path) -> Mapping[str, Any]:
    """The run's config as plain values; empty if there is none that can be read."""
    with suppress(OSError, UnicodeDecodeError, yaml.YAMLError):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(values, Mapping):
            return values
    return {}

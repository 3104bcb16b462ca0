"""The run folder of a study: a copy of the study file, and a folder for each trial.

    study.yaml          a copy of the study file
    trials/ROW-sSEED/   see `dpwa.lab.study.trial`
    .lock               held by the run that uses the folder

Runs in: any thread.
"""

from __future__ import annotations

import fcntl
import json
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dpwa.errors import ConfigError
from dpwa.lab.study.study import Study, trial_folder_name
from dpwa.lab.study.trial import Trial, TrialFolder, write_json
from dpwa.lab.training.machine import commit

__all__ = ["RunFolder", "is_result", "last_lines", "newest_round", "read_json", "remove_snapshots", "shown_path"]


@dataclass(frozen=True)
class RunFolder:
    """A run folder.

    Attributes:
        path: the folder, absolute.
    """

    path: Path

    @property
    def study_yaml(self) -> Path:
        """The copy of the study file."""
        return self.path / "study.yaml"

    def of(self, trial: Trial) -> TrialFolder:
        """The folder of a trial."""
        return TrialFolder(self.path / "trials" / trial_folder_name(trial))

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Keeps other runs out of this folder meanwhile; makes it if it is missing.

        Raises:
            ConfigError: it cannot be written, or another run uses it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise ConfigError(
                f"run folder {self.path}: cannot be written: {error}; name another with --run-dir"
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(
                    f"run folder {self.path}: another dpwa lab run is using it; wait for it to end, or name another "
                    f"folder with --run-dir"
                ) from error
            yield

    def keep(self, study: Study) -> None:
        """Copies the study file here, so that a report can be made from the folder alone.

        Raises:
            ConfigError: the folder belongs to a study with another name.
        """
        copy = self.study_yaml
        if copy.exists() and copy.resolve() == study.path.resolve():
            return
        if copy.exists():
            name = Study.load(copy).name
            if name != study.name:
                raise ConfigError(
                    f"run folder {self.path}: it belongs to the study {name}, not {study.name}; "
                    f"name another with --run-dir"
                )
        copy.write_text(study.text, encoding="utf-8")

    def result(self, trial: Trial) -> dict[str, Any] | None:
        """The result of a trial; None if there is none, or it was made with other settings."""
        found = read_json(self.of(trial).result_json)
        if found is None or _trial_of(found.get("trial")) != trial:
            return None
        return found if is_result(trial, found) else None

    def why_again(self, trial: Trial) -> str:
        """Why a trial that was started before has to run again; empty if it never was started."""
        folder = self.of(trial)
        if not folder.path.exists():
            return ""
        old, result = read_json(folder.trial_json), read_json(folder.result_json)
        before = _trial_of(old)
        if before is None:
            return "its trial.json cannot be read"
        if before != trial:
            return f"its settings have changed ({', '.join(_differences(before, trial))})"
        if result is None:
            return "it was interrupted"
        how = "was skipped" if result.get("status") == "skipped" else "failed"
        return f"it {how}: {result.get('reason') or 'for an unknown reason'}"

    def empty(self, trial: Trial) -> TrialFolder:
        """The folder of a trial, with nothing in it but trial.json.

        Raises:
            ConfigError: there is a folder that is not a trial's.
        """
        folder = self.of(trial)
        if folder.path.exists():
            if any(folder.path.iterdir()) and not folder.trial_json.exists():
                raise ConfigError(
                    f"{folder.path}: expected the folder of a trial, got one without trial.json; move it away, "
                    f"or name another run folder with --run-dir"
                )
            shutil.rmtree(folder.path)
        folder.path.mkdir(parents=True)
        write_json(folder.trial_json, {**trial.to_json(), "commit": commit()})
        return folder


def is_result(trial: Trial, result: Mapping[str, Any]) -> bool:
    """Whether a trial need not run again. In a study that kills a node, the others' failure is a result."""
    if result.get("status") == "done":
        return True
    is_from_training = bool(result.get("samples_seen"))
    return result.get("status") == "failed" and trial.settings.kill is not None and is_from_training


def remove_snapshots(folder: TrialFolder) -> None:
    """Removes a trial's models, except each process's last one; what was measured of them is in the result."""
    for snapshots in (folder.path / "nodes").glob("*/snapshots"):
        last = max(snapshots.glob("[0-9]*.safetensors"), default=None)
        for path in snapshots.glob("*.safetensors"):
            if path != last:
                path.unlink()


def newest_round(folder: TrialFolder) -> float:
    """The round that a trial has reached: the mean over the processes that save models."""
    found = [
        max((int(path.stem) for path in snapshots.glob("[0-9]*.safetensors")), default=0)
        for snapshots in (folder.path / "nodes").glob("*/snapshots")
    ]
    return sum(found) / len(found) if found else 0.0


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a text file; none if there is no such file."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - 200 * count))
            text = stream.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    return text.splitlines()[-count:]


def shown_path(path: Path) -> str:
    """A path for people and for the shell: relative if it lies below the current folder."""
    try:
        shown = path.relative_to(Path.cwd())
    except ValueError:
        shown = path
    return shlex.quote(str(shown))


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file; None if the file is missing or incomplete."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing, cut off, not text
        return None
    return found if isinstance(found, dict) else None


def _trial_of(values: object) -> Trial | None:
    """The trial of trial.json or result.json; None if it cannot be read.

    Settings that dpwa did not have when it was written get their defaults, so that the trial still counts.
    """
    try:
        return Trial.from_json(values) if isinstance(values, Mapping) else None
    except (KeyError, ValidationError):
        return None


def _differences(before: Trial, after: Trial) -> list[str]:
    """Names of the settings that differ."""
    old, new = before.to_json(), after.to_json()
    settings = [key for key in new["settings"] if old["settings"][key] != new["settings"][key]]
    return settings or [key for key in new if old[key] != new[key]]

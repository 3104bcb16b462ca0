"""Runs `engine_trainer.py` as an engine does, and reads what its nodes have said."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from support import TESTS

TRAINER = str(TESTS / "engine_trainer.py")
# The engines tell these to their processes, and so must not be told them by whatever runs the tests.
OF_OTHERS = ("DPWA_", "RANK", "WORLD_SIZE", "MASTER_", "PMI_", "OMPI_", "SLURM", "TORCHELASTIC_")


def environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(OF_OTHERS)} | more


def run(folder: Path, *command: str, timeout_s: float = 110.0, **more: str) -> str:
    """Run a command in a folder to its end; return what it says."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(OMP_NUM_THREADS="1", **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def said_in(folder: Path, count: int) -> list[dict[str, Any]]:
    """What the nodes have said, in order; they found each other, exchanged, and ended with one model."""
    said = [json.loads((folder / f"w{number}.json").read_text()) for number in range(1, count + 1)]
    assert {node["world_size"] for node in said} == {count}
    assert len({node["run_dir"] for node in said}) == 1
    assert all(node["blended"] > 0 for node in said)
    assert len({tuple(node["model"]) for node in said}) == 1
    return said

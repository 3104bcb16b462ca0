"""The command that a launch starts: whether it can be started here, by which Python, and with how many threads.

Must not know: the cluster. Runs in: the main thread.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence

from dpwa.launch.terminal import tell

__all__ = ["command_problems", "local_ranks", "thread_limits", "with_python_that_has_dpwa"]

_PYTHONS = ("python", "python3")
_HAS_NONE = 3
# Without the current folder: a script's own folder stands in its place.
_HAS_DPWA = (
    "import sys; from importlib.util import find_spec; del sys.path[0]; "
    f"sys.exit({_HAS_NONE} * (find_spec('dpwa') is None))"
)


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


def local_ranks(machines: Mapping[str, str]) -> dict[str, int]:
    """Each node's place among the nodes of its machine, from 0.

    Args:
        machines: by the name of the node, in order.
    """
    seen: Counter[str] = Counter()
    ranks = {}
    for name, machine in machines.items():
        ranks[name] = seen[machine]
        seen[machine] += 1
    return ranks


def thread_limits(environment: Mapping[str, str], count: int) -> dict[str, str]:
    """Each node's share of the processors: left alone, every node would start a thread for each of them."""
    if "OMP_NUM_THREADS" in environment or "MKL_NUM_THREADS" in environment:
        return {}
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, usable // max(1, count)))}

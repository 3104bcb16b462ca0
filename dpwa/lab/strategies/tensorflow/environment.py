"""Finds a Python that has TensorFlow: perhaps in an environment of its own, without torch and dpwa.

Must not know: torch. Runs in: any thread.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

__all__ = ["PYTHON_VARIABLE", "tensorflow_python", "why_no_tensorflow"]

PYTHON_VARIABLE = "DPWA_TENSORFLOW_PYTHON"
"""Names the interpreter; by default it is the running one."""

# For a cold start of an interpreter on a slow disk; the question itself takes milliseconds.
_ANSWER_TIMEOUT_S = 60.0
_QUESTION = "import sys; from importlib.util import find_spec; sys.exit(find_spec('tensorflow') is None)"


def tensorflow_python() -> Path | None:
    """The interpreter that has TensorFlow; None if there is none: see `why_no_tensorflow`.

    TensorFlow is not imported, which would take seconds.
    """
    named = os.environ.get(PYTHON_VARIABLE)
    if not named:
        return Path(sys.executable) if find_spec("tensorflow") is not None else None
    found = shutil.which(named)
    # Not resolved: the `python` of a virtual environment is a link whose location names the environment.
    return Path(found).absolute() if found and _has_tensorflow(found) else None


def why_no_tensorflow() -> str:
    """What is missing and what to do, in one line, when `tensorflow_python` is None."""
    named = os.environ.get(PYTHON_VARIABLE)
    if not named:
        return (
            "install dpwa[tensorflow], or name a Python that has TensorFlow: dpwa lab run --tensorflow PYTHON "
            f"(or {PYTHON_VARIABLE})"
        )
    if shutil.which(named) is None:
        return f"{PYTHON_VARIABLE} expected a Python interpreter, got {named}, which is not a program"
    return f"{PYTHON_VARIABLE}: {named} has no TensorFlow; install tensorflow-cpu there, or name another Python"


def _has_tensorflow(python: str) -> bool:
    try:
        asked = subprocess.run(
            [python, "-c", _QUESTION],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ANSWER_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0

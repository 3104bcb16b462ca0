"""Which Python has TensorFlow: it may live in an environment of its own, which has neither torch nor dpwa.

Must not know: torch, what TensorFlow is used for. Runs in: any thread.
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
"""Names the interpreter; without it, it is the one that runs."""

# A cold start of an interpreter on a slow disk; the question itself takes some tens of milliseconds.
_ANSWER_TIMEOUT_S = 60.0
_QUESTION = "import sys; from importlib.util import find_spec; sys.exit(find_spec('tensorflow') is None)"


def tensorflow_python() -> Path | None:
    """The interpreter to run TensorFlow with, or None if there is none: `why_no_tensorflow` tells why.

    TensorFlow is looked for, but not imported, which would take seconds.
    """
    named = os.environ.get(PYTHON_VARIABLE)
    if not named:
        return Path(sys.executable) if find_spec("tensorflow") is not None else None
    found = shutil.which(named)
    # Not resolved: the `python` of a virtual environment is a link, and knows its environment by the link's place.
    return Path(found).absolute() if found and _has_tensorflow(found) else None


def why_no_tensorflow() -> str:
    """One line about what is missing and what to do, for when `tensorflow_python` has none."""
    named = os.environ.get(PYTHON_VARIABLE)
    if not named:
        return (
            "install dpwa[tensorflow], or name a Python that has TensorFlow: dpwa lab run --tensorflow PYTHON "
            f"(or {PYTHON_VARIABLE})"
        )
    if shutil.which(named) is None:
        return f"{PYTHON_VARIABLE} expects a Python interpreter, got {named}, which is no program"
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

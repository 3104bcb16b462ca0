"""Finds the Python that has a package which a row needs: perhaps in an environment of its own.

TensorFlow and the rivals need other versions of what dpwa needs, so each may have an interpreter that its user names.

Must not know: torch. Runs in: any thread.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

__all__ = ["ENVIRONMENTS", "Environment"]

# For a cold start of an interpreter on a slow disk; the question itself takes milliseconds.
_ANSWER_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Environment:
    """Where a package is.

    Attributes:
        package: what is imported.
        name: what people call it.
        advice: what to do where no interpreter is named and the running one does not have it.
        install: what to install in an interpreter that is named and does not have it.
    """

    package: str
    name: str
    advice: str
    install: str

    @property
    def variable(self) -> str:
        """Of the environment, names the interpreter; by default it is the running one."""
        return f"DPWA_{self.package.upper()}_PYTHON"

    def python(self) -> Path | None:
        """The interpreter that has the package; None if there is none: see `why_not`.

        The package is not imported, which would take seconds.
        """
        named = os.environ.get(self.variable)
        if not named:
            return Path(sys.executable) if find_spec(self.package) is not None else None
        found = shutil.which(named)
        # Not resolved: the `python` of a virtual environment is a link whose location names the environment.
        return Path(found).absolute() if found and self._is_in(found) else None

    def why_not(self) -> str:
        """What is missing and what to do, in one line, when `python` is None."""
        named = os.environ.get(self.variable)
        if not named:
            return f"{self.advice} ({self.variable})"
        if shutil.which(named) is None:
            return f"{self.variable} expected a Python interpreter, got {named}, which is not a program"
        return f"{self.variable}: {named} has no {self.name}; install {self.install} there, or name another Python"

    def _is_in(self, python: str) -> bool:
        question = f"import sys; from importlib.util import find_spec; sys.exit(find_spec('{self.package}') is None)"
        try:
            asked = subprocess.run(
                [python, "-c", question],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_ANSWER_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        return asked.returncode == 0


def _rival(package: str, name: str) -> Environment:
    advice = f"make rivals, or name a Python that has {name}, and torch and dpwa beside it"
    return Environment(package, name, advice, f"{package.replace('_', '-')} and dpwa[torch,lab]")


ENVIRONMENTS: dict[str, Environment] = {
    environment.package: environment
    for environment in (
        Environment(
            "tensorflow",
            "TensorFlow",
            "install dpwa[tensorflow], or name a Python that has TensorFlow: dpwa lab run --tensorflow PYTHON",
            "tensorflow-cpu",
        ),
        _rival("hivemind", "hivemind"),
        _rival("decent_dp", "Decent-DP"),
    )
}
"""By package."""

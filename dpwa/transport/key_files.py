"""What the files of a folder of keys are called.

Imports nothing, because processes that only carry keys must start at once. Must not know: what is in them. Any thread.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["ALLOWED_FILE", "CERTIFICATE_SUFFIX", "certificate_path", "secret_path"]

ALLOWED_FILE = "allowed.yaml"
CERTIFICATE_SUFFIX = ".cert"


def secret_path(folder: Path, node: str) -> Path:
    """Where the secret key of a node stands."""
    return folder / f"{node}.key"


def certificate_path(folder: Path, node: str) -> Path:
    """Where the certificate of a node stands."""
    return folder / f"{node}{CERTIFICATE_SUFFIX}"

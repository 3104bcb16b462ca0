"""The secret of a run whose nodes were all started by one `dpwa launch`.

Whoever can connect to a node and knows the name of its run can pull its model. That name follows from the cluster file,
and on a machine with several users anybody can connect. So the launcher leaves random bytes in the run folder, in a
file that only its user can read, and the nodes name the run in a way that nobody can who has not read them.

Must not know: messages, processes. Runs in: the launcher's main thread and the trainer's, once each.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

from dpwa.errors import ConfigError
from dpwa.transport.secret_files import read_secret, write_secret

__all__ = ["TOKEN_FILE", "make_token", "run_in_requests"]

TOKEN_FILE = "token"  # noqa: S105 - the file's name
_TOKEN_BYTES = 32
_TAG_CHARS = 32


def make_token(folder: Path) -> None:
    """Leave a token in a run folder, if there is none yet; nodes that are started again go on with the same.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        write_secret(folder / TOKEN_FILE, secrets.token_bytes(_TOKEN_BYTES))
    except FileExistsError:
        return
    except ConfigError as error:
        raise ConfigError(f"run folder {folder}: {error}; name another with --run-dir") from error


def run_in_requests(run_id: str, folder: Path | None) -> str:
    """What nodes name as their run in requests: its public id, and what only those can know who can read the token.

    Args:
        run_id: the public id.
        folder: the run folder; None if there is none.

    Raises:
        ConfigError: there is a token, and it is not a secret of this user, or is damaged.
    """
    token = None if folder is None else _read_token(folder / TOKEN_FILE)
    if token is None:
        return run_id
    return f"{run_id}-{hmac.new(token, run_id.encode(), hashlib.sha256).hexdigest()[:_TAG_CHARS]}"


def _read_token(path: Path) -> bytes | None:
    advice = "end the run and start it in a new folder"
    token = read_secret(path, _TOKEN_BYTES, advice)
    if token is not None and len(token) != _TOKEN_BYTES:
        raise ConfigError(f"{path}: expected {_TOKEN_BYTES} bytes; {advice}")
    return token

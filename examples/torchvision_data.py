"""Opens torchvision's data sets, downloading them first when they are not there.

Must not know: models, adapters, shards. Runs in: the training thread.
"""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO, Any

from dpwa import mend_torchvision

__all__ = ["DEFAULT_DATA_DIR", "MissingDataError", "open_data_set"]

DEFAULT_DATA_DIR = Path("data")


class MissingDataError(SystemExit):
    """The data is not there and cannot be downloaded. Where nobody catches it, a script ends with this line.

    Args:
        name: of the data set.
        root: where it should be.
        reason: why it cannot be downloaded.
    """

    def __init__(self, name: str, root: Path, reason: str) -> None:
        super().__init__(
            f"{name}: not in {root}, and it cannot be downloaded ({reason}); put it there, or name its folder with "
            f"--data-dir"
        )
        self.reason = reason


def open_data_set(name: str, data_dir: Path | None, *, train: bool) -> Any:
    """A data set of torchvision, from the folder or from the network.

    Args:
        name: the class in `torchvision.datasets`, such as "FashionMNIST".
        data_dir: where the data is or will be put; None: ./data.
        train: the training part; else the test part.

    Raises:
        MissingDataError: the data is not there and cannot be downloaded.
    """
    mend_torchvision()  # nothing, where torch and torchvision fit together
    from torchvision import datasets  # noqa: PLC0415 - after it has been mended

    kind = getattr(datasets, name)
    root = data_dir or DEFAULT_DATA_DIR
    try:
        return kind(root, train=train, download=False)
    except RuntimeError:  # torchvision's way to say that the files are missing or damaged
        pass
    has_waited = False
    try:
        root.mkdir(parents=True, exist_ok=True)
        # All nodes of a host come here at the same time: one downloads, the others wait and then find the files.
        with (root / f".{name}.lock").open("w") as lock:
            has_waited = not _is_locked_at_once(lock)
            if not has_waited:
                print(f"{name}: not in {root.resolve()}: downloading", flush=True)
            return kind(root, train=train, download=not has_waited)
    except (OSError, RuntimeError) as error:
        why = "another node has tried" if has_waited else " ".join(str(error).split())
        raise MissingDataError(name, root.resolve(), why) from None


def _is_locked_at_once(file: IO[str]) -> bool:
    """Takes the lock on a file; False if another process held it first."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(file, fcntl.LOCK_EX)
        return False
    return True

"""Opens torchvision's data sets, downloading them first when they are not there.

Must not know: models, adapters, shards. Runs in: the training thread.
"""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

from dpwa import mend_torchvision

__all__ = ["DEFAULT_DATA_DIR", "open_data_set"]

DEFAULT_DATA_DIR = Path("data")


def open_data_set(name: str, data_dir: Path | None, *, train: bool) -> Any:
    """A data set of torchvision, from the folder or from the network.

    Args:
        name: the class in `torchvision.datasets`, such as "FashionMNIST".
        data_dir: where the data is or will be put; None: ./data.
        train: the training part; else the test part.

    Raises:
        OSError: the data is not there and cannot be downloaded.
    """
    mend_torchvision()  # nothing, where torch and torchvision fit together
    from torchvision import datasets  # noqa: PLC0415 - after it has been mended

    kind = getattr(datasets, name)
    root = data_dir or DEFAULT_DATA_DIR
    try:
        return kind(root, train=train, download=False)
    except RuntimeError:  # torchvision's way to say that the files are missing or damaged
        print(f"{name}: not in {root.resolve()}: downloading", flush=True)
    root.mkdir(parents=True, exist_ok=True)
    # All nodes of a host come here at the same time: one downloads, the others wait and then find the files.
    with (root / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return kind(root, train=train, download=True)

"""The store of torch.distributed's variables, on which the processes of one start tell each other where they are.

torchrun's agent keeps one open for its processes. Where nobody does, as when MASTER_ADDR and MASTER_PORT are set by
hand, the first process opens it, in the way that `init_process_group` can share later.

Must not know: what is told. Runs in: the trainer's thread, before training.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # torch's own stubs lack them

from dpwa import ConfigError
from dpwa.engines.environment import Start

__all__ = ["open_store", "shared_run_dir"]

_RUN_DIR = "dpwa/run_dir"

_opened: list[Any] = []
"""A store that ended with its last use would end for the others, too."""


def open_store(start: Start, run_dir: Path, timeout_s: float) -> tuple[Any, Path]:
    """The store of this start, for keys of dpwa's own, and the run folder.

    The agent's store outlives its processes: when they are started again, the run folder is still the first one.

    Args:
        start: of this process, with torch's variables.
        run_dir: what the run folder would be in a first start.
        timeout_s: how long it may take to reach the store.

    Raises:
        ConfigError: it cannot be reached.
    """
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    has_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = TCPStore(
            host,
            int(port),
            None,
            start.rank == 0 and not has_agent,
            timedelta(seconds=timeout_s),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ConfigError(
            f"MASTER_ADDR and MASTER_PORT name {host}:{port}, and no store of torch.distributed is reached there "
            f"within {timeout_s:g} s ({reason}); start the script with torchrun, or unset RANK and WORLD_SIZE"
        ) from error
    _opened.append(store)
    if start.rank == 0:
        run_dir = Path(store.compare_set(_RUN_DIR, "", str(run_dir)).decode())
    return PrefixStore(f"dpwa/attempt_{start.attempt}", store), run_dir


def shared_run_dir(start: Start, run_dir: Path, timeout_s: float) -> Path:
    """The run folder of the first process, in each of them; when they are started again, still the first one.

    Args:
        start: of this process, with torch's variables.
        run_dir: what it would be by this process, in a first start.
        timeout_s: how long the first process is waited for.

    Raises:
        ConfigError: the store cannot be reached, or the first process has told nothing.
    """
    _, run_dir = open_store(start, run_dir, timeout_s)
    if start.rank == 0:
        return run_dir
    store = _opened[-1]
    try:
        store.wait([_RUN_DIR], timedelta(seconds=timeout_s))
        return Path(store.get(_RUN_DIR).decode())
    except (RuntimeError, ValueError, OSError) as error:
        raise ConfigError(
            f"{start.engine}: the first process has told no run folder within {timeout_s:g} s; have it make a node of "
            "dpwa, too, or set DPWA_RUN_DIR to one folder for all"
        ) from error

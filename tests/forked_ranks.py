"""Starts the processes of a script as torchrun does, and imports torch once for all: by fork.

forked_ranks.py COUNT SCRIPT [ARGUMENT ...]

When one fails the others are killed, and the exit code is 1.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import traceback

import torch
import torch._dynamo  # noqa: F401 - optimizers import it when they are made
from torch.nn.parallel import DistributedDataParallel  # noqa: F401

from dpwa.adapters import pytorch  # noqa: F401
from dpwa.launch.ports import free_ports


def main() -> int:
    count, script = int(sys.argv[1]), sys.argv[2]
    sys.argv = sys.argv[2:]
    os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0]), "TORCHELASTIC_RUN_ID": "none"}
    processes = set()
    for rank in range(count):
        process = os.fork()
        if process == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            _be(script)
        processes.add(process)
    has_failed = False
    while processes:
        process, status = os.wait()
        processes.discard(process)
        if status and not has_failed:
            has_failed = True
            for other in processes:
                os.kill(other, signal.SIGKILL)
    return int(has_failed)


def _be(script: str) -> None:
    code = 1
    try:
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - the end of a process, whatever ends it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())

"""A training script for the tests of clusters that nodes may join: quick steps without a framework, until SIGTERM.

Prints its process id and what its model was before the first step, then whenever what it knows of the members changes,
and at the end the longest pause between two steps.

Args on the command line: the cluster file, the name of the node, the run folder, the first value of its model.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from dpwa.config.cluster import ClusterConfig
from dpwa.node.node import Node
from support import VectorModel

PACE_S = 0.02


def main() -> None:
    path, name, run_dir, value = sys.argv[1:]
    is_over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: is_over.set())
    model = VectorModel([float(value), 0.0])
    node = Node(ClusterConfig.load(path), name, model, run_dir=Path(run_dir))
    node.start()
    say(pid=os.getpid(), value=float(model.vector[0]), clock=node.statistics().clock)
    last_s, longest_s, told = time.monotonic(), 0.0, {}
    while not is_over.wait(PACE_S) and not node.is_asked_to_leave:
        node.step(1.0)
        now_s = time.monotonic()
        longest_s, last_s = max(longest_s, now_s - last_s), now_s
        members = node.statistics().members
        if members != told:
            told = dict(members)
            say(members=told)
    did = node.statistics()
    node.close()
    say(longest_s=longest_s, steps=did.step, blended=did.blended, ignored=dict(did.ignored_entries))


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    main()

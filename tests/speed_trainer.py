"""A training script without a framework for tests of local steps by speed: each step takes as long as it is told.

What was missed is made up for, so that how busy the machine is does not decide how fast a node is.

Args on the command line: the cluster file, the name of the node, the run folder, seconds per step, seconds in all.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from dpwa.config.cluster import ClusterConfig
from dpwa.node.node import Node
from support import VectorModel


def main() -> None:
    path, name, run_dir, step_s, train_s = sys.argv[1:]
    model = VectorModel([0.0])
    node = Node(ClusterConfig.load(path), name, model, run_dir=Path(run_dir))
    node.start()
    print("ready", flush=True)
    sys.stdin.readline()
    began_s = time.monotonic()
    in_dpwa_s = longest_s = 0.0
    for step in range(1, int(float(train_s) / float(step_s)) + 1):
        time.sleep(max(0.0, began_s + step * float(step_s) - time.monotonic()))
        model.vector += 1.0
        before_s = time.thread_time()
        node.step(1.0)
        spent_s = time.thread_time() - before_s
        in_dpwa_s, longest_s = in_dpwa_s + spent_s, max(longest_s, spent_s)
    took_s = time.monotonic() - began_s
    node.finish(timeout_s=20.0)
    did = node.statistics()
    node.close()
    found = {"steps": did.step, "took_s": took_s, "in_dpwa_s": in_dpwa_s, "longest_s": longest_s}
    print(json.dumps({**found, "method": dict(did.method), "exchanges": dict(did.exchanges)}), flush=True)


if __name__ == "__main__":
    main()

"""A training script of which the last node lies: it gives another model than it has trained.

Each node descends towards 1.5, and the last one publishes what its first argument says: `huge`, or `old`, the model
that all began with.

    python lying_trainer.py LIE STEPS
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from dpwa.config.cluster import ClusterConfig
from dpwa.node.node import Node
from support import VectorModel, wait_until

LIARS = {"huge": 1e30, "old": -1.0}


def main() -> None:
    lie, steps = sys.argv[1], int(sys.argv[2])
    name = os.environ["DPWA_NODE"]
    model = VectorModel(np.full(4096, -1.0))
    config = ClusterConfig.load(os.environ["DPWA_CONFIG"])
    run_dir = Path(os.environ["DPWA_RUN_DIR"])
    node = Node(config, name, model, run_dir=run_dir)
    rng = np.random.default_rng(int(name[1:]))
    try:
        node.start()
        # While others are still starting, the liar might be the only peer, and nobody could say who is right.
        (run_dir / f"{name}-is-there").touch()
        wait_until(lambda: all((run_dir / f"{peer.name}-is-there").exists() for peer in config.nodes), "all start", 60)
        for _ in range(steps):
            model.vector += 0.05 * (1.5 - model.vector + 0.1 * rng.standard_normal(4096))
            if name == config.nodes[-1].name:
                model.vector[:] = LIARS[lie]
            node.step(1.0)
        node.log(x=float(model.vector.mean()))
        node.finish(timeout_s=5.0)
    finally:
        node.close()


if __name__ == "__main__":
    main()

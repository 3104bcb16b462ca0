"""A first cluster file, for `dpwa init`.

Must not know: what a method or a rule does; only their names. Runs in: any thread; pure.
"""

from __future__ import annotations

from dpwa.interpolation.registry import RULES
from dpwa.methods.registry import METHODS

__all__ = ["starter_file"]

_HEAD = """\
# A cluster of {count} on this machine. Try it:
#
#     dpwa check cluster.yaml
#     dpwa launch cluster.yaml -- python -m dpwa.examples.digits.train    # or your own script
#
# Only the nodes are required. Everything below them is a default, to be changed when there is a reason.
"""

_DEFAULTS = f"""\

# method: pull              # how models are averaged: {", ".join(METHODS)}
# topology: complete        # who exchanges with whom: complete, ring, torus, hypercube ...
# pull_probability: 1.0     # how likely a step begins an exchange
# timeout_ms: null          # most that an exchange may take; null: as its link needs, and 2500 at first
# interpolation: constant   # how much of a peer goes into a blend: {", ".join(RULES)}
# constant: {{value: 0.5}}
"""


def starter_file(count: int, first_port: int) -> str:
    """The text of a cluster file for nodes w1, w2 ... on this machine.

    Args:
        count: nodes, at least 1.
        first_port: port of the first; the others have the next ones.
    """
    nodes = "".join(
        f"  - {{name: w{number}, host: localhost, port: {first_port + number - 1}}}\n" for number in range(1, count + 1)
    )
    return f"{_HEAD.format(count='1 node' if count == 1 else f'{count} nodes')}\nnodes:\n{nodes}{_DEFAULTS}"

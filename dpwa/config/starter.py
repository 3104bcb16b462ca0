"""A first cluster file, for `dpwa init`.

Must not know: what a method or a rule does; only their names. Runs in: any thread; pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from dpwa.config import hosts
from dpwa.config.yaml_file import as_text
from dpwa.errors import ConfigError
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

_HEAD_OF_HOSTS = """\
# A cluster of {count} on {hosts}. Make the keys that its nodes know each other by, once, and try it:
#
#     dpwa keys init cluster.yaml
#     dpwa check cluster.yaml
#
# Then copy this file and keys/allowed.yaml to every machine, each node's own key (keys/NAME.key) to its machine alone,
# and start there:
#
#     dpwa launch cluster.yaml -- python train.py
#
# Or let ssh do both, from here: see `dpwa launch --hosts` in docs/launching.md.
#
# Only nodes and keys are required. Everything below them is a default, to be changed when there is a reason.

keys: keys                  # links are encrypted, and nobody else gets in; the folder lies beside this file
"""

_DEFAULTS = f"""\

# method: pull              # how models are averaged: {", ".join(METHODS)}
# topology: complete        # who exchanges with whom: complete, ring, torus, hypercube ...
# pull_probability: 1.0     # how likely a step begins an exchange
# timeout_ms: null          # most that an exchange may take; null: as its link needs, and 2500 at first
# interpolation: constant   # how much of a peer goes into a blend: {", ".join(RULES)}
# constant: {{value: 0.5}}
"""


def starter_file(count: int, first_port: int, machines: Sequence[str] = ()) -> str:
    """The text of a cluster file for nodes w1, w2 ...

    Args:
        count: nodes, at least 1.
        first_port: port of the first node of each machine; the others there have the next ones.
        machines: names or addresses; each has an equal share of the nodes, the first ones one more. Empty: this
            machine.

    Raises:
        ConfigError: a machine cannot be the host of a node, is named twice, or there are more of them than nodes.
    """
    machines = machines or ["localhost"]
    for machine in machines:
        problem = hosts.problem_with(machine)
        if problem is not None:
            raise ConfigError(f'--hosts: "{machine}": {problem}{hosts.hint_for(machine)}')
    if len({hosts.address_key(machine) for machine in machines}) < len(machines):
        raise ConfigError(f"--hosts: a machine is named twice in {','.join(machines)}; name each once")
    if len(machines) > count:
        raise ConfigError(f"--hosts: {len(machines)} machines for {count} nodes; name fewer, or have more nodes")
    each, more = divmod(count, len(machines))
    lines: list[str] = []
    for place, host in enumerate(map(as_text, machines)):
        for number in range(each + (place < more)):
            lines.append(f"  - {{name: w{len(lines) + 1}, host: {host}, port: {first_port + number}}}\n")
    told = "1 node" if count == 1 else f"{count} nodes"
    if all(hosts.is_loopback(machine) for machine in machines):
        head = _HEAD.format(count=told)
    else:
        head = _HEAD_OF_HOSTS.format(count=told, hosts=", ".join(machines))
    return f"{head}\nnodes:\n{''.join(lines)}{_DEFAULTS}"

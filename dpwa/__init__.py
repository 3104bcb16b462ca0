"""Distributed pair-wise averaging: ordinary machines train one PyTorch model together, without a server.

    import dpwa

    with dpwa.DpwaPyTorchAdapter(model) as node:
        sampler = DistributedSampler(data, num_replicas=node.world_size, rank=node.rank)
        ...
        node.step(loss)  # after each optimizer.step()
        ...
        node.finish()

These are the public names; everything below them may change without notice.

- A training script: `DpwaPyTorchAdapter` or `attach`, `ClusterConfig`, `NodeStatistics`; `average_models`;
  `local_rank`; `mend_torchvision`.
- A custom rule for the interpolation: `register`, `Interpolation`, `DistanceInterpolation`, `State`.
- A custom averaging method: `Method` with `ExchangeKind`, `Conservation`, `Plan`, `ExchangeResult`, `Neighbourhood`,
  `Snapshot`, `Options`; or a subclass of `Pull`, `GoSGD`, `SGP`, `ADPSGD`, `Elastic`, `DPSGD`, `NoLoCo` or `Sparta`.
- An adapter for another framework: `Node` and `Model` with `Layout`, `TensorSpec`, `Role`, `Section`, `ITEM_BYTES`,
  `Buffer`, `Values`, `Inventory`; `node_folder`, `MODEL_FILE` and `older_generations` for what it leaves in the run
  folder.
- Errors: `DpwaError` and its subclasses, see `dpwa.errors`.

`import dpwa` is quick: each name is imported when it is first used, and only the first entry of the list needs torch.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from dpwa._version import __version__

if TYPE_CHECKING:
    from dpwa.adapters.attaching import attach
    from dpwa.adapters.averaging import average_models
    from dpwa.adapters.pytorch import DpwaPyTorchAdapter
    from dpwa.adapters.torchvision import mend_torchvision
    from dpwa.config.cluster import ClusterConfig
    from dpwa.engines.environment import local_rank
    from dpwa.errors import (
        ConfigError,
        DpwaError,
        InternalError,
        IslandError,
        ModelMismatch,
        NodeClosed,
        PeerTimeout,
        PeerUnreachable,
        RemoteProtocolError,
        TransportError,
    )
    from dpwa.interpolation.registry import register
    from dpwa.interpolation.rules import DistanceInterpolation, Interpolation
    from dpwa.methods.adpsgd import ADPSGD
    from dpwa.methods.base import Conservation, Method
    from dpwa.methods.dpsgd import DPSGD
    from dpwa.methods.elastic import Elastic
    from dpwa.methods.exchange import ExchangeKind, ExchangeResult, Plan
    from dpwa.methods.gosgd import GoSGD
    from dpwa.methods.noloco import NoLoCo
    from dpwa.methods.pull import Pull
    from dpwa.methods.sgp import SGP
    from dpwa.methods.sparta import Sparta
    from dpwa.node.node import Node
    from dpwa.node.record import NodeStatistics
    from dpwa.observe.journal import MODEL_FILE, node_folder, older_generations
    from dpwa.options import Options
    from dpwa.snapshot.dtypes import ITEM_BYTES
    from dpwa.snapshot.layout import Buffer, Layout, Role, Section, Snapshot, TensorSpec
    from dpwa.snapshot.model import Inventory, Model
    from dpwa.snapshot.staging import Values
    from dpwa.snapshot.state import State
    from dpwa.topology.neighbourhood import Neighbourhood

__all__ = [
    "ADPSGD",
    "DPSGD",
    "ITEM_BYTES",
    "MODEL_FILE",
    "SGP",
    "Buffer",
    "ClusterConfig",
    "ConfigError",
    "Conservation",
    "DistanceInterpolation",
    "DpwaError",
    "DpwaPyTorchAdapter",
    "Elastic",
    "ExchangeKind",
    "ExchangeResult",
    "GoSGD",
    "InternalError",
    "Interpolation",
    "Inventory",
    "IslandError",
    "Layout",
    "Method",
    "Model",
    "ModelMismatch",
    "Neighbourhood",
    "NoLoCo",
    "Node",
    "NodeClosed",
    "NodeStatistics",
    "Options",
    "PeerTimeout",
    "PeerUnreachable",
    "Plan",
    "Pull",
    "RemoteProtocolError",
    "Role",
    "Section",
    "Snapshot",
    "Sparta",
    "State",
    "TensorSpec",
    "TransportError",
    "Values",
    "__version__",
    "attach",
    "average_models",
    "local_rank",
    "mend_torchvision",
    "node_folder",
    "older_generations",
    "register",
]

# The same as the imports above, for the interpreter; a test compares them.
_NAMES_BY_MODULE = {
    "dpwa.adapters.attaching": "attach",
    "dpwa.adapters.averaging": "average_models",
    "dpwa.adapters.pytorch": "DpwaPyTorchAdapter",
    "dpwa.adapters.torchvision": "mend_torchvision",
    "dpwa.config.cluster": "ClusterConfig",
    "dpwa.engines.environment": "local_rank",
    "dpwa.errors": "ConfigError DpwaError InternalError IslandError ModelMismatch NodeClosed PeerTimeout "
    "PeerUnreachable RemoteProtocolError TransportError",
    "dpwa.interpolation.registry": "register",
    "dpwa.interpolation.rules": "DistanceInterpolation Interpolation",
    "dpwa.methods.adpsgd": "ADPSGD",
    "dpwa.methods.base": "Conservation Method",
    "dpwa.methods.dpsgd": "DPSGD",
    "dpwa.methods.elastic": "Elastic",
    "dpwa.methods.exchange": "ExchangeKind ExchangeResult Plan",
    "dpwa.methods.gosgd": "GoSGD",
    "dpwa.methods.noloco": "NoLoCo",
    "dpwa.methods.pull": "Pull",
    "dpwa.methods.sgp": "SGP",
    "dpwa.methods.sparta": "Sparta",
    "dpwa.node.node": "Node",
    "dpwa.node.record": "NodeStatistics",
    "dpwa.observe.journal": "MODEL_FILE node_folder older_generations",
    "dpwa.options": "Options",
    "dpwa.snapshot.dtypes": "ITEM_BYTES",
    "dpwa.snapshot.layout": "Buffer Layout Role Section Snapshot TensorSpec",
    "dpwa.snapshot.model": "Inventory Model",
    "dpwa.snapshot.staging": "Values",
    "dpwa.snapshot.state": "State",
    "dpwa.topology.neighbourhood": "Neighbourhood",
}
_MODULE_OF = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(_MODULE_OF[name])
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        message = (
            f"dpwa.{name}: the package torch is not installed; "
            f"install it with: {sys.executable} -m pip install 'dpwa[torch]'"
        )
        raise ModuleNotFoundError(message, name="torch") from error
    value = globals()[name] = getattr(module, name)  # from now on without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

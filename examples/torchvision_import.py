"""Imports torchvision, also beside a torch build that lacks the operators which torchvision expects.

The torchvision wheel from PyPI is linked against CUDA. Beside a CPU-only torch its compiled operators do not load,
and its import then stops with "operator torchvision::nms does not exist", although data sets and models
do not need these operators. Declaring their signatures is enough for the import to work.

Must not know: data sets, models. Runs in: the training thread.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

__all__ = ["import_torchvision"]

MISSING_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

# A declaration lives as long as its library object: this list keeps them for the life of the process.
_declared: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """The module torchvision.

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: it cannot be imported for a reason that the declarations do not mend.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    # The failed import leaves half-initialised submodules behind; they would be taken for finished ones.
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in MISSING_OPERATORS:
        library.define(schema)  # type: ignore[no-untyped-call]
    _declared.append(library)
    return importlib.import_module("torchvision")

"""Makes torchvision importable beside a torch that was built without CUDA.

On Linux, PyPI's torchvision is linked against CUDA. Beside a CPU-only torch its compiled operators cannot be loaded,
and its import ends in "operator torchvision::nms does not exist", although data sets, transforms and most models
do not need these operators. Declaring their signatures is enough for the import to work.

Must not know: nodes, data sets, models. Runs in: the training thread.
"""

from __future__ import annotations

import importlib
import sys

import torch

__all__ = ["mend_torchvision"]

_MISSING_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

# A declaration lives as long as its library object: this list keeps them for the life of the process.
_declared: list[torch.library.Library] = []


def mend_torchvision() -> None:
    """Make `import torchvision` work if torch and torchvision were not built for each other; else do nothing.

    Call it before the first `import torchvision`. Data sets, transforms and models then work; torchvision's compiled
    operators, such as `nms`, `roi_align` and `decode_jpeg`, still raise an error when they are called. The better cure
    is to install both packages from the same place.

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: it cannot be imported for another reason.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if _declared or "operator torchvision::nms does not exist" not in str(error):
            raise
    else:
        return
    # The failed import leaves half-initialised submodules behind; they would be taken for finished ones.
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    _declared.append(library)
    for schema in _MISSING_OPERATORS:
        library.define(schema)  # type: ignore[no-untyped-call]
    importlib.import_module("torchvision")

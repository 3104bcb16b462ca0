"""What to do about a failure whose cause is known from the script's last words.

Must not know: processes, the cluster file. Runs in: the launcher's main thread, when all nodes have ended.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["advice"]

_TAIL_BYTES = 1 << 16  # a stack trace has some kilobytes

_KNOWN = {
    "operator torchvision::nms does not exist": (
        "torchvision was not built for this torch; install both from the same place (without a GPU: "
        "pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cpu), "
        'or write "import dpwa; dpwa.mend_torchvision()" before the first import of torchvision'
    ),
}


def advice(output: Path) -> str | None:
    """What to do, in words; None for a failure that is not known.

    Args:
        output: the file of a node's output; it need not exist.
    """
    try:
        with output.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
            words = file.read().decode("utf-8", errors="replace")
    except OSError:
        return None
    return next((told for known, told in _KNOWN.items() if known in words), None)

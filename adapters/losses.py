"""What a script may pass as a loss.

Must not know: nodes. Runs in: the trainer's thread.
"""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor

from dpwa import ConfigError

__all__ = ["LossLike", "as_float"]

LossLike: TypeAlias = "Tensor | float | None"


def as_float(loss: LossLike) -> float | None:
    """A loss as a number; waits for a tensor that is on a GPU.

    Raises:
        ConfigError: it is not a single number.
    """
    if loss is None:
        return None
    if isinstance(loss, (str, bytes)):  # float() would read the digits in it
        raise _no_loss(loss)
    try:
        return float(loss.detach()) if isinstance(loss, Tensor) else float(loss)
    except (RuntimeError, TypeError, ValueError) as error:
        raise _no_loss(loss) from error


def _no_loss(given: object) -> ConfigError:
    what = f"a tensor of shape {tuple(given.shape)}" if isinstance(given, Tensor) else repr(given)
    return ConfigError(f"loss: expected a number or a tensor of one element, got {what}")

"""The state of the random numbers that a training draws: Python's, numpy's and torch's, on the CPU and on GPUs.

Must not know: checkpoints, files. Runs in: the trainer's thread.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["random_state", "random_text", "set_random_state", "set_random_text"]


def random_state() -> dict[str, Any]:
    """The state of the process's own generators; those that a script has made itself are not known."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=True),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go on with what `random_state` gave. GPUs only where there are as many as then."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available() and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])


def random_text() -> str:
    """The same as text, about 25 KB."""
    state = random_state()
    name, keys, *rest = state["numpy"]
    return json.dumps(
        {
            "python": state["python"],
            "numpy": [name, keys.tolist(), *rest],
            "torch": _hex(state["torch"]),
            "cuda": [_hex(one) for one in state.get("cuda", ())],
        }
    )


def set_random_text(text: str) -> None:
    """Go on with what `random_text` gave.

    Raises:
        ValueError: it is nothing of the kind.
    """
    try:
        given = json.loads(text)
        version, numbers, gauss = given["python"]
        state = {
            "python": (version, tuple(numbers), gauss),
            "numpy": tuple(given["numpy"]),
            "torch": _from_hex(given["torch"]),
        }
        if given["cuda"]:
            state["cuda"] = [_from_hex(one) for one in given["cuda"]]
        set_random_state(state)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"expected the state of random numbers, got {text[:40]!r} ({error})") from error


def _hex(state: torch.Tensor) -> str:
    return bytes(state.numpy()).hex()


def _from_hex(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)

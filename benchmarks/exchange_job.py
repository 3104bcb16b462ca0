"""What the parent of `exchange.py` and its two workers say to each other.

Must not know: any framework, so that the parent stays small. Runs in: both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Side = Literal["ask", "serve"]

Times = dict[str, float]
"""Seconds of one repetition as the asker sees it: `blended_s` always, `received_s` where the two can be told apart."""


@dataclass(frozen=True)
class Job:
    """A block of repetitions of one rival.

    Attributes:
        rival: its name.
        size_bytes: of the float32 model.
        warm_up: repetitions that are not reported.
        repetitions: those that are.
        pause_s: before each repetition.
        settings: what this rival needs besides, such as dpwa's ports.
    """

    rival: str
    size_bytes: int
    warm_up: int
    repetitions: int
    pause_s: float
    settings: dict[str, Any] = field(default_factory=dict)

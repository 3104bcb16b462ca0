"""What a check of an invariant saw: how often it looked, and where the invariant did not hold.

Must not know: the invariants. Runs in: any thread; pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dpwa.observe.lives import Record, number

__all__ = ["Finding", "Observed"]


@dataclass(frozen=True)
class Finding:
    """A place in which an invariant does not hold.

    Attributes:
        node: whose journal shows it.
        peer: the other node; None where there is none.
        moment_s: Unix seconds.
        text: the numbers.
    """

    node: str
    peer: str | None
    moment_s: float
    text: str


@dataclass
class Observed:
    """What one check saw.

    Attributes:
        count: how often it looked.
        findings: where the invariant does not hold.
        missing: what would have been needed, for the case that nothing was seen.
        remark: what is worth knowing about what was seen.
    """

    missing: str
    count: int = 0
    findings: list[Finding] = field(default_factory=list)
    remark: str = ""

    def find(self, node: str, moment: Record | float, text: str, peer: str | None = None) -> None:
        """Add a finding, at the time of a record or in Unix seconds."""
        moment_s = moment if isinstance(moment, float) else number(moment.get("t"))
        self.findings.append(Finding(node, peer, moment_s or 0.0, text))

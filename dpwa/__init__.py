"""dpwa: distributed pair-wise averaging.

Ordinary machines train one model together with no server, no lock-step and no fixed membership.
Start with `DpwaPyTorchAdapter` in `dpwa.adapters.pytorch`; `docs/architecture.md` is the map of the code.
"""

from dpwa._version import __version__

__all__ = ["__version__"]

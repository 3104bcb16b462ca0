"""How the nodes of a launch have ended and what they did, in words and as an exit code.

Must not know: running processes. Runs in: the main thread.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from dpwa.errors import ConfigError
from dpwa.launch.advice import advice
from dpwa.launch.processes import NodeEnd
from dpwa.launch.summary import summary
from dpwa.launch.terminal import tell
from dpwa.observe.endings import Ending, ending_of, remarks
from dpwa.observe.journal import OUTPUT_FILE, node_folder

__all__ = ["report"]


def report(ends: Sequence[NodeEnd], signal_number: int | None, run_dir: Path, *, has_peers: bool) -> int:
    """Says how the nodes have ended and what they did; the launcher's exit code."""
    failed = [end for end in ends if end.failed]
    outputs = {end.name: node_folder(run_dir, end.name) / OUTPUT_FILE for end in failed}
    for end in failed:
        after = f" (restarts: {end.restarts})" if end.restarts else ""
        tell(f"dpwa: node {end.name} failed: {end.reason}{after}; its output is in {outputs[end.name]}")
    for told in dict.fromkeys(filter(None, map(advice, outputs.values()))):
        tell(f"dpwa: {told}")
    all_endings = {end.name: ending_of(node_folder(run_dir, end.name)) for end in ends}
    if any(ending.used_dpwa for ending in all_endings.values()):
        cut_short = [end.name for end in ends if end.failed or end.was_stopped]
        for line in _summary(all_endings, run_dir, has_peers=has_peers, cut_short=cut_short):
            tell(f"dpwa: {line}")
    silent = [end for end in ends if end.exit_code == 0 and not end.was_stopped]
    endings = {end.name: all_endings[end.name] for end in silent}
    for name, remark in remarks(endings).items():
        tell(f"dpwa: node {name} ended with exit code 0, but {remark}")
    if signal_number is not None:
        tell(f"dpwa: ended by {signal.Signals(signal_number).name}; run folder {run_dir}")
        return 128 + signal_number
    well = len(ends) - len(failed) - sum(ending.is_cut_off for ending in endings.values())
    tell(f"dpwa: {well} of {len(ends)} nodes ended well; run folder {run_dir}")
    return 1 if well < len(ends) else 0


def _summary(
    endings: Mapping[str, Ending], run_dir: Path, *, has_peers: bool, cut_short: Sequence[str]
) -> Iterator[str]:
    from dpwa.observe.saved import distances_from_mean, saved_models  # noqa: PLC0415 - numpy

    distances: dict[str, float] = {}
    with suppress(ConfigError, OSError):  # no models: nothing to compare
        distances = distances_from_mean(saved_models(run_dir)[0])
    closings = {name: ending.closing for name, ending in endings.items()}
    return summary(closings, distances, has_peers=has_peers, cut_short=cut_short)

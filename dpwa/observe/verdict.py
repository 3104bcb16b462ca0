"""`dpwa verify`: what the invariants say of a run folder, as a table in a terminal and as plain lines elsewhere.

Must not know: how the run was made. Runs in: the main thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dpwa.errors import ConfigError
from dpwa.observe.invariants import Check, check_run
from dpwa.observe.lives import Run
from dpwa.observe.run_folder import read_run

__all__ = ["exit_code", "print_verdict", "verify"]

_FIRST_FINDINGS = 3

_COLOURS = {"held": "green", "violated": "bold red", "not checkable": "dim"}


def verify(run_dir: Path, console: Console) -> int:
    """Check a run folder and print what came of it.

    Returns:
        The exit code: 0 if all that could be checked held, 1 after a violation.

    Raises:
        ConfigError: it is not the folder of a run, or its journals are empty.
    """
    run = read_run(run_dir)
    if not run.all_lives():
        raise ConfigError(f"{run_dir}: nothing to check: no node has a journal yet, or all of them are empty")
    checks = check_run(run)
    print_verdict(console, run_dir, run, checks)
    return exit_code(checks)


def exit_code(checks: Sequence[Check]) -> int:
    """1 if an invariant is violated, else 0."""
    return int(any(check.findings for check in checks))


def print_verdict(console: Console, run_dir: Path, run: Run, checks: Sequence[Check]) -> None:
    """Print what a run was, what holds in it, and where something does not."""
    _say(console, _about(run_dir, run))
    if console.is_terminal:
        console.print(_table(checks))
    else:
        for check in checks:
            seen, remark = _seen(check), f"  ({check.remark})" if check.remark else ""
            _say(console, f"{check.invariant.name}  {check.verdict:13}  {check.invariant.statement}{seen}{remark}")
    for line in _findings(checks):
        _say(console, line)
    _say(console, _conclusion(checks))


def _about(run_dir: Path, run: Run) -> str:
    lives = run.all_lives()
    lasted_s = max(life.last_s for life in lives) - min(life.began_s for life in lives)
    blends = sum(len(life.blends) for life in lives)
    return (
        f"{run_dir}: {len(run.lives)} nodes, {len(lives)} lives, {lasted_s:.0f} s, {blends} blends, "
        f"{len(run.faults)} faults from outside"
    )


def _table(checks: Sequence[Check]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for heading in ("", "what must hold", "verdict", "seen"):
        table.add_column(heading, overflow="fold")
    for check in checks:
        verdict = f"[{_COLOURS[check.verdict]}]{check.verdict}[/]"
        seen = ", ".join(filter(None, [_seen(check).strip(" :"), check.remark]))
        table.add_row(check.invariant.name, escape(check.invariant.statement), verdict, escape(seen))
    return table


def _seen(check: Check) -> str:
    return f": {check.observations} {check.invariant.unit}" if check.observations else ""


def _findings(checks: Sequence[Check]) -> Iterator[str]:
    for check in checks:
        for finding in check.findings[:_FIRST_FINDINGS]:
            who = " and ".join(filter(None, [finding.node, finding.peer])) or "the run"
            when = f"{datetime.fromtimestamp(finding.moment_s):%H:%M:%S.%f}"[:-3]
            yield f"{check.invariant.name}: {who}, {when}: {finding.text}"
        more = len(check.findings) - _FIRST_FINDINGS
        if more > 0:
            yield f"{check.invariant.name}: and {more} more"


def _conclusion(checks: Sequence[Check]) -> str:
    counts = {verdict: sum(check.verdict == verdict for check in checks) for verdict in _COLOURS}
    return "; ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False, markup=False)

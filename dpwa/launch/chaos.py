"""`dpwa chaos`: breaks a cluster that runs, or one that it launches, and then says whether all held that must hold.

Must not know: click, how a fault is made. Runs in: the main thread. Linux only, because it looks into /proc.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from dpwa.errors import ConfigError, DpwaError
from dpwa.launch.breaking import Breaker
from dpwa.launch.run_dir import make_run_dir
from dpwa.observe.invariants import check_run
from dpwa.observe.journal import METRICS_FILE, node_folder
from dpwa.observe.live import MetricsTail
from dpwa.observe.run_folder import node_names, read_run
from dpwa.observe.verdict import exit_code, print_verdict

__all__ = ["break_cluster", "break_run"]

PICTURE = "chaos.png"
LOG = "launch.log"

_TURN_S = 0.1
_SETTLE_S = 12.0
"""After the last fault: pairs that were apart have 10 s to exchange again, and a node a moment to write that down."""

_START_S = 120.0
_END_S = 150.0
"""A node that saves a large model may take two minutes."""
_MOST_RESTARTS = 1_000_000


def break_run(run_dir: Path, *, mtbf_s: float, duration_s: float, seed: int, console: Console) -> int:
    """Break the nodes of a run that is going on here, for a while; then leave it alone.

    Returns:
        The exit code: 0 if all held that could be checked, 1 after a violation, or if no fault was made.

    Raises:
        ConfigError: this is no run folder, or fewer than two of its nodes run here.
    """
    _check_system()
    names = node_names(run_dir)
    with _signals() as received:
        chaos = _Chaos(
            run_dir,
            names,
            mtbf_s=mtbf_s,
            duration_s=duration_s,
            seed=seed,
            console=console,
            launch=None,
            received=received,
        )
        alive = chaos.breaker.alive()
        if len(alive) < 2:
            raise ConfigError(
                f"{run_dir}: {len(alive)} of its {len(names)} nodes run on this machine now as processes with this "
                "DPWA_RUN_DIR; expected at least 2, because one is always left alone"
            )
        if not any(victim.restarts for victim in alive.values()):
            chaos.say("this run was not launched with --on-failure restart: who is killed stays away")
        return chaos.run()


def break_cluster(
    cluster_file: Path,
    argv: Sequence[str],
    *,
    mtbf_s: float,
    duration_s: float,
    seed: int,
    run_dir: Path | None,
    console: Console,
) -> int:
    """Launch a cluster whose nodes are restarted when they fail, break it for a while, and end it.

    Returns:
        The exit code, as of `break_run`.

    Raises:
        ConfigError: the file or the command cannot be used.
        DpwaError: the launch ended before the first fault.
    """
    from dpwa.config.cluster import ClusterConfig  # noqa: PLC0415 - pydantic is slow to import

    _check_system()
    config = ClusterConfig.load(cluster_file)
    if len(config.nodes) < 2:
        raise ConfigError(f"{cluster_file}: expected at least 2 nodes, because one is always left alone")
    faults = config.faults.model_copy(update={"steered": True})
    config = config.model_copy(update={"faults": faults, "journal_checksums": True})
    folder = make_run_dir(config, run_dir)
    paths = [os.environ.get("PYTHONPATH"), str(cluster_file.parent.absolute())]  # custom rules lie beside the file
    launch = [sys.executable, "-m", "dpwa", "launch", str(folder / "config.yaml"), "--run-dir", str(folder)]
    options = ["--on-failure", "restart", "--max-restarts", str(_MOST_RESTARTS)]
    with (folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            [*launch, *options, "--", *argv],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            start_new_session=True,  # Ctrl-C is for this process, which then ends the launch
        )
    names = [node.name for node in config.nodes]
    try:
        with _signals() as received:
            chaos = _Chaos(
                folder,
                names,
                mtbf_s=mtbf_s,
                duration_s=duration_s,
                seed=seed,
                console=console,
                launch=process,
                received=received,
            )
            chaos.say(f"launched {len(names)} nodes, which are restarted when they fail; run folder {folder}")
            chaos.wait_for_start()
            return chaos.run()
    finally:
        if process.poll() is None:
            process.kill()  # its guard ends the nodes
            process.wait()


class _Chaos:
    """One time of breaking things: see `break_run`. It ends early when a signal has been received."""

    def __init__(
        self,
        run_dir: Path,
        names: Sequence[str],
        *,
        mtbf_s: float,
        duration_s: float,
        seed: int,
        console: Console,
        launch: subprocess.Popen[bytes] | None,
        received: Sequence[int],
    ) -> None:
        self._run_dir = run_dir
        self._names = names
        self._duration_s = duration_s
        self._console = console
        self._launch = launch
        self._received = received
        self._began_s = time.monotonic()
        self._tails = {name: MetricsTail(node_folder(run_dir, name) / METRICS_FILE) for name in names}
        faults = {} if launch else read_run_settings(run_dir)
        is_steered = launch is not None or bool(faults.get("steered"))
        if not is_steered:
            self.say("no partitions: this run was launched without `faults: {steered: true}`")
        self.breaker = Breaker(run_dir, names, mtbf_s=mtbf_s, is_steered=is_steered, seed=seed, tell=self.say)

    def say(self, line: str) -> None:
        """Print a line, with the time since the beginning."""
        shown = f"{time.monotonic() - self._began_s:6.1f} s  {line}"
        self._console.print(shown, soft_wrap=True, highlight=False, markup=False)

    def wait_for_start(self) -> None:
        """Wait until all nodes train.

        Raises:
            DpwaError: the launch ends before.
        """
        end_s = time.monotonic() + _START_S
        while time.monotonic() < end_s and not self._received:
            for tail in self._tails.values():
                tail.read_new()
            if all(tail.last.get("step", 0) > 0 for tail in self._tails.values()):
                return
            self._refuse_if_ended()
            time.sleep(_TURN_S)
        if self._received:
            return
        raise DpwaError(f"not all nodes train after {_START_S:.0f} s; {self._run_dir / LOG} has their output")

    def _refuse_if_ended(self) -> None:
        if self._has_ended():
            path = self._run_dir / LOG
            last = path.read_text(errors="replace").strip().splitlines()[-3:]
            raise DpwaError("the launch ended before any fault was made; its last lines:\n" + "\n".join(last))

    def run(self) -> int:
        """Break, settle, end what was launched, and give the verdict."""
        try:
            self._break()
            self._watch(_SETTLE_S, "no more faults", may_begin=False)
            if self._received:
                self.say("interrupted")
        finally:
            try:
                self.breaker.undo()
            finally:
                self._end_launch()
        code = self._verdict()
        return 128 + self._received[0] if self._received else code

    def _break(self) -> None:
        self._began_s = time.monotonic()
        self.breaker.begin()
        self._watch(self._duration_s, "breaking things", may_begin=True)
        self.breaker.undo()

    def _watch(self, lasts_s: float, what: str, *, may_begin: bool) -> None:
        """Make turns for so long, and show who is down."""
        end_s = time.monotonic() + lasts_s
        with Live(Text(), console=self._console, auto_refresh=False, transient=True) as live:
            while (left_s := end_s - time.monotonic()) > 0:
                if self._received:
                    return
                if self._has_ended():
                    self.say("all nodes have ended: the run is over")
                    return
                self.breaker.turn(may_begin=may_begin)
                if self._console.is_terminal:
                    live.update(Text(f"  {what}, {left_s:.0f} s left: {self._state()}"), refresh=True)
                time.sleep(min(_TURN_S, left_s))

    def _state(self) -> str:
        for tail in self._tails.values():
            tail.read_new()
        now_s = time.time()
        fresh = [tail.last for tail in self._tails.values() if now_s - tail.last.get("t", 0.0) < 3.0]
        rate = sum(float(line.get("steps_per_s") or 0.0) for line in fresh)
        down = self.breaker.in_words() or "all are up"
        return f"faults: {self.breaker.made}; {down}; {rate:.0f} steps/s together"

    def _has_ended(self) -> bool:
        if self._launch is not None:
            return self._launch.poll() is not None
        return not self.breaker.alive()

    def _end_launch(self) -> None:
        if self._launch is None or self._launch.poll() is not None:
            return
        self._launch.send_signal(signal.SIGTERM)
        self.say("ending the launch")
        before, end_s = len(self._received), time.monotonic() + _END_S
        while self._launch.poll() is None and time.monotonic() < end_s and len(self._received) == before:
            with suppress(subprocess.TimeoutExpired):
                self._launch.wait(_TURN_S)

    def _verdict(self) -> int:
        run = read_run(self._run_dir)
        checks = check_run(run)
        print_verdict(self._console, self._run_dir, run, checks)
        if find_spec("matplotlib") is None:
            self._tell("no picture: matplotlib is not installed (pip install matplotlib)")
        else:
            from dpwa.observe.chaos_picture import draw_chaos  # noqa: PLC0415 - matplotlib is an extra

            draw_chaos(self._run_dir / PICTURE, run)
            self._tell(f"picture: {self._run_dir / PICTURE}")
        if not self.breaker.made:
            self._tell("no fault was made: the run shows nothing; give it more time, or a shorter --mtbf")
            return 1
        return exit_code(checks)

    def _tell(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)


def read_run_settings(run_dir: Path) -> dict[str, object]:
    """What the run's config says under `faults:`."""
    faults = read_run(run_dir).settings.get("faults")
    return dict(faults) if isinstance(faults, dict) else {}


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The numbers of SIGINT, SIGTERM and SIGHUP as they come.

    They raise nothing: between the signal that stops a node and the note that it is stopped nothing may come.
    """
    received: list[int] = []

    def end(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_system() -> None:
    if not (hasattr(os, "pidfd_open") and Path("/proc/self/environ").exists()):
        raise ConfigError("dpwa chaos: expected Linux with /proc, which tells whose process is whose")

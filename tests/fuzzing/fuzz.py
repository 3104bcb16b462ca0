"""Fuzzes one target, guided by coverage, for as long as asked (needs atheris; `make fuzz`).

    python tests/fuzzing/fuzz.py wire FOLDER 60

What was found to reach new code is kept in the folder, so that the next run goes on from there. An input that should
not have done what it did is written there as `crash-...`, `timeout-...` or `oom-...`, and the exit code is not 0.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dpwa", "yaml", "targets"]):
    from targets import SEEDS, TARGETS

_LIMITS = ("-timeout=5", "-rss_limit_mb=1024", "-max_len=8192", "-print_final_stats=1")


def main() -> None:
    """Fuzz the target that the arguments name."""
    name, folder, seconds = sys.argv[1], Path(sys.argv[2]) / sys.argv[1], sys.argv[3]
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[name]):
        (folder / f"seed-{number}").write_bytes(seed)
    limits = (*_LIMITS, f"-max_total_time={seconds}", f"-artifact_prefix={folder}/")
    atheris.Setup([sys.argv[0], str(folder), *limits], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()

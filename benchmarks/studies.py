"""Puts the reports of studies into docs/results.md: the table, how it was made, and one picture of each.

    python benchmarks/studies.py runs/gosgd-p runs/matrices

Each run folder must have been reported (`dpwa lab report`). The page keeps everything outside of the markers
`<!-- study NAME:begin -->` and `<!-- study NAME:end -->`.

Must not know: how a study is made or summarised. Runs in: the main thread.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

from measure import ROOT
from report import between_markers
from rich.console import Console

_PAGE = ROOT / "docs" / "results.md"
_BY_TIME = {"strategies-time", "stragglers-and-faults"}
"""Studies that ask for time: their picture shows the curves over it; that of the others where each row ended."""
_CAPTION = "Accuracy is that of the aggregated model"


def main() -> None:
    """Renew the page."""
    parser = argparse.ArgumentParser(description="Puts the reports of studies into docs/results.md.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR", help="run folders with a report")
    for run_dir in parser.parse_args().runs:
        name = run_dir.resolve().name
        picture = _PAGE.with_name(f"results-{name}.png")
        shutil.copyfile(run_dir / ("accuracy-by-time.png" if name in _BY_TIME else "accuracy.png"), picture)
        block = block_of((run_dir / "results.md").read_text(encoding="utf-8"), name, picture.name)
        text = between_markers(_PAGE.read_text(encoding="utf-8"), f"study {name}", block)
        _PAGE.write_text(text, encoding="utf-8")
        Console().print(f"{name}: table and {picture.name}", highlight=False)


def block_of(results: str, name: str, picture: str) -> str:
    """What stands on the page of a study's results.md: no heading, one picture, no folder of this machine.

    The caption of the table is left out, too: it is the same for all, and the page has it once.

    Args:
        results: the text of results.md.
        name: of the study.
        picture: file of the one picture, beside the page.
    """
    lines = [line for line in results.splitlines() if not line.startswith(("# ", "## ", "![", _CAPTION))]
    text = re.sub(r"`dpwa lab run [^`]*`", f"`dpwa lab run samples/studies/{name}.yaml`", "\n".join(lines))
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    return f"{text}\n\n![{name}]({picture})"


if __name__ == "__main__":
    main()

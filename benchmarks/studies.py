"""Puts the studies of the lab into docs/results.md: table, curves, how it was made.

    python benchmarks/studies.py runs/gosgd-p runs/matrices    # takes the results of these runs, and renews the page
    python benchmarks/studies.py --add runs/gosgd-p            # and keeps the other rows and seeds that there are
    python benchmarks/studies.py                               # renews the page from all results in docs/results

The results of a study are kept in docs/results/NAME.json (see `study_files`): table and curves are made from it and
from samples/studies/NAME.yaml, so that anybody can make them again, or others. The page keeps everything outside of the
markers `<!-- study NAME:begin -->` and `<!-- study NAME:end -->`.

Must not know: how a study is made or summarised. Runs in: the main thread.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

import study_files
from measure import ROOT
from PIL import Image
from report import between_markers
from rich.console import Console

from dpwa.lab.report.class_samples import draw_class_samples
from dpwa.lab.report.content import content_of
from dpwa.lab.report.markdown import markdown
from dpwa.lab.report.pictures import draw
from dpwa.lab.report.summary import summarise
from dpwa.lab.study.study import Study

_STUDIES = ROOT / "samples" / "studies"
_BY_TIME = {"strategies-time", "stragglers-and-faults"}
"""Studies that ask for time: their picture shows the curves over it; that of the others where each row ended."""
_CAPTION = "Accuracy is that of the aggregated model"
_CURVES = {
    "accuracy-by-round": "by round",
    "training-by-round": "by round, on training samples",
    "loss": "training batches",
    "workers": "training batches of every worker",
    "workers-2": "of the next rows",
    "workers-3": "and the next",
    "consensus": "consensus",
    "partition": "who holds what",
    "partition-2": "who holds what in the other rows",
}
"""Charts that a study's block links to, and what they show."""


def main() -> None:
    """Renew the page."""
    parser = argparse.ArgumentParser(description="Puts the studies of the lab into docs/results.md.")
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN_DIR", help="run folders whose results are taken")
    parser.add_argument(
        "--add",
        action="store_true",
        help="keep the trials that there are, of the same commit, and add those of these runs",
    )
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="the folder of results.md and results/")
    given = parser.parse_args()
    folder: Path = given.docs / "results"
    for run_dir in given.runs:
        found = study_files.collect(run_dir)
        path = folder / f"{found['study']}.json"
        if given.add and path.exists():
            found = study_files.added(study_files.read(path), found)
        study_files.write(path, found)
        take_classes(run_dir, folder)
    names = [study_files.read(path)["study"] for path in sorted(folder.glob("*.json"))]
    wanted = [run_dir.resolve().name for run_dir in given.runs] or names
    for name in (name for name in names if name in wanted):
        renew(name, given.docs)
        Console().print(f"{name}: table and curves", highlight=False)


def take_classes(run_dir: Path, folder: Path) -> None:
    """A picture of some images of each class of the data sets of a run."""
    for path in sorted(run_dir.glob("trials/.data/*.safetensors")):
        figure = draw_class_samples(path)
        if figure is not None:
            figure.savefig(folder / f"classes-{path.stem}.png", dpi=100, facecolor="white")


def renew(name: str, docs: Path, study_path: Path | None = None) -> None:
    """Makes table and curves of a study from its results.

    Args:
        name: of the study.
        docs: the folder of results.md and results/.
        study_path: the study file; None: the bundled one of this name.
    """
    study = Study.load(study_path or _STUDIES / f"{name}.yaml")
    summary = summarise(study, study_files.results_of(study_files.read(docs / "results" / f"{name}.json")))
    content = content_of(summary, f"dpwa lab run samples/studies/{name}.yaml")
    with tempfile.TemporaryDirectory(prefix="dpwa-studies-") as drawn:
        made = {Path(file).stem for _, file in draw(summary, Path(drawn)).files}
        picture = f"results-{name}.png"
        shrink(Path(drawn) / f"{'accuracy-by-time' if name in _BY_TIME else 'accuracy'}.png", docs / picture)
        links = [f"[raw results](results/{name}.json)"]
        for chart, what in _CURVES.items():
            if chart in made:
                shrink(Path(drawn) / f"{chart}.png", docs / "results" / f"{name}-{chart}.png")
                links.append(f"[{what}](results/{name}-{chart}.png)")
    links += [
        f"[the classes of {data}](results/classes-{data}.png)"
        for data in dict.fromkeys(row.settings.data for row in study.rows)
        if (docs / "results" / f"classes-{data}.png").exists()
    ]
    page = docs / "results.md"
    block = f"{block_of(markdown(content, ()), name, picture)}\n\n{' · '.join(links)}"
    page.write_text(between_markers(page.read_text(encoding="utf-8"), f"study {name}", block), encoding="utf-8")


def block_of(results: str, name: str, picture: str) -> str:
    """What stands on the page of a study's results.md: no heading, one picture, no folder of this machine.

    The caption of the table is left out, too: it is the same for all, and the page has it once. What it says of this
    study alone stays: the noise floor.

    Args:
        results: the text of results.md.
        name: of the study.
        picture: file of the one picture, beside the page.
    """
    floor = re.search(r"The noise floor is [^\n]*?\)\.", results)
    lines = [line for line in results.splitlines() if not line.startswith(("# ", "## ", "![", _CAPTION))]
    text = re.sub(r"`dpwa lab run [^`]*`", f"`dpwa lab run samples/studies/{name}.yaml`", "\n".join(lines))
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    parts = [text, floor.group() if floor else "", f"![{name}]({picture})"]
    return "\n\n".join(part for part in parts if part)


def shrink(source: Path, target: Path) -> None:
    """Copies a picture in half its size, with a palette of 256 colours: a quarter of the bytes.

    By an octree: a median cut spends its colours on shades of grey, and gives lines of two colours the same one.
    """
    with Image.open(source) as whole:
        small = whole.convert("RGB").resize((whole.width // 2, whole.height // 2), Image.Resampling.LANCZOS)
        small.quantize(256, Image.Quantize.FASTOCTREE).save(target, optimize=True)


if __name__ == "__main__":
    main()

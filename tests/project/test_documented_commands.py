"""Every command line of README, CONTRIBUTING and docs/ can be typed as it stands.

Each is parsed by the command line that it is meant for, and the files that it names exist. What takes a moment is run.
Everything else says in its comment how long it takes.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from documentation import DURATION, PAGES, CommandLine, blocks, commands

from dpwa.cli import main
from dpwa.lab.commands import study_path
from support import ROOT

# Pages whose indented blocks may be drawings, tables or formulas.
WITH_DRAWINGS = {"README.md", "architecture.md", "interpolation.md", "methods.md", "protocol.md"}

# What a reader puts in: whatever stands in capitals. Files without a folder are a reader's own, too.
PLACEHOLDER = re.compile(r"\.\.\.|…|[A-Z][A-Z_]*")

# Commands that take a moment, so that their lines need not say how long: those that are run here, and those that need
# the results of others.
RUN_HERE = {"init", "check", "schema", "topology draw", "lab list"}
QUICK = {*RUN_HERE, "average", "lab report", "verify", "keys init", "keys invite", "keys revoke", "keys rotate"}

COMMANDS = commands()
OF_DPWA = [command for command in COMMANDS if command.words[0] == "dpwa"]


def resolved(words: tuple[str, ...]) -> tuple[str, click.Command, list[str]]:
    """The full name of dpwa's command that such words begin, the command itself, and its arguments."""
    command: click.Command = main
    names, arguments = [], list(words[1:])
    while isinstance(command, click.Group):
        assert arguments, f"{shlex.join(words)}: a command is missing behind it"
        assert arguments[0] in command.commands, f"{shlex.join(words)}: there is no command {arguments[0]}"
        names.append(arguments.pop(0))
        command = command.commands[names[-1]]
    return " ".join(names), command, arguments


def missing_files(words: tuple[str, ...]) -> list[str]:
    """Files of the checkout among these words that are not there."""
    named = [word for word in words if re.fullmatch(r"[\w./-]+/[\w.-]+\.(?:yaml|py|csv|md)", word)]
    modules = re.findall(r"python -m (dpwa\.\S+)", " ".join(words))
    named += [module.removeprefix("dpwa.").replace(".", "/") + ".py" for module in modules]
    return [name for name in named if not (ROOT / name).exists()]


def unknown_options(words: tuple[str, ...]) -> list[str]:
    """Options of an example or a benchmark that its source does not name."""
    scripts = [place for place, word in enumerate(words) if re.fullmatch(r".+/.+\.py", word)]
    if not scripts or "pytest" in words:
        return []
    source = (ROOT / words[scripts[0]]).read_text(encoding="utf-8") + '"--help"'
    shared = "examples/command_line.py" if words[scripts[0]].startswith("examples/") else "benchmarks/measure.py"
    source += (ROOT / shared).read_text(encoding="utf-8")
    return [word for word in words[scripts[0] :] if word.startswith("--") and f'"{word}"' not in source]


def runs_a_script_of_the_reader(words: tuple[str, ...]) -> bool:
    """Whether nobody else knows how long it takes."""
    return any(word.endswith(".py") and "/" not in word for word in words)


def test_every_indented_block_is_known_to_be_commands_or_a_drawing() -> None:
    unknown = [
        block.place
        for block in blocks()
        if not block.language
        and not block.has_commands
        and not block.text.startswith("{")  # a line of a journal
        and block.page not in WITH_DRAWINGS
    ]
    assert unknown == [], (
        "neither commands nor drawings: begin such a block with a program of PROGRAMS in tests/documentation.py, fence "
        "it with ```text, or add its page to WITH_DRAWINGS"
    )


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_line_can_be_typed_as_it_stands(command: CommandLine) -> None:
    program, *arguments = command.words
    assert missing_files(command.words) == []
    assert unknown_options(command.words) == []
    if program == "dpwa":
        name, parser, rest = resolved(command.words)
        with parser.make_context(name, rest):  # refuses what it does not know
            pass
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(arguments) <= set(targets)
    elif program == "pip":
        known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
        extras = [extra for word in arguments for group in re.findall(r"\[(.+)\]", word) for extra in group.split(",")]
        assert set(extras) <= set(known)
        assert not any(word.startswith("dpwa[") for word in arguments), "dpwa is not on PyPI: name a folder or a wheel"


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_line_that_takes_longer_than_a_moment_says_how_long(command: CommandLine) -> None:
    is_quick = command.words[0] in (".", "diff")
    if command.words[0] == "dpwa":
        is_quick = resolved(command.words)[0] in QUICK
    if not runs_a_script_of_the_reader(command.words):
        assert is_quick or DURATION.search(command.comment), (
            f"{command}: say in a comment at the end of the line how long it takes, such as '# 2 minutes'"
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_says_of_a_command_within_a_sentence_is_right(page: Path) -> None:
    """`dpwa ...` between two words: its command and its options exist."""
    for span in re.findall(r"`(dpwa [^`]+)`", page.read_text(encoding="utf-8").replace("\n", " ")):
        words = tuple(shlex.split(span))
        while words[1:] and (PLACEHOLDER.fullmatch(words[-1]) or words[-1] == "--"):
            words = words[:-1]
        if words[1:2] == ("lab",) and len(words) == 2:
            continue  # the group as a whole
        _, command, arguments = resolved(words)
        mine = arguments[: arguments.index("--")] if "--" in arguments else arguments
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        known.add("--help")
        assert {word for word in mine if word.startswith("-")} <= known, span
        assert missing_files(words) == [], span


def test_a_launch_in_a_table_says_how_long_it_takes() -> None:
    rows = [
        line
        for page in PAGES
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("|") and re.search(r"`dpwa launch [^`]+ -- [^`]+/", line)
    ]
    assert rows
    for row in rows:
        assert DURATION.search(row.rstrip("| ").rpartition("|")[2]), f"{row}\nexpected a time in the last cell"


def _told_in_comments() -> list[tuple[str, str]]:
    """Command lines in the comments of samples, and in the docstrings of examples."""
    paths = [*ROOT.glob("samples/**/*.yaml"), *ROOT.glob("examples/**/*.yaml"), *ROOT.glob("examples/**/*.py")]
    return [
        (str(path.relative_to(ROOT)), line)
        for path in paths
        for line in re.findall(
            r"^(?:# *|[\w ]*: +)(dpwa (?:launch|average|lab|check).*)$", path.read_text("utf-8"), re.MULTILINE
        )
    ]


def test_the_commands_in_the_comments_of_samples_and_examples_can_be_typed() -> None:
    told = _told_in_comments()
    assert len(told) > 20
    for place, line in told:
        words = tuple(shlex.split(line, comments=True))
        name, parser, rest = resolved(words)
        with parser.make_context(name, rest):
            pass
        assert missing_files(words) == [], place
        assert unknown_options(words) == [], place


def test_the_studies_that_pages_name_are_there() -> None:
    named = [command.words[3] for command in OF_DPWA if command.words[1:3] == ("lab", "run")]
    assert named
    assert all(study_path(Path(name)).exists() for name in named if not name.endswith(".yaml") or "/" in name)


@pytest.mark.parametrize("page", sorted({command.place.split(":")[0] for command in OF_DPWA}))
def test_the_commands_of_a_page_that_take_a_moment_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("samples", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    for command in OF_DPWA:
        if command.place.split(":")[0] == page and resolved(command.words)[0] in RUN_HERE:
            done = CliRunner().invoke(main, command.words[1:])
            assert done.exit_code == 0, f"{command}\n{done.output}"
            if command.output:
                Path(command.output).write_text(done.stdout, encoding="utf-8")


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.timeout(300)
def test_the_quick_start_of_the_readme_runs_as_it_is_typed(tmp_path: Path) -> None:
    (block,) = [block for block in blocks() if block.page == "README.md" and "dpwa init" in block.text]
    activate, *lines = block.text.splitlines()
    assert activate.startswith(". .venv/bin/activate")
    for name in ("samples", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    done = subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", "\n".join(lines)],
        cwd=tmp_path,
        env={**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "dpwa: 4 of 4 nodes ended well; run folder" in done.stderr
    (average,) = re.findall(r"^the average of 4 models: (.+)$", done.stdout, re.MULTILINE)
    assert float(average) > 0.9

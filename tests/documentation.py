"""The blocks of code and the command lines of README, CONTRIBUTING and docs/, for the tests that run them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from support import ROOT

PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))

# Programs that a command line of a page may begin with. Another one in a block of commands fails a test.
# The engines' are run by tests/engines.
PROGRAMS = (
    "dpwa",
    "python",
    ".venv/bin/python",
    "make",
    "pip",
    ".",
    "diff",
    "torchrun",
    "srun",
    "sbatch",
    "mpiexec",
    "sh",
)

DURATION = re.compile(r"\b(?:seconds?|minutes?|hours?)\b")


@dataclass(frozen=True)
class Block:
    """A block of a page: fenced, with its language, or indented by four spaces, with the language "".

    Attributes:
        page: the page's name.
        line: the number of its first line of text, from 1.
        language: the word behind the fence.
        text: without fence and indentation.
    """

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """Where the block stands, for people."""
        return f"{self.page}:{self.line}"

    @property
    def has_commands(self) -> bool:
        """Whether its lines are typed into a shell."""
        if self.language in ("sh", "bash", "console"):
            return True
        return not self.language and any(CommandLine.of(self, 0, line) for line in self.text.splitlines()[:1])

    def commands(self) -> Iterator[CommandLine]:
        """Its command lines; a line that none of the known programs begins is None's place: an error of the page."""
        for number, line in enumerate(self.text.splitlines()):
            if line.strip() and not line.startswith("#"):
                command = CommandLine.of(self, number, line)
                assert command, (
                    f"{self.page}:{self.line + number}: no program that the tests know begins this line: {line!r}; "
                    f"add it to PROGRAMS in tests/documentation.py and say there or in the tests how it is checked"
                )
                yield command


@dataclass(frozen=True)
class CommandLine:
    """A command as it is typed.

    Attributes:
        place: page and line.
        words: program and arguments, without variables before them.
        output: the file behind ">"; "" for none.
        comment: what stands behind "#".
    """

    place: str
    words: tuple[str, ...]
    output: str
    comment: str

    @classmethod
    def of(cls, block: Block, number: int, line: str) -> CommandLine | None:
        """The command of a line of a block; None if no known program begins it."""
        line, _, comment = line.partition(" #")
        try:
            words = shlex.split(line)
        except ValueError:  # an apostrophe: prose
            return None
        while words and re.fullmatch(r"[A-Z_]+=\S+", words[0]):
            del words[0]
        if not words or words[0] not in PROGRAMS:
            return None
        output = words.pop() if words[-2:-1] == [">"] else ""
        words = [word for word in words if word != ">"]
        return cls(f"{block.page}:{block.line + number}", tuple(words), output, comment.strip())

    def __str__(self) -> str:
        return f"{self.place}: {shlex.join(self.words)}"


@cache
def blocks() -> tuple[Block, ...]:
    """All blocks of all pages."""
    return tuple(block for page in PAGES for block in _blocks_of(page))


def of_language(language: str) -> list[Block]:
    """All blocks that are fenced with this word."""
    return [block for block in blocks() if block.language == language]


def commands() -> list[CommandLine]:
    """All command lines that stand in blocks."""
    return [command for block in blocks() if block.has_commands for command in block.commands()]


def _blocks_of(path: Path) -> Iterator[Block]:
    lines = path.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        start = number
        if fence := re.fullmatch(r"```(\w*)", lines[number]):
            end = lines.index("```", number + 1)
            yield Block(path.name, start + 2, fence[1], "\n".join(lines[start + 1 : end]))
            number = end + 1
        elif lines[number].startswith("    ") and (number == 0 or not lines[number - 1].strip()):
            while number < len(lines) and (lines[number].startswith("    ") or not lines[number].strip()):
                number += 1
            text = "\n".join(line[4:] for line in lines[start:number]).rstrip()
            yield Block(path.name, start + 1, "", text)
        else:
            number += 1

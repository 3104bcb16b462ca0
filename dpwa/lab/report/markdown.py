"""The report as Markdown, to paste into a document: the table, how it was made, the charts by relative names.

Runs in: any thread; pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dpwa.lab.report.content import Content
from dpwa.lab.report.text import Heading

__all__ = ["markdown"]


def markdown(content: Content, pictures: Sequence[tuple[str, str]]) -> str:
    """The text of results.md.

    Args:
        content: of the report.
        pictures: titles and file names of the charts beside this file.
    """
    study = content.summary.study
    blocks = [f"## {_escaped(study.title)}"]
    if study.question:
        blocks.append(_escaped(study.question))
    blocks.append(_escaped(content.trained))
    blocks += _tables(content)
    blocks.append(_escaped(content.caption))
    if content.warnings:
        blocks.append("\n".join(f"- {_escaped(warning)}" for warning in content.warnings))
    made = [f"- {term}: {_code(text) if term == 'command' else _escaped(text)}" for term, text in content.made]
    blocks.append("\n".join(["How it was made:", "", *made]))
    blocks += [f"![{_escaped(title)}]({name})" for title, name in pictures]
    return "\n\n".join(blocks) + "\n"


def _tables(content: Content) -> list[str]:
    """The table; of a folded study first what its last key changes, and the whole table for those who open it."""
    columns, rows = content.columns, content.summary.rows
    cells = [[column.text(row) for column in columns] for row in rows]
    whole = _table(columns, cells)
    if content.folded is None:
        return [whole]
    headings, shown = content.folded
    opened = f"<details>\n<summary>All columns of the {len(rows)} rows</summary>"
    return [_table(headings, shown), opened, whole, "</details>"]


def _table(columns: Sequence[Heading], cells: Sequence[Sequence[str]]) -> str:
    lines = [_line([_escaped(column.title) for column in columns]), _line([_alignment(column) for column in columns])]
    return "\n".join([*lines, *(_line([_escaped(cell) for cell in row]) for row in cells)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _alignment(column: Heading) -> str:
    return "---:" if column.is_number else "---"


def _escaped(text: str) -> str:
    """Text for Markdown: nothing in it becomes a table's border, a tag, a link or emphasis."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """Text as code, in a fence that is longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence}{text}{fence}"

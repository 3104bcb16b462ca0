"""The report as one self-contained HTML page: no scripts, no other files, no network.

It is `page.html.jinja` with the style `page.css`; the template engine escapes every text.

Runs in: any thread. Imports jinja2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined

from dpwa.lab.report.content import Content

__all__ = ["Picture", "page"]


@dataclass(frozen=True)
class Picture:
    """A chart in the page.

    Attributes:
        title: what it shows.
        caption: how to read it.
        svg: an HTML element, trusted.
        is_wide: whether it has a row of the page to itself, where others stand two side by side.
    """

    title: str
    caption: str
    svg: str
    is_wide: bool = False


def page(content: Content, pictures: Sequence[Picture], keys: Sequence[str]) -> str:
    """The page.

    Args:
        content: of the report.
        pictures: in order.
        keys: for each row an HTML element that shows the style of its lines, trusted.
    """
    environment = Environment(
        loader=PackageLoader("dpwa.lab.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html.jinja").render(
        content=content,
        study=content.summary.study,
        pictures=pictures,
        keys=keys,
        style=files("dpwa.lab.report").joinpath("page.css").read_text(encoding="utf-8"),
    )

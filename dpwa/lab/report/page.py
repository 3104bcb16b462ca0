"""The report as one HTML page that needs nothing else: no scripts, no other files, no network.

The page is `page.html.jinja` with the style `page.css`; every word is escaped by the template engine.

Must not know: how numbers and pictures are made. Runs in: any thread. Imports jinja2.
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
    """A picture in the page.

    Attributes:
        title: what it shows.
        caption: how to read it.
        svg: an element of a page, trusted.
    """

    title: str
    caption: str
    svg: str


def page(content: Content, pictures: Sequence[Picture], keys: Sequence[str]) -> str:
    """The page.

    Args:
        content: of the report.
        pictures: in order.
        keys: an element per row that shows what its lines look like, trusted.
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

"""A chart as SVG inside a page. Text stays text; ink, grid and ground are those of the page, light or dark.

Runs in: the calling thread. Imports matplotlib.
"""

from __future__ import annotations

import io
import re
from html import escape

import matplotlib
from matplotlib.figure import Figure

from dpwa.lab.report.lines import GRID, INK

__all__ = ["inline_svg", "page_colour"]

_OF_THE_PAGE = {INK: "var(--text)", GRID: "var(--rule)"}


def inline_svg(figure: Figure, *, name: str, title: str) -> str:
    """The chart as an HTML element.

    Args:
        figure: the chart.
        name: unique in the page: prefix of the chart's ids.
        title: what it shows, for readers who cannot see it.
    """
    for axes in figure.axes:
        axes.patch.set_facecolor("none")
    file = io.StringIO()
    # The salt makes the file reproducible, and its ids different from those of other charts.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", facecolor="none", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\g<1>#{name}-", text)
    for colour in _OF_THE_PAGE:
        text = text.replace(colour, page_colour(colour))
    # A hundredth of a point is finer than any screen.
    text = re.sub(r' d="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), text)
    text = re.sub(r"\s*\n\s*", "\n", text)
    head = re.match(r"<svg[^>]*>", text)
    view = re.search(r'viewBox="[^"]*"', text)
    if head is None or view is None:
        raise ValueError(f"expected an SVG picture with a viewBox, got one that begins with {text[:100]!r}")
    label = escape(title, quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {view[0]} role="img" '
        f'aria-label="{label}">{text[head.end() :].strip()}'
    )


def page_colour(colour: str) -> str:
    """The colour as a value of CSS: that of the page where the chart has it from there. Not for SVG's attributes."""
    return _OF_THE_PAGE.get(colour, colour)

"""A picture as SVG inside of a page: text stays text, colours follow the page's light or dark theme.

Must not know: what the picture shows. Runs in: the thread that calls it. Imports matplotlib.
"""

from __future__ import annotations

import io
import re
from html import escape

import matplotlib
from matplotlib.figure import Figure

from dpwa.lab.report.lines import COLOURS, GRID, INK

__all__ = ["THEMES", "colour_variable", "inline_svg"]

# On dark the same hues, lighter.
_DARK_COLOURS = ("#4aa3df", "#f07f3c", "#2fc79c", "#e39cc4", "#f0b63c", "#a3d8fa", "#ececea")
_NAMES = {GRID: "grid", INK: "ink", **{colour: f"row{at}" for at, colour in enumerate(COLOURS) if colour != INK}}
_DARK = {GRID: "#3d3d3b", INK: "#ececea", **dict(zip(COLOURS, _DARK_COLOURS, strict=True))}

THEMES = {
    "light": "".join(f"--{name}:{colour};" for colour, name in _NAMES.items()),
    "dark": "".join(f"--{name}:{_DARK[colour]};" for colour, name in _NAMES.items()),
}
"""Declarations of CSS that the colours of the pictures come from."""


def colour_variable(colour: str) -> str:
    """The CSS value that follows the theme, of a colour of rows, text or grid."""
    return f"var(--{_NAMES[colour]})"


def inline_svg(figure: Figure, *, name: str, title: str, follows_theme: bool = True) -> str:
    """The picture as an element of a page.

    Args:
        figure: the picture.
        name: unique in the page: the ids of the picture begin with it.
        title: what it shows, for those who do not see it.
        follows_theme: whether its colours are those of `THEMES`; otherwise it keeps its own, and a white ground.
    """
    file = io.StringIO()
    # The salt makes the file the same each time, and its ids different from those of other pictures.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=follows_theme, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\g<1>#{name}-", text)
    # A hundredth of a point is finer than any screen.
    text = re.sub(r' d="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), text)
    text = re.sub(r"\s*\n\s*", "\n", text)
    if follows_theme:
        for colour in _NAMES:
            text = re.sub(rf"(?<=: ){colour}\b", colour_variable(colour), text)
    head = re.match(r"<svg[^>]*>", text)
    view = re.search(r'viewBox="[^"]*"', text)
    if head is None or view is None:
        raise ValueError(f"expected an SVG picture with a viewBox, got one that begins with {text[:100]!r}")
    label = escape(title, quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {view[0]} role="img" '
        f'aria-label="{label}">{text[head.end() :].strip()}'
    )

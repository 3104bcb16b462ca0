"""A picture as SVG inside of a page, on the white ground that it was drawn for. Text stays text.

Must not know: what the picture shows. Runs in: the thread that calls it. Imports matplotlib.
"""

from __future__ import annotations

import io
import re
from html import escape

import matplotlib
from matplotlib.figure import Figure

__all__ = ["inline_svg"]


def inline_svg(figure: Figure, *, name: str, title: str) -> str:
    """The picture as an element of a page.

    Args:
        figure: the picture.
        name: unique in the page: the ids of the picture begin with it.
        title: what it shows, for those who do not see it.
    """
    file = io.StringIO()
    # The salt makes the file the same each time, and its ids different from those of other pictures.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\g<1>#{name}-", text)
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

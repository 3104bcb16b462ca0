"""The report as one HTML page that needs nothing else: no scripts, no other files, no network.

Must not know: how numbers and pictures are made. Runs in: any thread; pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from string import Template

from dpwa.lab.report.content import Content
from dpwa.lab.report.summary import RowSummary

__all__ = ["Picture", "page"]


@dataclass(frozen=True)
class Picture:
    """A picture in the page.

    Attributes:
        title: what it shows.
        caption: how to read it.
        svg: an element of a page, trusted.
        follows_theme: whether its colours are the page's.
    """

    title: str
    caption: str
    svg: str
    follows_theme: bool = True


_MOST_LETTERS = 60  # of a setting: it may be a whole matrix

_STYLE = Template("""
:root{color-scheme:light dark;--page:#fcfcfb;--text:#1f1f1e;--soft:#5d5d5a;--rule:#dededc;--good:#1a7f4b;
--bad:#b3400a;--card:#f4f4f2;$light}
@media screen and (prefers-color-scheme:dark){:root{--page:#191918;--text:#ececea;--soft:#a9a9a5;--rule:#3d3d3b;
--good:#5cc995;--bad:#f39a6b;--card:#242423;$dark}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:78rem;padding:1.5rem 1rem 4rem;background:var(--page);color:var(--text);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:1.7rem;line-height:1.2;margin:.5rem 0}h2{font-size:1.2rem;margin:2.2rem 0 .5rem}
p{max-width:46rem}.soft,figcaption,caption{color:var(--soft);font-size:.875rem}
.wide{overflow-x:auto;margin:.8rem 0}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .45rem;border-bottom:1px solid var(--rule);text-align:right;vertical-align:top;white-space:nowrap}
th{vertical-align:bottom;font-weight:600}thead th{white-space:normal}
.words,.setting{text-align:left}td.words{white-space:normal;min-width:8rem}
tbody th{text-align:left;vertical-align:top;position:sticky;left:0;background:var(--page);font-weight:600;
white-space:normal;min-width:12rem;max-width:16rem}
tbody th:has(.key){padding-left:2.2rem;text-indent:-2rem}
.key{display:inline-block;width:1.6rem;height:.65rem;margin-right:.4rem;vertical-align:baseline}
.warning{border-left:.25rem solid var(--bad);background:var(--card);padding:.6rem 1rem;margin:1rem 0}
.warning ul{margin:.3rem 0;padding-left:1.2rem}
figure{margin:0 0 2rem}figure svg{display:block;width:100%;height:auto;min-width:36rem;max-width:58rem}
figure svg text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif!important}
.ground{background:#fff;padding:.5rem;width:fit-content;min-width:min(100%,37rem)}
.ground svg{max-width:44rem}
.findings{list-style:none;padding:0}.findings li{margin:.5rem 0;padding-left:6.2rem;position:relative;max-width:52rem}
.findings b{position:absolute;left:0;font-size:.8rem;line-height:1.9}
.equal b{color:var(--good)}.unequal b{color:var(--bad)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.25rem 1rem}dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
@media (max-width:40rem){
tbody th{min-width:8.5rem;max-width:9.5rem}
dl{grid-template-columns:1fr}.findings li{padding-left:0}
.findings b{position:static;display:block}}
@media print{body{max-width:none;padding:0;font-size:10pt}table{font-size:7pt}th,td{padding:.15rem .3rem}
.wide{overflow:visible}figure svg{min-width:0}figure,tr,li{break-inside:avoid}h2{break-after:avoid}
tbody th,td.words{min-width:0}tbody th{position:static}
th,td{white-space:normal;overflow-wrap:anywhere}}
""")


def page(content: Content, pictures: Sequence[Picture], themes: dict[str, str], keys: Sequence[str]) -> str:
    """The page.

    Args:
        content: of the report.
        pictures: in order.
        themes: declarations of CSS for the pictures' colours: "light" and "dark".
        keys: an element per row that shows what its lines look like, trusted.
    """
    study = content.summary.study
    title = escape(study.title)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>",
        f"<style>{_STYLE.substitute(themes)}</style>",
        "</head>",
        "<body>",
        f'<p class="soft">dpwa lab · study {escape(study.name)}</p>',
        f"<h1>{title}</h1>",
    ]
    if study.question:
        parts.append(f"<p>{escape(study.question)}</p>")
    parts += [
        *_warnings(content),
        "<h2>Results</h2>",
        _results(content, keys),
        f'<p class="soft">{escape(content.caption)}</p>',
        *(_figure(picture) for picture in pictures),
        *_settings(content),
        *_fairness(content),
        "<h2>How to run it again</h2>",
        _made(content),
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _warnings(content: Content) -> list[str]:
    if not content.warnings:
        return []
    items = "".join(f"<li>{escape(warning)}</li>" for warning in content.warnings)
    return [f'<div class="warning" role="note"><strong>Before you compare</strong><ul>{items}</ul></div>']


def _results(content: Content, keys: Sequence[str]) -> str:
    head = "".join(
        f'<th scope="col"{"" if column.is_number else _WORDS}>{escape(column.title)}</th>' for column in content.columns
    )
    body = []
    for row, key in zip(content.summary.rows, keys, strict=True):
        cells = [f'<th scope="row">{key}{escape(row.name)}</th>']
        cells += [
            f"<td{'' if column.is_number else _WORDS}>{escape(column.text(row))}</td>" for column in content.columns[1:]
        ]
        body.append(f"<tr>{''.join(cells)}</tr>")
    return _table(head, body)


_WORDS = ' class="words"'


def _table(head: str, body: Sequence[str]) -> str:
    # A region that can be scrolled must be reachable by keyboard.
    return (
        f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{chr(10).join(body)}\n</tbody></table></div>"
    )


def _figure(picture: Picture) -> str:
    ground = "" if picture.follows_theme else " ground"
    return (
        f'<figure><h2>{escape(picture.title)}</h2><div class="wide{ground}" tabindex="0">{picture.svg}</div>'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def _settings(content: Content) -> list[str]:
    parts = ["<h2>What was trained</h2>"]
    if content.different:
        head = "".join(f'<th scope="col"{_WORDS}>{escape(name)}</th>' for name in ("row", *content.different))
        parts.append(_table(head, [_setting_line(content, row) for row in content.summary.rows]))
    shared = ", ".join(f"{key} {value}" for key, value in content.shared.items())
    parts.append(f"<p>The same for all rows: {escape(shared)}.</p>")
    return parts


def _setting_line(content: Content, row: RowSummary) -> str:
    cells = "".join(f'<td class="setting">{escape(_short(value))}</td>' for value in content.settings_of(row))
    return f'<tr><th scope="row">{escape(row.name)}</th>{cells}</tr>'


def _short(text: str) -> str:
    return text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 1]}…"


def _fairness(content: Content) -> list[str]:
    if not content.findings:
        return []
    words = {True: ("equal", "✓ equal"), False: ("unequal", "⚠ differs")}
    items = [
        f'<li class="{words[finding.is_equal][0]}"><b>{words[finding.is_equal][1]}</b> {escape(finding.text)}</li>'
        for finding in content.findings
    ]
    return ["<h2>Is the comparison fair?</h2>", f'<ul class="findings">{"".join(items)}</ul>']


def _made(content: Content) -> str:
    lines = [
        f"<dt>{escape(term)}</dt><dd>{f'<code>{escape(text)}</code>' if term == 'command' else escape(text)}</dd>"
        for term, text in content.made
    ]
    return f"<dl>{''.join(lines)}</dl>"

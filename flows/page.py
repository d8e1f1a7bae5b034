"""The report's page: the pieces it is put together from, and the whole with its style (`page.css`) and one script (`page.js`).

It loads nothing from anywhere, and works without the script, which only sorts tables by the column whose head is chosen.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from markupsafe import Markup, escape

from flows.theme import variables


class Cell(NamedTuple):
    """What a cell shows, and what it is sorted by."""

    shown: Any
    key: float | str | None = None


class Column(NamedTuple):
    name: str
    group: str = ""
    """What stands above it and its neighbours of the same group."""
    note: str = ""
    """Beneath the group's name."""
    falls: bool = False
    """Whether the rows stand in its order, the highest first."""


def joined(parts: Sequence[Any], between: str = "") -> Markup:
    return Markup(between).join(parts)


def words(text: Any) -> Markup:
    """What may take several lines of a cell."""
    return Markup("<span class=words>{}</span>").format(text)


def section(title: str, *parts: Any, level: int = 2, anchor: str = "") -> Markup:
    """A heading and what stands under it."""
    text = Markup("<section{}><h{}>{}</h{}>\n{}</section>\n")
    return text.format(Markup(" id='{}'").format(anchor) if anchor else "", level, title, level, joined(parts, "\n"))


def folded(summary: Any, *parts: Any, is_open: bool = False) -> Markup:
    """What is shown when its summary is chosen."""
    text = Markup("<details{}><summary>{}</summary>\n{}</details>\n")
    return text.format(" open" if is_open else "", summary, joined(parts, "\n"))


def paragraph(text: Any, kind: str = "") -> Markup:
    return Markup("<p class='{}'>{}</p>" if kind else "<p{}>{}</p>").format(kind, text)


def bullets(lines: Sequence[Any], kind: str = "plain") -> Markup:
    return Markup("<ul class='{}'>{}</ul>").format(kind, joined([Markup("<li>{}</li>").format(line) for line in lines]))


def table(
    columns: Sequence[str | Column], rows: Sequence[Sequence[Any]], label: str, *, sortable: bool = False
) -> Markup:
    """A table that scrolls by itself where it is wide. Of each row the first cell names it."""
    heads = [c if isinstance(c, Column) else Column(c) for c in columns]
    body = joined(
        [Markup("<tr>{}</tr>").format(joined([_cell(c, i == 0) for i, c in enumerate(row)])) for row in rows], "\n"
    )
    order = {True: Markup(" aria-sort=descending"), False: ""}
    names = joined([Markup("<th scope=col{}>{}</th>").format(order[h.falls], h.name) for h in heads])
    text = (
        "<div class=scroll tabindex=0 role=region aria-label='{}'><table{}><thead>{}<tr>{}</tr></thead>"
        "<tbody>\n{}\n</tbody></table></div>\n"
    )
    return Markup(text).format(label, Markup(" class=sortable") if sortable else "", _groups(heads), names, body)


def _groups(heads: Sequence[Column]) -> Markup:
    """The row above the columns' names, where there are groups."""
    if not any(h.group for h in heads):
        return Markup("")
    cells, at = [], 0
    while at < len(heads):
        wide = 1
        while heads[at].group and at + wide < len(heads) and heads[at + wide].group == heads[at].group:
            wide += 1
        note = Markup(" <small>{}</small>").format(heads[at].note) if heads[at].note else ""
        cell = Markup("<th colspan={} scope=colgroup class=group>{}{}</th>") if heads[at].group else Markup("<td></td>")
        cells.append(cell.format(wide, heads[at].group, note))
        at += wide
    return Markup("<tr>{}</tr>").format(joined(cells))


def _cell(content: Any, names_row: bool) -> Markup:
    cell = content if isinstance(content, Cell) else Cell(content)
    key = Markup(" data-key='{}'").format(cell.key) if cell.key is not None else ""
    if names_row:
        return Markup("<th scope=row{}>{}</th>").format(key, breakable(cell.shown))
    return Markup("<td{}>{}</td>").format(key, cell.shown)


def breakable(shown: Any) -> Any:
    """The name of a stage, broken between its words where it has to be."""
    if isinstance(shown, Markup) or not isinstance(shown, str):
        return shown
    return Markup(re.sub(r"(?<=[_,=])(?=.)|(?<=.)(?=\[)", "<wbr>", str(escape(shown))))


def switch(name: str, choices: Sequence[tuple[str, Markup]]) -> Markup:
    """One of several pieces at a time, chosen by name, without a script."""
    buttons = [
        Markup("<input type=radio name='{}' id='{}-{}'{}><label for='{}-{}'>{}</label>").format(
            name, name, i, " checked" if i == 0 else "", name, i, label
        )
        for i, (label, _) in enumerate(choices)
    ]
    panels = [Markup("<div class=choice>{}</div>").format(piece) for _, piece in choices]
    return Markup("<div class=switch role=group aria-label='{}'>{}{}</div>\n").format(
        ", ".join(label for label, _ in choices), joined(buttons), joined(panels)
    )


def figures(panels: Sequence[Markup], caption: Any, numbers: str, legend: Markup | str = "") -> Markup:
    """Panels side by side, or beneath each other where there is no room, with what they show and where their numbers are."""
    text = "<figure><div class=panels>{}</div>{}<figcaption>{} <a href='{}'>{}</a></figcaption></figure>\n"
    return Markup(text).format(joined(panels, "\n"), legend, caption, quote(numbers), numbers)


def page(title: str, parts: Sequence[Any]) -> str:
    """The whole document. What it may load is nothing, and what it may run this one script: it says so to the browser."""
    style, script = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (
        f'<!doctype html>\n<html lang=en><head><meta charset=utf-8><meta http-equiv=Content-Security-Policy content="{policy}">'
        f"<title>{escape(title)}</title><meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<meta name=color-scheme content='light dark'><style>\n{variables()}{style}</style></head><body><main>\n"
        f"{joined(parts, chr(10))}\n</main><script>{script}</script></body></html>\n"
    )

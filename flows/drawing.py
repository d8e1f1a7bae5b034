"""A figure as SVG for a page and for itself: themed colours, a name for who cannot see it, no ids but its own."""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib.figure import Figure

from flows.theme import themed, variables

SVG, LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
HALO = "text { paint-order: stroke; stroke: var(--page); stroke-width: 2.5px }"
"""Keeps a name readable on a line."""
TIP = "tip:"
"""Begins the id of what is to tell something where a pointer rests on it."""

ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", LINK)


@dataclass(frozen=True)
class Drawing:
    """One figure."""

    title: str
    """As it stands in the figure."""
    about: str
    """What it shows, in words."""
    inline: Markup
    """For a page that has the colours' variables."""

    @property
    def standalone(self) -> str:
        """A file of its own, in light and dark."""
        style = f"<style>{variables('svg')} svg {{ background: var(--page) }} {HALO}</style>"
        head, _, rest = self.inline.partition(">")
        return f'{head} xmlns="{SVG}" xmlns:xlink="{LINK}">{style}{rest}\n'

    @classmethod
    def of(cls, figure: Figure, title: str, about: str) -> Drawing:
        """Of a figure that was drawn in the light theme's colours."""
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        return cls(title, about, Markup(_cleaned(text.getvalue(), f"{title}. {about}")))  # labels are escaped in it


def _cleaned(drawing: str, name: str) -> str:
    """Without what a page has no use for; ids that nothing refers to go, and the others get a prefix of this figure's."""
    root = ElementTree.fromstring(drawing)
    prefix = "f" + hashlib.sha256((drawing + name).encode()).hexdigest()[:8]
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', drawing))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        own = element.attrib.pop("id", "")
        if own.startswith(TIP):
            tip = ElementTree.Element(f"{{{SVG}}}title")
            tip.text = own.removeprefix(TIP)
            element.insert(0, tip)
        elif own in used:
            element.set("id", f"{prefix}{own}")
        if element.get("transform", "").startswith("rotate(-0 "):
            del element.attrib["transform"]
        for key, value in element.attrib.items():
            if key == f"{{{LINK}}}href":
                element.set(key, value.replace("#", f"#{prefix}"))
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{prefix}"))
            elif key in ("d", "x", "y", "transform"):
                element.set(key, re.sub(r"(\.\d\d)\d+|(?<=\s)\s+", r"\1", value))
            elif key == "style":
                element.set(key, re.sub(r"(font-family:|(?<=px) )\s*'DejaVu Sans'[^;]*", _family, value))
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {"role": "img", "aria-label": name, "class": "figure", "stroke-linejoin": "round"}
    text = ElementTree.tostring(root, encoding="unicode")
    text = text.replace(f' xmlns="{SVG}"', "", 1).replace(f' xmlns:xlink="{LINK}"', "", 1)
    return re.sub(r">\s+<", "><", themed(text))


def _family(found: re.Match[str]) -> str:
    return f"{found[1]} system-ui, sans-serif"

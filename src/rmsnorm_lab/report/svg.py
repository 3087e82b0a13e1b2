"""Matplotlib's figures as SVG inside a page: text stays text, and lines take the page's colour, light or dark."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure

_INK = "#010203"
"""Replaced by the page's colour when the figure goes into the page."""


@contextmanager
def drawing() -> Iterator[None]:
    """A context in which figures for the page are made and turned into SVG."""
    ink = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK)
    settings: Any = {
        **ink,
        "grid.color": _INK,
        "grid.alpha": 0.15,
        "axes.grid": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "svg.fonttype": "none",
        "svg.hashsalt": "rmsnorm",  # the same records make the same page
        "font.size": 10,
    }
    with matplotlib.rc_context(settings):
        yield


def inline(figure: Figure, name: str, title: str) -> Markup:
    """The figure as an ``<svg>`` element as wide as its container.

    Args:
        figure: made within :func:`drawing`.
        name: unique in the page; every id starts with it.
        title: what the figure shows, for readers who cannot see it.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # its "*" would be every element of the page
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{name}-", text)
    text = text.replace(_INK, "currentColor")
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    # Markup: Matplotlib escapes the text in it.
    opening = f'<svg {box[0]} role="img" aria-label="{escape(title)}">'
    return Markup(re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1).strip())

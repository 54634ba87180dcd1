"""Render a data card as Markdown, for a repository, and as HTML, for people. Each page is one self-contained file."""

from __future__ import annotations

import re
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from pipeline.data.cards.card import Card

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#])")


def to_markdown(card: Card) -> str:
    """The card as Markdown; texts from the web are escaped."""
    return _environment(is_html=False).get_template("card.md.j2").render(card=card)


def to_html(card: Card) -> str:
    """The card as one HTML file; texts from the web are escaped."""
    css = Markup(resources.files(__package__).joinpath("card.css").read_text(encoding="utf-8"))
    return _environment(is_html=True).get_template("card.html.j2").render(card=card, css=css)


def _environment(*, is_html: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__ or "", ""),
        autoescape=is_html,
        undefined=StrictUndefined,
        trim_blocks=is_html,
        lstrip_blocks=is_html,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": _percent, "size": _size, "cell": _cell, "code": _code}
    return environment


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.0005 or share == 0 else "< 0.1%"


def _size(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1_000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1_000
    return f"{size:,.1f} TB"


def _cell(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", text)


def _code(text: str) -> Markup:
    """Escape a text and mark its parts between backticks as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))

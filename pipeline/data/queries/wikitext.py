"""Extract the running text of wiki markup, in one pass and in time linear in its length, whatever the markup is.

Tokens are read from left to right, and a stack holds the links, templates and tables that are open. Text is collected
in one list: an element without running text deletes its part of the list when it is closed. An element that is never
closed is no element, as in MediaWiki, and its text stays. A closing token also ends what is open inside its element.

MediaWiki's rules are followed where they decide about words: content of extension tags is not parsed, a comment without
an end reaches to the end of the page, an external link ends with its line, and so does the target of a link.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from html import unescape
from html.entities import html5

from pipeline.data.queries.wiki_site import Site

MAX_DEPTH = 1000
"""Maximum number of open elements. Pages have fewer than 100; further opening tokens are text."""

_SCHEMES = r"(?:https?|ftps?|sftp|ssh|ircs?|gopher|telnet|nntp|worldwind|svn|git|mms)://"
_TOKEN = re.compile(
    rf"""
      (?P<text>[^<\[\]{{}}|\n]++)
    | (?P<newline>\n)
    | (?P<open_link>\[\[)
    | (?P<close_link>\]\])
    | (?P<external>\[(?i:{_SCHEMES}|//|mailto:|news:|tel:|sips?:|urn:|geo:)[^\s\[\]<>"]*+)
    | (?P<bracket>\])
    | (?P<open_template>\{{\{{)
    | (?P<close_template>\}}\}})
    | (?P<open_table>\{{\|)
    | (?P<close_table>\|\}}(?!\}}(?!\}})))
    | (?P<bar>\|)
    | (?P<comment><!--)
    | <(?P<slash>/?)(?P<tag>[A-Za-z][A-Za-z0-9]*+)(?=[\s/>])[^<>]*+>
    | (?P<other>.)
    """,
    re.VERBOSE,
)
_TARGET = re.compile(r"[^\[\]{}|<>\n]{0,300}+")
"""The beginning of what a link leads to; MediaWiki's titles have at most 255 bytes."""
_MAX_INDENT = 40
"""A table begins in a line of its own, behind at most this many blanks and marks of lists."""
_QUOTES = re.compile(r"'{2,}+")
_SWITCH = re.compile(r"__(?=[^\W_])[^\s!-/:-@\[-^`{-~]{1,60}?__")
"""A behaviour switch in any language, such as __NOTOC__ or __KEIN_INHALTSVERZEICHNIS__: no blanks, no punctuation."""
_URL = re.compile(rf"(?i)\b{_SCHEMES}[^\s\[\]<>\"|{{}}]*+")
_ENTITY = re.compile(r"&(?:#[0-9]{1,8}|#[xX][0-9a-fA-F]{1,7}|[A-Za-z][A-Za-z0-9]{1,31});")

_SKIPPED = (
    *("ref", "references", "gallery", "imagemap", "timeline", "math", "chem", "ce", "score", "graph", "hiero", "code"),
    *("pre", "source", "syntaxhighlight", "templatestyles", "templatedata", "style", "mapframe", "maplink", "inputbox"),
    *("categorytree", "indicator", "includeonly", "nowiki"),
)
"""Tags whose content is not parsed. It is no running text, but for <nowiki>."""
_END = {name: re.compile(rf"</{name}\s*+>", re.IGNORECASE) for name in _SKIPPED}
_LINES = """
blockquote br caption center dd div dl dt h1 h2 h3 h4 h5 h6 hr li ol p poem section td th tr ul
"""
"""Tags that begin or end a line."""
_OTHERS = """
a abbr b bdi bdo big cite data del dfn em font i ins kbd languages link mark meta noinclude onlyinclude q rb rbc rp rt
rtc ruby s samp small span strike strong sub sup table tbody tfoot thead time tt u var wbr
"""
_LINE_TAGS = frozenset(_LINES.split())
_KNOWN = _LINE_TAGS | frozenset(_OTHERS.split()) | frozenset(_SKIPPED)
"""Tags of HTML and of MediaWiki's extensions; in any other pair of angle brackets, the page shows the brackets."""


class _Kind(Enum):
    TEXT_LINK = auto()
    HIDDEN_LINK = auto()
    """A link that shows no text: a file, a category, the page in another language."""
    TEMPLATE = auto()
    TABLE = auto()
    HTML_TABLE = auto()


_LINKS = (_Kind.TEXT_LINK, _Kind.HIDDEN_LINK)


@dataclass(slots=True)
class _Element:
    """An open element."""

    kind: _Kind
    start: int
    """Index of its opening token in the pieces of text."""
    outer_externals: int
    """Number of external links that are open outside."""
    has_bar: bool = False
    title: str = ""
    newline: int = -1
    """Index of its first line end in the pieces of text; -1 if it has none yet."""


def clean(markup: str, site: Site = Site()) -> str:  # noqa: B008 - frozen
    """Extract the running text of wiki markup.

    Templates, tables, references, files with their captions, categories, links to other languages, behaviour switches,
    addresses, comments and formulas are removed. Other links show their label, or their target. Entities are decoded.

    Args:
        markup: wikitext.
        site: the wiki, whose names of namespaces decide which links show text.

    Returns:
        Lines without blank ones, each with single blanks between words.
    """
    text = "".join(_Scanner(markup, site).pieces())
    if "__" in text:
        text = _SWITCH.sub("", text)
    if "://" in text:
        text = _URL.sub("", text)
    return "\n".join(_lines(decode_entities(text)))


def decode_entities(text: str) -> str:
    """Replace HTML's entities that end in a semicolon by their characters; &#0; and surrogates become U+FFFD.

    Other text does not change, nor do names that HTML does not know.
    """
    return _ENTITY.sub(_character, text) if "&" in text else text


def _character(entity: re.Match[str]) -> str:
    return unescape(entity[0]) if entity[0][1] == "#" or entity[0][1:] in html5 else entity[0]


def _apostrophes(quotes: re.Match[str]) -> str:
    """The apostrophes that remain of a run: two make italics, three bold, five both (MediaWiki's doQuotes)."""
    length = len(quotes[0])
    return "'" if length == 4 else "'" * max(0, length - 5)


def _lines(text: str) -> Iterator[str]:
    """The lines of a text without the marks of headings, lists and rules, and without the rows of broken tables."""
    for line in text.splitlines():
        line = " ".join(line.split())
        if line.startswith("=") and line.endswith("="):
            line = line.strip("= ")
        line = line.lstrip("*#:; ")
        if line.strip("-") and not line.startswith("|"):
            yield line


class _Scanner:
    """Reads the tokens of some markup."""

    def __init__(self, markup: str, site: Site) -> None:
        self._markup, self._site = markup, site
        self._pieces: list[str] = []
        self._elements: list[_Element] = []
        self._open: Counter[_Kind] = Counter()
        self._externals = 0
        self._line = 0
        self._endless: set[str] = set()
        """Skipped tags that are not closed in the rest of the markup."""

    def pieces(self) -> list[str]:
        """The running text, in pieces."""
        markup, pieces, position = self._markup, self._pieces, 0
        while token := _TOKEN.match(markup, position):
            kind, position = token.lastgroup, token.end()
            if kind == "text":
                pieces.append(_QUOTES.sub(_apostrophes, token[0]) if "''" in token[0] else token[0])
            elif kind == "other":
                pieces.append(token[0])
            elif kind == "newline":
                self._end_line()
                self._line = position
            elif kind == "open_link":
                position = self._open_link(position)
            elif kind == "close_link":
                if self._externals:  # ']]]' ends an external link first
                    self._externals -= 1
                    position -= 1
                else:
                    self._close_link()
            elif kind == "external":
                self._externals += 1
            elif kind == "bracket":
                if self._externals:
                    self._externals -= 1
                else:
                    pieces.append("]")
            elif kind == "open_template":
                self._push(_Kind.TEMPLATE, "{{")
            elif kind == "close_template":
                self._close(_Kind.TEMPLATE, "}}")
            elif kind == "open_table" and self._begins_line(token.start()):
                self._push(_Kind.TABLE, "{|")
            elif kind == "close_table" and self._open[_Kind.TABLE] and self._begins_line(token.start()):
                self._close(_Kind.TABLE, "|}")
            elif kind == "bar":
                self._bar()
            elif kind == "comment":
                end = markup.find("-->", position)
                position = len(markup) if end < 0 else end + 3
            elif kind == "tag":
                position = self._tag(token)
            elif kind == "open_table":  # inside a line: a brace, and then a bar
                position -= 1
                pieces.append("{")
            else:  # the mark of a table's end that ends no table: a bar, and then a brace
                position -= 1
                self._bar()
        self._blank_unclosed_files()
        return pieces

    def _push(self, kind: _Kind, token: str) -> None:
        """Open an element, unless too many are open."""
        self._pieces.append(token)
        if len(self._elements) >= MAX_DEPTH:
            return
        self._elements.append(_Element(kind, len(self._pieces) - 1, self._externals))
        self._open[kind] += 1
        self._externals = 0

    def _pop(self) -> _Element:
        element = self._elements.pop()
        self._open[element.kind] -= 1
        self._externals = element.outer_externals
        return element

    def _close(self, kind: _Kind, token: str) -> None:
        """Close the innermost element of a kind, and delete its text; without such an element, the token is text."""
        if not self._open[kind]:
            self._pieces.append(token)
            return
        while (element := self._pop()).kind is not kind:
            pass
        del self._pieces[element.start :]

    def _open_link(self, position: int) -> int:
        target = _TARGET.match(self._markup, position)
        name = target[0] if target else ""
        hidden = ":" in name and self._site.hides(name)
        self._push(_Kind.HIDDEN_LINK if hidden else _Kind.TEXT_LINK, "[[")
        return position + (len(name) - len(name.lstrip()) + 1 if name.lstrip().startswith(":") else 0)

    def _close_link(self) -> None:
        if not any(self._open[kind] for kind in _LINKS):
            self._pieces.append("]]")
            return
        while (element := self._pop()).kind not in _LINKS:
            pass
        if element.kind is _Kind.HIDDEN_LINK:
            del self._pieces[element.start :]
            return
        self._pieces[element.start] = ""
        if len(self._pieces) == element.start + 1:  # the label is empty
            self._pieces.append(element.title)

    def _bar(self) -> None:
        element = self._elements[-1] if self._elements else None
        if element is None or element.kind not in _LINKS or element.has_bar:
            self._pieces.append("|")
            return
        element.has_bar = True
        if element.kind is _Kind.TEXT_LINK:
            element.title = "".join(self._pieces[element.start + 1 :])
            del self._pieces[element.start + 1 :]

    def _end_line(self) -> None:
        """End the line: a link must have its target in one line, and an external link its text."""
        while self._elements and self._elements[-1].kind in _LINKS and not self._elements[-1].has_bar:
            element = self._pop()
            if element.kind is _Kind.HIDDEN_LINK:
                del self._pieces[element.start :]
        self._externals = 0
        if self._elements and self._elements[-1].newline < 0:
            self._elements[-1].newline = len(self._pieces)
        self._pieces.append("\n")

    def _begins_line(self, position: int) -> bool:
        return position - self._line <= _MAX_INDENT and not self._markup[self._line : position].strip(" \t:*#;")

    def _tag(self, token: re.Match[str]) -> int:
        """Process a tag, and return the position from which to read on."""
        name, is_end, position = token["tag"].lower(), bool(token["slash"]), token.end()
        if name not in _KNOWN:
            self._pieces.append("<")
            return token.start() + 1
        if name in _LINE_TAGS:
            self._pieces.append("\n")
        elif name == "table":
            if is_end:
                self._close(_Kind.HTML_TABLE, "")
            else:
                self._push(_Kind.HTML_TABLE, "")
        elif name in _END and not is_end and not token[0].endswith("/>") and name not in self._endless:
            end = _END[name].search(self._markup, position)
            if end is None:
                self._endless.add(name)
                return position
            if name == "nowiki":
                self._pieces.append(self._markup[position : end.start()])
            return end.end()
        return position

    def _blank_unclosed_files(self) -> None:
        """Remove the first line of files and categories that are never closed: their options are no text."""
        done = 0
        for element in self._elements:
            if element.kind is _Kind.HIDDEN_LINK:
                end = element.newline if element.newline >= 0 else len(self._pieces)
                for index in range(max(done, element.start), end):
                    self._pieces[index] = ""
                done = max(done, end)

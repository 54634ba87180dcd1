import bz2
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import unescape

import mwparserfromhell
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Tag, Text, Wikilink
from mwparserfromhell.wikicode import Wikicode

from pipeline.data.queries.counting import count_terms
from pipeline.data.queries.wiki_site import Site, fold_name
from pipeline.data.queries.wikitext import MAX_DEPTH, clean, decode_entities

GERMAN = Site(language="de", hidden=frozenset(map(fold_name, ["File", "Category", "Datei", "Bild", "Kategorie"])))
TOKENS = [
    *(
        "[[",
        "]]",
        "{{",
        "}}",
        "\n{|",
        "\n|}",
        "|",
        "[",
        "]",
        "{",
        "}",
        "<!--",
        "-->",
        "<ref>",
        "</ref>",
        "<ref name=a/>",
    ),
    *("<nowiki>", "</nowiki>", "<table>", "</table>", "<br>", "''", "'''", "\n", "== ", "* ", "&amp;", "&#xD800;", "<"),
    *(
        "[http://x.example ",
        "File:",
        "Category:",
        "fr:",
        ":",
        "__NOTOC__",
        "dog",
        " cat ",
        "ü",
        "\u200b",
        "\u00ad",
        ".",
    ),
]


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("'''Bold''' and ''italic''", "Bold and italic"),
        ("[[Dog]]s and [[Canis lupus|wolves]]", "Dogs and wolves"),
        ("[[File:Dog.jpg|thumb|A [[dog]]]]seen", "seen"),
        ("Text[[Category:Dogs]][[fr:Chien]]", "Text"),
        ("before {{Infobox|name=[[x]]|{{nested}}}} after", "before after"),
        ("fact<ref name=a>Book</ref><ref name=b /> end", "fact end"),
        ("{| class=x\n| cell\n|}\nbelow", "below"),
        ("<math>x^2</math> squared", "squared"),
        ("<!-- hidden -->shown", "shown"),
        ("== Heading ==\nText", "Heading\nText"),
        ("* one\n* two", "one\ntwo"),
        ("[http://a.example the site] and [http://b.example]", "the site and"),
        ("caf&eacute; &amp; bar", "café & bar"),
        ("a<br/>b", "a\nb"),
        ("<gallery>\nA.jpg|x\n</gallery>end", "end"),
        # a part of a dump that is not closed, or closed elsewhere
        ("a {{b | c", "a {{b | c"),
        ("see [[Dog\nand [[Cat]]", "see [[Dog\nand Cat"),
        ("[[Category:Dogs\nand cats", "and cats"),
        ("[[Datei:A.jpg|mini|left open\nnext [[Dog]]", "next Dog"),
        ("{{box|[[Dog}} and [[Cat]]", "and Cat"),
        ("}} ]] |} a", "}} ]] |} a"),
        ("{{a\n|b={{c|\n{|\n| d\n|}}}\n}} e", "e"),
        ("{|\n| {{b\n|}}\n|}\nc", "c"),
        ("<table><tr><td>{|\n|x\n|}</td></tr></table>after", "after"),
        ("<ref>never closed", "never closed"),
        ("shown<!-- never closed", "shown"),
        ("<nowiki>[[not a link]]</nowiki> <NOWIKI />end", "[[not a link]] end"),
        ("x<y and z>w, 1 < 2", "x<y and z>w, 1 < 2"),
        ("<poem>one\ntwo</poem> H<sub>2</sub>O <div>in</div>out", "one\ntwo\nH2O\nin\nout"),
        ("[[File:X.jpg|thumb|see [http://a.example b]]] c", "c"),
        ("[http://a.example the [[dog]] site] end", "the dog site end"),
        ("at http://a.example/b_c(d) here", "at here"),
        ("l''''Homme''' ''{{x}}''b", "l'Homme b"),
        ("[[Foo|]] [[ Bar (x) | label ]]", "Foo label"),
        ("----\n|- row\ntext", "text"),
        (
            "&notit; &amp;nbsp; a&nbsp;b &#x1F600; &#0; &#xD800; &#x110000;",
            "&notit; &nbsp; a b 😀 \ufffd \ufffd \ufffd",
        ),
    ],
)
def test_markup_is_converted_to_text(markup: str, text: str) -> None:
    assert clean(markup) == text


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        # queries.md 4 and 14, incoming.md F11
        ("[[Datei:Foo.jpg|mini|Ein Hund]] Text [[Kategorie:Hund]]", "Text"),
        ("The show [[CSI: Miami]] ran.", "The show CSI: Miami ran."),
        ("[[UFO: Enemy Unknown|the game]]", "the game"),
        ("[[GTA: San Andreas]]", "GTA: San Andreas"),
        ("__NOTOC__ a __KEIN_INHALTSVERZEICHNIS__ b__目次__ c__БЕЗОГЛ__", "a b c"),
        ("__विषय_सूची_हीन__ a __सामग्रीतालिका_नहीं__ __LEERER ABSATZ__", "a __LEERER ABSATZ__"),
        ("[[:Category:X|label]] and [[:Kategorie:Y]]", "label and Kategorie:Y"),
        # reports of others
        ("Hi, this is a test ([[:en:Hi|Hi]])", "Hi, this is a test (Hi)"),  # WikiExtractor/wikiextractor#53
        ("[[Star Trek: The Original Series]]", "Star Trek: The Original Series"),  # WikiExtractor/wikiextractor#47
        ("[[Battle: Los Angeles]]", "Battle: Los Angeles"),  # bwbaugh/wikipedia-extractor#4
        ("[[Cookbook:Casserole|casserole]]", "casserole"),  # spencermountain/wtf_wikipedia#74
        ("[[Stó:lō]]", "Stó:lō"),  # reader-dict/monolingual#1494
        ("Foo [[Image:EscherichiaColi NIAID.jpg|135px]] baz", "Foo baz"),  # earwig/mwparserfromhell#136
        ("[[Fichier:Blason Petit-Bersac 24.svg|vignette|120px|'''Base''']] x", "x"),  # reader-dict/monolingual#1494
        ("[[Imagem:Foo.jpg|miniaturadaimagem]] x", "x"),  # reader-dict/monolingual#1653
        # prefixes
        ("[[ File : A.ogg | thumb ]][[file:a]][[DATEI:b]][[ZH-min-nan:c]][[be-x-old:d]][[simple:e]]x", "x"),
        ("[[wikt:dog|dog]] [[Portal:Hunde|Portal]] [[Hilfe:Suche]]", "dog Portal Hilfe:Suche"),
        ("[[\u200eKategorie:Hund]][[Bild_:x]]x", "x"),
    ],
)
def test_links_show_what_the_wiki_shows(markup: str, text: str) -> None:
    assert clean(markup, GERMAN) == text


HOSTILE = [
    *(
        "[[",
        "{{",
        "<ref>",
        "\n{|",
        "'''",
        "{|",
        "]]",
        "}}",
        "[[a|",
        "[[File:a|",
        "[[File:a|\n",
        "[[Category:",
        "{{{",
        "|",
    ),
    *(
        "<!--",
        "<",
        "<a ",
        "<nowiki>",
        "</ref>",
        "<table>",
        "[http://",
        "http://",
        "&",
        "&#1",
        "__",
        "__a",
        "<br",
        "-{",
        "=",
    ),
    *("''", "'", "{", "[", "\n", "\n=", "\n|}", "\n*", " ", "[[a|[[b]]", "{{a}}", "[[:", "\u200b", "<ref name=", "[//"),
    *("[[File:a|{{b|\n{|\n<table>", "[[a]] ", "&amp;", "\n|}}", "a_"),
    '{{#if:{{{2|}}}|<div>{{{1|}}}<span {{#ifeq:{{{d|}}}|1|x=""}}>',  # 5j9/wikitextparser#37
    "{| class=x\n{{!}} a\n{{!}}}\n",  # tatuylonen/wikitextprocessor#132
    "[[Fichier:A (B. 195).jpg|alt=a b c d|vignette|La [[c]] d’[[w:O|O]], ",  # tatuylonen/wiktextract#1635
    "[[a|<div><span><b>[[b|<font>",  # earwig/mwparserfromhell#286
    "<code><nowiki>{{HT|</nowiki>''a_b'' | ",  # WikiExtractor/wikiextractor#309
]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("token", HOSTILE)
def test_hostile_markup_takes_linear_time(token: str) -> None:
    """Four times the markup takes about four times as long; quadratic time would be sixteen times as long."""
    seconds = []
    for size in (2**16, 2**18):
        markup = token * (size // len(token))
        started = time.process_time()
        clean(markup)
        seconds.append(time.process_time() - started)
    assert seconds[1] < 8 * seconds[0] + 0.2


@pytest.mark.faults
@pytest.mark.timeout(120)
@pytest.mark.parametrize("token", HOSTILE[::3])
def test_eight_mebibytes_of_hostile_markup_take_a_minute_at_most(token: str) -> None:
    started = time.process_time()
    clean(token * (2**23 // len(token)))
    assert time.process_time() - started < 60


@pytest.mark.parametrize("closing", ["]]" * (MAX_DEPTH + 5), "x]]\n" * (MAX_DEPTH + 5)])
def test_links_that_are_too_deep_are_text(closing: str) -> None:
    assert clean("[[a|" * (MAX_DEPTH + 5) + closing + " end").endswith("end")


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(TOKENS), max_size=40).map("".join))
@example("[[a|{{b]]}}")
def test_any_markup_is_text_that_can_be_stored_and_counted(markup: str) -> None:
    text = clean(markup)
    text.encode()
    assert all(line == " ".join(line.split()) != "" for line in text.splitlines())
    count_terms([text])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["dog", "[[cat]]", "{{t|x}}", "[[File:a.png|b|[[c]]]]", "<ref>y</ref>"]), max_size=12))
def test_closed_elements_are_independent(parts: list[str]) -> None:
    shown = {"dog": "dog", "[[cat]]": "cat"}
    assert clean(" ".join(parts)) == " ".join(shown[part] for part in parts if part in shown)


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        ("AT&amp;T &lt;b&gt; &#39;x&#39; &#x2019;", "AT&T <b> 'x' \u2019"),
        ("a&nbsp;b &shy; &zwnj; &ZeroWidthSpace;", "a\xa0b \xad \u200c \u200b"),  # dkpro/dkpro-c4corpus#30, typora#4136
        ("R&D, &amp &unknown; &; &#; &#x; &copyleft;", "R&D, &amp &unknown; &; &#; &#x; &copyleft;"),
        ("&#1234567890123;", "&#1234567890123;"),
    ],
)
def test_entities_are_decoded(text: str, decoded: str) -> None:
    assert decode_entities(text) == decoded


HIDDEN_TAGS = {
    "ref",
    "references",
    "table",
    "gallery",
    "imagemap",
    "timeline",
    "math",
    "code",
    "pre",
    "source",
    "style",
}


def reference(code: Wikicode | None) -> Iterator[str]:
    """The running text of English markup, in pieces, by another parser."""
    for node in code.nodes if code is not None else ():
        if isinstance(node, Text):
            yield node.value
        elif isinstance(node, HTMLEntity):
            yield node.normalize()
        elif isinstance(node, Heading):
            yield from ("\n", *reference(node.title), "\n")
        elif isinstance(node, Wikilink) and not re.match(r"(?i)(file|image|category|[a-z]{2,3}):", str(node.title)):
            yield from reference(node.title if node.text is None else node.text)
        elif isinstance(node, ExternalLink):
            yield from reference(node.title)
        elif isinstance(node, Tag) and str(node.tag).lower() not in HIDDEN_TAGS:
            yield "\n" if str(node.tag).lower() in {"li", "dt", "dd", "br", "hr", "p", "div", "blockquote"} else ""
            yield from reference(node.contents)


@pytest.mark.realdata
@pytest.mark.timeout(300)
def test_words_of_real_articles_are_those_of_another_parser(clip_data: Path) -> None:
    """mwparserfromhell finds the same words, but for one in a thousand."""
    xml = bz2.decompress((clip_data / "enwiki-sample.xml.bz2").read_bytes()).decode()
    ours: Counter[str] = Counter()
    theirs: Counter[str] = Counter()
    for article in xml.split("<page>")[1::3]:
        found = re.search(r"<text[^>]*>([^<]*)</text>", article)
        markup = unescape(found[1], {"&quot;": '"'}) if found and "<ns>0</ns>" in article else ""
        if "<redirect" in article or not markup:
            continue
        code = mwparserfromhell.parse(markup, skip_style_tags=True)
        expected = "".join(reference(code)).replace("'''", "").replace("''", "")
        for counts, text in ((ours, clean(markup)), (theirs, expected)):
            counts.update(re.findall(r"[A-Za-z]{3,}", text))
    assert theirs.total() > 50_000
    assert ((ours - theirs) + (theirs - ours)).total() < 0.001 * theirs.total()

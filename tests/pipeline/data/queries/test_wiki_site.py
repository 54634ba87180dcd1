import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.queries.wiki_site import Site, fold_name, read_siteinfo


def info(language: str, *namespaces: tuple[int, str], case: str = "first-letter") -> str:
    rows = "".join(f"<namespace key='{key}' case='{case}'>{name}</namespace>" for key, name in namespaces)
    return (
        f'<mediawiki version="0.11" xml:lang="{language}">\n  <siteinfo>\n    <dbname>{language}wiki</dbname>\n'
        f"    <case>{case}</case><namespaces>{rows}<namespace key='0' case='{case}' /></namespaces>\n  </siteinfo>"
    )


@pytest.mark.parametrize(
    ("xml", "hidden", "shown"),
    [
        (
            info("de", (6, "Datei"), (14, "Kategorie"), (4, "Wikipedia")),
            "Datei Bild Kategorie File",
            "Wikipedia Fichier",
        ),
        (info("zh", (6, "File"), (14, "Category")), "文件 檔案 图像 分类 分類 Image", "Datei"),
        (info("zh-min-nan", (6, "tóng-àn"), (14, "Lūi-pia̍t")), "Tóng-àn Lūi-pia̍t 文件", "Datei"),
        (info("xx", (6, "A&amp;B"), (14, "Two words")), "A&B two_words Category", "Datei Kategorie"),
        (info("en", (6, "File"), (14, "Category")), "Image Media", "Imagine Figura Datei"),
        (info("de"), "Datei Kategorie", "Fichier"),
        ("<mediawiki><siteinfo>", "Datei Fichier 画像 Изображение صورة File Category", "Imagine CSI"),
        ("", "Datei Файл Category", "Imagine UFO"),
    ],
)
def test_namespaces_of_files_and_categories_show_no_text(xml: str, hidden: str, shown: str) -> None:
    site = read_siteinfo(xml)
    assert [name for name in hidden.split() if not site.hides(f"{name}:x")] == []
    assert [name for name in shown.split() if site.hides(f"{name}:x")] == []


@pytest.mark.parametrize("name", ["dewiki", "zh_min_nanwiki", "dewiktionary"])
def test_the_database_names_the_language_if_the_dump_does_not(name: str) -> None:
    site = read_siteinfo(f"<mediawiki><siteinfo><dbname>{name}</dbname></siteinfo>")
    assert site.language == {"dewiki": "de", "zh_min_nanwiki": "zh-min-nan"}.get(name, "")


def test_case_decides_the_first_letter_of_titles() -> None:
    assert read_siteinfo(info("jbo", case="case-sensitive")).capital_titles is False
    assert read_siteinfo(info("de")).capital_titles is True


@pytest.mark.parametrize("prefix", ["de", "FR", " zh-Min-Nan ", "be-x-old", "simple", "nb"])
def test_languages_show_no_text(prefix: str) -> None:
    assert Site().hides(f"{prefix}:x")
    assert not Site().hides(f":{prefix}:x")


@pytest.mark.parametrize("title", ["CSI: Miami", "UFO: X", "GTA: X", "Stó:lō", "X:", ":", "", "AI: X", "NCIS: X"])
def test_other_prefixes_are_titles(title: str) -> None:
    assert not Site().hides(title)


@pytest.mark.parametrize("target", ["Xyz:A.jpg", "Xyz:A.JPG ", "ಚಿತ್ರ:A b.svg", "Xyz:a.ogv"])
def test_a_media_file_is_one_in_any_language(target: str) -> None:
    assert Site(hidden=frozenset()).hides(target)
    assert not Site(hidden=frozenset()).hides(target.replace(":", "-"))


@given(st.text(max_size=40))
def test_any_name_is_folded_once(name: str) -> None:
    assert fold_name(fold_name(name)) == fold_name(name)
    assert fold_name(name.replace(" ", "_")) == fold_name(name)


@pytest.mark.parametrize(
    "token", ["<mediawiki ", "<namespace ", "<siteinfo>", "<case> ", "<dbname> ", 'xml:lang="', "key="]
)
def test_a_hostile_head_takes_linear_time(token: str) -> None:
    started = time.process_time()
    read_siteinfo("<mediawiki " + token * (2**20 // len(token)))
    read_siteinfo("<siteinfo>" + token * (2**20 // len(token)) + "</siteinfo>")
    marks = "\u0301" * 2**19 + "\u0323" * 2**19
    read_siteinfo(f'<siteinfo>{token}<namespace key="6">{marks}</namespace></siteinfo>')
    assert time.process_time() - started < 5

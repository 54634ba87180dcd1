"""Compare language identifiers as filters for English on short texts: fastText's small model and lingua.

    pip install lingua-language-detector==2.1.1
    python -m tests.perf.crawl.languages --captions captions.parquet

A text is refused if its most likely language is not English and both its probability and its odds against English
reach the limits of a rule. Refused English texts are lost; other texts that are not refused pass the filter.

English texts: human captions, their first words, the demo's captions, WordNet's nouns and names, messages of programs.
Other texts: translations of such messages from Debian packages, and the demo's foreign captions.
"""

from __future__ import annotations

import argparse
import re
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from jobs.demo.web.dirt import foreign_caption
from jobs.demo.web.scenes import describe, sample_scene
from pipeline.data.text.language import MIN_PROBABILITY, Guess, LanguageIdentifier
from pipeline.hashing import hash128

WORDNET = Path("/usr/share/wordnet/data.noun")
LOCALES = Path("/usr/share/locale")
LATIN = ("ca", "cs", "da", "de", "es", "fi", "fr", "hu", "id", "it", "nb", "nl", "pl", "pt_BR", "ro", "sv", "tr", "vi")
OTHER_SCRIPTS = ("ar", "bg", "el", "fa", "he", "hi", "ja", "ko", "ru", "th", "uk", "zh_CN")
WITHOUT_BLANKS = frozenset({"ja", "th", "zh_CN"})
CHARACTERS_PER_WORD = 2.5
"""Average word length in languages without blanks between words."""
RULES: Mapping[str, tuple[float, float]] = {
    "p 0.5": (0.5, 1.0),
    "p 0.8": (0.8, 1.0),
    "odds 4": (0.3, 4.0),
    "odds 16": (0.3, 16.0),
    "odds 64": (0.3, 64.0),
}
"""Minimum probability and minimum odds against English at which a text in another language is refused."""
NUM_TEXTS = 250
"""Texts of each other language and length. Each kind of English has up to twelve times as many."""

Identify = Callable[[Sequence[str]], Sequence[Guess]]


def sample(texts: Iterable[str], count: int) -> list[str]:
    """Select at most `count` different texts; the selection does not depend on their order."""
    return sorted(set(texts), key=hash128)[:count]


def english(captions: Sequence[str]) -> dict[str, list[str]]:
    """English texts by kind; none should be refused."""
    count = 12 * NUM_TEXTS
    rng = np.random.default_rng(0)
    lemmas = [line.split(" ", 5)[4].replace("_", " ") for line in WORDNET.read_text().splitlines() if line[0] != " "]
    messages = {message for language in LATIN for message, _ in translations(language)}
    nouns = [lemma for lemma in lemmas if lemma.islower()]
    names = [lemma for lemma in lemmas if lemma[0].isupper()]
    return {
        "captions": list(captions),
        **{f"first {n} words": sample((" ".join(text.split()[:n]) for text in captions), count) for n in (4, 3, 2)},
        "demo": sample((describe(sample_scene(rng), rng) for _ in range(2 * count)), count),
        "messages, 5-12 words": sample((text for text in messages if 5 <= len(text.split()) <= 12), count),
        "messages, 2-4 words": sample((text for text in messages if 2 <= len(text.split()) <= 4), count),
        "nouns of 2 words up": sample((noun for noun in nouns if " " in noun), count),
        "names of 2 words up": sample((name for name in names if " " in name), count),
        "single nouns": sample((noun for noun in nouns if " " not in noun), count),
        "single names": sample((name for name in names if " " not in name), count),
    }


def foreign() -> dict[str, dict[str, list[str]]]:
    """Texts in other languages, by kind and language; all should be refused."""
    rng = np.random.default_rng(0)
    demo = (foreign_caption(sample_scene(rng, "shape"), rng) for _ in range(NUM_TEXTS))
    kinds: dict[str, dict[str, list[str]]] = {"demo's foreign": {"six": sample(demo, NUM_TEXTS)}}
    for script, languages in (("Latin", LATIN), ("other scripts", OTHER_SCRIPTS)):
        messages = {language: [text for _, text in translations(language)] for language in languages}
        for name, low, high in (("5-12 words", 5, 12), ("2-4 words", 2, 4)):
            kinds[f"{script}, {name}"] = {
                language: sample((text for text in texts if low <= num_words(text, language) <= high), NUM_TEXTS)
                for language, texts in messages.items()
            }
    return kinds


def num_words(text: str, language: str) -> int:
    """The number of words in a text, estimated for languages without blanks between words."""
    return round(len(text) / CHARACTERS_PER_WORD) if language in WITHOUT_BLANKS else len(text.split())


_TECHNICAL = re.compile(r"[%{}<>\\|_&@\d\n=/$*#~^+\"'`«»“”„\ufffd]|--")


def translations(language: str) -> Iterator[tuple[str, str]]:
    """Messages of installed programs in English and in a language, without options, paths or format placeholders."""
    for file in sorted((LOCALES / language / "LC_MESSAGES").glob("*.mo")):
        if not file.name.startswith("iso_"):  # lists of names
            for message, translation in catalogue(file.read_bytes()):
                if message != translation and not _TECHNICAL.search(message + translation):
                    yield message.strip(), translation.strip()


def catalogue(data: bytes) -> Iterator[tuple[str, str]]:
    """Read messages and translations of a compiled catalogue (GNU gettext manual, "The Format of GNU MO Files")."""
    order = "<" if data[:4] == b"\xde\x12\x04\x95" else ">"
    count, messages, translated = struct.unpack_from(f"{order}3I", data, 8)
    for i in range(count):
        pair = []
        for table in (messages, translated):
            length, offset = struct.unpack_from(f"{order}2I", data, table + 8 * i)
            pair.append(data[offset : offset + length].decode("utf-8", "replace"))
        if pair[0] and "\0" not in pair[0] + pair[1]:
            yield pair[0].rpartition("\4")[2], pair[1]


def fasttext() -> Identify:
    """The identifier that the pipeline uses."""
    identify = LanguageIdentifier()
    return lambda texts: identify(texts, "en")


def lingua(*, low_accuracy: bool) -> Identify:
    """Lingua with all of its languages, loaded in advance."""
    from lingua import Language, LanguageDetectorBuilder

    builder = LanguageDetectorBuilder.from_all_languages().with_preloaded_language_models()
    detector = (builder.with_low_accuracy_mode() if low_accuracy else builder).build()

    def identify(text: str) -> Guess:
        values = detector.compute_language_confidence_values(text)
        english = next((value.value for value in values if value.language == Language.ENGLISH), 0.0)
        best = values[0].value
        if best == 0:
            return Guess(None, 0.0, 1.0)
        return Guess(values[0].language.iso_code_639_1.name.lower(), best, best / max(english, MIN_PROBABILITY))

    return lambda texts: [identify(text) for text in texts]


def lingua_high() -> Identify:
    """Lingua with its default settings."""
    return lingua(low_accuracy=False)


def lingua_low() -> Identify:
    """Lingua with trigram models only."""
    return lingua(low_accuracy=True)


TOOLS: Mapping[str, Callable[[], Identify]] = {
    "fastText lid.176.ftz": fasttext,
    "lingua": lingua_high,
    "lingua, low accuracy": lingua_low,
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The measurements of one tool on all texts."""

    tool: str
    captions_per_second: float
    """Captions per second on one core."""
    mebibytes: float
    """Growth of the process."""
    load_seconds: float
    refused: Mapping[str, Mapping[str, float]]
    """Share of texts that each rule refuses, by kind; the mean over the languages of a kind."""


def measure(tool: str, captions: Sequence[str]) -> Measured:
    """Measure one tool; run this in a separate process."""
    before, started = resident_mebibytes(), time.perf_counter()
    identify = TOOLS[tool]()
    identify(captions[:100])
    load_seconds = time.perf_counter() - started
    started = time.perf_counter()
    identify(captions)
    rate = len(captions) / (time.perf_counter() - started)
    grown = resident_mebibytes() - before
    kinds = {kind: {"en": texts} for kind, texts in english(captions).items()} | foreign()
    guesses = {kind: [identify(texts) for texts in groups.values() if texts] for kind, groups in kinds.items()}
    refused = {
        kind: {name: float(np.mean([share_refused(group, *rule) for group in groups])) for name, rule in RULES.items()}
        for kind, groups in guesses.items()
    }
    return Measured(tool=tool, captions_per_second=rate, mebibytes=grown, load_seconds=load_seconds, refused=refused)


def share_refused(guesses: Sequence[Guess], min_confidence: float, min_odds: float) -> float:
    """The share of texts that a rule refuses."""
    refused = [g.language != "en" and g.confidence >= min_confidence and g.odds >= min_odds for g in guesses]
    return sum(refused) / len(refused)


def resident_mebibytes() -> float:
    """Resident memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def tables(measured: Sequence[Measured]) -> str:
    """Tables of cost and of refused shares, in Markdown."""
    lines = ["| tool | captions/s/core | memory, MiB | loading, s |", "|---|---:|---:|---:|"]
    lines += [
        f"| {tool.tool} | {tool.captions_per_second:,.0f} | {tool.mebibytes:,.0f} | {tool.load_seconds:.2f} |"
        for tool in measured
    ]
    columns = [f"{tool.tool}: {rule}" for tool in measured for rule in RULES]
    lines += ["", f"| refused, % | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for kind in measured[0].refused:
        shares = [f"{100 * tool.refused[kind][rule]:.2f}" for tool in measured for rule in RULES]
        lines.append(f"| {kind} | {' | '.join(shares)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure all tools and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", required=True, help="a Parquet file with English captions in its column `text`")
    parser.add_argument(
        "--num_captions", type=int, default=10_000, help="number of captions to use, evenly spread over the file"
    )
    options = parser.parse_args()
    texts = pq.read_table(options.captions, columns=["text"])["text"].to_pylist()
    chosen = texts[:: max(1, len(texts) // options.num_captions)]
    measured = []
    for tool in TOOLS:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            measured.append(pool.submit(measure, tool, chosen).result())
    print(tables(measured))


if __name__ == "__main__":
    main()

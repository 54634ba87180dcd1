"""Which identifier of languages: fastText's small model or lingua, on short texts, by what a filter for English does.

    pip install lingua-language-detector==2.1.1
    python -m tests.perf.crawl.languages --captions captions.parquet

A text is refused where the likeliest language is another one: likely enough by itself, or so many times as likely as
English. English texts that are refused are lost; texts in other languages that are not refused come through. English:
captions people wrote, their first words, the demo's, WordNet's nouns and names, messages of programs. Other languages:
the translations of such messages that Debian's packages install, and the demo's foreign captions.
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
"""Of languages without blanks between words."""
RULES: Mapping[str, tuple[float, float]] = {
    "p 0.5": (0.5, 1.0),
    "p 0.8": (0.8, 1.0),
    "odds 4": (0.3, 4.0),
    "odds 16": (0.3, 16.0),
    "odds 64": (0.3, 64.0),
}
"""Probability and odds against English that another language must reach."""
NUM_TEXTS = 250
"""Of each other language and length; twelve times as many of each kind of English."""

Identify = Callable[[Sequence[str]], Sequence[Guess]]


def sample(texts: Iterable[str], count: int) -> list[str]:
    """As many of them, the same ones each time, without order."""
    return sorted(set(texts), key=hash128)[:count]


def english(captions: Sequence[str]) -> dict[str, list[str]]:
    """Texts that must not be refused, by kind."""
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
    """Texts that should be refused, by kind and language."""
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
    """Words of a text, guessed where no blanks part them."""
    return round(len(text) / CHARACTERS_PER_WORD) if language in WITHOUT_BLANKS else len(text.split())


_TECHNICAL = re.compile(r"[%{}<>\\|_&@\d\n=/$*#~^+\"'`«»“”„\ufffd]|--")


def translations(language: str) -> Iterator[tuple[str, str]]:
    """Messages of installed programs in English and a language, less those with options, paths, places for values."""
    for file in sorted((LOCALES / language / "LC_MESSAGES").glob("*.mo")):
        if not file.name.startswith("iso_"):  # lists of names
            for message, translation in catalogue(file.read_bytes()):
                if message != translation and not _TECHNICAL.search(message + translation):
                    yield message.strip(), translation.strip()


def catalogue(data: bytes) -> Iterator[tuple[str, str]]:
    """Message and translation of a compiled catalogue (GNU gettext manual, "The Format of GNU MO Files")."""
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
    """What the pipeline does."""
    identify = LanguageIdentifier()
    return lambda texts: identify(texts, "en")


def lingua(*, low_accuracy: bool) -> Identify:
    """Lingua with all of its languages, loaded at once."""
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
    """Lingua as it comes."""
    return lingua(low_accuracy=False)


def lingua_low() -> Identify:
    """Lingua with models of three letters only."""
    return lingua(low_accuracy=True)


TOOLS: Mapping[str, Callable[[], Identify]] = {
    "fastText lid.176.ftz": fasttext,
    "lingua": lingua_high,
    "lingua, low accuracy": lingua_low,
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One tool on all texts."""

    tool: str
    captions_per_second: float
    """Of one core."""
    mebibytes: float
    """What the process grew by."""
    load_seconds: float
    refused: Mapping[str, Mapping[str, float]]
    """Share of each kind's texts that a rule refuses; of several languages, the mean of their shares."""


def measure(tool: str, captions: Sequence[str]) -> Measured:
    """One tool, in a process of its own."""
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
    """How many of the texts are said not to be English."""
    refused = [g.language != "en" and g.confidence >= min_confidence and g.odds >= min_odds for g in guesses]
    return sum(refused) / len(refused)


def resident_mebibytes() -> float:
    """Memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def tables(measured: Sequence[Measured]) -> str:
    """Cost, and what each rule refuses, in Markdown."""
    lines = ["| tool | captions/s/core | memory, MiB | loading, s |", "|---|---:|---:|---:|"]
    lines += [
        f"| {one.tool} | {one.captions_per_second:,.0f} | {one.mebibytes:,.0f} | {one.load_seconds:.2f} |"
        for one in measured
    ]
    columns = [f"{one.tool}: {rule}" for one in measured for rule in RULES]
    lines += ["", f"| refused, % | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for kind in measured[0].refused:
        shares = [f"{100 * one.refused[kind][rule]:.2f}" for one in measured for rule in RULES]
        lines.append(f"| {kind} | {' | '.join(shares)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", required=True, help="a Parquet file with English captions in its column `text`")
    parser.add_argument("--num_captions", type=int, default=10_000, help="how many of them, evenly spread")
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

"""Every regular expression that reads text from outside takes time linear in the text.

docs/reference/untrusted_input.md lists the regular expressions. Here the list is compared with the source, and each one
is run on hostile texts: repetitions of pieces that are made from its own literals, and of classics. All texts are tried
at 8 KiB, where quadratic time already shows, the slowest three of them at 256 KiB and the slowest at 8 MiB.
"""

from __future__ import annotations

import ast
import random
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

import pytest
import regex

from pipeline.data.web import decoders

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "reference" / "untrusted_input.md"
PACKAGES = ("data", "pictures", "model/tokenizer", "eval/sets", "eval/own_pictures")
CALLS = ("findall", "finditer", "fullmatch", "match", "search", "split", "sub", "subn")
OTHERS = (
    "Regex",
    "extract_regex",
    "fnmatch",
    "match_substring_regex",
    "replace_substring_regex",
    "split_pattern_regex",
)
"""Functions of other packages that take a regular expression."""
SECONDS_PER_CHARACTER = 1e-6
"""About 8 s for 8 MiB. The slowest take a third of it; quadratic time would take hours."""
MAX_GROWTH = 12.0
"""Times the time of 1 MiB that 8 MiB may take."""
SMALL, MEDIUM, MIB, LARGE = 2**13, 2**18, 2**20, 2**23
CLASSICS = (
    *(
        "a",
        "A",
        "0",
        " ",
        "\n",
        "\r\n",
        "\t",
        "\0",
        "é",
        "\u0301",
        "中",
        "\u200b",
        "_",
        "-",
        ".",
        ",",
        ":",
        ";",
        "/",
        "#",
    ),
    *("<", ">", "<!--", "-->", "&", "&amp", '"', "'", "=", "(", ")", "[", "[[", "]]", "{{", "}}", "{|", "|", "*", "\\"),
    *(
        "a ",
        " a",
        "a.",
        "a-",
        "a@",
        "a=",
        '="',
        "a,",
        "0 ",
        "0.",
        "0-",
        "%4",
        "a<",
        "< ",
        "://",
        "\xff",
        "\x1b",
        "\x81a",
    ),
)

Pattern = re.Pattern[Any]
Key = tuple[str, str]


# The list and the source


@cache
def listed(heading: str) -> dict[Key, list[str]]:
    """The rows of the first table below a heading of the document, by module and name."""
    section = DOCUMENT.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if line[:1] == "|"]
    return {(row[0].strip("` "), row[1].strip("` ")): row[2:] for row in rows[2:]}


@cache
def in_source() -> dict[Key, set[str]]:
    """The regular expressions of the packages, each with the methods that its module calls on that name."""
    found: dict[Key, set[str]] = {}
    for path in sorted(chain.from_iterable((ROOT / "pipeline" / package).rglob("*.py") for package in PACKAGES)):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        module = ".".join(path.relative_to(ROOT / "pipeline").with_suffix("").parts)
        calls = _calls(tree)
        for names in _made(tree, []):
            found[module, ".".join(names)] = set().union(*(calls[name] for name in names[-1].split(", ")))
    return found


def _made(node: ast.AST, names: list[str]) -> Iterator[list[str]]:
    """The names under which a regular expression is made: of a variable, or of the function around it."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        names = [*names, f"{node.name}()"]
    elif isinstance(node, ast.ClassDef):
        names = [*names, node.name]
    elif isinstance(node, ast.Assign | ast.AnnAssign) and not any(name.endswith("()") for name in names):
        targets = node.targets[0] if isinstance(node, ast.Assign) else node.target
        elements = targets.elts if isinstance(targets, ast.Tuple) else [targets]
        names = [*names, ", ".join(element.id for element in elements if isinstance(element, ast.Name))]
    if isinstance(node, ast.Call):
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        owner = function.value if isinstance(function, ast.Attribute) else None
        is_of_re = isinstance(owner, ast.Name) and owner.id in {"re", "regex"} and name in {*CALLS, "compile"}
        if is_of_re or name in OTHERS:
            yield names
    for child in ast.iter_child_nodes(node):
        yield from _made(child, names)


def _calls(tree: ast.AST) -> dict[str, set[str]]:
    """The methods of patterns that a module calls, by the variable; `match at` has a position."""
    calls: dict[str, set[str]] = defaultdict(set)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CALLS:
            owner = node.func.value
            owner = owner.value if isinstance(owner, ast.Subscript) else owner
            name = getattr(owner, "id", getattr(owner, "attr", ""))
            has_position = len(node.args) > 1 and node.func.attr in {
                "finditer",
                "findall",
                "fullmatch",
                "match",
                "search",
            }
            calls[name].add(f"{node.func.attr} at" if has_position else node.func.attr)
    return calls


OUTSIDE, OWN = "Regular expressions", "Regular expressions that see only our own text"


def test_every_regular_expression_is_listed() -> None:
    assert listed(OUTSIDE).keys() | listed(OWN).keys() == in_source().keys()
    assert not listed(OUTSIDE).keys() & listed(OWN).keys()


@pytest.mark.parametrize("key", listed(OUTSIDE), ids=".".join)
def test_the_listed_calls_are_those_of_the_source(key: Key) -> None:
    calls = set(listed(OUTSIDE)[key][0].split(", "))
    assert calls <= {*CALLS, "match at", "search at", "finditer at"}
    assert in_source()[key] <= calls


# The patterns


def patterns(key: Key) -> list[Pattern]:
    """The regular expressions of a row."""
    module, name = import_module(f"pipeline.{key[0]}"), key[1]
    made = _MADE_IN_FUNCTIONS.get(key)
    if made is not None:
        return made(module)
    value: Any = module
    for part in name.removesuffix("()").split("."):
        value = getattr(value, part)
    value = value() if name.endswith("()") else value
    values = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
    return [pattern for pattern in values if isinstance(pattern, re.Pattern | regex.Pattern)]


def _constants_of(module: Any) -> list[Pattern]:
    """The regular expressions that are given as constants to functions of re."""
    calls = (node for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))))
    arguments = (node.args[0] for node in calls if isinstance(node, ast.Call) and _is_call_of_re(node))
    return [re.compile(node.value) for node in arguments if isinstance(node, ast.Constant)]


def _is_call_of_re(node: ast.Call) -> bool:
    function = node.func
    return isinstance(function, ast.Attribute) and function.attr in CALLS and getattr(function.value, "id", "") == "re"


_TRANSLATIONS = (decoders._WINDOWS_JAPANESE, decoders._BIG5, decoders._GB18030, decoders._SHIFT_JIS)
_MADE_IN_FUNCTIONS: dict[Key, Callable[[Any], list[Pattern]]] = {
    ("data.web.decoders", "_pair_decoder()"): lambda _: [
        re.compile(f"[{''.join(map(chr, translation))}]") for translation in _TRANSLATIONS
    ],
    ("data.web.robots", "_words()"): _constants_of,
    ("eval.sets.evaluation_sets", "parse_description()"): _constants_of,
    ("model.tokenizer.tokenizer", "_backend()"): lambda module: [regex.compile(module._WORDS)],
}


# Hostile texts


def hostile(pattern: Pattern) -> list[tuple[str, str]]:
    """Beginnings and pieces that are repeated behind them."""
    source = pattern.pattern.decode("latin-1") if isinstance(pattern.pattern, bytes) else pattern.pattern
    samples, literals = [""], ["a"]
    if isinstance(pattern, re.Pattern):
        tree = parser.parse(
            source, pattern.flags & ~re.UNICODE if isinstance(pattern.pattern, bytes) else pattern.flags
        )
        rng = random.Random(repr(source))
        samples = ["".join(_sample(tree, rng))[:60] for _ in range(8)]
        literals = list(dict.fromkeys(chr(code) for code in islice(_literals(tree), 200)))[:16]
    starts = list(dict.fromkeys(sample[:end] for sample in samples for end in (1, 2, 3, 5, 8, 13, 21, 34, 60)))[:24]
    pieces = dict.fromkeys([*CLASSICS, *literals, *starts, *(start + end for start in starts[:8] for end in " a0=")])
    texts = [("", piece) for piece in pieces if piece]
    ends = [*literals[:8], " ", "a", "0", '"']
    return texts + [(start, end) for start in starts if start for end in dict.fromkeys([start[-1], *ends])]


def _literals(tree: Any) -> Iterator[int]:
    for code, value in tree:
        if code in (op.LITERAL, op.NOT_LITERAL):
            yield value
        elif code is op.RANGE:
            yield from value
        else:
            yield from chain.from_iterable(map(_literals, _parts(code, value)))


def _parts(code: Any, value: Any) -> list[Any]:
    """The expressions inside one."""
    if code is op.IN:
        return [[item for item in value if item[0] in (op.LITERAL, op.RANGE)]]
    if code is op.BRANCH:
        return list(value[1])
    if code is op.SUBPATTERN:
        return [value[3]]
    if code in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
        return [value[2]]
    if code in (op.ASSERT, op.ASSERT_NOT):
        return [value[1]]
    if code is op.GROUPREF_EXISTS:
        return [part for part in value[1:] if part is not None]
    return [value] if code is op.ATOMIC_GROUP else []


_OF_CATEGORY = {op.CATEGORY_DIGIT: "0", op.CATEGORY_SPACE: " ", op.CATEGORY_WORD: "a", op.CATEGORY_NOT_WORD: "-"}


def _sample(tree: Any, rng: random.Random) -> Iterator[str]:
    """The characters of a text that an expression probably matches."""
    for code, value in tree:
        if code is op.LITERAL:
            yield chr(value)
        elif code in (op.NOT_LITERAL, op.ANY):
            yield "a"
        elif code is op.IN:
            yield "a" if value[0][0] is op.NEGATE else _character(rng.choice(value), rng)
        elif code in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
            for _ in range(rng.randint(value[0], min(value[1], value[0] + 2))):
                yield from _sample(value[2], rng)
        elif code not in (op.ASSERT, op.ASSERT_NOT) and (parts := _parts(code, value)):
            yield from _sample(rng.choice(parts), rng)


def _character(item: Any, rng: random.Random) -> str:
    code, value = item
    if code is op.RANGE:
        return chr(rng.randint(*value))
    return chr(value) if code is op.LITERAL else _OF_CATEGORY.get(value, "a")


# Time


def seconds(pattern: Pattern, call: str, start: str, piece: str, size: int) -> float:
    """CPU seconds of one use of a pattern on a text of `size` characters; the least of three, if it is long."""
    text: Any = start + piece * ((size - len(start)) // len(piece)) + "\1"
    if isinstance(pattern.pattern, bytes):
        text = text.encode("utf-8", "surrogatepass") if max(text) > "\xff" else text.encode("latin-1")
        text = text[:size]
    allowed = size * SECONDS_PER_CHARACTER
    least = float("inf")
    for _ in range(3):
        began = time.process_time()
        _use(pattern, call, text)
        least = min(least, time.process_time() - began)
        if least < allowed:
            break
    return least


def _use(pattern: Pattern, call: str, text: Any) -> None:
    if call in {"match", "fullmatch", "search"}:
        getattr(pattern, call)(text)
    elif call in {"match at", "search at"}:
        find, position = getattr(pattern, call.removesuffix(" at")), 0
        while position < len(text) and (match := find(text, position)):
            position = max(position + 1, match.end())
    elif call in {"sub", "subn"}:
        pattern.sub(text[:0], text)
    else:  # a list of all matches takes 60 bytes for each character
        for _ in pattern.finditer(text):
            pass


def slowest(pattern: Pattern, call: str, size: int, texts: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The texts, slowest first, after checking that none takes too long."""
    times = []
    for text in texts:
        times.append((seconds(pattern, call, *text, size), text))
        taken = times[-1][0]
        assert taken < size * SECONDS_PER_CHARACTER, f"{call}: {taken:.3f} s for {size} characters, {text}"
    return [text for _, text in sorted(times, reverse=True)]


def check(key: Key, sizes: dict[int, int], num_large: int, max_patterns: int | None = None) -> None:
    """Run the regular expressions of a row on hostile texts.

    Args:
        key: the row.
        sizes: numbers of texts by size; the slowest of a size are tried at the next one.
        num_large: number of texts that are tried at 8 MiB.
        max_patterns: maximum number of expressions of the row.
    """
    made = list(dict.fromkeys(patterns(key)))
    assert made
    for pattern in made[:max_patterns]:
        for call in listed(OUTSIDE)[key][0].split(", "):
            texts = hostile(pattern)
            for size, num_texts in sizes.items():
                texts = slowest(pattern, call, size, texts[:num_texts])
            for text in texts[:num_large]:
                mib, large = (seconds(pattern, call, *text, size) for size in (MIB, LARGE))
                assert large < LARGE * SECONDS_PER_CHARACTER, f"{call}: {large:.1f} s for 8 MiB {text}"
                assert large < MAX_GROWTH * mib + 0.2, f"{call}: {large:.1f} s for 8 MiB {text}, {mib:.2f} s for 1 MiB"


@pytest.mark.parametrize("key", listed(OUTSIDE), ids=".".join)
def test_it_takes_linear_time(key: Key) -> None:
    check(key, {SMALL: 10_000, MEDIUM: 3}, num_large=0, max_patterns=2)  # those of a row are alike


@pytest.mark.faults
@pytest.mark.parametrize("key", listed(OUTSIDE), ids=".".join)
def test_it_takes_linear_time_at_8_mib(key: Key) -> None:
    check(key, {SMALL: 10_000, MEDIUM: 12, MIB: 1}, num_large=1)


@pytest.mark.parametrize(
    ("pattern", "call"),
    [
        (r"\s+\(", "sub"),
        (r"<[^>]*>", "search"),
        (r"(?:a|b)*c", "search"),
        (r"\d+ charset", "finditer"),
        (r"[a-z]+@[a-z]+\.com", "search"),
        (r"(?s)<!--.*?-->", "findall"),
    ],
)
def test_quadratic_time_is_found(pattern: str, call: str) -> None:
    compiled = re.compile(pattern)
    with pytest.raises(AssertionError, match="s for 8192 characters"):
        slowest(compiled, call, SMALL, hostile(compiled))

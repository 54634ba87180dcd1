import hashlib
import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.safety.block_lists import BlockLists, HashKeys, PictureHashes, apply_lists, read_block_lists
from pipeline.data.safety.screening import SafetyConfig
from pipeline.reasons import Reason
from tests.pipeline.data.rows import candidates

FILE = "ab" * 32
OPTIONS = {"sha256": "block_sha256", "phash": "block_phash", "url": "block_urls", "domain": "block_domains"}
GOOD = {"sha256": FILE, "phash": "00ff00ff00ff00ff", "url": "http://a.example/x.jpg", "domain": "a.example"}


def open_file(uri: str) -> Any:
    return Path(uri).open("rb")


def lists_of(folder: Path, **entries: str | bytes) -> BlockLists:
    """Block lists from entries by kind, one file per kind."""
    files = {}
    for kind, text in entries.items():
        (folder / f"{kind}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
        files[OPTIONS[kind]] = [str(folder / f"{kind}.txt")]
    return read_block_lists(SafetyConfig(**files), open_file)  # type: ignore[arg-type]


def test_comments_empty_lines_and_a_byte_order_mark_are_ignored(tmp_path: Path) -> None:
    text = f"\ufeff# files\r\n{FILE.upper()}\r\n\r\n  # {'cd' * 32}\n{'ef' * 32}"
    lists = lists_of(tmp_path, sha256=text.encode())
    assert lists.file_block_reason(FILE) is Reason.BLOCKED_FILE
    assert lists.file_block_reason("ef" * 32) is Reason.BLOCKED_FILE
    assert lists.file_block_reason("cd" * 32) is None


def test_without_lists_nothing_is_blocked(tmp_path: Path) -> None:
    lists = lists_of(tmp_path)
    assert lists.url_block_reason("http://a.example/") is None
    assert lists.file_block_reason(FILE) is None
    assert lists.picture_block_reason(0) is None
    assert repr(lists) == "BlockLists(0 urls, 0 domains, 0 files, 0 pictures)"


@pytest.mark.parametrize(
    ("kind", "column"),
    [
        ("sha256", pa.array([FILE, "cd" * 32])),
        ("phash", pa.array([0x00FF00FF00FF00FF, 2**64 - 1], pa.uint64())),
        ("phash", pa.array(["00ff00ff00ff00ff", "f" * 16])),
        ("url", pa.array(["http://a.example/x.jpg"])),
        ("domain", pa.array(["a.example"])),
    ],
)
def test_a_table_is_read_from_the_column_of_its_kind(kind: str, column: pa.Array, tmp_path: Path) -> None:
    file = tmp_path / "list.parquet"
    pq.write_table(pa.table({"other": ["x"] * len(column), kind: column}), file, row_group_size=1)
    lists = read_block_lists(SafetyConfig(**{OPTIONS[kind]: [str(file)]}), open_file)  # type: ignore[arg-type]
    text = lists_of(tmp_path, **{kind: GOOD[kind]})
    for read in (lists, text):
        reasons = (
            read.file_block_reason(FILE),
            read.picture_block_reason(0x00FF00FF00FF00FF),
            read.url_block_reason(GOOD["url"]),
        )
        assert [reason is not None for reason in reasons].count(True) == 1, kind
    assert lists.digests[OPTIONS[kind]] == [hashlib.sha256(file.read_bytes()).hexdigest()]


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("sha256", "a" * 63),
        ("sha256", "g" * 64),
        ("sha256", FILE[:32] + " " + FILE[33:]),
        ("sha256", "http://a.example/"),
        ("phash", FILE),
        ("phash", "-0ff00ff00ff00ff"),
        ("url", "a.example"),
        ("url", "/x.jpg"),
        ("url", "ftp://a.example/x.jpg"),
        ("url", FILE),
        ("url", "http://[::1/"),
        ("domain", "http://a.example/"),
        ("domain", "a.example/x"),
        ("domain", "a.example:80"),
        ("domain", "*.a.example"),
        ("domain", ".a.example"),
        ("domain", "a..example"),
        ("domain", "localhost"),
        ("domain", FILE),
        ("domain", "someone@a.example"),
        ("domain", b"\xff.example"),
    ],
)
def test_a_line_of_the_wrong_kind_is_reported_by_number_only(kind: str, line: str | bytes, tmp_path: Path) -> None:
    data = line if isinstance(line, bytes) else line.encode()
    text = f"# of this kind\n{GOOD[kind]}\n\n".encode() + data + b"\n"
    with pytest.raises(ValueError, match=rf"safety\.{OPTIONS[kind]}: .*{kind}\.txt, line 4: not an? ") as caught:
        lists_of(tmp_path, **{kind: text})
    assert data.decode(errors="ignore") not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (pa.table({"sha256": [FILE, None]}), "row 2: not a SHA-256"),
        (pa.table({"sha256": [3]}), "column 'sha256' holds int64, expected strings"),
        (pa.table({"sha256": pa.array([2**62], pa.timestamp("us"))}), r"column 'sha256' holds timestamp\[us\]"),
        (pa.table({"sha256": [[FILE]]}), "column 'sha256' holds list<.*>, expected strings"),
        (pa.table([[FILE], [FILE]], names=["sha256"] * 2), "has 2 columns 'sha256'"),
        (pa.table({"sha256": pa.array([b"\xff"]).view(pa.string())}), "row 1: not a SHA-256"),
        (pa.table({"sha": [FILE]}), r"has no column 'sha256', only \['sha'\]"),
        (pa.table({"sha256": pa.array([], pa.string())}), "has no entry"),
    ],
)
def test_a_table_that_is_not_a_list_raises(rows: pa.Table, message: str, tmp_path: Path) -> None:
    file = tmp_path / "list.parquet"
    pq.write_table(rows, file)
    with pytest.raises(ValueError, match=rf"safety\.block_sha256: .*list\.parquet[,:]? {message}"):
        read_block_lists(SafetyConfig(block_sha256=[str(file)]), open_file)


@pytest.mark.parametrize("column", [pa.array([7, -1]), pa.array([7.0, 8.0]), pa.array([True])])
def test_a_number_that_is_not_a_hash_raises(column: pa.Array, tmp_path: Path) -> None:
    pq.write_table(pa.table({"phash": column}), tmp_path / "list.parquet")
    message = r"list\.parquet(, row 2: not a perceptual hash|: column 'phash' holds (double|bool), expected strings)"
    with pytest.raises(ValueError, match=message):
        read_block_lists(SafetyConfig(block_phash=[str(tmp_path / "list.parquet")]), open_file)


def test_an_empty_missing_or_unreadable_list_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"safety\.block_urls: .*url\.txt has no entry"):
        lists_of(tmp_path, url="# none\n\n")
    with pytest.raises(ValueError, match=r"safety\.block_domains: .*none\.txt cannot be read"):
        read_block_lists(SafetyConfig(block_domains=[str(tmp_path / "none.txt")]), open_file)
    (tmp_path / "text.parquet").write_text(FILE)
    with pytest.raises(ValueError, match=r"safety\.block_sha256: .*text\.parquet cannot be read"):
        read_block_lists(SafetyConfig(block_sha256=[str(tmp_path / "text.parquet")]), open_file)


def test_lists_can_be_pickled_and_have_digests_of_their_files(tmp_path: Path) -> None:
    texts = {"sha256": FILE, "url": "http://a.example/x.jpg", "domain": "b.example", "phash": "0" * 16}
    lists = lists_of(tmp_path, **texts)
    copy = pickle.loads(pickle.dumps(lists))  # noqa: S301 (our own)
    assert copy.file_block_reason(FILE) is Reason.BLOCKED_FILE
    assert copy.picture_block_reason(7) is Reason.BLOCKED_PICTURE
    assert copy.digests == {
        option: [hashlib.sha256(texts[kind].encode()).hexdigest()] for kind, option in OPTIONS.items()
    }
    assert lists_of(tmp_path, domain="c.example").digests["block_domains"] != lists.digests["block_domains"]


@pytest.mark.parametrize(
    "url",
    [
        "http://a.example/x.jpg",
        "HTTP://A.Example:80/x.jpg#part",
        "https://a.example/x.jpg",
        "http://a.example/./b/..//../x.jpg?utm_source=y",
        "http://a.example./x.jpg",
        "https://münchen.example/é.jpg?q=ü",
        "https://xn--mnchen-3ya.example/%C3%A9.jpg?q=%C3%BC",
    ],
)
def test_a_url_is_blocked_in_every_spelling(url: str, tmp_path: Path) -> None:
    lists = lists_of(tmp_path, url="http://a.example/x.jpg\nhttps://MÜNCHEN.example/é.jpg?q=ü\n")
    assert lists.url_block_reason(url) is Reason.BLOCKED_URL


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://a.example/X.jpg",
            "http://a.example/x.jpg?1",
            "http://www.a.example/x.jpg",
        ),
        *(None, "http://[broken/", "http://[\ud800/", "data:12", "table:12", "javascript:alert()", ""),
    ],
)
def test_other_urls_are_not_blocked(url: str | None, tmp_path: Path) -> None:
    lists = lists_of(tmp_path, url="http://a.example/x.jpg", domain="b.example")
    assert lists.url_block_reason(url) is None


@pytest.mark.parametrize(
    "url",
    ["http://1.2.3.4/x", "http://16909060/x", "http://0x01020304/x", "http://[2001:DB8:0::1]/x", "http://1.2.772/"],
)
def test_an_ip_address_is_blocked_in_every_notation(url: str, tmp_path: Path) -> None:
    lists = lists_of(tmp_path, domain="1.2.3.4\n2001:db8::1\n3.4.example")
    assert lists.url_block_reason(url) is Reason.BLOCKED_DOMAIN
    assert lists.url_block_reason("http://9.9.3.4/x") is None


labels = st.sampled_from(["a", "b", "aa", "xn--mnchen-3ya", "a-b"])
hosts = st.lists(labels, min_size=2, max_size=4).map(".".join)


@settings(max_examples=100, deadline=None)
@given(st.lists(hosts, min_size=1, max_size=4), st.lists(hosts, min_size=1, max_size=8))
def test_a_domain_blocks_only_itself_and_its_subdomains(
    tmp_path_factory: pytest.TempPathFactory, blocked: list[str], requested: list[str]
) -> None:
    lists = lists_of(tmp_path_factory.getbasetemp(), domain="\n".join(blocked))
    for host in requested:
        naive = any(host == domain or host.endswith(f".{domain}") for domain in blocked)
        reason = lists.url_block_reason(f"https://{host.upper()}:8443/x?y=z")
        assert reason is (Reason.BLOCKED_DOMAIN if naive else None), (host, blocked)


words = st.integers(0, 2**64 - 1)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0, 1, 7]), words), max_size=20), st.tuples(st.sampled_from([0, 7]), words))
def test_keys_equal_a_set(keys: list[tuple[int, int]], other: tuple[int, int]) -> None:
    """HashKeys with the same first word are distinguished by the second word."""
    key_set = HashKeys(np.array(keys, np.uint64).reshape(-1, 2))
    for key in [*keys, other]:
        assert (np.array(key, ">u8").tobytes() in key_set) == (key in set(keys))
    assert len(set(keys)) <= len(key_set) <= len(keys)


@pytest.mark.parametrize("long", [False, True], ids=["one pass", "bands"])
@settings(max_examples=100, deadline=None)
@given(data=st.data(), radius=st.integers(0, 12), seed=st.integers(0, 2**32 - 1))
def test_the_search_of_pictures_equals_brute_force(long: bool, data: st.DataObject, radius: int, seed: int) -> None:
    hashes = np.random.default_rng(seed).integers(0, 2**64, 200, dtype=np.uint64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.data.safety.block_lists._LONG", 100 if long else 1_000)
        pictures = PictureHashes(hashes, radius)
    assert len(pictures._sorted) == (radius + 1 if long and radius <= 7 else 1)
    entry = int(hashes[data.draw(st.integers(0, 199))])
    flips = data.draw(st.sets(st.integers(0, 63), max_size=radius + 2))
    target = entry ^ sum(1 << bit for bit in flips)
    nearest = min((int(other) ^ target).bit_count() for other in hashes)
    assert (target in pictures) == (nearest <= radius)


def rows_of(table: pa.Table) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = table.select(["reason", "image"]).to_pylist()
    return rows


def test_listed_candidates_are_dropped_and_lose_their_images(tmp_path: Path) -> None:
    listed, other = b"a listed file", b"another one"
    lists = lists_of(
        tmp_path,
        sha256=hashlib.sha256(listed).hexdigest(),
        url="http://a.example/x.jpg",
        domain="bad.example",
    )
    rows: list[tuple[str, str | None, bytes | None, Reason | None]] = [
        ("http://a.example/x.jpg", None, None, None),
        ("http://i.bad.example/1", "http://a.example/", None, None),
        ("http://a.example/2", "http://www.bad.example/page", None, None),
        ("data:1", "http://a.example/", listed, None),
        ("data:2", None, other, None),
        ("data:3", "http://bad.example/", other, Reason.CAPTION_SHORT),
    ]
    table = candidates(**dict(zip(("url", "page_url", "image", "reason"), zip(*rows, strict=True), strict=True)))
    done = apply_lists(table, lists)
    assert rows_of(done) == [
        {"reason": Reason.BLOCKED_URL, "image": None},
        {"reason": Reason.BLOCKED_DOMAIN, "image": None},
        {"reason": Reason.BLOCKED_DOMAIN, "image": None},
        {"reason": Reason.BLOCKED_FILE, "image": None},
        {"reason": None, "image": other},
        {"reason": Reason.CAPTION_SHORT, "image": None},
    ]
    assert done.drop_columns(["reason", "image"]) == table.drop_columns(["reason", "image"])
    assert done.schema == table.schema
    assert apply_lists(table.slice(0, 0), lists) == table.slice(0, 0)
    assert apply_lists(table, lists_of(tmp_path)) == table


def test_a_host_of_very_many_labels_is_compared_in_linear_time(tmp_path: Path) -> None:
    lists = lists_of(tmp_path, domain="b.example")
    started = time.process_time()
    assert lists.url_block_reason(f"http://{'a.' * 2**17}b.example/") is Reason.BLOCKED_DOMAIN
    assert lists.url_block_reason(f"http://{'a.' * 2**17}c.example/") is None
    assert time.process_time() - started < 2, "all parents together have 10^10 characters"


@pytest.mark.parametrize(
    "domain",
    [
        "☃.net",  # whatwg/url#263, kjd/idna#18: IDNA 2008 has no emoji, browsers do
        "\U0001f984.ws",
        "ＥＸＡＭＰＬＥ。com",
        "faß.de",
        "βόλος.com",  # the final sigma is a letter of its own
        "xn--fa-hia.de",
        "İ.com",
        "0x7f.1",
        "::1",
        "EXAMPLE.com.",
    ],
)
def test_domains_are_read_as_those_of_urls(domain: str, tmp_path: Path) -> None:
    lists = lists_of(tmp_path, domain=domain)
    host = f"[{domain}]" if ":" in domain else domain
    assert lists.url_block_reason(f"http://{host}/x.jpg") is Reason.BLOCKED_DOMAIN
    assert lists.url_block_reason("http://other.example/x.jpg") is None


def test_a_column_whose_name_is_not_utf8_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "list.parquet"
    pq.write_table(pa.table({"url": ["http://a.example/"], "width": [1]}), file)
    file.write_bytes(file.read_bytes().replace(b"width", b"w\xffdth"))
    with pytest.raises(ValueError, match=r"safety\.block_urls: .*list\.parquet cannot be read"):
        read_block_lists(SafetyConfig(block_urls=[str(file)]), open_file)

"""Cases of the hostile web: one host each, with its behaviour and the accepted outcomes of its image."""

import asyncio
import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.data.crawl.fetch import FetchConfig
from pipeline.reasons import Reason
from tests.hostile import (
    EARLY,
    PLAIN_AT_443,
    PUBLIC,
    PUBLIC_IPV6,
    SILENT,
    Answer,
    Host,
    drip,
    hang,
    page,
    raw,
    reset_after,
    send,
)
from tests.pipeline.data import hostile_images as images
from tests.pipeline.data.raw_server import ok
from tests.pipeline.data.rows import encode, photo_like

CONFIG = FetchConfig(
    total_timeout_seconds=6.0,
    connect_timeout_seconds=3.0,
    read_timeout_seconds=3.0,
    min_interval_seconds=0.0,
    max_bytes=4 * 2**20,
    attempts=1,
)
MAX_SECONDS = CONFIG.total_timeout_seconds + 3.0
"""The deadline, plus the delay that two busy cores may add."""
GOOD: tuple[Reason | None, ...] = (None,)
BROKEN = (Reason.CONNECTION,)
BREAKS_OFF = (Reason.INCOMPLETE,)
UNKNOWN = (Reason.NOT_AN_IMAGE,)
CORRUPT = (Reason.CORRUPT_IMAGE,)
LARGE = (Reason.TOO_MANY_BYTES,)
BOMB = (Reason.TOO_MANY_PIXELS,)
LATE = (Reason.TIMEOUT,)
PRIVATE = (Reason.NOT_PUBLIC,)
FORBIDDEN = (Reason.ROBOTS_TXT,)
REFUSED = (Reason.CLIENT_ERROR,)


@dataclass(frozen=True)
class Case:
    """The behaviour of a host, and the accepted outcomes of its image."""

    expected: tuple[Reason | None, ...]
    host: Host
    url: str = ""
    """The URL to fetch; http://HOST/x.jpg if empty."""

    @property
    def max_seconds(self) -> float:
        """Maximum time that a connection may stay open. Only cases that time out may last until the deadline."""
        return MAX_SECONDS if Reason.TIMEOUT in self.expected else CONFIG.total_timeout_seconds


def case(expected: tuple[Reason | None, ...], answer: Answer, **options: Any) -> Case:
    return Case(expected, Host(answer, **options))


def image(expected: tuple[Reason | None, ...], data: bytes, kind: str = "image/jpeg") -> Case:
    return case(expected, ok(data, f"Content-Type: {kind}"))


def redirect(expected: tuple[Reason | None, ...], location: str) -> Case:
    return case(expected, page("302 Found", f"Location: {location}"))


def slow_redirect(expected: tuple[Reason | None, ...], location: str) -> Case:
    async def write(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.45 * CONFIG.total_timeout_seconds)
        writer.write(page("302 Found", f"Location: {location}"))

    return case(expected, write)


def found_at(expected: tuple[Reason | None, ...], *lookups: tuple[str, ...]) -> Case:
    return case(expected, ok(PHOTO), addresses=lookups)


def secure(name: str, expected: tuple[Reason | None, ...], address: str = PUBLIC) -> Case:
    return Case(expected, Host(ok(PHOTO), addresses=((address,),)), f"https://{name}.test/x.jpg")


def ruled(expected: tuple[Reason | None, ...], robots: Answer) -> Case:
    return case(expected, ok(PHOTO), robots=robots)


PHOTO = images.photo()
LARGE_PHOTO = images.photo(640, 480)
BMP = encode(photo_like(3), "BMP")
GIF = encode(photo_like(3, 200, 200), "GIF")
WEBP = encode(photo_like(3, 200, 200), "WEBP")
AVIF = encode(photo_like(3, 200, 200), "AVIF")
KEPT_ALIVE = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n"
FORBID_ALL = b"User-agent: *\nDisallow: /\n"
MIB = 2**20

SLOW = {
    "silence": case(LATE, hang),
    "drip of headers": case(LATE, drip(b"HTTP/1.1 200 OK\r\nX: ", b"y", 0.1)),
    "drip of header lines": case(LATE, drip(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", 0.1)),
    "drip of the body": case(LATE, drip(raw("Content-Length: 90000"), PHOTO[:1], 0.1)),
    "drip of chunks": case(LATE, drip(raw("Transfer-Encoding: chunked"), b"1\r\nx\r\n", 0.1)),
    "drip of the status line": case(LATE, drip(b"HTTP/1.1 200 ", b"O", 0.1)),
    "body that stops": case(LATE, drip(raw("Content-Length: 90000", PHOTO), b"", 0.1)),
    "continue without end": case(LATE, drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100, 0.02)),
    "early hints, slowly": case(LATE, drip(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", 0.1)),
}
SIZES = {
    "endless body": case(LARGE, drip(raw("X: y"), bytes(1 << 16), 0.0)),
    "endless chunks": case(
        LARGE, drip(raw("Transfer-Encoding: chunked"), b"10000\r\n" + bytes(1 << 16) + b"\r\n", 0.0)
    ),
    "endless header lines": case(BROKEN, drip(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1_000, 0.0)),
    "endless header": case(BROKEN, drip(b"HTTP/1.1 200 OK\r\nX: ", b"y" * 10_000, 0.0)),
    "endless status line": case(BROKEN, drip(b"HTTP/1.1 200 ", b"y" * 10_000, 0.0)),
    "endless trailers": case(
        (*BROKEN, *BREAKS_OFF), drip(raw("Transfer-Encoding: chunked", b"0\r\n"), b"X: y\r\n" * 1_000, 0.0)
    ),
    "endless chunk extension": case(
        (*BROKEN, *BREAKS_OFF, *LATE), drip(raw("Transfer-Encoding: chunked", b"1;"), b"x" * 10_000, 0.0)
    ),
    "chunk extensions": case(
        (*BROKEN, *BREAKS_OFF, *LARGE),
        raw("Transfer-Encoding: chunked", (b"1;" + b"x=y;" * 2_000 + b"\r\nx\r\n") * 500),
    ),
    "100,000 headers": case(BROKEN, b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000 + b"\r\n" + PHOTO),
    "header of 10 MB": case(BROKEN, b"HTTP/1.1 200 OK\r\nX: " + b"y" * 10**7 + b"\r\n\r\n" + PHOTO),
    "10,000 cookies": case(BROKEN, ok(PHOTO, *(f"Set-Cookie: c{i}={i}" for i in range(10_000)))),
    "gzip bomb": case(LARGE, ok(images.gzipped_zeros(2**30), "Content-Encoding: gzip")),
    "deflate bomb": case(LARGE, ok(images.deflated_zeros(2**30), "Content-Encoding: deflate")),
    "gzip in gzip": case(UNKNOWN, ok(gzip.compress(gzip.compress(PHOTO)), "Content-Encoding: gzip, gzip")),
    "announced too large": case(LARGE, drip(raw(f"Content-Length: {2**40}"), bytes(1 << 16), 0.0)),
    "length of 30 digits": case((*LARGE, *BROKEN), raw(f"Content-Length: {'9' * 30}", PHOTO)),
}
FRAMING = {
    "no length": case(GOOD, raw("X: y", PHOTO)),
    "gzip although it was not asked for": case(GOOD, ok(gzip.compress(PHOTO), "Content-Encoding: gzip")),
    "short length": case((*CORRUPT, *BROKEN), raw(f"Content-Length: {len(PHOTO) - 1000}", PHOTO)),
    "short length and the end": case(
        (*CORRUPT, *BROKEN), raw(f"Content-Length: {len(PHOTO) - 1000}\r\nConnection: close", PHOTO)
    ),
    "long length": case(BREAKS_OFF, raw(f"Content-Length: {len(PHOTO) + 1000}", PHOTO)),
    "negative length": case(BROKEN, raw("Content-Length: -1", PHOTO)),
    "garbage length": case(BROKEN, raw("Content-Length: lots", PHOTO)),
    "length with a sign": case(BROKEN, raw(f"Content-Length: +{len(PHOTO)}", PHOTO)),
    "two lengths": case(BROKEN, raw(f"Content-Length: {len(PHOTO)}\r\nContent-Length: 5", PHOTO)),
    "length and chunks": case(
        BROKEN, raw("Content-Length: 5\r\nTransfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(PHOTO), PHOTO))
    ),
    "garbage chunks": case((*BROKEN, *BREAKS_OFF), raw("Transfer-Encoding: chunked", b"zz\r\n" + PHOTO)),
    "negative chunk": case((*BROKEN, *BREAKS_OFF), raw("Transfer-Encoding: chunked", b"-5\r\n" + PHOTO)),
    "chunk of 2**80": case(
        (*BROKEN, *BREAKS_OFF), raw("Transfer-Encoding: chunked", b"1" + b"0" * 20 + b"\r\n" + PHOTO)
    ),
    "chunks without an end": case(BREAKS_OFF, raw("Transfer-Encoding: chunked", b"%x\r\n%b\r\n" % (len(PHOTO), PHOTO))),
    "unknown encoding of the transfer": case((*BROKEN, *UNKNOWN, *GOOD), raw("Transfer-Encoding: frob", PHOTO)),
    "no gzip": case(BREAKS_OFF, ok(PHOTO, "Content-Encoding: gzip")),
    "HTTP/0.9": case(BROKEN, PHOTO),
    "HTML without HTTP": case(BROKEN, b"<html>\r\n\r\n</html>"),
    "ICY": case(BROKEN, b"ICY 200 OK\r\n\r\n" + PHOTO),
    "HTTP/9.9": case(BROKEN, b"HTTP/9.9 200 OK\r\n\r\n" + PHOTO),
    "status of letters": case(BROKEN, b"HTTP/1.1 abc OK\r\n\r\n" + PHOTO),
    "status of four digits": case(BROKEN, b"HTTP/1.1 2000 OK\r\n\r\n" + PHOTO),
    "zero in a header": case(BROKEN, raw("X: a\0b", PHOTO)),
    "header without a name": case(BROKEN, raw(": y", PHOTO)),
    "switching protocols": case((*REFUSED, *BROKEN), b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" + PHOTO),
    "no content": case(REFUSED, b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"),
    "not modified": case(REFUSED, b"HTTP/1.1 304 Not Modified\r\nConnection: close\r\n\r\n"),
    "a part": case(REFUSED, page("206 Partial Content", body=PHOTO)),
    "reset": case(BROKEN, reset_after(b"")),
    "not a word": case(BROKEN, b""),
    "reset within the body": case(BREAKS_OFF, reset_after(raw("Content-Length: 90000", PHOTO))),
    "two answers to one request": case((*GOOD, *BROKEN), ok(PHOTO) + ok(b"another")),
    "answers before requests": found_at((*GOOD, *BROKEN), (EARLY,)),
    "kept alive": case(GOOD, ok(PHOTO), robots=KEPT_ALIVE),
    "kept alive and closed": case((*GOOD, *BROKEN), ok(PHOTO), robots=send(KEPT_ALIVE)),
    "kept alive and closed when it is used": case(BROKEN, b"", robots=KEPT_ALIVE),
}
TLS = {
    "good": secure("good", GOOD),
    "self-signed": secure("self-signed", BROKEN),
    "wrong-host": secure("wrong-host", BROKEN),
    "expired": secure("expired", BROKEN),
    "http-at-443": secure("http-at-443", BROKEN, PLAIN_AT_443),
    "silent-handshake": secure("silent-handshake", (*LATE, *BROKEN), SILENT),
}
FORBIDDEN_TARGETS = {
    PRIVATE: (
        *("http://127.0.0.1/", "http://10.0.0.1/", "http://192.168.1.1/", "http://172.16.0.1/", "http://0.0.0.0/"),
        *("//169.254.169.254/latest/meta-data/", "http://100.64.0.1/", "http://[::1]/", "http://[fd00:ec2::254]/"),
        *("http://[fe80::1]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:a9fe:a9fe]/", "http://[64:ff9b::7f00:1]/"),
        *("http://[2002:7f00:1::]/", "http://[2001:0:7f00:1::]/", "http://[2606:4700::5efe:7f00:1]/"),
        *("http://2130706433/", "http://017700000001/", "http://0x7f000001/", "http://0177.0.0.1/", "http://127.1/"),
        *(
            "http://127.0.0.1./",
            "http://%31%32%37.0.0.1/",
            "http://localhost/",
            "http://metadata.google.internal/",
            "http://printer.local/",
        ),
    ),
    (Reason.BAD_SCHEME,): (
        *("file:///etc/passwd", "ftp://93.184.216.34/x.jpg", "javascript:alert(1)", "data:image/png;base64,AAAA"),
        *(
            "gopher://93.184.216.34:80/_GET",
            "http://93.184.216.34:22/",
            "http://good.test:8080/",
            "https://good.test:80443/",
        ),
        *(
            "http://user@good.test/",
            "http://good.test@127.0.0.1/",
            "http://127.0.0.1@good.test/",
        ),
        *("http://256.256.256.256/", "http://[]@", "http://[bad/"),
    ),
}
REDIRECTS = {
    **{f"to {url}": redirect(reason, url) for reason, urls in FORBIDDEN_TARGETS.items() for url in urls},
    "to a name that is not there": redirect((Reason.NO_SUCH_HOST,), "http://nobody.test/"),
    "loop": redirect((Reason.TOO_MANY_REDIRECTS,), "/x.jpg"),
    "loop of two": redirect((Reason.TOO_MANY_REDIRECTS,), "http://loop.test/x.jpg"),
    "to itself": redirect((Reason.TOO_MANY_REDIRECTS,), ""),
    "to data of 7 KB": redirect((Reason.BAD_SCHEME,), "data:image/png;base64," + "A" * 7_000),
    "to an address of 7 KB that is none": redirect((Reason.BAD_SCHEME,), f"http://[{'a' * 7_000}/"),
    "to a scheme alone": redirect((Reason.BAD_SCHEME,), "http://"),
    "to a backslash": redirect(GOOD, "http://good.test\\@10.0.0.1/"),  # a slash in http URLs
    "chain": redirect((Reason.TOO_MANY_REDIRECTS,), "http://chain1.test/x.jpg"),
    **{f"chain{i}": redirect((Reason.TOO_MANY_REDIRECTS,), f"http://chain{i + 1}.test/x.jpg") for i in range(1, 3)},
    **{f"chain{i}": redirect(GOOD, f"http://chain{i + 1}.test/x.jpg") for i in range(3, 8)},
    "chain8": image(GOOD, PHOTO),
    "rebinding": case(
        PRIVATE, page("302 Found", "Location: https://rebinding.test/"), addresses=((PUBLIC,), ("127.0.0.1",))
    ),
    "slowly": slow_redirect(LATE, "http://slowly1.test/x.jpg"),
    "slowly1": slow_redirect((*GOOD, *LATE), "http://slowly2.test/x.jpg"),
    "slowly2": slow_redirect(GOOD, "http://slowly3.test/x.jpg"),
    "slowly3": image(GOOD, PHOTO),
    "without a target": case(REFUSED, page("302 Found")),
    "by a Refresh header": case(UNKNOWN, page("200 OK", "Refresh: 0; url=http://10.0.0.1/")),
    "to an address of 7 KB": redirect((*GOOD, *BROKEN, *REFUSED), "http://good.test/" + "a" * 7_000),
}
NAMES = {
    "at IPv6": found_at(GOOD, (PUBLIC_IPV6,)),
    "changes its mind": found_at((*GOOD, *PRIVATE), (PUBLIC,), ("127.0.0.1",)),
    "public and private": found_at(PRIVATE, (PUBLIC, "10.0.0.1")),
    "private and public": found_at(PRIVATE, ("10.0.0.1", PUBLIC)),
    "at loopback": found_at(PRIVATE, ("127.0.0.1",)),
    "at loopback by IPv6": found_at(PRIVATE, ("::1",)),
    "at a mapped address": found_at(PRIVATE, ("::ffff:169.254.169.254",)),
    "behind NAT64": found_at(PRIVATE, ("64:ff9b::a9fe:a9fe",)),
    "at the metadata": found_at(PRIVATE, ("169.254.169.254",)),
    "at a link's address": found_at(PRIVATE, ("fe80::1%1",)),
    **{
        f"slow lookup {i}": case((*LATE, *BROKEN), ok(PHOTO), lookup_seconds=CONFIG.total_timeout_seconds + 0.5)
        for i in range(12)  # more than asyncio's lookup threads on a small machine
    },
}
ICC_BOMB, TEXT_BOMB = (
    images.small_png(images.png_chunk(kind, b"x\0\0" + images.deflated_zeros(200 * MIB))) for kind in (b"iCCP", b"zTXt")
)
FILES = {
    "empty": image(UNKNOWN, b""),
    "one zero": image(UNKNOWN, b"\0"),
    "only a signature": image(CORRUPT + UNKNOWN, b"\xff\xd8\xff"),
    "SVG": image(UNKNOWN, images.SVG, "image/svg+xml"),
    "HTML that says it is a JPEG": image(UNKNOWN, b"<!DOCTYPE html><script>alert(1)</script>"),
    "PostScript": image(UNKNOWN, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n"),
    "zip": image(UNKNOWN, images.zip_file()),
    "PNG bomb": image(BOMB, images.black_png(12_000)),
    "PNG of 30,000": image(BOMB, images.png(30_000, 30_000, b"")),
    "JPEG of 30,000": image(BOMB, images.with_jpeg_size(PHOTO, 30_000, 30_000)),
    "BMP of 30,000": image(BOMB, BMP[:18] + 2 * (30_000).to_bytes(4, "little") + BMP[26:]),
    "BMP of negative size": image((*BOMB, *CORRUPT), BMP[:18] + b"\0\0\0\x80" * 2 + BMP[26:]),
    "GIF of 65,535": image(BOMB, GIF[:6] + b"\xff" * 4 + GIF[10:]),
    "ICC bomb": image((*GOOD, *CORRUPT), ICC_BOMB, "image/png"),
    "text bomb": image((*GOOD, *CORRUPT), TEXT_BOMB, "image/png"),
    "GIF of 100,000 frames": image(GOOD, images.frames(100_000), "image/gif"),
    "JPEG of 2,000 scans": image(CORRUPT, images.many_scans(512, 2_000)),
    "truncated JPEG": image(CORRUPT, LARGE_PHOTO[:-3_000]),
    "JPEG that ends in its middle": image(CORRUPT, images.half_with_an_end(LARGE_PHOTO)),
    "progressive JPEG that ends in its middle": image(
        CORRUPT, images.half_with_an_end(images.photo(640, 480, progressive=True))
    ),
    "JPEG with nonsense in its middle": image(CORRUPT, images.broken_in_the_middle(LARGE_PHOTO)),
    "truncated PNG": image(CORRUPT, encode(photo_like(3))[:-3_000]),
    "PNG with half of its rows": image(CORRUPT, images.png(64, 64, zlib.compress(bytes(32 * 193)))),
    "truncated GIF": image(CORRUPT, GIF[: len(GIF) // 2]),
    "truncated WebP": image(CORRUPT, WEBP[: len(WEBP) // 2]),
    "truncated AVIF": image((*CORRUPT, *UNKNOWN), AVIF[: len(AVIF) // 2]),
    "zip behind a JPEG": image(GOOD, PHOTO + images.zip_file()),
    "EXIF of nonsense": image(GOOD, images.with_exif(PHOTO, b"MM\0*\0\0\0\x08\xff\xff" + bytes(range(256)) * 100)),
    "EXIF that points at itself": image(
        GOOD, images.with_exif(PHOTO, b"II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0")
    ),
    "300,000 comments": image((*GOOD, *CORRUPT), PHOTO[:2] + b"\xff\xfe\0\2" * 300_000 + PHOTO[2:]),
    "TIFF": image(GOOD, encode(photo_like(3), "TIFF"), "image/tiff"),
    "BMP": image(GOOD, BMP, "text/html"),
    **{f"animated {kind}": image(GOOD, images.animated(kind)) for kind in ("GIF", "WEBP", "AVIF", "PNG")},
}
ROBOTS = {
    "endless": ruled(GOOD, drip(raw("X: y", b"User-agent: *\nAllow: /\n"), b"# filler\n" * 5_000, 0.0)),
    "endless and strict": ruled(FORBIDDEN, drip(raw("X: y", FORBID_ALL), b"# filler\n" * 5_000, 0.0)),
    "slow": ruled(LATE, drip(raw("X: y", FORBID_ALL), b"#", 0.1)),
    "silent": ruled(LATE, hang),
    "of 10 MB": ruled(FORBIDDEN, ok(FORBID_ALL + b"# filler\n" * 1_200_000)),
    "in a loop": ruled(FORBIDDEN, page("301 Moved", "Location: /robots.txt")),
    "at a private address": ruled(PRIVATE, page("301 Moved", "Location: http://169.254.169.254/robots.txt")),
    "in gzip": ruled(FORBIDDEN, ok(gzip.compress(FORBID_ALL), "Content-Encoding: gzip")),
    "of a gzip bomb": ruled(GOOD, ok(images.gzipped_zeros(2**30), "Content-Encoding: gzip")),
    "of bytes": ruled(GOOD, ok(bytes(range(256)) * 400)),
    "of a picture": ruled(GOOD, ok(PHOTO)),
    "broken off": ruled((*BREAKS_OFF, *FORBIDDEN), raw("Content-Length: 99", FORBID_ALL)),
    "with an error": ruled(FORBIDDEN, page("503 Busy")),
    "that asks for a year": ruled(FORBIDDEN, ok(b"User-agent: *\nCrawl-delay: 31536000")),
    "of agents": ruled(
        GOOD,
        ok(
            b"".join(b"User-agent: a%d\n" % i for i in range(15_000))
            + b"".join(b"Allow: /%d\n" % i for i in range(15_000))
        ),
    ),
    "of patterns": ruled((*GOOD, *FORBIDDEN), ok(b"User-agent: *\nDisallow: /" + b"*a" * 250_000 + b"b")),
    "and 1,000 tags": case(
        (Reason.X_ROBOTS_TAG, *BROKEN), ok(PHOTO, *["X-Robots-Tag: otherbot: noindex"] * 1_000, "X-Robots-Tag: noai")
    ),
    "and a tag": case(
        (Reason.X_ROBOTS_TAG,), ok(PHOTO, "X-Robots-Tag: otherbot: all", "X-Robots-Tag: clip-on-ray: noai")
    ),
}
BETWEEN = {f"good picture {i}": image(GOOD, images.photo(200 + i, 160)) for i in range(10)}


def _named() -> Iterator[tuple[str, Case]]:
    groups = {"slow": SLOW, "size": SIZES, "framing": FRAMING, "tls": TLS, "redirect": REDIRECTS, "name": NAMES}
    groups |= {"file": FILES, "robots": ROBOTS, "between": BETWEEN}
    for group, cases in groups.items():
        for name, one in cases.items():
            yield f"{group}: {name}", one


CASES = dict(_named())


def host_of(name: str) -> str:
    """The host name of a case: the case's own name if valid as a host name, so that other cases can redirect to it."""
    plain = name.partition(": ")[2]
    return f"{plain}.test" if re.fullmatch("[a-z][a-z0-9-]*", plain) else f"case-{list(CASES).index(name)}.test"


def url_of(name: str) -> str:
    return CASES[name].url or f"http://{host_of(name)}/x.jpg"

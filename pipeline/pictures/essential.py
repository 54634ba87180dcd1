"""Keep the parts of an image file that determine its first picture, and its EXIF data.

Browsers and OpenCV show pictures whose metadata Pillow refuses: chunks of a PNG that unpack to more than 1 MiB or have
a wrong checksum, bytes between the segments of a JPEG, an AVIF of another major brand. Pillow also reads some metadata
in quadratic time or memory: comments of a GIF, EXIF segments of a JPEG, EXIF directories whose entries share their
values. So only the essential bytes reach a decoder. All loops are linear in the size of the file, and nothing is
unpacked.

The functions never raise: damage is left in place for the decoder to refuse.

Sources: ITU-T T.81 (JPEG), JFIF 1.02, PNG third edition, GIF89a, TIFF 6.0, EXIF 2.32, RIFF container of WebP,
ISO/IEC 23000-22 (MIAF).
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from itertools import islice

SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
)
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
"""The types that are decoded. Pillow supports many more, some of which start other programs."""
MAX_VALUE_BYTES = 2**25
"""Maximum bytes of all values of an EXIF or TIFF directory. Entries may share their bytes, so that a directory of
64 KiB can hold values of 300 MB, and a TIFF values of many GB."""
MAX_NUMBER_BYTES = 2**21
"""Maximum bytes of those values that Pillow turns into Python numbers, which take up to 20 times as much memory."""
MAX_SCANS = 100
"""Maximum scans of a progressive JPEG. Each scan is a pass over all pixels; ten scans are usual."""
_MAX_BRAND_BYTES = 4096
_MAX_DIRECTORIES = 16
"""Maximum places in an AVIF that look like the start of EXIF data. One is usual, and chance alone makes none."""

_MARKER = re.compile(rb"\xff[^\x00\xff]")
_SCAN = re.compile(rb"\xff\xda\x00[\x08\x0a\x0c\x0e]([\x01-\x04])")
_SEQUENTIAL_FRAMES = frozenset({0xC0, 0xC1, 0xC9})
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of the JPEG segments that contain height and width (T.81, table B.1)."""
_START_OF_SCAN, _ADOBE, _JFIF, _EXIF = 0xDA, 0xEE, 0xE0, 0xE1
_JFIF_SEGMENT = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_MAX_SEQUENTIAL_SCANS = 4
"""One for each component."""
_WHOLE_BLOCK = b"\x00\x3f\x00"
"""Spectral selection and approximation of every scan of a sequential JPEG (T.81, table B.3)."""

_ORIENTATION = 0x0112
_SUB_DIRECTORIES = frozenset({0x8769, 0x8825, 0xA005, 0x014A})
"""Tags that point to other directories: EXIF, GPS, interoperability, sub-images."""
_SHORT = 3
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_PLAIN_TYPES = frozenset({1, 2, 6, 7})
"""Types that Pillow keeps as bytes: BYTE, ASCII, SBYTE, UNDEFINED."""


@dataclass(frozen=True)
class Essential:
    """What determines the picture."""

    kind: str
    """One of FORMATS."""
    data: bytes
    """The file without its metadata, or the file itself."""
    exif: bytes | None = None
    """EXIF data from the byte order on. None for TIFF, whose tags are EXIF data themselves, and for AVIF, whose EXIF
    data the decoder finds."""
    orientation: int = 1
    """From the EXIF data; 1 for AVIF."""
    num_scans: int = 1
    """Passes over all pixels; more than one in a progressive JPEG only."""
    num_pixels: int | None = None
    """Of a WebP, whose decoder allocates the canvas when it is opened; None for other types."""
    problem: str | None = None
    """Why the file must not be given to a decoder."""


@dataclass(frozen=True)
class Directory:
    """The first directory of EXIF data or of a TIFF."""

    orientation: int
    """1 to 8; 1 if there is none, or one that is not valid."""
    value_bytes: int
    number_bytes: int
    """Bytes of values of other types than BYTE, ASCII, SBYTE and UNDEFINED."""
    harmless: bytes
    """The data, upright and without the directories of EXIF, GPS and sub-images."""

    @property
    def is_too_large(self) -> bool:
        """Whether its values would take more memory than any picture's metadata needs."""
        return self.value_bytes > MAX_VALUE_BYTES or self.number_bytes > MAX_NUMBER_BYTES


def image_type(data: bytes) -> str | None:
    """The image type by its first bytes, never by file name or HTTP header; None if the type is unknown."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    kind = next((name for signature, name in SIGNATURES if data.startswith(signature)), None)
    if kind is None and data[4:8] == b"ftyp" and _brands(data) & {b"avif", b"avis"}:
        return "AVIF"
    return kind


def essential(data: bytes) -> Essential | None:
    """The essential parts of a file, or None if its type is unknown."""
    kind = image_type(data)
    if kind == "JPEG":
        return _jpeg(data)
    if kind == "PNG":
        return _png(data)
    if kind == "GIF":
        return Essential(kind, _gif(data))
    if kind == "WEBP":
        exif, orientation = _valid_exif(_exif_of_webp(data))
        return Essential(kind, data, exif, orientation, num_pixels=_pixels_of_webp(data))
    if kind == "AVIF":
        return _avif(data)
    if kind == "TIFF":
        directory = read_directory(data)
        problem = "its tags are too large" if directory.is_too_large else None
        return Essential(kind, directory.harmless, orientation=directory.orientation, problem=problem)
    return None if kind is None else Essential(kind, data)


def shorter_side(jpeg: bytes) -> int:
    """The shorter side in pixels, from the header of a JPEG's essential parts; 0 if it has none."""
    offset = 2
    while offset + 9 <= len(jpeg) and jpeg[offset] == 0xFF:
        if jpeg[offset + 1] in _FRAMES:
            return min(int.from_bytes(jpeg[start : start + 2], "big") for start in (offset + 5, offset + 7))
        offset += 2 + int.from_bytes(jpeg[offset + 2 : offset + 4], "big")
    return 0


def read_directory(tiff: bytes) -> Directory:
    """Read the first directory of EXIF data or of a TIFF, without its values."""
    order = "<" if tiff[:2] == b"II" else ">"
    harmless = None
    value_bytes = number_bytes = 0
    orientation = 1
    offset = struct.unpack_from(order + "I", tiff, 4)[0] if len(tiff) >= 8 else len(tiff)
    count = struct.unpack_from(order + "H", tiff, offset)[0] if offset + 2 <= len(tiff) else 0
    for at in range(offset + 2, min(offset + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind, number = struct.unpack_from(order + "HHI", tiff, at)
        num_bytes = number * _TYPE_BYTES.get(kind, 0)
        value_bytes += num_bytes
        number_bytes += 0 if kind in _PLAIN_TYPES else num_bytes
        if tag == _ORIENTATION and (kind, number) == (_SHORT, 1):  # as browsers do; Pillow takes any type
            value = struct.unpack_from(order + "H", tiff, at + 8)[0]
            orientation = value if 1 <= value <= 8 else 1
        if tag in _SUB_DIRECTORIES or tag == _ORIENTATION:
            harmless = harmless or bytearray(tiff)
            struct.pack_into(order + "I", harmless, at + 4, 0)  # an entry of no values is skipped
    return Directory(orientation, value_bytes, number_bytes, bytes(harmless) if harmless else tiff)


def _valid_exif(exif: bytes | None) -> tuple[bytes | None, int]:
    """EXIF data from the byte order on, and its orientation; None and 1 if it is none."""
    exif = exif and exif.removeprefix(b"Exif\0\0")
    if not exif or exif[:4] not in {b"II*\0", b"MM\0*"}:
        return None, 1
    return exif, read_directory(exif).orientation


def _jpeg(data: bytes) -> Essential:
    """A JPEG without comments, applications' segments, and bytes between segments.

    libjpeg reports only its first warning, so a warning about a harmless oddity would hide one about damage. Therefore
    the oddities that browsers ignore are corrected: the last bytes of the scan header of a sequential JPEG (written
    wrongly by telephones), the version of JFIF, and Adobe's transformation.
    """
    parts = [data[:2]]
    exif: bytes | None = None
    adobe_at: int | None = None
    has_jfif = is_sequential = False
    num_components = 0
    offset = 2
    while found := _MARKER.search(data, offset):
        at, marker = found.start(), data[found.start() + 1]
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a segment
            offset = at + 2
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in {0xD8, 0xD9, _START_OF_SCAN} or end < at + 4 or end > len(data):
            rest = data[at:]
            parts.append(_with_whole_blocks(rest) if marker == _START_OF_SCAN and is_sequential else rest)
            break
        segment, offset = data[at:end], end
        if marker == _EXIF and exif is None and segment[4:10] == b"Exif\0\0":
            exif = segment[4:]
        elif marker == _JFIF and not has_jfif and len(segment) >= 18 and segment[4:9] == b"JFIF\0":
            has_jfif = True
            parts.append(_JFIF_SEGMENT)
        elif marker == _ADOBE and len(segment) >= 16 and segment[4:9] == b"Adobe":
            if adobe_at is None:
                adobe_at = len(parts)
                parts.append(segment)
            parts[adobe_at] = segment[:16]
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            parts.append(segment)
            if marker in _FRAMES and len(segment) >= 10:
                is_sequential, num_components = marker in _SEQUENTIAL_FRAMES, segment[9]
    if adobe_at is not None:
        parts[adobe_at] = _adobe_segment(parts[adobe_at][15], num_components)
    # Films behind a baseline JPEG (motion photos) contain such bytes by chance
    num_scans = 1 if is_sequential else parts[-1].count(b"\xff\xda")
    problem = f"more than {MAX_SCANS} scans" if num_scans > MAX_SCANS else None
    exif, orientation = _valid_exif(exif)
    return Essential("JPEG", b"".join(parts), exif, orientation, num_scans, problem=problem)


def _adobe_segment(transform: int, num_components: int) -> bytes:
    """Adobe's segment with the transformation that libjpeg chooses: 0 none, 1 YCbCr, 2 YCCK."""
    chosen = transform and {3: 1, 4: 2}.get(num_components, transform)
    return b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([chosen])


def _with_whole_blocks(scans: bytes) -> bytes:
    """The scans of a sequential JPEG, whose headers select whole blocks."""
    patched = None
    for found in islice(_SCAN.finditer(scans), _MAX_SEQUENTIAL_SCANS):
        num_components = found[1][0]
        at = found.end() + 2 * num_components
        if scans[found.start() + 3] == 6 + 2 * num_components and scans[at : at + 3] != _WHOLE_BLOCK:
            patched = patched or bytearray(scans)
            patched[at : at + 3] = _WHOLE_BLOCK[: len(scans) - at]
    return bytes(patched) if patched else scans


def _png(data: bytes) -> Essential:
    """A PNG without ancillary chunks, except for transparency."""
    parts = [data[:8]]
    exif: bytes | None = None
    colour_type, has_transparency, palette_size = data[25] if len(data) > 25 else 0, False, 0
    offset = 8
    while offset + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, offset)
        end = offset + 12 + length
        is_ancillary = bool(name[0] & 0x20)
        if end > len(data):
            parts.append(b"" if is_ancillary else data[offset:])
            break
        if not is_ancillary:
            parts.append(data[offset:end])
            palette_size = length // 3 if name == b"PLTE" else palette_size
            if name == b"IEND":
                break
        elif name in {b"tRNS", b"eXIf"} and zlib.crc32(data[offset + 4 : end - 4]) == int.from_bytes(
            data[end - 4 : end], "big"
        ):
            if name == b"eXIf":
                exif = exif or data[offset + 8 : end - 4]
            elif not has_transparency and (
                0 < length <= palette_size if colour_type == 3 else length == {0: 2, 2: 6}.get(colour_type)
            ):
                has_transparency = True
                parts.append(data[offset:end])
        offset = end
    else:
        parts.append(data[offset:])
    exif, orientation = _valid_exif(exif)
    return Essential("PNG", b"".join(parts), exif, orientation)


def _gif(data: bytes) -> bytes:
    """A GIF's first frame with its graphic control extension."""
    if len(data) < 13:
        return data
    offset = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    head, control = data[:offset], b""
    while offset < len(data):
        if data[offset] == 0x21:  # an extension: its label and blocks
            end = _end_of_blocks(data, offset + 2)
            if data[offset + 1 : offset + 2] == b"\xf9":
                control = data[offset:end]
            offset = end
        elif data[offset] == 0x2C:  # an image: its position, colours, code size and blocks
            flags = data[offset + 9] if offset + 9 < len(data) else 0
            start = offset + 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
            return b"".join((head, control, data[offset : _end_of_blocks(data, start)], b"\x3b"))
        elif data[offset] == 0x3B:
            break
        else:
            offset += 1
    return head + b"\x3b"


def _end_of_blocks(data: bytes, offset: int) -> int:
    """The end of a sequence of blocks, each of which begins with its length; the last is empty."""
    while offset < len(data):
        length = data[offset]
        offset += 1 + length
        if not length:
            break
    return min(offset, len(data))


def _exif_of_webp(data: bytes) -> bytes | None:
    offset = 12
    while offset + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, offset)
        if name == b"EXIF":
            return data[offset + 8 : offset + 8 + length]
        offset += 8 + length + (length & 1)
    return None


def _pixels_of_webp(data: bytes) -> int | None:
    """Width times height by the first chunk: extended, lossless or lossy."""
    if len(data) < 30:
        return None
    if data[12:16] == b"VP8X":
        return (1 + int.from_bytes(data[24:27], "little")) * (1 + int.from_bytes(data[27:30], "little"))
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (1 + (bits & 0x3FFF)) * (1 + (bits >> 14 & 0x3FFF))
    return (int.from_bytes(data[26:28], "little") & 0x3FFF) * (int.from_bytes(data[28:30], "little") & 0x3FFF)


def _brands(data: bytes) -> set[bytes]:
    """The major and compatible brands in the first box of an ISO media file."""
    size = min(int.from_bytes(data[:4], "big"), len(data), _MAX_BRAND_BYTES)
    return {data[8:12], *(data[at : at + 4] for at in range(16, size - 3, 4))}


def _avif(data: bytes) -> Essential:
    """An AVIF with a major brand that Pillow knows, unless its EXIF data could exhaust the memory.

    Pillow reads the EXIF data of an AVIF when it opens the file, so each place that could be its start is checked.
    """
    major = data[8:12]
    if major not in {b"avif", b"avis"}:
        brands = _brands(data)
        coded = b"avis" if b"avif" not in brands or (major == b"msf1" and b"avis" in brands) else b"avif"
        data = data[:8] + coded + data[12:]
    starts = [*_places(data, b"II*\0"), *_places(data, b"MM\0*")]
    if len(starts) > _MAX_DIRECTORIES:
        return Essential("AVIF", data, problem="many starts of EXIF data")
    if any(read_directory(data[start:]).is_too_large for start in starts):
        return Essential("AVIF", data, problem="its EXIF data is too large")
    return Essential("AVIF", data)


def _places(data: bytes, text: bytes) -> list[int]:
    """The first places of a text; at most one more than _MAX_DIRECTORIES."""
    found: list[int] = []
    at = data.find(text)
    while at >= 0 and len(found) <= _MAX_DIRECTORIES:
        found.append(at)
        at = data.find(text, at + 1)
    return found

"""Build odd image files, as cameras, editors and attackers write them. Each function says whose report it follows."""

import io
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.pipeline.data.hostile_images import deflated_zeros, png_chunk
from tests.pipeline.data.rows import encode, photo_like

ORIENTATION = 0x0112
MIB = 2**20
HIDDEN = (200, 0, 0)
"""The colour of transparent pixels, which no page shows."""


def picture(width: int = 96, height: int = 64) -> Image.Image:
    """A picture without symmetry, so that each orientation looks different."""
    return photo_like(7, width, height)


JPEG, PNG, GIF = (encode(picture(), kind) for kind in ("JPEG", "PNG", "GIF"))


def exif_of(orientation: int) -> Image.Exif:
    """EXIF data with an orientation."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def with_scan_bytes(jpeg: bytes, last: bytes) -> bytes:
    """A JPEG whose first scan header ends with these three bytes (lovell/sharp#1578: telephones write zeros)."""
    at = jpeg.index(b"\xff\xda")
    end = at + 5 + 2 * jpeg[at + 4]
    return jpeg[:end] + last + jpeg[end + 3 :]


def with_segment(jpeg: bytes, segment: bytes) -> bytes:
    """A JPEG with bytes behind its first segment."""
    at = 4 + int.from_bytes(jpeg[4:6], "big")
    return jpeg[:at] + segment + jpeg[at:]


def segment(marker: int, content: bytes) -> bytes:
    """A segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    """A PNG with chunks behind its header."""
    return png[:33] + b"".join(chunks) + png[33:]


def broken(chunk: bytes) -> bytes:
    """A chunk with a wrong checksum."""
    return chunk[:-1] + bytes([chunk[-1] ^ 1])


def unpacks_to(kind: bytes, num_bytes: int) -> bytes:
    """A compressed chunk of a PNG, of a few bytes each MiB."""
    zeros = deflated_zeros(num_bytes)
    return png_chunk(kind, {b"iCCP": b"x\0\0", b"zTXt": b"x\0\0", b"iTXt": b"x\0\1\0\0\0"}[kind] + zeros)


def with_brand(avif: bytes, major: bytes) -> bytes:
    """An AVIF of another major brand."""
    return avif[:8] + major + avif[12:]


def directory(entries: Sequence[tuple[int, int, int, int]], content: bytes = b"") -> bytes:
    """EXIF data of entries (tag, type, number of values, value or offset), and content behind them."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4) + content


def shared_values(num_entries: int, num_bytes: int) -> bytes:
    """EXIF data whose entries share their values: its size times the number of entries in memory."""
    start = 14 + 12 * num_entries
    return directory([(0xFFFF - i, 7, num_bytes, start) for i in range(num_entries)], b"x" * num_bytes)


def sixteen_bits(colour_type: int, pixels: npt.NDArray[np.uint16], *chunks: bytes) -> bytes:
    """A PNG of 16 bits per channel. Pixels: integers, height x width x channels."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    content = png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + content


def gif_with_offset_frame() -> bytes:
    """A GIF of 64 x 64 pixels whose first frame is a black square of 16 pixels at (8, 8)."""
    sink = io.BytesIO()
    Image.new("P", (16, 16), 0).save(sink, "GIF")
    gif = bytearray(sink.getvalue())
    at = gif.index(b"\x2c")
    gif[6:10] = struct.pack("<HH", 64, 64)
    gif[at + 1 : at + 5] = struct.pack("<HH", 8, 8)
    return bytes(gif)


def early_end_of_gif() -> bytes:
    """A GIF of 64 x 64 pixels whose compressed data ends after one of them: codes 4 (clear), 0, 5 (end) of 3 bits."""
    data = gif_with_offset_frame()
    at = data.index(b"\x2c")
    whole = data[:at] + b"\x2c" + struct.pack("<HHHHB", 0, 0, 64, 64, 0)
    return whole + b"\x02\x02" + (4 | 0 << 3 | 5 << 6).to_bytes(2, "little") + b"\0\x3b"


def gif_with_comment(num_bytes: int) -> bytes:
    """A GIF with a comment of many blocks, which Pillow joins in quadratic time."""
    at = 13 + (3 << (GIF[10] & 7) + 1 if GIF[10] & 0x80 else 0)
    return GIF[:at] + b"\x21\xfe" + b"\x01x" * (num_bytes // 2) + b"\0" + GIF[at:]


def with_alpha(mode: str, orientation: int) -> bytes:
    """A PNG, WebP, TIFF, GIF or AVIF of 40 x 24 pixels, whose left half has the hidden colour and is transparent."""
    rgba = Image.new("RGBA", (40, 24), (*HIDDEN, 0))
    rgba.paste((0, 0, 90, 255), (20, 0, 40, 24))
    exif = exif_of(orientation)
    kind, _, form = mode.partition(" in ")
    if form != "PNG":
        options: dict[str, dict[str, Any]] = {
            "WEBP": {"lossless": True, "exif": exif},
            "AVIF": {"quality": 100, "subsampling": "4:4:4", "exif": exif},
            "TIFF": {"exif": exif},
            "GIF": {},
        }
        return encode(rgba, form, **options[form])
    if kind in {"RGBA", "LA"}:
        return encode(rgba.convert(kind), exif=exif)
    if kind == "P":
        paletted = Image.new("P", (40, 24), 1)
        paletted.putpalette([0, 0, 90, *HIDDEN])
        paletted.paste(0, (20, 0, 40, 24))
        return encode(paletted, transparency=1, exif=exif)
    if kind in {"L", "RGB", "1"}:
        flat = rgba.convert("RGB").convert(kind, dither=Image.Dither.NONE)
        if kind == "1":
            flat.paste(1, (0, 0, 20, 24))
        return encode(flat, transparency=1 if kind == "1" else flat.getpixel((0, 0)), exif=exif)
    deep = np.asarray(rgba).astype(np.uint16) * 257
    chunk = png_chunk(b"eXIf", exif.tobytes()[6:])
    if kind == "RGBA of 16 bits":
        return sixteen_bits(6, deep, chunk)
    if kind == "LA of 16 bits":
        return sixteen_bits(4, deep[..., [0, 3]], chunk)
    if kind == "L of 16 bits":
        return sixteen_bits(0, deep[..., :1], chunk, png_chunk(b"tRNS", struct.pack(">H", 200 * 257)))
    return sixteen_bits(2, deep[..., :3], chunk, png_chunk(b"tRNS", struct.pack(">HHH", 200 * 257, 0, 0)))


ALPHA_MODES = [
    *(f"{mode} in PNG" for mode in ("RGBA", "LA", "P", "L", "RGB", "1")),
    *(f"{mode} of 16 bits in PNG" for mode in ("RGBA", "LA", "L", "RGB")),
    *(f"RGBA in {form}" for form in ("WEBP", "TIFF", "GIF", "AVIF")),
]
"""vllm-project/vllm#44974 (RGB, L with tRNS), thumbor/thumbor#1879 (P with tRNS), jazzband/sorl-thumbnail#265 (LA)."""


SHOWN: dict[str, Callable[[], bytes]] = {
    "AcademySoftwareFoundation/OpenImageIO#2837": lambda: with_scan_bytes(JPEG, b"\0\0\0"),
    "opencv/opencv#24212": lambda: with_scan_bytes(JPEG, b"\0\0\1"),
    "Matthias-Wandel/jhead#18": lambda: with_scan_bytes(JPEG, b"\x3f\0\xff"),
    "lovell/sharp#1578": lambda: with_scan_bytes(JPEG, b"\1\x3f\0"),
    "python-pillow/Pillow#1977": lambda: with_segment(JPEG, b"\xff\0\xff\0"),
    "jpeg-js/jpeg-js#82": lambda: with_segment(JPEG, b"\0\xe1" + bytes(20)),
    "python-pillow/Pillow#5086": lambda: with_segment(JPEG, segment(0xED, b"Photoshop 3.0\0008BIM\x07\xdb")),
    "python-pillow/Pillow#2445": lambda: with_chunks(PNG, unpacks_to(b"iCCP", 1_250_000)),
    "python-pillow/Pillow#8363": lambda: with_chunks(PNG, unpacks_to(b"zTXt", 1_250_000)),
    "KatherLab/STAMP#76": lambda: with_chunks(PNG, unpacks_to(b"iTXt", 1_250_000)),
    "opencv/opencv#22551": lambda: with_chunks(PNG, png_chunk(b"tEXt", b"x\0" + b"a" * 10 * MIB)),
    "python-pillow/Pillow#1991": lambda: with_chunks(PNG, broken(png_chunk(b"iTXt", b"x\0\0\0\0\0y"))),
    "python-pillow/Pillow#5631": lambda: with_chunks(PNG, broken(png_chunk(b"iCCP", b"x\0\0" + zlib.compress(b"y")))),
    "python-pillow/Pillow#5978": lambda: with_chunks(PNG, broken(png_chunk(b"pHYs", bytes(9)))),
    "python-pillow/Pillow#8957": lambda: with_segment(JPEG, segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0\xa8\xff")),
    "python-pillow/Pillow#6123": lambda: with_segment(JPEG, segment(0xE1, b"Exif\0\0")),
    "EXIF data of 80 MB": lambda: with_segment(JPEG, segment(0xE1, b"Exif\0\0" + shared_values(2_000, 40_000))),
    "transparency of a wrong size": lambda: with_chunks(PNG, png_chunk(b"tRNS", b"\0")),
}
"""Files that browsers and OpenCV show as JPEG or PNG, by the public report of a decoder that refused such a file."""


def with_more_rows(tiff: bytes) -> bytes:
    """A TIFF whose header promises ten times as many rows as its strips have (found by fuzzing)."""
    (entry,) = re.finditer(rb"\x01\x01[\x03\x04]\0\x01\0\0\0", tiff)
    height = int.from_bytes(tiff[entry.end() : entry.end() + 2], "little")
    return tiff[: entry.end()] + (10 * height).to_bytes(2, "little") + tiff[entry.end() + 2 :]


def with_size(jpeg: bytes, width: int, height: int) -> bytes:
    """A progressive JPEG whose header gives a wrong size."""
    at = jpeg.index(b"\xff\xc2")
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]


BOMBS: dict[str, Callable[[], bytes]] = {
    "text of a PNG": lambda: with_chunks(PNG, *(unpacks_to(kind, 256 * MIB) for kind in (b"zTXt", b"iTXt", b"iCCP"))),
    "plain text of a PNG (opencv/opencv#22551)": lambda: with_chunks(PNG, png_chunk(b"tEXt", b"x\0" + bytes(10 * MIB))),
    "small chunks of a PNG": lambda: with_chunks(PNG, png_chunk(b"tEXt", b"") * 300_000),
    "small EXIF segments of a JPEG": lambda: with_segment(JPEG, segment(0xE1, b"Exif\0\0II*\0") * 100_000),
    "fill bytes of a JPEG": lambda: with_segment(JPEG, b"\xff" * 8 * MIB),
    "fill bytes and zeros of a JPEG": lambda: with_segment(JPEG, b"\xff\xff\xff\0" * 2 * MIB),
    "scans of a JPEG": lambda: JPEG + b"\xff\xda\0\x0c\3" * MIB,
    "comment of a GIF": lambda: gif_with_comment(2 * MIB),
    "extensions of a GIF": lambda: GIF[:13] + b"\x21\xf9\0" * (MIB // 4),
    "values of EXIF data": lambda: with_segment(JPEG, segment(0xE1, b"Exif\0\0" + shared_values(2_000, 40_000))),
    "values of a TIFF": lambda: shared_values(60_000, 8 * MIB),
    "values of the EXIF data of an AVIF": lambda: encode(picture(), "AVIF") + shared_values(30_000, 4 * MIB),
    "starts of EXIF data": lambda: encode(picture(), "AVIF") + b"II*\0" * 2 * MIB,
    "chunks of a WebP": lambda: encode(picture(), "WEBP")[:12] + b"XXXX\0\0\0\0" * (MIB // 4),
    "brands of an AVIF": lambda: struct.pack(">I4s4sI", 2**31, b"ftyp", b"mif1", 0) + b"mif1" * 2 * MIB,
}
"""Files whose metadata takes much more time or memory than its size suggests."""

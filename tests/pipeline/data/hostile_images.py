"""Build image files that are expensive to decode, damaged or disguised."""

import io
import struct
import zipfile
import zlib

from PIL import Image, ImageFile

from tests.pipeline.data.rows import encode, photo_like

_MIB = 2**20


def deflated_zeros(num_bytes: int) -> bytes:
    """A zlib stream of `num_bytes` zero bytes (at least 1 MiB), built without deflating all of them."""
    packer = zlib.compressobj(9)
    head = packer.compress(bytes(_MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(bytes(_MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    num_pieces, rest = divmod(num_bytes, _MIB)
    tail = packer.compress(bytes(rest)) + packer.flush()
    checksum = (num_bytes % 65_521) << 16 | 1  # Adler-32 of zeros
    return head + piece * (num_pieces - 1) + tail[:-4] + struct.pack(">I", checksum)


def gzipped_zeros(num_bytes: int) -> bytes:
    """A gzip file of `num_bytes` zero bytes; the checksum at its end is wrong."""
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + deflated_zeros(num_bytes)[2:-4] + struct.pack("<II", 0, num_bytes)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes, *chunks: bytes) -> bytes:
    """An 8-bit RGB PNG with additional chunks before its deflated pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"".join((b"\x89PNG\r\n\x1a\n", header, *chunks, png_chunk(b"IDAT", pixels), png_chunk(b"IEND", b"")))


def black_png(side: int, *chunks: bytes) -> bytes:
    """A black square. A side of 12,000 pixels gives 432 MB of pixels in a file of 420 KB."""
    return png(side, side, deflated_zeros(side * (3 * side + 1)), *chunks)


def small_png(*chunks: bytes) -> bytes:
    """A black square with a side of 64 pixels."""
    return png(64, 64, zlib.compress(bytes(64 * 193)), *chunks)


def with_jpeg_size(data: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header gives a wrong size."""
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def photo(width: int = 320, height: int = 240, **options: object) -> bytes:
    """A valid JPEG."""
    return encode(photo_like(1, width, height), "JPEG", quality=90, **options)


def half_with_an_end(data: bytes) -> bytes:
    """The first half of a JPEG, followed by an end marker; decoders fill the rest with grey."""
    return data[: len(data) // 2].rstrip(b"\xff") + b"\xff\xd9"


def broken_in_the_middle(data: bytes) -> bytes:
    """A JPEG whose middle tenth is replaced by meaningless bytes without a marker."""
    at, num = len(data) // 2, len(data) // 10
    return data[:at] + bytes(37 * i % 251 for i in range(num)) + data[at + num :]


def many_scans(side: int, num_scans: int) -> bytes:
    """A grey progressive JPEG that repeats one scan. A scan takes a few bytes but makes the decoder visit every block.

    The scan covers the coefficients 1 to 63, and every block is empty.
    """
    grey = encode(photo_like(1, side, side, "L"), "JPEG", progressive=True, quality=50)
    num_blocks = ((side + 7) // 8) ** 2
    # A single Huffman code of one bit for a run of 2**14 empty blocks: 0, followed by 14 bits for the run length
    table = b"\xff\xc4" + struct.pack(">H", 20) + b"\x10" + bytes([1, *bytes(15)]) + b"\xe0"
    bits = ("0" + "0" * 14) * -(-num_blocks // 2**14)
    bits += "1" * (-len(bits) % 8)
    entropy = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    first = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 63, 0) + entropy
    return grey[:-2] + table + first * num_scans + b"\xff\xd9"


def frames(count: int) -> bytes:
    """A GIF with a side of 64 pixels and `count` additional frames of one pixel."""
    gif = encode(photo_like(2, 64, 64), "GIF")
    pixel = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    return gif[:-1] + pixel * count + b"\x3b"


def animated(kind: str) -> bytes:
    """An animation of ten pictures."""
    pictures = [photo_like(i, 96, 64) for i in range(10)]
    return encode(pictures[0], kind, save_all=True, append_images=pictures[1:], duration=10)


def zip_file() -> bytes:
    """A zip archive."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("payload.js", "alert(1)")
    return sink.getvalue()


def with_exif(data: bytes, exif: bytes) -> bytes:
    """Insert an EXIF segment with arbitrary bytes into a JPEG."""
    return data[:2] + b"\xff\xe1" + struct.pack(">H", 8 + len(exif)) + b"Exif\0\0" + exif + data[2:]


def is_whole(data: bytes) -> bool:
    """Whether Pillow can decode the whole picture; raises if it cannot."""
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    with Image.open(io.BytesIO(data)) as image:
        image.load()
    return True


SVG = b"""<?xml version="1.0"?>
<!DOCTYPE svg [<!ENTITY x SYSTEM "http://10.0.0.1/entity">]>
<svg xmlns="http://www.w3.org/2000/svg" width="100" height="100"><script href="http://10.0.0.1/script"/>
<image href="http://10.0.0.1/image"/><text>&x;</text></svg>"""

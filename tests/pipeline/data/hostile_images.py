"""Files that are dear to decode, or not what they seem."""

import io
import struct
import zipfile
import zlib

from PIL import Image, ImageFile

from tests.pipeline.data.rows import encode, photo_like

_MIB = 2**20


def deflated_zeros(num_bytes: int) -> bytes:
    """A zlib stream of so many zero bytes (a MiB at least), made without deflating them all."""
    packer = zlib.compressobj(9)
    head = packer.compress(bytes(_MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(bytes(_MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    num_pieces, rest = divmod(num_bytes, _MIB)
    tail = packer.compress(bytes(rest)) + packer.flush()
    checksum = (num_bytes % 65_521) << 16 | 1  # Adler-32 of zeros
    return head + piece * (num_pieces - 1) + tail[:-4] + struct.pack(">I", checksum)


def gzipped_zeros(num_bytes: int) -> bytes:
    """A gzip file of so many zero bytes; its checksum is wrong, at its very end."""
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + deflated_zeros(num_bytes)[2:-4] + struct.pack("<II", 0, num_bytes)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes, *chunks: bytes) -> bytes:
    """A PNG of 8-bit RGB with chunks before its deflated pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"".join((b"\x89PNG\r\n\x1a\n", header, *chunks, png_chunk(b"IDAT", pixels), png_chunk(b"IEND", b"")))


def black_png(side: int, *chunks: bytes) -> bytes:
    """A black square: at 12,000 pixels, 432 MB in 420 KB."""
    return png(side, side, deflated_zeros(side * (3 * side + 1)), *chunks)


def small_png(*chunks: bytes) -> bytes:
    """A black square of 64 pixels."""
    return png(64, 64, zlib.compress(bytes(64 * 193)), *chunks)


def with_jpeg_size(data: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header says another size."""
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def photo(width: int = 320, height: int = 240, **options: object) -> bytes:
    """A good JPEG."""
    return encode(photo_like(1, width, height), "JPEG", quality=90, **options)


def half_with_an_end(data: bytes) -> bytes:
    """The first half of a JPEG and the marker of its end: decoders paint the rest grey."""
    return data[: len(data) // 2].rstrip(b"\xff") + b"\xff\xd9"


def broken_in_the_middle(data: bytes) -> bytes:
    """A JPEG of which a tenth in the middle is nonsense that holds no marker."""
    at, num = len(data) // 2, len(data) // 10
    return data[:at] + bytes(37 * i % 251 for i in range(num)) + data[at + num :]


def many_scans(side: int, num_scans: int) -> bytes:
    """A grey progressive JPEG with the same scan again and again: some bytes each, and all blocks to be gone through.

    It is one of the coefficients 1 to 63, and every block ends at once.
    """
    grey = encode(photo_like(1, side, side, "L"), "JPEG", progressive=True, quality=50)
    num_blocks = ((side + 7) // 8) ** 2
    # One Huffman code of one bit, for a run of 2**14 blocks without a coefficient: 0, and 14 bits for its length
    table = b"\xff\xc4" + struct.pack(">H", 20) + b"\x10" + bytes([1, *bytes(15)]) + b"\xe0"
    bits = ("0" + "0" * 14) * -(-num_blocks // 2**14)
    bits += "1" * (-len(bits) % 8)
    entropy = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    first = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 63, 0) + entropy
    return grey[:-2] + table + first * num_scans + b"\xff\xd9"


def frames(count: int) -> bytes:
    """A GIF of 64 pixels with so many frames of one pixel more."""
    gif = encode(photo_like(2, 64, 64), "GIF")
    pixel = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    return gif[:-1] + pixel * count + b"\x3b"


def animated(kind: str) -> bytes:
    """Ten pictures in a file."""
    pictures = [photo_like(i, 96, 64) for i in range(10)]
    return encode(pictures[0], kind, save_all=True, append_images=pictures[1:], duration=10)


def zip_file() -> bytes:
    """A zip archive."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("payload.js", "alert(1)")
    return sink.getvalue()


def with_exif(data: bytes, exif: bytes) -> bytes:
    """A JPEG with an EXIF segment of any bytes."""
    return data[:2] + b"\xff\xe1" + struct.pack(">H", 8 + len(exif)) + b"Exif\0\0" + exif + data[2:]


def is_whole(data: bytes) -> bool:
    """Whether Pillow opens a picture and decodes all of it."""
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    with Image.open(io.BytesIO(data)) as image:
        image.load()
    return True


SVG = b"""<?xml version="1.0"?>
<!DOCTYPE svg [<!ENTITY x SYSTEM "http://10.0.0.1/entity">]>
<svg xmlns="http://www.w3.org/2000/svg" width="100" height="100"><script href="http://10.0.0.1/script"/>
<image href="http://10.0.0.1/image"/><text>&x;</text></svg>"""

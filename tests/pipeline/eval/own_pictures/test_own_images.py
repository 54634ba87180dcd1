import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.eval.own_pictures.own_images import EncodedImages, ImageFile, encode_images, find_images, open_image
from pipeline.model.images.random_crop import decode
from tests.pipeline.data.hostile_images import black_png
from tests.pipeline.eval.pictures import draw
from tests.pipeline.pictures.files import ALPHA_MODES, SHOWN, with_alpha


class MeanColour(nn.Module):
    """The mean colour as features: B x 3 x S x S -> B x 3."""

    def encode_image(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


def to_tensor(image: Image.Image) -> Tensor:
    return torch.tensor(np.asarray(image.convert("RGB").resize((4, 4))), dtype=torch.float32).permute(2, 0, 1)


def encode(files: list[ImageFile], batch_size: int = 2) -> EncodedImages:
    return encode_images(
        MeanColour(), to_tensor, files, batch_size=batch_size, device="cpu", advance=lambda _count: None
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images at two depths, two hidden images, and a file that is not an image."""
    for name in ("b.jpg", "a.JPEG", "10.png", "deep/er/c.webp", ".hidden.jpg", ".trash/d.jpg"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), "red").save(path, "PNG")
    (tmp_path / "pictures" / "notes.txt").write_text("no image")
    return tmp_path / "pictures"


def names(files: list[ImageFile], folder: Path) -> list[str]:
    return [str(file.path.relative_to(folder)) for file in files]


def test_images_below_a_folder_are_sorted_by_name(folder: Path) -> None:
    assert names(find_images([str(folder)]), folder) == ["10.png", "a.JPEG", "b.jpg", "deep/er/c.webp"]


def test_named_files_keep_their_order_and_appear_once(folder: Path) -> None:
    paths = [folder / "notes.txt", folder / "b.jpg", folder / "deep", folder]
    files = find_images([str(path) for path in paths])
    assert names(files, folder) == ["notes.txt", "b.jpg", "deep/er/c.webp", "10.png", "a.JPEG"]
    assert [file.named for file in files] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("paths", "kind", "message"),
    [
        ([], ValueError, "give an image or a folder"),
        (["gone.jpg"], FileNotFoundError, "the file or folder 'gone.jpg' does not exist"),
        (["empty"], ValueError, "the folder 'empty' contains no images"),
    ],
)
def test_paths_without_images(
    paths: list[str], kind: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(kind, match=message):
        find_images(paths)


def test_a_name_with_invalid_utf8_can_be_printed() -> None:
    name = str(ImageFile(Path(os.fsdecode(b"caf\xe9.jpg")), named=True))
    assert name == "caf\N{REPLACEMENT CHARACTER}.jpg"
    name.encode()


@pytest.mark.parametrize(
    ("mode", "form"),
    [("P", "PNG"), ("P", "GIF"), ("L", "JPEG"), ("LA", "PNG"), ("RGBA", "WEBP"), ("CMYK", "JPEG"), ("CMYK", "TIFF"),
     ("1", "PNG"), ("I;16", "PNG"), ("I;16", "TIFF"), ("RGB", "BMP")],
)  # fmt: skip
def test_images_of_every_mode(mode: str, form: str, tmp_path: Path) -> None:
    pixels = np.full((6, 8), 40_000, np.uint16)
    image = Image.fromarray(pixels) if mode == "I;16" else Image.new("RGB", (8, 6), "red").convert(mode)
    image.save(tmp_path / "image", form)
    assert open_image(tmp_path / "image").size == (8, 6)
    assert encode(find_images([str(tmp_path / "image")])).features.shape == (1, 3)


@pytest.mark.parametrize("name", [*SHOWN, *ALPHA_MODES])
def test_images_are_decoded_as_in_training(name: str, tmp_path: Path) -> None:
    image = SHOWN[name]() if name in SHOWN else with_alpha(name, 6)
    (tmp_path / "image").write_bytes(image)
    assert np.array_equal(np.asarray(open_image(tmp_path / "image").convert("RGB")), decode(image))


@pytest.mark.parametrize("brand", [b"avif", b"mif1"])
def test_an_avif_of_any_brand_is_found_and_opened(brand: bytes, tmp_path: Path) -> None:
    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.avif")
    data = (tmp_path / "a.avif").read_bytes()
    (tmp_path / "a.avif").write_bytes(data[:8] + brand + data[12:])
    (file,) = find_images([str(tmp_path)])
    assert open_image(file.path).size == (8, 6)


def test_a_file_that_cannot_be_opened_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(ValueError, match="No such file"):
        open_image(tmp_path / "gone.jpg")


def test_a_photograph_is_rotated_by_its_exif_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg").size == (6, 8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"<html>not found</html>", "not an image in a known format"),
        (draw("circle", "red")[:900], "truncated"),
        (draw("circle", "red", "PNG")[:200], "."),
        (black_png(10_000), "100000000|10000 x 10000 pixels are more than 89,000,000"),
    ],
)
def test_files_that_cannot_be_read(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_image(tmp_path / "a.jpg")


def test_readable_files_are_encoded_and_others_are_reported(folder: Path) -> None:
    (folder / "a.JPEG").write_bytes(b"")
    (folder / "b.jpg").write_bytes(draw("circle", "blue"))
    files = find_images([str(folder)])
    for batch_size in (1, 3, 9):
        encoded = encode(files, batch_size)
        assert names(list(encoded.files), folder) == ["10.png", "b.jpg", "deep/er/c.webp"]
        assert [(file.file.path.name, file.reason) for file in encoded.unreadable] == [("a.JPEG", "the file is empty")]
        torch.testing.assert_close(encoded.features[0], torch.tensor([255.0, 0.0, 0.0]))
        assert encoded.features[1, 2] > encoded.features[1, 0]


def test_without_a_readable_file_encoding_raises(folder: Path) -> None:
    for file in find_images([str(folder)]):
        file.path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"0 of 4 files can be read; .*10\.png: the file is empty"):
        encode(find_images([str(folder)]))


def test_a_model_that_has_diverged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MeanColour, "encode_image", lambda _model, images: images.mean(dim=(2, 3)) * float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        encode(find_images([str(folder)]))

"""From an encoded image to pixels: every mode, every orientation, against Pillow by hand."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from sfumato.data.decode import BadImage, Target, decode, read_header
from tests.messages import IN_BRACKETS
from tests.pictures import bomb, encoded, noise

RGB = Target(resolution=8, channels=3, fit="crop")
GREY = Target(resolution=8, channels=1, fit="crop")


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes, target: Target = RGB) -> np.ndarray:
    array, _ = decode(data, target)
    assert array.shape == (target.channels, 8, 8)
    assert array.dtype == np.uint8
    return array.transpose(1, 2, 0)


def test_pixels_of_the_right_size_are_left_as_they_are() -> None:
    array = noise(0, (8, 8, 3))
    assert np.array_equal(pixels(encoded(array)), array)
    assert np.array_equal(pixels(encoded(array[..., 0]), GREY)[..., 0], array[..., 0])
    assert np.array_equal(decode(array, RGB)[0].transpose(1, 2, 0), array)


def test_grey_becomes_three_channels_and_colour_one() -> None:
    array = noise(0, (8, 8, 3))
    assert np.array_equal(pixels(encoded(array[..., 0])), np.repeat(array[..., :1], 3, 2))
    by_hand = array @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert np.abs(pixels(encoded(array), GREY)[..., 0] - by_hand).max() <= 1


@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_odd_sizes_are_cropped_or_squashed(fit) -> None:
    array = noise(0, (37, 52, 3))
    ours, header = decode(encoded(array), Target(resolution=8, channels=3, fit=fit))
    square = array[:, 7:44] if fit == "crop" else array
    theirs = Image.fromarray(square).resize((8, 8), Image.Resampling.BILINEAR)
    assert np.array_equal(ours.transpose(1, 2, 0), np.asarray(theirs))
    assert header == (52, 37, "PNG", False)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied(orientation: int, kind: str) -> None:
    """An arrow that is stored turned or mirrored comes out as it was seen."""
    seen = np.zeros((8, 8, 3), np.uint8)
    seen[:4, :4], seen[:4, 4:], seen[4:, :4] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    undo = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270}  # fmt: skip
    stored = Image.fromarray(seen)
    if orientation in undo:
        stored = stored.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    if kind == "WEBP":
        options = {"lossless": True}
    got = pixels(saved(stored, kind, exif=exif, **options)).astype(int)
    assert np.abs(got - seen).max() <= (3 if kind == "JPEG" else 0)


def test_16_bits_are_scaled_not_clipped() -> None:
    values = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    expected = np.rint(values / 257)
    assert np.array_equal(pixels(saved(Image.fromarray(values)), GREY)[..., 0], expected)
    assert np.array_equal(pixels(saved(Image.fromarray(values), "TIFF"), GREY)[..., 0], expected)
    assert np.array_equal(pixels(saved(Image.fromarray(values)))[..., 2], expected)


def test_transparency_is_laid_on_white() -> None:
    array = noise(0, (8, 8, 4))
    alpha = array[..., 3:] / 255
    expected = array[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(pixels(saved(Image.fromarray(array))) - expected).max() <= 1
    clear = Image.new("P", (8, 8), 0)
    clear.putpalette([0, 0, 0, 255, 0, 0])
    assert (pixels(saved(clear, transparency=0)) == 255).all()  # black, were it not transparent
    keyed = saved(Image.new("RGB", (8, 8), (1, 2, 3)), transparency=(1, 2, 3))
    assert (pixels(keyed) == 255).all()
    grey = Image.new("LA", (8, 8), (0, 0))
    assert (pixels(saved(grey), GREY) == 255).all()


def test_palettes_bits_and_cmyk() -> None:
    array = np.array([[(255, 0, 0), (0, 128, 0)] * 4] * 8, np.uint8)
    palette = Image.fromarray(array).convert("P", palette=Image.Palette.ADAPTIVE)
    assert np.array_equal(pixels(saved(palette)), array)
    assert np.array_equal(pixels(saved(palette, "GIF")), array)
    bits = Image.fromarray(noise(0, (8, 8))).convert("1")
    assert np.array_equal(pixels(saved(bits), GREY)[..., 0], np.asarray(bits) * 255)
    ink = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # no cyan: red
    assert np.abs(pixels(saved(ink, "JPEG", quality=100)).astype(int) - (255, 0, 0)).max() <= 3
    assert np.array_equal(pixels(saved(ink, "TIFF")), np.full((8, 8, 3), (255, 0, 0)))


def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same() -> None:
    smooth = Image.fromarray(noise(0, (9, 12, 3))).resize((1200, 900), Image.Resampling.BICUBIC)
    data = saved(smooth, "JPEG", quality=95)
    full = Image.open(io.BytesIO(data)).crop((150, 0, 1050, 900))
    expected = np.asarray(full.resize((8, 8), Image.Resampling.BILINEAR))
    difference = np.abs(pixels(data).astype(int) - expected)
    assert difference.max() <= 12
    assert difference.mean() <= 2
    assert decode(data, RGB)[1][:2] == (1200, 900)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(None, id="none"),
        pytest.param(b"", id="no bytes"),
        pytest.param(b"not an image at all", id="text"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", id="EPS"),
        pytest.param(encoded(noise(0))[:200], id="PNG cut short"),
        pytest.param(encoded(noise(0, (64, 64, 3)), "JPEG")[:-300], id="JPEG cut short"),
        pytest.param(bomb(), id="bomb"),
        pytest.param(bomb(11_000), id="bomb of 11000 pixels"),
        pytest.param(saved(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"), id="float TIFF"),
    ],
)
def test_what_is_refused_and_why(data, refused) -> None:
    with refused(BadImage, theirs=IN_BRACKETS):
        decode(data, RGB)


def test_a_flipped_byte_is_seen_by_its_checksum(refused) -> None:
    data = bytearray(encoded(noise(0)))
    data[len(data) // 2] ^= 1
    with refused(BadImage, theirs=IN_BRACKETS):
        decode(bytes(data), RGB)


def test_headers_are_read_without_decoding(tmp_path: Path, refused) -> None:
    assert read_header(encoded(noise(0, (5, 7)))) == (7, 5, "PNG", True)
    assert read_header(noise(0, (5, 7, 3))) == (7, 5, "raw", False)
    file = tmp_path / "a.jpg"
    file.write_bytes(encoded(noise(0, (5, 7, 3)), "JPEG"))
    assert read_header(file) == (7, 5, "JPEG", False)
    with refused(BadImage):
        read_header(tmp_path / "b.jpg")


def test_a_colour_profile_changes_nothing() -> None:
    array = noise(0, (8, 8, 3))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(pixels(saved(Image.fromarray(array), icc_profile=profile)), array)

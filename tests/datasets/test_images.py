import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from irn_pipeline.datasets.images import read_image, read_image_size, read_label
from irn_pipeline.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)


def save(path, picture, **options):
    picture.save(path, **options)
    return path


def smooth(height, width):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], -1).astype(
        np.uint8
    )


def grey_png(path, values, depth):
    """A grey PNG of 1, 2, 4 or 16 bits a pixel, written by hand."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = values.shape
    bits = ((values[..., None] >> np.arange(depth - 1, -1, -1)) & 1).reshape(height, -1).astype(np.uint8)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def test_png_is_exact_and_jpeg_agrees_with_pillow(tmp_path):
    png = save(tmp_path / "a.png", Image.fromarray(PIXELS))
    np.testing.assert_array_equal(read_image(png), PIXELS)
    jpeg = save(tmp_path / "a.jpg", Image.fromarray(smooth(40, 61)), quality=90)
    decoded = read_image(jpeg)
    assert decoded.shape == (40, 61, 3) and decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - np.asarray(Image.open(jpeg)).astype(int)).max() <= 2


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3000, 4000)])
def test_any_size(tmp_path, suffix, size):
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(np.full((*size, 3), 128, np.uint8)))
    pixels = read_image(path)
    assert pixels.shape == (*size, 3) and read_image_size(path) == size
    assert (pixels == 128).all()


def test_every_pixel_kind_becomes_rgb(tmp_path):
    grey = PIXELS[..., 0]
    alpha = np.full(grey.shape, 3, np.uint8)
    picture = Image.fromarray(PIXELS)
    palette = picture.quantize(16)
    cases = {
        "grey": (Image.fromarray(grey), np.repeat(grey[..., None], 3, 2)),
        "rgba": (Image.fromarray(np.dstack([PIXELS, alpha])), PIXELS),
        "grey_alpha": (Image.fromarray(np.dstack([grey, alpha])), np.repeat(grey[..., None], 3, 2)),
        "palette": (palette, np.asarray(palette.convert("RGB"))),
        "bilevel": (Image.fromarray(grey > 127), np.repeat(((grey > 127) * 255)[..., None], 3, 2)),
    }
    for name, (stored, expected) in cases.items():
        np.testing.assert_array_equal(
            read_image(save(tmp_path / f"{name}.png", stored)), expected, err_msg=name
        )
    grey_jpeg = read_image(save(tmp_path / "grey.jpg", Image.fromarray(smooth(20, 20)[..., 0])))
    assert grey_jpeg.shape == (20, 20, 3) and (grey_jpeg[..., 0] == grey_jpeg[..., 2]).all()


def test_cmyk_jpeg_keeps_its_colours(tmp_path):
    red = Image.fromarray(np.full((16, 16, 3), (200, 30, 40), np.uint8)).convert("CMYK")
    pixels = read_image(save(tmp_path / "a.jpg", red, quality=95))
    assert np.abs(pixels.astype(int) - (200, 30, 40)).max() <= 6


def test_sixteen_bits_are_scaled(tmp_path):
    grey = grey_png(tmp_path / "grey.png", np.array([[0, 257, 32896, 65535]]), 16)
    np.testing.assert_array_equal(read_image(grey)[0, :, 0], [0, 1, 128, 255])
    colour = tmp_path / "colour.png"
    assert cv2.imwrite(str(colour), PIXELS[..., ::-1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_image(colour), PIXELS)


def test_exif_rotation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.jpg", Image.fromarray(smooth(20, 30)), exif=exif)
    assert read_image(path).shape == (20, 30, 3) and read_image_size(path) == (20, 30)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": "preview"}])
def test_every_cut_of_a_jpeg_is_noticed(tmp_path, options):
    stream = io.BytesIO()
    if options.get("exif"):
        preview = io.BytesIO()
        Image.fromarray(smooth(8, 8)).save(preview, "JPEG")
        # A preview inside the header carries an end marker, which must not count as the picture's own.
        options = {"exif": b"Exif\0\0MM\0\x2a\0\0\0\x08\0\0\0\0\0\0" + preview.getvalue()}
    Image.fromarray(smooth(48, 64)).save(stream, "JPEG", **options)
    whole = stream.getvalue()
    path = tmp_path / "a.jpg"
    path.write_bytes(whole + b"\0\0trailing bytes")
    assert read_image(path).shape == (48, 64, 3)
    for length in [1, 3, 20, *range(30, len(whole) - 1, 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\.jpg"):
            read_image(path)


def test_every_cut_of_a_png_is_noticed(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(PIXELS))
    whole = path.read_bytes()
    for length in [0, 4, 20, 40, len(whole) // 2, len(whole) - 30]:
        path.write_bytes(whole[:length])
        for read in (read_image, read_label):
            with pytest.raises(DataError, match=r"a\.png"):
                read(path)


@pytest.mark.parametrize("read", [read_image, read_label, read_image_size])
def test_what_is_no_picture_is_refused_in_one_line(tmp_path, read):
    (tmp_path / "text.jpg").write_text("<html>404 not found</html>")
    (tmp_path / "empty.png").touch()
    for name in ("missing.jpg", "text.jpg", "empty.png", "."):
        with pytest.raises(DataError) as caught:
            read(tmp_path / name)
        message = str(caught.value)
        assert str(tmp_path / name) in message and "\n" not in message and ";" in message


def test_the_kind_comes_from_the_bytes_not_the_name(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(PIXELS).save(path, "PNG")
    np.testing.assert_array_equal(read_image(path), PIXELS)


def test_palette_and_grey_labels_are_exact(tmp_path):
    label = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(read_label(save(tmp_path / "grey.png", Image.fromarray(label))), label)
    palette = Image.fromarray(label, "P")
    palette.putpalette([7] * 768)
    np.testing.assert_array_equal(read_label(save(tmp_path / "palette.png", palette)), label)
    few = Image.fromarray(label % 3, "P")
    few.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    np.testing.assert_array_equal(read_label(save(tmp_path / "few.png", few, bits=2)), label % 3)


@pytest.mark.parametrize("depth", [1, 2, 4, 16])
def test_labels_of_any_bit_depth_are_exact(tmp_path, depth):
    values = np.arange(min(2**depth, 256)).reshape(2, -1)
    label = read_label(grey_png(tmp_path / "a.png", values, depth))
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, values)


def test_colour_and_too_large_labels_are_refused(tmp_path):
    with pytest.raises(DataError, match="one channel"):
        read_label(save(tmp_path / "a.png", Image.fromarray(PIXELS)))
    with pytest.raises(DataError, match="300"):
        read_label(grey_png(tmp_path / "b.png", np.array([[1, 300]]), 16))

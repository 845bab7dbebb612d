import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, features

from irn_pipeline.datasets.headers import read_header
from irn_pipeline.datasets.images import read_image, read_image_size, read_label
from irn_pipeline.errors import DataError
from irn_pipeline.ops.orientation import turned

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
    opaque = np.full(grey.shape, 255, np.uint8)
    picture = Image.fromarray(PIXELS)
    palette = picture.quantize(16)
    cases = {
        "grey": (Image.fromarray(grey), np.repeat(grey[..., None], 3, 2)),
        "rgba": (Image.fromarray(np.dstack([PIXELS, opaque])), PIXELS),
        "grey_alpha": (Image.fromarray(np.dstack([grey, opaque])), np.repeat(grey[..., None], 3, 2)),
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


ROTATED = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "tif": "TIFF"}


def rotated(path, pixels, orientation, kind="JPEG"):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(kind, {})
    return save(path, Image.fromarray(pixels), format=kind, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ROTATED)
def test_pictures_are_turned_as_viewers_show_them(tmp_path, suffix, orientation):
    path = rotated(tmp_path / f"a.{suffix}", smooth(20, 30), orientation, ROTATED[suffix])
    pixels = read_image(path)
    upright = turned(smooth(20, 30), orientation)
    assert pixels.shape == upright.shape == (*read_image_size(path), 3)
    assert np.abs(pixels.astype(int) - upright).max() <= 12
    if suffix == "jpg":
        shown = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
        np.testing.assert_array_equal(pixels, shown)
    stored = read_image(path, 1)
    assert stored.shape == (20, 30, 3) == (*read_image_size(path, 1), 3)
    assert np.abs(stored.astype(int) - smooth(20, 30)).max() <= 12
    np.testing.assert_array_equal(read_image(path, orientation), pixels)


def test_the_orientation_of_a_png_may_follow_its_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    body = exif.tobytes()[6:]
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    path = save(tmp_path / "a.png", Image.fromarray(PIXELS))
    whole = path.read_bytes()
    path.write_bytes(whole[:-12] + chunk + whole[-12:])
    np.testing.assert_array_equal(read_image(path), np.rot90(PIXELS, -1))
    assert read_image_size(path) == (17, 12)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x05garbage", b"Exif\0\0" + b"\xff" * 40]
)
def test_damaged_exif_is_no_rotation_and_no_message(tmp_path, exif, recwarn, capfd):
    stream = io.BytesIO()
    Image.fromarray(smooth(20, 30)).save(stream, "JPEG")
    whole = stream.getvalue()
    path = tmp_path / "a.jpg"
    path.write_bytes(whole[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + whole[2:])
    assert read_image(path).shape == (20, 30, 3) and read_image_size(path) == (20, 30)
    assert not recwarn.list and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_impossible_orientations_are_none(tmp_path, value):
    assert read_image(rotated(tmp_path / "a.jpg", smooth(20, 30), value)).shape == (20, 30, 3)


def test_transparent_pixels_are_white(tmp_path, recwarn):
    alpha = np.zeros(PIXELS.shape[:2], np.uint8)
    alpha[:, 8:] = 255
    alpha[:, 12:] = 128
    half = (PIXELS.astype(int) * 128 + 255 * 127 + 127) // 255
    expected = np.where(alpha[..., None] == 0, 255, np.where(alpha[..., None] == 128, half, PIXELS))
    rgba = Image.fromarray(np.dstack([PIXELS, alpha]))
    np.testing.assert_array_equal(read_image(save(tmp_path / "rgba.png", rgba)), expected)
    np.testing.assert_array_equal(read_image(save(tmp_path / "rgba.tif", rgba)), expected)
    np.testing.assert_array_equal(read_image(save(tmp_path / "rgba.webp", rgba, lossless=True)), expected)
    grey = Image.fromarray(np.dstack([PIXELS[..., 0], alpha]))
    np.testing.assert_array_equal(read_image(save(tmp_path / "la.png", grey))[..., 1], expected[..., 0])
    deep = np.dstack([PIXELS.astype(np.uint16), alpha]) * 257
    assert cv2.imwrite(str(tmp_path / "deep.png"), deep[..., [2, 1, 0, 3]])
    assert np.abs(read_image(tmp_path / "deep.png").astype(int) - expected).max() <= 1
    assert not recwarn.list


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 128])])
@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_transparent_palettes_are_over_white(tmp_path, recwarn, suffix, transparency):
    if suffix == "gif" and transparency != 1:
        pytest.skip("a GIF has one transparent colour")
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    palette.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    pixels = read_image(save(tmp_path / f"a.{suffix}", palette, transparency=transparency))
    last = [0, 0, 200] if transparency == 1 else [127, 127, 227]
    assert np.abs(pixels[0].astype(int) - [[200, 0, 0], [255, 255, 255], last]).max() <= 1
    assert not recwarn.list


def test_a_picture_without_an_opaque_pixel_is_taken_as_opaque(tmp_path):
    clear = np.dstack([PIXELS, np.zeros(PIXELS.shape[:2], np.uint8)])
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", Image.fromarray(clear))), PIXELS)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_deep_pictures_are_scaled_by_the_bits_they_use(tmp_path, suffix, channels, bits):
    white = 2**bits - 1
    values = np.array([[0, white // 2, white - 1, white]], np.uint16)
    stored = values if channels == 1 else np.repeat(values[..., None], 3, 2)
    path = tmp_path / f"a.{suffix}"
    assert cv2.imwrite(str(path), stored)
    pixels = read_image(path)
    assert pixels.shape == (1, 4, 3) and read_image_size(path) == (1, 4)
    # 127.5 less a half of one step.
    assert pixels[0, :, 0].tolist() == [0, 127, 254 if bits == 8 else 255, 255]
    assert (pixels == pixels[..., :1]).all()


def test_a_dark_twelve_bit_picture_keeps_its_colours(tmp_path):
    path = tmp_path / "a.png"
    # Blue, green, red: OpenCV's order.
    assert cv2.imwrite(str(path), np.full((2, 2, 3), (0, 2048, 4095), np.uint16))
    assert read_image(path)[0, 0].tolist() == [255, 128, 0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 0.2, 0.4], [0, 51, 102]),
        ([0.0, 51.0, 255.0], [0, 51, 255]),
        ([0.0, 2047.5, 4095.0], [0, 128, 255]),
        ([-1.0, np.nan, 1.0], [0, 0, 255]),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floating_point_tiffs(tmp_path, values, expected, channels, dtype):
    array = np.repeat(np.array([values], dtype)[..., None], channels, 2)
    assert cv2.imwrite(str(tmp_path / "a.tif"), array, [cv2.IMWRITE_TIFF_COMPRESSION, 1])
    assert read_image(tmp_path / "a.tif")[0, :, 1].tolist() == expected
    assert read_image_size(tmp_path / "a.tif") == (1, 3)


def deep_tiff(path, values, orientation):
    """A TIFF of (H, W, C) uint16 values, written by hand: OpenCV writes no orientation, Pillow no 16-bit colours."""
    height, width, channels = values.shape
    pixels = values.astype("<u2").tobytes()
    tags = {
        256: width, 257: height, 258: 16, 259: 1, 262: 2 if channels == 3 else 1, 273: 8, 274: orientation,
        277: channels, 278: height, 279: len(pixels),
    }  # fmt: skip
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    end = 8 + len(pixels)
    bits = end + 2 + 12 * len(entries) + 4
    entries[2] = struct.pack("<HHI", 258, 3, channels) + (
        struct.pack("<I", bits) if channels == 3 else struct.pack("<HH", 16, 0)
    )
    directory = (
        struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4) + struct.pack("<3H", 16, 16, 16)
    )
    path.write_bytes(b"II*\0" + struct.pack("<I", end) + pixels + directory)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("channels", [1, 3])
def test_deep_tiffs_are_turned(tmp_path, orientation, channels):
    values = np.arange(4 * 6 * channels, dtype=np.uint16).reshape(4, 6, channels) * 50
    path = tmp_path / "a.tif"
    deep_tiff(path, values, orientation)
    stored = np.broadcast_to((values * (255 / 4095)).round().clip(0, 255), (4, 6, 3))
    np.testing.assert_array_equal(read_image(path, 1), stored)
    np.testing.assert_array_equal(read_image(path), turned(stored, orientation))
    assert read_image_size(path) == turned(stored, orientation).shape[:2]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(("a.gif", {}), ("a.bmp", {}), ("a.tif", {}), ("a.ppm", {}), ("a.webp", {"lossless": True})),
        *(("lzw.tif", {"compression": "tiff_lzw"}), ("zip.tif", {"compression": "tiff_adobe_deflate"})),
    ],
)
def test_every_lossless_format(tmp_path, name, options):
    few = np.array(Image.fromarray(PIXELS).quantize(32).convert("RGB"))
    path = save(tmp_path / name, Image.fromarray(few), **options)
    np.testing.assert_array_equal(read_image(path), few)
    assert read_image_size(path) == (12, 17)
    assert not read_header(path).more


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_of_several_frames_the_first_is_read(tmp_path, kind):
    frames = [Image.fromarray(np.full((6, 8, 3), grey, np.uint8)) for grey in (40, 120, 200)]
    options = {"lossless": True} if kind == "WEBP" else {}
    # The suffix says nothing.
    path = save(
        tmp_path / "a.jpg", frames[0], format=kind, save_all=True, append_images=frames[1:], **options
    )
    assert (read_image(path) == 40).all() and read_header(path).more


def test_the_first_picture_of_an_mpo_is_the_picture(tmp_path):
    frames = [Image.fromarray(np.full((6, 8, 3), grey, np.uint8)) for grey in (40, 120)]
    path = save(tmp_path / "a.jpg", frames[0], format="MPO", save_all=True, append_images=frames[1:])
    assert np.abs(read_image(path).astype(int) - 40).max() <= 1 and not read_header(path).more


@pytest.mark.parametrize("mode", ["CMYK", "1", "L", "LA"])
def test_colour_models_of_tiff(tmp_path, mode):
    stored = Image.fromarray(np.full((4, 4, 3), (200, 30, 40), np.uint8))
    picture = stored.convert(mode)
    pixels = read_image(save(tmp_path / "a.tif", picture))
    np.testing.assert_array_equal(pixels, np.array(picture.convert("RGB")))


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jpg", HEIC, "holds a HEIC image, which cannot be read; convert it to JPEG or PNG"),
        ("a.png", HEIC.replace(b"ftypheic", b"ftypmif1"), "holds a HEIC image"),
        ("a.heic", HEIC, "holds a HEIC image"),
        ("a.jpg", b"\0\0\0\x14ftypisom\0\0\2\0mp41" + bytes(99), "holds a video"),
        ("a.jpg", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), "holds a JPEG 2000 image"),
        ("a.png", b"8BPS\0\1" + bytes(99), "holds a Photoshop file"),
        ("a.tif", b"II*\0\x10\0\0\0CR\2\0" + bytes(99), "holds a Canon raw file"),
        ("a.jpg", b"%PDF-1.7\n" + bytes(99), "holds a PDF file"),
        ("a.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        ("a.jpg", b"GIF89a", "not a readable image"),
        ("a.tif", b"II*\0\x08\0\0\0", "not a readable image"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, recwarn, name, content, told):
    (tmp_path / name).write_bytes(content)
    for read in (read_image, read_image_size):
        with pytest.raises(DataError) as caught:
            read(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {told}") and "\n" not in str(caught.value)
    assert not recwarn.list


def test_a_heic_name_does_not_matter(tmp_path):
    np.testing.assert_array_equal(
        read_image(save(tmp_path / "a.heic", Image.fromarray(PIXELS), format="PNG")), PIXELS
    )


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif(tmp_path):
    path = save(tmp_path / "a.jpg", Image.fromarray(smooth(40, 60)), format="AVIF", quality=95)
    assert np.abs(read_image(path).astype(int) - smooth(40, 60)).mean() <= 3


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "BMP", "PPM", "deep PNG", "deep TIFF"])
def test_every_cut_of_a_file_is_noticed(tmp_path, kind, recwarn):
    path = tmp_path / "a.jpg"
    if kind.startswith("deep"):
        deep = np.random.default_rng(0).integers(0, 4096, (12, 17, 3)).astype(np.uint16)
        path.write_bytes(cv2.imencode({"deep PNG": ".png"}.get(kind, ".tif"), deep)[1].tobytes())
    else:
        save(path, Image.fromarray(PIXELS), format=kind)
    whole = path.read_bytes()
    read_image(path)
    for length in (5, 30, len(whole) // 2, len(whole) * 3 // 4):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\.jpg"):
            read_image(path)
    assert not recwarn.list


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


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP"])
def test_a_damaged_header_is_told_in_the_same_words_each_time(tmp_path, kind):
    path = save(tmp_path / "a.jpg", Image.fromarray(PIXELS), format=kind)
    path.write_bytes(path.read_bytes()[:12] + bytes(40))
    told = set()
    for read in (read_image, read_image_size) * 2:
        with pytest.raises(DataError) as caught:
            read(path)
        told.add(str(caught.value))
    assert len(told) == 1 and "0x" not in told.pop()


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

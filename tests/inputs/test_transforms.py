"""Loading, cropping, scaling and augmenting images."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.pixels import to_signed
from realcustom_jax.inputs.transforms import augment_reference, center_crop_resize, load_image


def picture(seed: int = 0, height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_load_image_accepts_path_bytes_pil_and_array(tmp_path):
    image = picture()
    path = tmp_path / "a.png"
    Image.fromarray(image).save(path)
    for form in (path, str(path), path.read_bytes(), Image.fromarray(image), image):
        loaded = load_image(form)
        assert loaded.dtype == np.uint8
        np.testing.assert_array_equal(loaded, image)


def test_load_image_applies_exif_rotation():
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90° clockwise to display
    loaded = load_image(encode(Image.fromarray(picture()), exif=exif))
    np.testing.assert_array_equal(loaded, np.rot90(picture(), -1))


def test_load_image_composites_transparency_on_white():
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], np.uint8)
    expected = np.array([[[10, 20, 30], [255, 255, 255]]], np.uint8)
    np.testing.assert_array_equal(load_image(Image.fromarray(pixels)), expected)
    np.testing.assert_array_equal(load_image(pixels), expected)


def test_load_image_expands_gray_palette_and_16_bits():
    gray = picture()[..., 0]
    expected = np.repeat(gray[..., None], 3, axis=-1)
    palette = Image.fromarray(gray).convert("P")
    deep = Image.fromarray(gray.astype(np.uint16) * 256)
    for form in (gray, gray[..., None], encode(Image.fromarray(gray)), encode(palette), encode(deep)):
        np.testing.assert_array_equal(load_image(form), expected)
    np.testing.assert_array_equal(load_image(gray / 255.0), expected)


def test_load_image_reads_32_bit_images():
    """PIL's modes F and I have no fixed range: the largest value tells 8 bits, 16 bits or 0…1."""
    gray = picture()[..., 0]
    expected = np.repeat(gray[..., None], 3, axis=-1)
    forms = [
        Image.fromarray(gray).convert("I"),
        Image.fromarray(gray).convert("F"),
        Image.fromarray(gray.astype(np.int32) * 256),
        Image.fromarray(gray.astype(np.float32) / 255),
    ]
    assert [form.mode for form in forms] == ["I", "F", "I", "F"]
    for form in forms:
        np.testing.assert_array_equal(load_image(form), expected)
    for bad in (np.full((4, 4), -1.0), np.full((4, 4), 256.0), np.full((4, 4), np.nan), [[-5]], [[70000]]):
        bad = np.asarray(bad)
        bad = bad.astype(np.int32 if bad.dtype.kind == "i" else np.float32)
        with pytest.raises(UserError, match=r"mode [FI] and values not within"):
            load_image(Image.fromarray(bad))


def test_load_image_rejects_pipes_devices_and_huge_arrays(tmp_path):
    """Opening a FIFO would wait forever."""
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(UserError, match="is a pipe or a device"):
            load_image(path)
    with open(tmp_path / "text", "w+") as text, pytest.raises(UserError, match="opened for bytes"):
        load_image(text)
    with pytest.raises(UserError, match="1000000 high and 1000000 wide, more than"):
        load_image(np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (10**6, 10**6, 3)))


def test_load_image_errors_name_the_input(tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(encode(Image.fromarray(picture(0, 64, 64)), "JPEG")[:300])
    with pytest.raises(UserError, match=r"broken\.jpg' cannot be decoded"):
        load_image(broken)
    with pytest.raises(UserError, match=r"missing\.png' does not exist"):
        load_image(tmp_path / "missing.png")
    with pytest.raises(UserError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(UserError, match="the subject cannot be decoded"):
        load_image(b"no image", name="the subject")
    with pytest.raises(UserError, match=r"not \(6, 8, 2\)"):
        load_image(picture()[..., :2])
    with pytest.raises(UserError, match="outside"):
        load_image(picture().astype(np.float32))
    with pytest.raises(UserError, match="is int64"):
        load_image(picture().astype(np.int64))
    with pytest.raises(UserError, match="not NoneType"):
        load_image(None)


def test_truncated_opened_pil_image_raises(tmp_path):
    """`Image.open` reads the header alone: the damage shows only when the pixels are decoded."""
    whole = encode(Image.fromarray(picture(0, 64, 64)))
    opened = Image.open(io.BytesIO(whole[: len(whole) // 2]))
    with pytest.raises(UserError, match="the PIL image cannot be decoded as an image"):
        load_image(opened)


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_image_without_pixels_raises(size, mode):
    with pytest.raises(
        UserError, match=f"the PIL image has no pixels: it is {size[1]} high and {size[0]} wide"
    ):
        load_image(Image.new(mode, size))


def test_center_crop_resize_keeps_centre_and_aspect():
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200
    np.testing.assert_array_equal(center_crop_resize(wide, 8), wide[:, 8:16])
    assert center_crop_resize(wide, (4, 12)).shape == (4, 12, 3)
    tall = wide.transpose(1, 0, 2)
    # The edge pixels blend with what lies just outside the crop: 15 is less than a tenth of 200.
    np.testing.assert_allclose(center_crop_resize(tall, 4), np.full((4, 4, 3), 200), atol=15)


def test_center_crop_resize_antialiases_and_keeps_same_size_exact():
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    checks = np.repeat(checks[..., None], 3, -1).astype(np.uint8)
    # Without antialiasing a checkerboard shrinks to black or white; with it, to gray. ±8: Lanczos, at edges.
    assert abs(center_crop_resize(checks, 8).astype(int) - 127).max() <= 8
    np.testing.assert_array_equal(center_crop_resize(picture(), (6, 8)), picture())


def test_to_signed_spans_minus_one_to_one():
    result = to_signed(np.array([0, 255], np.uint8))
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, [-1, 1])


def test_augment_reference_is_identity_at_zero_and_deterministic():
    image = picture(0, 32, 24)
    np.testing.assert_array_equal(augment_reference(image, np.random.default_rng(0), 0.0), image)
    once, twice = (augment_reference(image, np.random.default_rng(3), 1.0) for _ in range(2))
    np.testing.assert_array_equal(once, twice)
    assert once.shape == image.shape and once.dtype == np.uint8
    assert (once != image).any()


def test_augment_reference_draws_equally_often_at_every_strength():
    rngs = [np.random.default_rng(0) for _ in range(3)]
    for rng, strength in zip(rngs, (0.0, 0.5, 1.0), strict=True):
        augment_reference(picture(), rng, strength)
    assert len({rng.random() for rng in rngs}) == 1


def test_augment_reference_flips_and_zooms():
    # On a left-to-right ramp the sign of the slope is the flip, its steepness the zoom and the contrast.
    ramp = np.repeat(np.linspace(40, 200, 64).astype(np.uint8)[None, :, None], 64, 0).repeat(3, -1)
    results = np.stack(
        [augment_reference(ramp, np.random.default_rng(i), 1.0).astype(float) for i in range(300)]
    )
    rows = results.mean(axis=(1, 3))
    slopes = (rows[:, 40] - rows[:, 24]) / (ramp[0, 40, 0] - float(ramp[0, 24, 0]))
    assert 0.4 < (slopes < 0).mean() < 0.6
    assert np.abs(slopes).min() < 0.6 and np.abs(slopes).max() > 1.5  # colours alone: 0.64 to 1.44


def test_augment_reference_changes_colours_within_range():
    # One colour everywhere: neither crop nor flip changes it.
    flat = np.full((8, 8, 3), (150, 100, 50), np.uint8)
    colours = np.array(
        [augment_reference(flat, np.random.default_rng(i), 1.0)[0, 0].astype(float) for i in range(300)]
    )
    brightness = colours.mean(axis=1) / 100
    assert 0.75 < brightness.min() < 0.85 and 1.15 < brightness.max() < 1.25
    # Contrast or saturation alone: 0.8 to 1.2; both: 0.64 to 1.44, plus rounding and the mean that moves.
    chroma = (colours[:, 0] - colours[:, 2]) / 100 / brightness
    assert 0.6 < chroma.min() < 0.77 and 1.23 < chroma.max() < 1.6


def test_augment_reference_change_grows_with_strength():
    image = np.asarray(Image.fromarray(picture(0, 8, 8)).resize((32, 32), Image.Resampling.BICUBIC))
    change = [
        np.mean(
            [
                np.abs(augment_reference(image, np.random.default_rng(i), s) - image.astype(int))
                for i in range(40)
            ]
        )
        for s in (0.0, 0.1, 1.0)
    ]
    assert change[0] == 0 < change[1] < change[2]


def test_augment_reference_rejects_invalid_strength():
    with pytest.raises(UserError, match=r"strength .* 1\.5"):
        augment_reference(picture(), np.random.default_rng(0), 1.5)
